#!/usr/bin/env bash
# Ask pip what the extra `gpu` would install, or others that are named, with daskmeans; install nothing. Needs no GPU.
# Where the package index does not know one of the packages, or cannot be reached, it says so, and that is no failure.
set -euo pipefail
cd "$(dirname "$0")/.."

unset PIP_CONSTRAINT # which pins what CI installs, on machines without a GPU
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

for extra in "${@:-gpu}"; do
    if ! "${PYTHON:-python3}" -m pip install --quiet --dry-run --ignore-installed --report "$work/report.json" \
        ".[$extra]" 2>"$work/said.txt"; then
        cat "$work/said.txt" >&2
        # What pip says where it knows no version of a package of RAPIDS at all, whichever is asked for.
        grep -qE "requirement (cu(df|ml|py)|dask-cu|raft-dask)[^ ]* \\(from versions: none\\)" "$work/said.txt" || exit 1
        echo "$extra: skipped, as the package index has not all of it"
        continue
    fi
    "${PYTHON:-python3}" - "$extra" "$work/report.json" <<'END'
import json
import sys

with open(sys.argv[2]) as file:
    found = {item["metadata"]["name"]: item["metadata"]["version"] for item in json.load(file)["install"]}
shown = [f"{name} {found[name]}" for name in sorted(found) if name.startswith(("cu", "dask", "numba", "numpy", "pandas"))]
print(f"{sys.argv[1]}: {len(found)} packages, among them {', '.join(shown)}")
END
done
