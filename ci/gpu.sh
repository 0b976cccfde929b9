# Sourced by ci/gpu-native.sh and ci/gpu-rapids.sh.

measured() { # measured "PACKAGES" OUT SECONDS-FOR-TESTS SECONDS-FOR-BENCHMARK TESTS... -- ARGUMENTS...
    local packages=$1 out=$2 tests_limit=$3 benchmark_limit=$4 tests=() log told status missing
    shift 4
    while [ "$1" != -- ]; do tests+=("$1"); shift; done
    shift
    missing=$(python3 - daskmeans hypothesis numba_cuda pytest pytest_timeout $packages <<'END'
import sys
from importlib.util import find_spec
print(*(name for name in sys.argv[1:] if find_spec(name) is None))
END
    )
    [ -z "$missing" ] || { echo "not installed: $missing" >&2; return 2; }
    [ -d /proc/driver/nvidia/gpus ] || { echo "no CUDA device on this machine" >&2; return 2; }
    log=$(mktemp)
    timeout "$tests_limit" python3 -m pytest -m gpu -q "${tests[@]}" 2>&1 | tee "$log"
    status=$?
    told="exit status $status: $(tail -n 1 "$log")"
    rm -f "$log"
    timeout "$benchmark_limit" python3 benchmarks/gpu.py --out "$out" --tests "$told" "$@" || status=1
    echo "tests: $told; results: $out"
    return $status
}
