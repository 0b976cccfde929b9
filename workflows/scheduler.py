"""Remove near-duplicates on a Dask cluster that is already running.

python scheduler.py tcp://127.0.0.1:8786 s3://bucket/vectors s3://bucket/work 1000

Every worker reads and writes the files itself: give paths that mean the same on all of them.
"""

import sys

from distributed import Client

import daskmeans as dkm


def main(address: str, vectors: str, out: str, n_clusters: str = "1000") -> None:
    # The client becomes the current one: all that daskmeans does in this block runs on its workers.
    with Client(address) as client:
        print(f"{len(client.nthreads())} workers, dashboard: {client.dashboard_link}")

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
