#!/usr/bin/env bash
# Style of the Python files and notebooks, and syntax of the scripts. `ci/lint.sh --fix` mends what can be mended.
set -euo pipefail
cd "$(dirname "$0")/.."

if [ "${1:-}" = --fix ]; then
    ruff check --fix .
    ruff format .
else
    ruff check .
    ruff format --check .
fi
for script in ci/*.sh .ci/run; do bash -n "$script"; done
