"""Remove near-duplicates on a cluster with one Dask worker for each GPU of this machine.

python cluster_gpu.py vectors.parquet work-directory 1000

Parquet is read onto the GPUs by cuDF and cuML finds the centroids; labels and pairs are found there too. Not yet run on
a device.
"""

import sys
from typing import Any

import dask
from distributed import Client

import daskmeans as dkm


def gpu_cluster() -> Any:
    try:
        import cupy
        from dask_cuda import LocalCUDACluster
    except ImportError as error:
        sys.exit(f'{error.name} is not installed: pip install "daskmeans[gpu]"')
    try:
        cupy.cuda.runtime.getDeviceCount()
    except cupy.cuda.runtime.CUDARuntimeError as error:
        sys.exit(f"no GPU can be used here: {error}")
    return LocalCUDACluster()


def main(vectors: str, out: str, n_clusters: str = "1000") -> None:
    with gpu_cluster() as cluster, Client(cluster) as client:
        print(f"dashboard: {client.dashboard_link}")

        with dask.config.set({"dataframe.backend": "cudf"}):
            embeddings = dkm.read_embeddings(vectors)  # a dataframe of dask_cudf
        km = dkm.KMeans(n_clusters=int(n_clusters), random_state=42, engine="cuml").fit(embeddings)
        km.save(f"{out}/model")

        dkm.write_buckets(dkm.assign(embeddings, km), f"{out}/clusters")
        result = dkm.dedup(f"{out}/clusters", threshold=0.9, out=f"{out}/decisions")
        print(result)
        print(result.removed[["id", "kept_id", "kept_score"]].head(npartitions=-1))


if __name__ == "__main__":
    main(*sys.argv[1:])
