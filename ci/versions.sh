#!/usr/bin/env bash
# What each step rests on, in an environment of its own: `ci/versions.sh oldest` with the oldest versions that pyproject.toml
# allows, `ci/versions.sh newest` with the newest that there are, as a user installs.
set -euo pipefail
cd "$(dirname "$0")/.."

unset PIP_CONSTRAINT # which pins others
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

case ${1:-} in
    oldest) python ci/oldest.py >"$work/pins.txt" ;;
    newest) touch "$work/pins.txt" ;;
    *) echo "ci/versions.sh oldest | newest" >&2; exit 2 ;;
esac
"${PYTHON:-$(command -v python3.11 || command -v python3)}" -m venv "$work/venv"
"$work/venv/bin/pip" install --no-compile --constraint "$work/pins.txt" ".[test]"
PATH="$work/venv/bin:$PATH" pytest -n 4 tests/vectors/test_{matrix,npy,source}.py tests/steps/test_{apply,run}.py
