#!/usr/bin/env bash
# The documentation builds without a warning: every link, anchor and name in it exists. The pages are in docs/_build/html.
# Needs `pip install ".[docs]"`, which ".[dev]" brings too.
set -euo pipefail
cd "$(dirname "$0")/.."
rm -rf docs/_build
python -m sphinx --builder html --jobs auto --fail-on-warning --keep-going --nitpicky --quiet docs docs/_build/html
echo "docs/_build/html/index.html"
