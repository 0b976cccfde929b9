#!/usr/bin/env bash
# Tests and doctests; arguments go to pytest. Without a CUDA device the tests marked `gpu` are skipped.
set -euo pipefail
cd "$(dirname "$0")/.."

exec pytest "$@"
