#!/usr/bin/env bash
# On a machine with a GPU: the tests that need cupy and numba alone, then the benchmark; results in one JSON file.
#
#   ci/gpu-native.sh [OUT.json] [arguments of benchmarks/gpu.py]
#
# Needs daskmeans installed with what it depends on, cupy, numba-cuda, pytest, pytest-timeout and hypothesis.
# Ends within eight minutes.
set -uo pipefail
cd "$(dirname "$0")/.."

source ci/gpu.sh
measured "cupy numba" "${1:-gpu-native.json}" 150 300 tests/kernels/gpu/test_dense.py -- "${@:2}"
