#!/usr/bin/env bash
# On a machine with a GPU and all packages of RAPIDS: every test that is marked `gpu`, then the benchmark, beside cuML.
#
#   ci/gpu-rapids.sh [OUT.json] [arguments of benchmarks/gpu.py]
#
# Needs `pip install "daskmeans[gpu,test]"`. Ends within eight minutes.
set -uo pipefail
cd "$(dirname "$0")/.."

source ci/gpu.sh
measured "cupy numba cudf cuml dask_cuda dask_cudf raft_dask" "${1:-gpu-rapids.json}" 200 260 tests -- "${@:2}"
