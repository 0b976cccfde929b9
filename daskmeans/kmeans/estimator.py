"""The estimator: k-means over numpy arrays, dask arrays and dask dataframes.

Longer than 350 lines because one class has all the work of a model; two fifths of them are docstrings for users.
"""

from __future__ import annotations

import contextlib
import hashlib
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import dask
import dask.array as da
import numpy as np
from distributed import Client
from upath import UPath

from daskmeans import config
from daskmeans.errors import ConvergenceWarning, DataError, UsageError
from daskmeans.kernels.backend import CPU, Backend
from daskmeans.kernels.distances import all_distances, nearest_labels
from daskmeans.kmeans import centroid_index, model
from daskmeans.kmeans.cluster_count import count_clusters, propose_clusters
from daskmeans.kmeans.contract import Contract
from daskmeans.kmeans.engine import cuml
from daskmeans.kmeans.engine.lloyd import fit_blocks, measure_centroids
from daskmeans.kmeans.engine.seeding import resolve_init, seed_centroids
from daskmeans.kmeans.engine.split import split_clusters
from daskmeans.kmeans.engine.state import Checkpoints, FitState
from daskmeans.kmeans.memory import check_compare
from daskmeans.kmeans.names import check_names, feature_names
from daskmeans.kmeans.params import count_runs, seed_from
from daskmeans.kmeans.rounding import warn_of_rounding
from daskmeans.kmeans.rows.blocks import Blocks
from daskmeans.kmeans.rows.given import is_lazy, open_rows
from daskmeans.kmeans.rows.inputs import list_partitions, prepare_on_device
from daskmeans.kmeans.rows.loading import load_blocks
from daskmeans.kmeans.scaling import warn_of_scaling
from daskmeans.kmeans.values import check_flag, is_auto, to_python
from daskmeans.runtime import blas, executor, gpus
from daskmeans.runtime.client import current_client, logger
from daskmeans.runtime.dashboard import add_page
from daskmeans.storage import manifest
from daskmeans.storage.step import open_step
from daskmeans.tuning import DEFAULT, Tuning
from daskmeans.vectors.files import open_path
from daskmeans.vectors.frames import is_cudf


class KMeans(Contract):
    """k-means clustering of vectors that may be spread over many workers.

    The same rows in the same order give bitwise identical centroids and labels on any number of workers, threads and
    partitions.

    Parameters
    ----------
    n_clusters : int or "auto", default 8
        "auto": a round number of about the square root of the number of rows; of given centroids, their number.
    max_iter : int, default 300
        Updates at most; 0 keeps the initial centroids as they are.
    tol : float, default 1e-4
        Stop when the sum of squared shifts of the centroids falls to `tol` times the mean variance of a feature.
    random_state : int, numpy.random.Generator, numpy.random.RandomState or None, default 42
        None draws a seed from the system.
    init : {"auto", "k-means||", "k-means++", "random"}, path, array, callable or KMeans, default "auto"
        "auto" seeds by hierarchical k-means++ on a sample (by k-means|| for up to 512 clusters), improves the seeds on
        growing samples and takes longer steps than Lloyd's. That reaches a lower inertia sooner. Any other choice runs
        Lloyd's algorithm on all rows, starting from k-means|| on a sample, random rows, a ``.npy`` file or a model
        directory, an array of shape (n_clusters, n_features), or a fitted estimator. "k-means++" is another name of
        "k-means||", which ends with scikit-learn's greedy k-means++ on its candidates.
        A callable is called as ``init(X, n_clusters, random_state=RandomState)`` for each run and returns such an
        array. `X` is a numpy array of the rows as they are compared (float32, scaled if `normalize` is set): all rows
        up to 32,768 (or 32 a cluster, if that is more), and a sample of that size otherwise, for dask input too.
    n_init : int or "auto", default 1
        Runs with different seeds; the one with the lowest inertia is kept. From given centroids it is always one.
        "auto", as in scikit-learn: 10 if `init` is "random" or a callable, otherwise 1.
    oversampling_factor : float, default 2.0
        Rows that k-means|| draws as candidates, as a multiple of half of `n_clusters` in each of five rounds.
    max_samples_per_batch : int, default 32768
        Rows whose distances to all centroids `transform` and cuML compute at once, at most; affects memory only.
    sample_fraction : float, default 1.0
        Share of the rows to fit on, chosen by a hash of the row number.
    normalize : bool, default True
        Scale rows to unit length first, since embeddings are compared by cosine. Centroids are means and stay unscaled.
    max_cluster_size : int, optional
        Clusters with more fitted rows are split after the fit, so the model may have more than `n_clusters` clusters.
    engine : {"auto", "native", "cuml"}, default "auto"
        "cuml": cuML finds the centroids, on a cluster with a GPU for each worker. With `init` "auto" it seeds by its
        own k-means||; where the rows do not fit onto the devices, it gets seeds of the native engine. Labels, distances
        and inertia always come from the native engine.
        "auto" is "native" everywhere. A native fit is bitwise identical on any machine, resumes from any update and
        needs no device. It uses the GPUs of workers that dask-cuda started; with more than 2256 clusters, centroids
        then differ from those found on CPUs. cuML's sums depend on how rows are distributed, so it has to be asked for.

    Attributes
    ----------
    cluster_centers_ : ndarray of float32, shape (n_clusters, n_features)
    labels_ : ndarray or dask array of int32, shape (n_samples,)
        Lazy for dask input. A lazy array refers to the input, so it is left out of pickles and copies of the estimator.
    inertia_ : float
        Sum of squared distances of the fitted rows to their nearest centroid.
    inertia_history_ : list of float
        After each update: sum of squared distances of the rows to the means of their clusters. With cuML: the last one
        only.
    iterations_ : list of dict
        Facts about each update, including those on samples: phase, phases, rows, iteration, inertia, shift, relabelled,
        compared (the share of pairs of rows and centroids that were scored), seconds. With cuML: one entry, with fewer
        facts.
    n_iter_ : int
    converged_ : bool
    n_features_in_ : int
    feature_names_in_ : ndarray of str, shape (n_features,)
        Names of the columns. Present if the model was fitted on a frame of numbers whose column names are all strings.
        Frames with other columns, or with these in another order, are refused from then on.
    seed_ : int
        The seed that was used; drawn if `random_state` is None or a generator.
    ann_ : dict
        Facts about the last index over the centroids; present if one was built. See :meth:`build_index`.

    Examples
    --------
    >>> import numpy as np
    >>> X = np.float32([[1, 0], [0.9, 0.1], [0, 1], [0.1, 0.9]])
    >>> km = KMeans(n_clusters=2, random_state=0).fit(X)
    >>> bool(km.labels_[0] == km.labels_[1] != km.labels_[2] == km.labels_[3])
    True
    """

    def fit(
        self,
        X: Any,
        y: Any = None,
        sample_weight: Any = None,
        *,
        column: str | None = None,
        client: Client | None = None,
        checkpoints: Checkpoints | None = None,
    ) -> KMeans:
        """Find the centroids of the rows of `X`.

        Parameters
        ----------
        X : array, dataframe or column of vectors, shape (n_samples, n_features)
            Arrays and tensors (numpy, dask, PyTorch, whatever numpy can convert), dataframes (pandas, dask, Arrow,
            polars) of numbers or with a column of vectors, and such columns. What lies on a device (cupy, cudf) is
            copied to memory. Only for the engine "cuml" do the rows of cuDF dataframes stay on the device.
        y : ignored
        sample_weight : array-like of shape (n_samples,), dask array, dask series or str, optional
            How often each row counts: 2 is the row twice, 0 is no row, but gets a label. Numbers from 0 to 1e30. For a
            dask collection `X`: also a dask array or series with the same partitions. For a dataframe: also the name of
            a column. Not for the engine "cuml", nor with `max_cluster_size`.
        column : str, optional
            Column of the dataframe that holds the vectors; default: the only one that does.
        client : distributed.Client, optional
            Default: the current client. Without one, the fit runs in this process.
        checkpoints : Checkpoints, optional
            Where the state of the fit is saved, so that it can be resumed.

        Raises
        ------
        UsageError
            A parameter is out of range, such as `n_clusters` above the number of rows. The weights are not those of the
            rows, or all are 0.
        DataError
            A row cannot be placed: NaN, infinity, null, zeros when normalising. Its weight is negative or NaN.
        MissingExtraError, ClusterError, MemoryForecastError
            With the engine "cuml": a package, a worker or its device is missing. With either engine: two workers share
            a GPU, or a GPU has too little memory for a pass.
        """
        return self._fit(X, column, client, checkpoints, sample_weight=sample_weight)

    def _fit(
        self,
        X: Any,
        column: str | None = None,
        client: Client | None = None,
        checkpoints: Checkpoints | None = None,
        tuning: Tuning = DEFAULT,
        sample_weight: Any = None,
    ) -> KMeans:
        self.check_params()
        X = open_rows(X, column)
        if sample_weight is not None:
            self._check_takes_weights()
        init = resolve_init(self.init, self.n_clusters)
        n_clusters = len(init) if isinstance(init, np.ndarray) else self.n_clusters
        seed = self.seed_ = seed_from(self.random_state)
        client = current_client(client)
        if client is not None:
            add_page(client)
        if self._is_cuml():
            cuml.device_memory(client)  # before anything is read
        memory = gpus.memory(client)
        with load_blocks(
            X,
            column,
            self.normalize,
            self.sample_fraction,
            seed,
            client,
            propose_clusters(0 if is_lazy(X) else len(X), 1) if is_auto(n_clusters) else int(n_clusters),
            on_gpus=memory > 0,
            stay=self._is_cuml(),
            tuning=tuning,
            sample_weight=sample_weight,
        ) as blocks:
            n_clusters = count_clusters(n_clusters, blocks.n_rows, blocks.dimension)
            self._check_blocks(blocks, n_clusters, memory)
            warn_of_rounding(blocks.roundings)
            warn_of_scaling(blocks.moments if n_clusters > 1 else ())
            with contextlib.nullcontext() if client else blas.limit_blas_threads():  # once, not for each of many
                runs = [
                    self._run_once(blocks, init, n_clusters, run, checkpoints, tuning)
                    for run in range(count_runs(self.n_init, init))
                ]
            best, labels = min(runs, key=lambda run: run[0].inertia)
            self.cluster_centers_, self.inertia_ = best.centroids, best.inertia
            if self.max_cluster_size is not None:
                self.cluster_centers_ = split_clusters(blocks, best.centroids, self.max_cluster_size, seed)
                measured, labels = measure_centroids(blocks, self.cluster_centers_)
                self.inertia_ = measured.inertia
            self.inertia_history_, self.iterations_ = best.history, best.iterations
            self.n_iter_, self.converged_ = best.n_iter, best.converged
            self.n_features_in_ = best.centroids.shape[1]
            self._warn_of_convergence(best.occupied, n_clusters)
            self._set_feature_names(feature_names(X, column))
            known = not is_lazy(X) and blocks.complete
            self.labels_ = labels() if known else self.predict(X, column=column)
        return self

    def _check_blocks(self, blocks: Blocks, n_clusters: int, memory: int) -> None:
        """Raise if there are too few rows, or too little `memory` on a GPU to compare them."""
        if blocks.n_rows < n_clusters:
            raise UsageError(
                f"n_samples={blocks.n_rows} should be >= n_clusters={n_clusters}",
                where="n_clusters",
                remedy="use a larger sample_fraction"
                if self.sample_fraction < 1.0
                else f"set n_clusters to {blocks.n_rows} or less",
            )
        check_compare(max(blocks.lengths), n_clusters, blocks.dimension, memory)

    def _warn_of_convergence(self, occupied: int, n_clusters: int) -> None:
        found = ""
        if self.max_iter and not self.converged_:
            found = f"k-means stopped after max_iter = {self.max_iter} updates, before it converged to tol = {self.tol}"
        elif self.max_iter and occupied < n_clusters:
            found = (
                f"only {occupied} of n_clusters = {n_clusters} clusters have rows, as there are too few distinct "
                f"rows; set n_clusters to {occupied} or less"
            )
        if found:
            warnings.warn(found, ConvergenceWarning, stacklevel=4)

    def _run_once(
        self, blocks: Blocks, init: Any, n_clusters: int, run: int, checkpoints: Checkpoints | None, tuning: Tuning
    ) -> tuple[FitState, Callable[[], np.ndarray]]:
        seed = self.seed_ + run
        max_iter, tol = map(to_python, (self.max_iter, self.tol))
        if self._is_cuml():
            return cuml.fit_cuml(
                blocks,
                init,
                n_clusters=n_clusters,
                max_iter=max_iter,
                tol=tol,
                seed=seed,
                oversampling_factor=self.oversampling_factor,
                max_samples_per_batch=self.max_samples_per_batch,
                run=run,
                checkpoints=checkpoints,
            )
        return fit_blocks(
            blocks,
            lambda: seed_centroids(blocks, init, n_clusters, self.oversampling_factor, seed),
            max_iter=max_iter,
            tol=tol,
            seed=seed,
            grow=isinstance(init, str) and init == "auto",
            run=run,
            checkpoints=checkpoints,
            tuning=tuning,
        )

    def _is_cuml(self) -> bool:
        return self.engine == "cuml" and self.max_iter > 0  # without updates there is nothing for it to do

    def _check_takes_weights(self) -> None:
        if self._is_cuml():
            raise UsageError("cuML gets no weights", where="sample_weight", remedy="use engine='native'")
        if self.max_cluster_size is not None:
            raise UsageError(
                f"max_cluster_size={self.max_cluster_size} is a number of rows, not of weights",
                where="sample_weight",
                remedy="leave one of the two out",
            )

    def fit_predict(
        self,
        X: Any,
        y: Any = None,
        sample_weight: Any = None,
        *,
        column: str | None = None,
        client: Client | None = None,
    ) -> Any:
        """Fit, then return the labels of the rows of `X`."""
        return self.fit(X, y, sample_weight, column=column, client=client).labels_

    def fit_transform(
        self,
        X: Any,
        y: Any = None,
        sample_weight: Any = None,
        *,
        column: str | None = None,
        client: Client | None = None,
    ) -> Any:
        """Fit, then return the distances of the rows of `X` to the centroids."""
        return self.fit(X, y, sample_weight, column=column, client=client).transform(X, column=column)

    def predict(self, X: Any, *, column: str | None = None, assign: str | centroid_index.Index = "exact") -> Any:
        """Return the label of the nearest centroid of each row of `X`; ties go to the lower label.

        Parameters
        ----------
        X, column
            As in :meth:`fit`.
        assign : {"exact", "ann"} or Index, default "exact"
            For very many clusters: an index from :meth:`build_index`, or "ann" to build one for these rows. With an
            index not every label is exact; ``ann_`` says how many are.

        Returns
        -------
        ndarray or dask array of int32, shape (n_samples,)
            A lazy dask array for dask input.

        Raises
        ------
        UsageError
            `X` has other columns than the frame that the model was fitted on, or these in another order.
        DataError
            A row cannot be placed, or has another dimension. For dask input it is raised when the labels are computed.
        """
        X = self._open_rows(X, column)
        index = self.index_for(X, assign, column=column)
        return self._map_rows(_predict_labels, X, column, np.empty(0, np.int32), index)

    def index_for(
        self, X: Any, assign: str | centroid_index.Index, *, column: str | None = None, client: Client | None = None
    ) -> centroid_index.Index | None:
        """Return the index that `assign` stands for: None for "exact", one built for the rows of `X` for "ann"."""
        centroid_index.check_assign(assign)
        if assign == "ann":
            return self.build_index(X, column=column, client=client)
        return assign if isinstance(assign, centroid_index.Index) else None

    def build_index(
        self,
        X: Any,
        *,
        column: str | None = None,
        recall: float = centroid_index.TARGET_RECALL,
        client: Client | None = None,
    ) -> centroid_index.Index:
        """Build an index over the centroids, which labels rows like those of `X` faster when clusters are very many.

        It is tuned on one sample of the rows so that a share of `recall` of the labels is exact. That share is measured
        on another sample and kept in ``ann_``, which is saved with the model.

        Parameters
        ----------
        X, column, client
            As in :meth:`fit`. Some rows are read immediately.
        recall : float, default 0.99

        Returns
        -------
        Index
            Pass it as `assign` to :meth:`predict` and :func:`daskmeans.assign`.

        Raises
        ------
        MissingExtraError
            faiss is not installed: ``pip install "daskmeans[ann]"``.
        UsageError
            `recall` is not in (0, 0.999].
        """
        X, client = self._open_rows(X, column), current_client(client)
        centroids = self.cluster_centers_
        if len(centroids) < centroid_index.MANY_CLUSTERS:
            logger.warning(
                "%s clusters are few for an index: below %s, exact labels are faster", f"{len(centroids):,}",
                f"{centroid_index.MANY_CLUSTERS:,}",
            )  # fmt: skip
        index = centroid_index.tune_index(
            X,
            column,
            centroids,
            self.placer().rows,
            lambda rows: nearest_labels(rows, centroids),
            recall,
            self.seed_,
            client,
        )
        self.ann_ = dict(index.facts)
        return index

    def transform(self, X: Any, *, column: str | None = None) -> Any:
        """Return the Euclidean distance of each row of `X` to each centroid; float32, (n_samples, n_clusters).

        An array, lazy for dask input, unless :meth:`set_output` chooses a dataframe.
        """
        X = self._open_rows(X, column)
        meta = np.empty((0, len(self.cluster_centers_)), np.float32)
        return self._wrap_output(self._map_rows(_compute_distances, X, column, meta), X)

    def score(
        self,
        X: Any,
        y: Any = None,
        sample_weight: Any = None,
        *,
        column: str | None = None,
        client: Client | None = None,
    ) -> float:
        """Return the negative sum of squared distances of the rows of `X` to their nearest centroids, by weight."""
        X, client = self._open_rows(X, column), current_client(client)
        on_gpus = gpus.memory(client) > 0
        with load_blocks(
            X, column, self.normalize, 1.0, 0, client, on_gpus=on_gpus, sample_weight=sample_weight
        ) as blocks:
            if not blocks.n_rows:
                raise UsageError("Found array with 0 sample(s)", expected="at least one row")
            self._check_dimension(blocks.dimension)
            return -measure_centroids(blocks, self.cluster_centers_)[0].inertia

    def _open_rows(self, X: Any, column: str | None) -> Any:
        """Open the rows of `X`; raise if there is no model yet, or if it was fitted on other columns."""
        self.check_fitted()
        X = open_rows(X, column)
        check_names(feature_names(X, column), getattr(self, "feature_names_in_", None))
        return X

    def _set_feature_names(self, names: np.ndarray | None) -> None:
        vars(self).pop("feature_names_in_", None)
        if names is not None:
            self.feature_names_in_ = names

    def _map_rows(self, function: Any, X: Any, column: str | None, meta: np.ndarray, *more: Any) -> Any:
        if not is_lazy(X):
            return np.concatenate(
                executor.call_in_threads([partial(function, part, self, *more) for part in list_partitions(X, column)])
            )
        apply = dask.delayed(function, pure=False)
        km, *args = (dask.delayed(arg, pure=False) for arg in (self.placer(), *more))  # sent once, not with every task
        parts, shape = list_partitions(X, column), meta.shape[1:]
        sizes = X.chunks[0] if isinstance(X, da.Array) else [np.nan] * len(parts)
        blocks = [
            da.from_delayed(apply(part, km, *args), (size, *shape), meta=meta)
            for part, size in zip(parts, sizes, strict=True)
        ]
        return da.concatenate(blocks, allow_unknown_chunksizes=True)

    def placer(self) -> KMeans:
        """Return a copy with only what labelling rows takes: small to send, and independent of later changes."""
        placer = KMeans(normalize=self.normalize, max_samples_per_batch=self.max_samples_per_batch)
        placer.cluster_centers_, placer.n_features_in_ = self.cluster_centers_.copy(), self.n_features_in_
        return placer

    def rows(self, X: Any, where: str = "", home: Backend = CPU) -> Any:
        """Return `X` as this model compares it: float32, of the model's dimension, normalised if the model is.

        A cuDF column becomes a matrix in the memory of `home`; anything else becomes a numpy matrix.
        """
        if not len(X):  # an empty column of lists does not know its dimension
            return np.empty((0, self.n_features_in_), np.float32)
        rows = prepare_on_device(home if is_cudf(X) else CPU, X, self.normalize, where)
        self._check_dimension(rows.shape[1], where)
        return rows

    def _check_dimension(self, dimension: int, where: str = "") -> None:
        if dimension != self.n_features_in_:
            raise DataError(
                f"X has {dimension} features, but KMeans is expecting {self.n_features_in_} features as input",
                where=where,
                remedy="use the model that was fitted on vectors of this dimension, or fit a new one",
            )

    # --- on disk ---

    def save(self, url: Any, *, storage_options: dict[str, Any] | None = None, overwrite: bool = False) -> None:
        """Write the model into the directory `url`: ``centroids.npy``, ``model.json`` and a manifest."""
        self.check_fitted()
        check_flag("overwrite", overwrite)
        path, settings = open_path(url, storage_options), {"normalize": bool(self.normalize)}
        # What it was fitted on is unknown here. Steps that use the model must not mistake it for another.
        inputs = {"centroids": hashlib.sha256(self.cluster_centers_.tobytes()).hexdigest()}
        with open_step(path, "fit", settings, inputs, overwrite=overwrite) as step:
            step.facts |= self.write(step.path, fingerprint=None)

    def write(self, path: UPath, fingerprint: str | None) -> dict[str, Any]:
        """Write the model's files into the directory of an unfinished step; return facts for its manifest."""
        params = {name: to_python(value) for name, value in self.get_params().items()}
        named = {name: value if isinstance(value, (str, int, float, bool)) else None for name, value in params.items()}
        facts = {
            "n_clusters": len(self.cluster_centers_),
            "n_features": self.n_features_in_,
            "normalize": params["normalize"],
            "inertia": self.inertia_,
            "inertia_per_iteration": self.inertia_history_,
            "iterations": self.iterations_,
            "n_iter": self.n_iter_,
            "converged": self.converged_,
            "seed": self.seed_,
            "engine": "cuml" if self._is_cuml() else "native",
            "ann": getattr(self, "ann_", None),
            "feature_names": list(names) if (names := getattr(self, "feature_names_in_", None)) is not None else None,
            "parameters": named,
            "input_fingerprint": fingerprint,
            "versions": manifest.library_versions(),
        }
        return model.write_model(path, self.cluster_centers_, facts)

    @classmethod
    def load(cls, url: Any, *, storage_options: dict[str, Any] | None = None) -> KMeans:
        """Load the model in the directory `url`, ready to predict.

        Raises
        ------
        NotFoundError, OutputError
            `url` is not a model directory, or an unfinished one.
        DataError
            A file of the model is damaged.
        """
        centroids, facts = model.read_model(open_path(url, storage_options))
        known = {k: v for k, v in facts["parameters"].items() if v is not None and k != "init"}
        loaded = cls(**known | {"n_clusters": facts["n_clusters"], "normalize": facts["normalize"]})
        loaded.cluster_centers_ = centroids
        loaded.inertia_, loaded.inertia_history_ = facts["inertia"], facts["inertia_per_iteration"]
        loaded.iterations_ = facts["iterations"]
        loaded.n_iter_, loaded.converged_ = facts["n_iter"], facts["converged"]
        loaded.n_features_in_, loaded.seed_ = facts["n_features"], facts["seed"]
        if facts.get("ann"):
            loaded.ann_ = facts["ann"]
        if facts.get("feature_names"):  # not in models of earlier versions
            loaded._set_feature_names(np.array(facts["feature_names"], dtype=object))
        return loaded


def _predict_labels(X: Any, km: KMeans, index: centroid_index.Index | None) -> np.ndarray:
    if index is not None:
        return index.nearest(km.rows(X), km.cluster_centers_)
    backend, centroids = gpus.backend(), km.cluster_centers_
    check_compare(len(X), len(centroids), centroids.shape[1], backend.memory())
    with backend.turn():
        return backend.nearest_labels(km.rows(X, home=backend), centroids)


def _compute_distances(X: Any, km: KMeans) -> np.ndarray:
    fitting = config.get_bytes("tile-bytes") // (4 * len(km.cluster_centers_))
    return all_distances(km.rows(X), km.cluster_centers_, max(16, min(km.max_samples_per_batch, fitting)))
