"""Propose a number of clusters, and forecast time and memory of the steps, from trials on a sample of the input."""

from __future__ import annotations

import math
import shlex
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from dask.utils import format_bytes
from distributed import Client
from upath import UPath

from daskmeans.kernels.microkernel import COLUMNS, n_groups
from daskmeans.kmeans.memory import assign_bytes, engine_bytes, fit_bytes, forecast_fit
from daskmeans.pairs.memory import dedup_bytes
from daskmeans.pairs.settings import is_exact_default
from daskmeans.planner.trial import FEWEST_ROWS, THRESHOLD, Costs, StepsTrial, measure_costs
from daskmeans.runtime import progress, resources
from daskmeans.runtime.client import current_client, n_processes, n_threads, threads_per_process
from daskmeans.runtime.memory import partition_bytes, reading_bytes
from daskmeans.tuning import DEFAULT
from daskmeans.vectors.options import PARTITIONS_PER_THREAD, ReadOptions

# Numbers of clusters that may be proposed: these times powers of ten.
ROUND_STEPS = (1, 1.5, 2, 3, 5, 7)
# The smallest number of clusters is proposed with which the steps take at most this many times the shortest time.
NEAR_SHORTEST = 1.2
# Measured exponents: the number of updates, and the time of seeding, grow with these powers of the rows if the rows per
# cluster stay the same.
UPDATES_GROW, SEEDING_GROWS = 0.2, 1.3


@dataclass(frozen=True)
class Forecast:
    """Time and memory of the steps with some number of clusters.

    Attributes
    ----------
    n_clusters, rows_per_cluster, largest_cluster : int
    seconds : dict
        By step.
    worker_bytes : dict
        Memory of a worker of one thread, by step.
    """

    n_clusters: int
    rows_per_cluster: int
    largest_cluster: int
    seconds: dict[str, float]
    worker_bytes: dict[str, int]

    @property
    def total(self) -> float:
        """Seconds of all steps."""
        return sum(self.seconds.values())


def advise(
    url: str | UPath,
    *,
    id_field: str = "id",
    embedding_field: str | None = None,
    storage_options: Mapping[str, Any] | None = None,
    n_clusters: Iterable[int] = (),
    client: Client | None = None,
) -> dict[str, Any]:
    """Propose a number of clusters for the embeddings in `url`, with reasons and forecasts for this machine.

    This spends some seconds on trials with a sample.

    Parameters
    ----------
    url : str or UPath
    id_field, embedding_field, storage_options
        As in :func:`daskmeans.read_embeddings`.
    n_clusters : iterable of int, optional
        Further numbers of clusters to forecast for.
    client : distributed.Client, optional
        Whose workers the forecasts are for; they must see the temporary files of this machine. Default: the current
        client, else this process.

    Returns
    -------
    dict
        ``rows``, ``dimension``, ``n_clusters``, ``reasons``, ``command`` and ``trial_seconds``. ``forecasts`` has a
        dict for the proposed number of clusters, for a quarter and for four times of it, and for those in
        `n_clusters`. ``exact`` has the pairs and seconds of dedup by an exact search, and whether it is the default.
        JSON types only.

    Raises
    ------
    UsageError, DataError

    Examples
    --------
    >>> import numpy as np
    >>> with UPath("memory://doctest-advice/rows.npy").open("wb") as file:
    ...     np.save(file, np.random.default_rng(0).normal(size=(500, 8)).astype(np.float32))
    >>> advice = advise("memory://doctest-advice")
    >>> 1 <= advice["n_clusters"] <= 25, sorted(advice["forecasts"][0]["seconds"])
    (True, ['assign', 'dedup', 'fit'])
    """
    start = time.perf_counter()
    reading = ReadOptions(id_field, embedding_field, storage_options=storage_options, on_bad_row="skip")
    client = current_client(client)
    source = reading.open(url, client, allow_zero=False)
    model = CostModel(source.rows, source.dimension, measure_costs(source, reading, client), client)
    proposed, best = _propose_clusters(model)
    around = (proposed.n_clusters // 4, proposed.n_clusters, 4 * proposed.n_clusters, *n_clusters)
    shown = [model.forecast(k) for k in sorted({min(max(1, k), source.rows) for k in around})]
    return {
        "rows": source.rows,
        "dimension": source.dimension,
        "n_clusters": proposed.n_clusters,
        "reasons": _give_reasons(model, proposed, best, shown),
        "command": _make_command(url, reading, proposed.n_clusters),
        "exact": {"pairs": model.pairs, "seconds": model.exact_seconds, "default": model.exact_by_default},
        "forecasts": [asdict(each) for each in shown],
        "trial_seconds": round(time.perf_counter() - start, 1),
    }


class CostModel:
    """Forecasts of the steps over `rows` vectors, from the costs of trials on a sample of them."""

    def __init__(self, rows: int, dimension: int, costs: Costs, client: Client | None) -> None:
        self.rows, self.dimension, self.costs = rows, dimension, costs
        self._client, self._threads = client, n_threads(client)
        self._trials = sorted(costs.trials, key=lambda trial: trial.density)

    @property
    def pairs(self) -> int:
        """Pairs of rows."""
        return self.rows * (self.rows - 1) // 2

    @property
    def exact_by_default(self) -> bool:
        """Whether dedup compares all rows if no search is chosen."""
        return is_exact_default(self.pairs)

    @property
    def exact_seconds(self) -> float:
        """Seconds of dedup by an exact search."""
        exact = self.costs.exact
        return exact.fixed + self.rows * exact.row + self.pairs * exact.pair / self._threads

    def forecast(self, n_clusters: int) -> Forecast:
        """Time and memory of the steps with `n_clusters`; dedup compares rows inside their clusters."""
        density = self.rows / n_clusters
        largest = min(self.rows, math.ceil(density * self._interpolate(density, lambda t: t.sizes.max() / t.density)))
        seconds = {
            # With fewer clusters than in any trial, a fit compares less and takes no more updates.
            "fit": self._interpolate(min(density, self._trials[-1].density), self._fit_seconds),
            "assign": self._assign_seconds(n_clusters),
            "dedup": self._dedup_seconds(density, largest),
        }
        return Forecast(n_clusters, round(density), largest, seconds, self._forecast_bytes(n_clusters, largest))

    def _interpolate(self, density: float, cost: Callable[[StepsTrial], float]) -> float:
        """`cost` of a trial with `density` rows per cluster, interpolated between the trials.

        Outside their range it is extrapolated: linearly in the density above, and in its inverse below.
        """
        x, y = (np.array(values) for values in zip(*((t.density, cost(t)) for t in self._trials), strict=True))
        if density > x[-1] and len(x) > 1:
            return float(y[-1] + max(0.0, (y[-1] - y[-2]) / (x[-1] - x[-2])) * (density - x[-1]))
        if density < x[0] and len(x) > 1:
            return float(y[0] + max(0.0, (y[0] - y[1]) / (1 / x[0] - 1 / x[1])) * (1 / density - 1 / x[0]))
        return math.exp(np.interp(math.log(density), np.log(x), np.log(np.maximum(y, 1e-12))))

    def _fit_seconds(self, trial: StepsTrial) -> float:
        """Seconds of a fit on all rows with as many rows per cluster as in `trial`.

        An update takes a fixed time, however few the rows are. The time for comparing grows with the pairs of rows and
        groups of centroids, everything else with the rows. The number of updates grows a little too.
        """
        growth, longer = self._growth(trial), max(1.0, self._growth(trial)) ** UPDATES_GROW
        updates, count = sum(u["seconds"] for u in trial.updates), len(trial.updates)
        idle = min(0.9 * updates, count * float(np.median([u["seconds"] for u in self.costs.fixed.updates])))
        pairs = sum(u["compared"] * u["rows"] for u in trial.updates) * trial.n_clusters
        comparing = min(0.9 * (updates - idle), pairs * self.costs.compare / self._threads)
        groups = n_groups(self.rows / trial.density) / n_groups(trial.n_clusters)
        return (
            self._fixed_seconds("fit")
            + self.costs.loading
            + self.rows * self.costs.read
            + max(0.0, self._variable_seconds(trial, "fit") - updates) * growth**SEEDING_GROWS
            + idle * longer
            + comparing * growth * groups
            + (updates - idle - comparing) * growth * longer
        )

    def _assign_seconds(self, n_clusters: int) -> float:
        compare = self.costs.compare * COLUMNS / self._threads
        rest = [self._variable_seconds(t, "assign") / t.rows - compare * n_groups(t.n_clusters) for t in self._trials]
        row = self.costs.read + max(0.0, float(np.mean(rest))) + compare * n_groups(n_clusters)
        return self._fixed_seconds("assign") + self.rows * row

    def _dedup_seconds(self, density: float, largest: int) -> float:
        threads, pair = self._threads, self.costs.pair
        rest = self._interpolate(
            density, lambda t: max(0.0, self._variable_seconds(t, "dedup") - t.pairs * pair / threads) / t.rows
        )
        mates = min(self.rows, density * self._interpolate(density, lambda t: t.pairs / t.rows / t.density))
        pairs = max(self.rows * mates / threads, min(largest, DEFAULT.task_rows) ** 2)  # one thread does this much
        return self._fixed_seconds("dedup") + self.rows * rest + pairs * pair

    def _growth(self, trial: StepsTrial) -> float:
        return self.rows / trial.rows

    def _fixed_seconds(self, step: str) -> float:
        """Seconds that `step` takes however few the rows are."""
        return self.costs.fixed.seconds[step]

    def _variable_seconds(self, trial: StepsTrial, step: str) -> float:
        """Seconds of `step` that grow with the rows."""
        return max(1e-3, trial.seconds[step] - self.costs.fixed.seconds[step])

    def _forecast_bytes(self, n_clusters: int, largest: int) -> dict[str, int]:
        rows, dimension, each = self.rows, self.dimension, threads_per_process(self._client)
        fit = forecast_fit(rows, dimension, n_clusters, self._client)
        vectors = fit_bytes(rows, dimension)
        partition = min(partition_bytes(self._client), vectors // (PARTITIONS_PER_THREAD * self._threads))
        taken = {
            "fit": (fit.blocks - fit.spilled) // n_processes(self._client)
            + reading_bytes(self._client, partition)
            + each * engine_bytes(dimension, n_clusters),
            "assign": each * assign_bytes(dimension, n_clusters, partition),
            "dedup": each * dedup_bytes(largest, dimension),
        }
        return {step: resources.BASE_BYTES + size for step, size in taken.items()}

    @property
    def cluster_limit(self) -> float:
        """How many rows the largest cluster may have if dedup is to fit into a task's memory."""
        have = resources.memory_per_task(self._client)
        none = dedup_bytes(0, self.dimension)
        return math.inf if have is None else (have - none) / (dedup_bytes(1, self.dimension) - none)


def _propose_clusters(model: CostModel) -> tuple[Forecast, Forecast]:
    """The forecast for the proposed number of clusters, and the one with the shortest time."""
    most = max(1, model.rows // FEWEST_ROWS)
    numbers = {min(most, round(step * 10**power)) for power in range(len(str(most))) for step in ROUND_STEPS}
    forecasts = [model.forecast(k) for k in sorted(numbers)]
    fitting = [f for f in forecasts if f.largest_cluster <= model.cluster_limit] or forecasts[-1:]
    fastest = min(fitting, key=lambda f: f.total)
    return next(f for f in fitting if f.total <= NEAR_SHORTEST * fastest.total), fastest


def _give_reasons(model: CostModel, proposed: Forecast, fastest: Forecast, shown: list[Forecast]) -> list[str]:
    few, many, trials = shown[0], shown[-1], model.costs.trials
    by_default = "by default" if model.exact_by_default else "with --search exact"
    reasons = [
        f"dedup inside clusters compares about rows²/k pairs: {_format_seconds('dedup', few, proposed)}",
        f"{by_default} dedup compares all {progress.format_number(model.pairs)} pairs, whatever k: about "
        f"{progress.format_duration(model.exact_seconds)}; --search clusters is the alternative",
        f"fit compares rows with centroids, rows·k pairs per update: {_format_seconds('fit', proposed, many)}",
        f"a cluster has {proposed.rows_per_cluster:,} rows on average, and the largest about "
        f"{proposed.largest_cluster:,}; dedup then takes {format_bytes(proposed.worker_bytes['dedup'])} in a worker",
        f"fewer clusters separate fewer duplicates: this is the smallest round number with which all steps take at "
        f"most {NEAR_SHORTEST} times the shortest time, {fastest.total:.2g} s with k = {fastest.n_clusters:,}",
        f"measured in {len(trials)} trial{'s' if len(trials) > 1 else ''} on {trials[0].rows:,} of {model.rows:,} rows "
        f"with {model.dimension:,} dimensions",
    ]
    if proposed.largest_cluster > model.cluster_limit:
        reasons.append(f"a task has memory for {model.cluster_limit:,.0f} rows: add --max-cluster-size")
    if model.costs.rejected:
        reasons.append(f"{model.costs.rejected:.2%} of the rows read cannot be used: add --on-bad-row skip")
    return reasons


def _format_seconds(step: str, *forecasts: Forecast) -> str:
    return ", ".join(dict.fromkeys(f"{f.seconds[step]:.2g} s with k = {f.n_clusters:,}" for f in forecasts))


def _make_command(url: str | UPath, reading: ReadOptions, n_clusters: int) -> str:
    words = ["daskmeans", "run", str(url), "--out", "work", "--n-clusters", str(n_clusters)]
    words += ["--threshold", str(THRESHOLD)]
    words += ["--id-field", reading.id_field] if reading.id_field != "id" else []
    words += ["--embedding-field", reading.embedding_field] if reading.embedding_field else []
    options = ' --storage-options "$STORAGE_OPTIONS"' if reading.storage_options else ""  # may hold secrets
    return shlex.join(words) + options
