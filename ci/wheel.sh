#!/usr/bin/env bash
# Builds sdist and wheel, installs the wheel without extras into a bare environment, and uses it there.
set -euo pipefail
cd "$(dirname "$0")/.."
here=$PWD
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

python -m build --outdir "$work/dist" .
python - "$work"/dist/*.whl <<'END'
import sys
from pathlib import Path
from zipfile import ZipFile

packed = {name for name in ZipFile(sys.argv[1]).namelist() if ".dist-info/" not in name}
files = [file for file in Path("daskmeans").rglob("*") if file.is_file()]
source = {str(file) for file in files if not any(part.startswith((".", "__pycache__")) for part in file.parts)}
assert "daskmeans/daskmeans.yaml" in source
assert packed == source, f"wheel and checkout differ in {sorted(packed ^ source)}"
END

python -m venv "$work/bare"
"$work/bare/bin/pip" install --quiet "$work"/dist/*.whl
cd "$work" # the checkout must not be importable here
export PATH="$work/bare/bin:$PATH"
python "$here/ci/imports.py"
daskmeans --version
daskmeans --help >/dev/null
dask kmeans --help >/dev/null
