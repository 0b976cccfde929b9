"""One run of one contestant in this process: what it takes to import, to warm up, and to do the task.

python contestants.py TASK prints a line of JSON. TASK is JSON: the contestant, its settings, the file of the rows, a
seed, the number of threads, and either the number of clusters (and a file to save the centroids to) or the file of the
centroids. The rows are in memory before the clock runs; a first round on few rows has imported and compiled everything.
"""

import json
import sys
import time
import warnings
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import numpy as np
from common import labels_not_nearest, score

Fitted = tuple[np.ndarray, np.ndarray]


def fit_daskmeans(X: np.ndarray, k: int, seed: int, threads: int, **settings: Any) -> Fitted:
    from daskmeans import KMeans

    fitted = KMeans(k, random_state=seed, **settings).fit(X)
    return fitted.cluster_centers_, fitted.labels_


def fit_faiss(X: np.ndarray, k: int, seed: int, threads: int, iterations: int) -> Fitted:
    import faiss

    X = np.ascontiguousarray(X, np.float32)
    every_row = {"max_points_per_centroid": len(X), "min_points_per_centroid": 1}
    fitted = faiss.Kmeans(X.shape[1], k, niter=iterations, seed=seed, **every_row)
    fitted.train(X)
    return fitted.centroids, fitted.index.search(X, 1)[1].ravel()


def fit_sklearn(X: np.ndarray, k: int, seed: int, threads: int, **settings: Any) -> Fitted:
    from sklearn.cluster import KMeans

    fitted = KMeans(k, n_init=1, random_state=seed, **settings).fit(np.asarray(X, np.float32))
    return fitted.cluster_centers_, fitted.labels_


def fit_minibatch(X: np.ndarray, k: int, seed: int, threads: int, **settings: Any) -> Fitted:
    from sklearn.cluster import MiniBatchKMeans

    fitted = MiniBatchKMeans(k, n_init=1, random_state=seed, **settings).fit(np.asarray(X, np.float32))
    return fitted.cluster_centers_, fitted.labels_


def fit_superkmeans(X: np.ndarray, k: int, seed: int, threads: int, **settings: Any) -> Fitted:
    from superkmeans import SuperKMeans

    X = np.ascontiguousarray(X, np.float32)
    every_row = {"sampling_fraction": 1.0, "max_points_per_cluster": len(X)}
    made = SuperKMeans(k, X.shape[1], n_threads=threads, seed=seed, **every_row, **settings)
    centroids = made.train(X)
    return centroids, made.assign(X, centroids)


def fit_fastkmeans(X: np.ndarray, k: int, seed: int, threads: int, iterations: int) -> Fitted:
    from fastkmeans import FastKMeans

    X = np.ascontiguousarray(X, np.float32)
    made = FastKMeans(X.shape[1], k, niter=iterations, gpu=False, seed=seed, max_points_per_centroid=len(X))
    made.train(X)
    return made.centroids, made.predict(X)


def fit_dask_ml(X: np.ndarray, k: int, seed: int, threads: int, **settings: Any) -> Fitted:
    import dask
    import dask.array as da
    from dask_ml.cluster import KMeans

    with dask.config.set(scheduler="threads", num_workers=threads):
        rows = da.from_array(np.asarray(X, np.float32), chunks=(-(-len(X) // (4 * threads)), -1))
        fitted = KMeans(k, random_state=seed, **settings).fit(rows)
        return fitted.cluster_centers_, fitted.labels_.compute()


def predict_daskmeans(centroids: np.ndarray, X: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    from daskmeans import KMeans

    return KMeans(len(centroids), init=centroids, max_iter=0).fit(X[: len(centroids)]).predict  # type: ignore[no-any-return]


def predict_faiss(centroids: np.ndarray, X: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    import faiss

    index = faiss.IndexFlatL2(centroids.shape[1])
    index.add(centroids)
    return lambda X: index.search(X, 1)[1].ravel()  # type: ignore[no-any-return]


def predict_sklearn(centroids: np.ndarray, X: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    from sklearn.cluster import KMeans

    made = KMeans(len(centroids), init=centroids, n_init=1, max_iter=1).fit(X[: len(centroids)])
    made.cluster_centers_ = centroids
    return made.predict  # type: ignore[no-any-return]


# The package of each contestant, how it fits, and how it predicts.
KNOWN: dict[str, tuple[str, Callable[..., Fitted] | None, Callable[..., Any] | None]] = {
    "daskmeans": ("daskmeans", fit_daskmeans, predict_daskmeans),
    "faiss": ("faiss-cpu", fit_faiss, predict_faiss),
    "scikit-learn": ("scikit-learn", fit_sklearn, predict_sklearn),
    "MiniBatchKMeans": ("scikit-learn", fit_minibatch, None),
    "superkmeans": ("superkmeans", fit_superkmeans, None),
    "fastkmeans": ("fastkmeans", fit_fastkmeans, None),
    "dask-ml": ("dask-ml", fit_dask_ml, None),
}
BESIDE = {"daskmeans": ["dask", "numba", "numpy"], "fastkmeans": ["torch"], "dask-ml": ["dask"]}


def timed(function: Callable[..., Any], *args: Any, **kwargs: Any) -> tuple[float, Any]:
    """Seconds that a call took, and its result."""
    start = time.perf_counter()
    result = function(*args, **kwargs)
    return time.perf_counter() - start, result


def fit(function: Callable[..., Fitted], X: np.ndarray, task: dict[str, Any]) -> dict[str, Any]:
    """Seconds and inertia of a fit and of the labels of all rows."""
    common = {"seed": task["seed"], "threads": task["threads"], **task["settings"]}
    few = min(task["k"], 256)
    warm_up, _ = timed(function, X[: 20 * few], few, **common)
    seconds, (centroids, labels) = timed(function, X, task["k"], **common)
    if "save" in task:
        np.save(task["save"], centroids)
    inertia, distances = score(X, centroids)
    wrong = labels_not_nearest(X, centroids, labels, distances)
    return {"seconds": seconds, "inertia": inertia, "labels not nearest": wrong, "import and warm-up": warm_up}


def predict(prepare: Callable[..., Any], X: np.ndarray, task: dict[str, Any]) -> dict[str, Any]:
    """Rows a second, the best of five, and how many labels do not name the nearest centroid."""
    centroids = np.load(task["centroids"])
    labels_of = prepare(centroids, X)
    labels_of(X[:5000])
    seconds, labels = min((timed(labels_of, X) for _ in range(5)), key=lambda found: found[0])
    wrong = labels_not_nearest(X, centroids, labels, score(X, centroids)[1])
    return {"rows a second": len(X) / seconds, "labels not nearest": wrong}


def main() -> None:
    warnings.simplefilter("ignore")  # of iterations that end a fit, as they are told to
    task = json.loads(sys.argv[1])
    X = np.load(task["rows"])
    package, fits, predicts = KNOWN[task["contestant"]]
    result = predict(predicts, X, task) if "centroids" in task else fit(fits, X, task)
    beside = [package, *BESIDE.get(task["contestant"], [])]
    print(json.dumps({**result, "versions": {name: version(name) for name in beside}}))


if __name__ == "__main__":
    main()
