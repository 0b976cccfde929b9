"""Models on disk: a pickle is named with the way out, and is never loaded."""

from __future__ import annotations

import pickle
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from sklearn.cluster import KMeans as Other

import daskmeans as dkm
from daskmeans.cli.main import main
from daskmeans.errors import UsageError
from helpers import blobs, write_embeddings

X = blobs(90)


class Trap:
    """What writes a file where it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("name", ["m.pkl", "M.PKL", "m.pickle", "m.joblib", "m.pt", "m.pth"])
@pytest.mark.parametrize("words", ["assign {in} --model {m} --out {out}", "fit {in} --init {m} -n 3 --model {out}"])
def test_a_pickle_is_refused_with_the_way_out(tmp_path, name: str, words: str) -> None:
    given = write_embeddings(tmp_path / "in.parquet", X)
    (tmp_path / name).write_bytes(pickle.dumps(Trap(tmp_path / "sprung")))
    words = words.replace("-n 3", "--n-clusters 3").format_map(
        {"in": given, "m": tmp_path / name, "out": tmp_path / "out"}
    )
    done = CliRunner().invoke(main, [*words.split(), "--n-workers", "1", "--dashboard-address", ":0"])
    assert done.exit_code == 2, done.output
    assert "not loaded" in done.output
    assert "--init centroids.npy --max-iter 0" in done.output
    assert not (tmp_path / "sprung").exists()
    assert not (tmp_path / "out").exists()


def test_the_way_out_leads_to_the_same_labels(tmp_path) -> None:
    other = Other(3, n_init=1, random_state=0).fit(X.astype(np.float64))
    (tmp_path / "m.pkl").write_bytes(pickle.dumps(other))
    with pytest.raises(UsageError) as told:
        dkm.KMeans.load(tmp_path / "m.pkl")
    code = re.search(r'python -c "(.*?)"', str(told.value))[1]
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, timeout=120)
    km = dkm.KMeans(3, init=str(tmp_path / "centroids.npy"), max_iter=0, normalize=False).fit(X)
    np.testing.assert_array_equal(km.labels_, other.labels_)
