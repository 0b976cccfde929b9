#!/usr/bin/env bash
# Ask pip what the extras `gpu` and `gpu-cu12` would install, with daskmeans, and install nothing. Needs no GPU.
set -euo pipefail
cd "$(dirname "$0")/.."

unset PIP_CONSTRAINT # which pins what CI installs, on machines without a GPU
for extra in gpu gpu-cu12; do
    report=$(mktemp)
    "${PYTHON:-python3}" -m pip install --quiet --dry-run --ignore-installed --report "$report" ".[$extra]"
    "${PYTHON:-python3}" - "$extra" "$report" <<'END'
import json
import sys

with open(sys.argv[2]) as file:
    found = {item["metadata"]["name"]: item["metadata"]["version"] for item in json.load(file)["install"]}
shown = [f"{name} {found[name]}" for name in sorted(found) if name.startswith(("cu", "dask", "numba", "numpy", "pandas"))]
print(f"{sys.argv[1]}: {len(found)} packages, among them {', '.join(shown)}")
END
    rm -f "$report"
done
