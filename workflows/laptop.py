"""Remove near-duplicates from the embeddings of a Parquet file or directory, on the cores of this machine.

python laptop.py vectors.parquet work-directory 1000
"""

import sys

from distributed import Client, LocalCluster

import daskmeans as dkm


def main(vectors: str, out: str, n_clusters: str = "1000") -> None:
    # One thread a worker: then no two of them wait for the same interpreter.
    with LocalCluster(threads_per_worker=1) as cluster, Client(cluster) as client:
        print(f"dashboard: {client.dashboard_link}")

        embeddings = dkm.read_embeddings(vectors)
        km = dkm.KMeans(n_clusters=int(n_clusters), random_state=42).fit(embeddings)
        km.save(f"{out}/model")

        dkm.write_buckets(dkm.assign(embeddings, km), f"{out}/clusters")
        result = dkm.dedup(f"{out}/clusters", threshold=0.9, out=f"{out}/decisions")
        print(result)
        print(result.removed[["id", "kept_id", "kept_score"]].head(npartitions=-1))


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except dkm.DaskmeansError as error:  # such as results of an earlier run in the same directory
        sys.exit(f"error {error}")
