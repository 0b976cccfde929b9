#!/usr/bin/env bash
# What takes too long for every change: all tests, those marked `nightly` among them, with the newest packages and more
# cases of each property; then random faults, odd inputs and an hour of work. Takes some three hours on two cores.
# `ci/nightly.sh STEP...` runs some of: tests gpu fuzz faults away soak.
set -uo pipefail
cd "$(dirname "$0")/.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

"${PYTHON:-$(command -v python3.11 || command -v python3)}" -m venv "$work/venv"
. "$work/venv/bin/activate"
pip install --quiet ".[test]" polars duckdb datasets || exit 1
failed=()
[ $# != 0 ] || set -- tests gpu fuzz faults away soak
for name; do
    printf '\n== %s\n' "$name"
    case $name in
        tests) DASKMEANS_NIGHTLY=1 pytest -n 4 --timeout 1800 ;;
        gpu) ci/gpu-install.sh gpu gpu-cu12 ;;
        fuzz) python ci/fuzz.py --cases 10000 --seed "${SEED:-0}" ;;
        faults) python ci/faults.py --trials 20 --seed "${SEED:-0}" ;;
        away) python ci/faults.py --faults paused network cut --trials 5 --seed "${SEED:-0}" ;;
        soak) python ci/soak.py --minutes 60 --seed "${SEED:-0}" --out "$work/soak.json" ;;
        *) echo "no step '$name'" >&2; false ;;
    esac || failed+=("$name")
done
[ ${#failed[@]} = 0 ] || { printf 'FAILED: %s\n' "${failed[@]}"; exit 1; }
