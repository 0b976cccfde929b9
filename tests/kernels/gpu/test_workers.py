"""On workers that hold GPUs: the same decisions as without."""

from __future__ import annotations

import pytest

import daskmeans as dkm
from daskmeans.runtime.cluster import ClusterSettings, open_cluster


@pytest.mark.gpu
def test_a_cuda_cluster_decides_as_this_process_does(tmp_path, embeddings):
    here = dkm.run(embeddings, tmp_path / "here", dkm.KMeans(8), threshold=0.9)
    with open_cluster(ClusterSettings(device="gpu", dashboard_address=":0")) as client:
        there = dkm.run(embeddings, tmp_path / "there", dkm.KMeans(8), threshold=0.9, client=client)
    counts = ("rows", "kept", "removed", "recall")
    assert {key: here.summary[key] for key in counts} == {key: there.summary[key] for key in counts}
