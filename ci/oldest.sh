#!/usr/bin/env bash
# What each step rests on, with the oldest versions that pyproject.toml allows, in an environment of its own.
set -euo pipefail
cd "$(dirname "$0")/.."

unset PIP_CONSTRAINT # which pins newer ones
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

python ci/oldest.py >"$work/oldest.txt"
"${PYTHON:-$(command -v python3.11 || command -v python3)}" -m venv "$work/venv"
"$work/venv/bin/pip" install --constraint "$work/oldest.txt" ".[test]"
PATH="$work/venv/bin:$PATH" pytest -n 2 tests/kernels/test_distances.py tests/kmeans/test_estimator.py tests/steps/test_{apply,dedup,run}.py tests/vectors/test_{matrix,npy,source}.py
