#!/usr/bin/env bash
# Every notebook of workflows/, from top to bottom. The scripts beside them run in tests/project/test_workflows.py.
set -euo pipefail
cd "$(dirname "$0")/.."

exec pytest --nbmake --nbmake-timeout=300 workflows/*.ipynb
