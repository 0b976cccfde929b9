"""Import every module of daskmeans; fail if that needs, or brings in, a library of an extra."""

import importlib
import pkgutil
import sys

import daskmeans

# Not scipy: dask.array and numba import it where it is installed.
HEAVY = {
    *("cudf", "cuml", "cupy", "dask_cuda", "dask_cudf", "pylibcudf", "raft_dask", "torch"),
    *("bokeh", "faiss", "matplotlib", "sklearn", "wordllama"),
}

names = [module.name for module in pkgutil.walk_packages(daskmeans.__path__, "daskmeans.")]
for name in names:
    importlib.import_module(name)

loaded = sorted(HEAVY & sys.modules.keys())
if loaded:
    sys.exit(f"importing daskmeans brings in {', '.join(loaded)}")
print(f"{len(names)} modules imported from {daskmeans.__path__[0]}")
