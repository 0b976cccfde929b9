#!/usr/bin/env bash
# Write ci/constraints.txt anew: the newest releases inside the window that RAPIDS 26.10 allows, for Python 3.11 on Linux.
# Then ci/lock.txt, with their hashes.
set -euo pipefail
cd "$(dirname "$0")/.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# What rapids-dask-dependency, cudf and cuml 26.10 ask for.
cat >"$work/window.txt" <<END
dask==2026.7.1
distributed==2026.7.1
pandas>=3.0,<3.1
numpy<2.5
numba<0.65
bokeh<3.10
END

"${PYTHON:-python3.11}" -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --upgrade pip
"$work/venv/bin/python" -m pip install --quiet --dry-run --ignore-installed --report "$work/report.json" \
    --constraint "$work/window.txt" ".[demo,dev,test]" hatchling
{
    echo "# The versions CI installs: the RAPIDS 26.10 window, resolved for Python 3.11. Made by ci/constraints.sh; do not edit."
    "$work/venv/bin/python" - "$work/report.json" <<'END'
import json
import sys

with open(sys.argv[1]) as file:
    found = [item["metadata"] for item in json.load(file)["install"]]
pins = {f"{item['name'].lower().replace('_', '-')}=={item['version']}" for item in found if item["name"] != "daskmeans"}
print("\n".join(sorted(pins)))
END
} >"$work/constraints.txt"
mv "$work/constraints.txt" ci/constraints.txt
"$work/venv/bin/python" ci/hashes.py write
