#!/usr/bin/env bash
# Does the whole job have the same bits with Intel's MKL beneath numpy as with OpenBLAS? Builds numpy, which takes some
# ten minutes, and needs what daskmeans[test] installs in the environment that it is called in. Not part of .ci/run.
set -euo pipefail
cd "$(dirname "$0")/.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

python -m venv "$work/venv"
pip="$work/venv/bin/python -m pip --quiet --disable-pip-version-check"
export PIP_CONSTRAINT="$PWD/ci/constraints.txt"
$pip install mkl-devel
site=$("$work/venv/bin/python" -c "import sys; print(sys.prefix)")
export LD_LIBRARY_PATH="$site/lib" PKG_CONFIG_PATH="$site/lib/pkgconfig" MKL_INTERFACE_LAYER=LP64
$pip install --no-binary numpy numpy -C setup-args=-Dblas=mkl-sdl -C setup-args=-Dlapack=mkl-sdl
$pip install .

python - "$work" <<'END'
import subprocess
import sys
from pathlib import Path

sys.path += ["ci", "tests"]
from faults import content
from helpers import blobs, different, write_embeddings

SCRIPT = """
import sys, numpy as np, threadpoolctl
from daskmeans.cli.main import main
rng = np.random.default_rng(0)
X, Y = (rng.normal(size=shape).astype(np.float32) for shape in ((50, 300), (300, 50)))
print(*sorted({found["internal_api"] for found in threadpoolctl.threadpool_info() if found["user_api"] == "blas"}))
print(hash((X @ Y).tobytes()))
sys.stdout.flush()
main()
"""
work = Path(sys.argv[1])
X = blobs(n=20_000, d=96, k=150, copies=500)
write_embeddings(work / "in.parquet", X, row_group_size=2000)
made, products = {}, {}
for name, python in {"OpenBLAS": sys.executable, "MKL": work / "venv/bin/python"}.items():
    out = work / name
    words = ["run", work / "in.parquet", "--out", out, "--n-clusters", "300", "--threshold", "0.9", "--quiet"]
    for search in ("exact", "clusters"):
        more = ["--search", search, "--overwrite", "--dashboard-address", "127.0.0.1:0"]
        told = subprocess.run([python, "-c", SCRIPT, *map(str, words + more)], check=True, capture_output=True, text=True,
                              env={**__import__("os").environ, "PYTHONHASHSEED": "0"})  # fmt: skip
        made[name, search] = content(out)
    products[name] = told.stdout.splitlines()[:2]
print(products)
assert products["OpenBLAS"][0] != products["MKL"][0], "numpy multiplies by the same library in both"
assert products["OpenBLAS"][1] != products["MKL"][1], "the libraries multiply to the same bits, which shows nothing"
for search in ("exact", "clusters"):
    found = different(made["MKL", search], made["OpenBLAS", search])
    assert not found, f"search {search}: {sorted(found)} differ"
print(f"{len(X):,} rows, {sum(map(len, made.values()))} outputs: the same bits")
END
