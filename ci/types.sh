#!/usr/bin/env bash
# Types of the package and the workflows.
set -euo pipefail
cd "$(dirname "$0")/.."

exec mypy "$@"
