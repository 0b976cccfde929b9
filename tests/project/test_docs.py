"""All commands and Python blocks of the pages for users, as their reader would run them.

``PYTHONPATH=tests python tests/project/test_docs.py`` lists them all, and how each is treated: see `pages.py`.
"""

from __future__ import annotations

import re
from pathlib import Path

import distributed
import pytest

from helpers import ROOT
from page_data import write_data
from page_reader import Reader
from pages import PageError, find_pages, treat

PAGES = find_pages()


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_data(folder)
    return folder


@pytest.fixture
def reader(tmp_path: Path, data: Path, two_workers: distributed.LocalCluster) -> Reader:
    folder = tmp_path / "reader"
    folder.mkdir()
    return Reader(folder, data, two_workers)


def name_page(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", PAGES, ids=name_page)
def test_what_a_page_says_works(page: Path, reader: Reader) -> None:
    wrong = ""
    try:
        reader.follow(page)
    except PageError as error:
        wrong = str(error)
    if wrong:  # it says where; the lines of the test's code do not help
        pytest.fail(wrong, pytrace=False)


GOOD = """
A page with all that is understood.

```bash
git clone https://example.org/daskmeans.git && cd daskmeans   # a comment
python3.11 -m venv .venv && . .venv/bin/activate
pip install -c ci/constraints.txt -e ".[demo]" && daskmeans demo
pip install "daskmeans[s3]" polars
ci/gpu-native.sh results.json
cd ..
dask scheduler --scheduler-file /shared/scheduler.json &
dask worker tcp://host:8786 --nthreads 2
dask cuda worker --scheduler-file /shared/scheduler.json
```

```yaml
# job.yaml
input: vectors/
n-clusters: 20
threshold: 0.9
```

```bash
export THRESHOLD='0.9' DASK_DASKMEANS__PARTITION_BYTES=1MiB
daskmeans info 'vectors/*.parquet'
daskmeans run job.yaml --out work \\
    --metadata-field text   # exit status 0
daskmeans run job.yaml --out work   # exit status 2
daskmeans dedup work/clusters --out "d" --threshold $THRESHOLD --scheduler tcp://host:8786
dask kmeans info vectors/*-0.parquet --json
daskmeans fit vectors/ --model m --n-clusters 20 --device gpu
DASK_DATAFRAME__BACKEND=cudf daskmeans fit vectors/ --model m --n-clusters 20
python workflows/cluster_gpu.py vectors/ gpu 20
cat work/dedup/_summary.json
daskmeans fit --help
daskmeans info s3://bucket/vectors
```

```python
import daskmeans as dkm

km = dkm.KMeans(20).fit(X)
```

- in a list, and of a package that is not here

  ```python
  import dask_jobqueue

  assert km.labels_.shape == (3000,)
  labels = dkm.KMeans(5, engine="cuml").fit_predict(X)
  ```

```text
output
```
"""


def test_all_that_is_understood(reader: Reader, tmp_path: Path) -> None:
    page = tmp_path / "good.md"
    page.write_text(GOOD)
    steps = reader.follow(page)
    assert {step.how for step in steps} == {"run", "parsed", "checked", "set", "written", "shown"}
    how = {str(step.what.text).split("\n")[0]: step.how for step in steps}
    assert how["daskmeans fit vectors/ --model m --n-clusters 20 --device gpu"] == "parsed"
    assert how["DASK_DATAFRAME__BACKEND=cudf daskmeans fit vectors/ --model m --n-clusters 20"] == "parsed"
    assert how["import dask_jobqueue"] == "checked"
    assert (reader.folder / "work" / "dedup" / "_summary.json").exists()
    assert not (reader.folder / "m").exists()


@pytest.mark.parametrize(
    ("language", "text", "told"),
    [
        ("", "daskmeans info vectors/", "line 1: '```' names no language"),
        ("sh", "daskmeans info vectors/", "unknown language 'sh'"),
        ("bash", "ls\n```\n\n```bash\nls\n ```", "line 8: '```' names no language"),
        ("bash", "\n# the next\nfaiss --train vectors/", "line 4: unknown command 'faiss --train vectors/'"),
        ("bash", "daskmeans info vectors/ --rows 7", "line 2: `daskmeans info vectors/ --rows 7`: No such option"),
        ("bash", "daskmeans deduplicate vectors/", "there is no command `daskmeans deduplicate`"),
        ("bash", "daskmeans info none/", "line 2: `daskmeans info none/`: exit status 2, not 0"),
        ("bash", "daskmeans info vectors/   # exit status 2", "exit status 0, not 2"),
        ("bash", "daskmeans fit vectors/ --device gpu", "Missing option '--model'"),
        ("bash", "daskmeans fit vectors/ --model m --n-clusters 9 --device gpu --cells 7", "No such option"),
        ("bash", "daskmeans info vectors/ > told.txt", "'>' is not understood"),
        ("bash", "daskmeans info vectors/ | less", "'|' is not understood"),
        ("bash", 'daskmeans info "vectors/', "a quote is not closed"),
        ("bash", "daskmeans info vectors/ \\", "nothing follows the backslash"),
        ("bash", "DIRECTORY=vectors", "no command"),
        ("bash", "daskmeans info $DIRECTORY", "the variable DIRECTORY is not set"),
        ("bash", "export DASK_DASKMEANS__PARTITION_SIZE=1MiB", "there is no setting daskmeans.partition_size"),
        ("bash", 'pip install "daskmeans[torch]"', "daskmeans has no extra torch"),
        ("bash", "pip install dask-means", "'dask-means' is no package that is known here"),
        ("bash", "dask scheduler --gate 8786", "No such option"),
        ("bash", "dask cuda worker --gpus 2", "no flag of `dask cuda worker` that is known here: --gpus"),
        ("bash", "ci/measure.sh", "there is no 'ci/measure.sh'"),
        ("bash", "python workflows/none.py", "exit status 2, not 0"),
        ("bash", "cd none", "No such file or directory"),
        ("python", "import daskmeans as dkm\ndkm.KMeans(3).fit(Y)", "line 3: NameError"),
        ("python", "X[:", "line 2: SyntaxError"),
        ("python", "import pandsa", "line 2: ModuleNotFoundError"),
        ("python", "import cudf, pandsa", "line 2: there is no package pandsa"),
        ("python", "import cudf\nimport daskmeans as dkm\ndkm.KMean(3)", "line 4: daskmeans has no 'KMean'"),
        ("python", "import cudf\nimport daskmeans as dkm\ndkm.KMeans(k=3)", "line 4: KMeans has no argument k"),
        ("yaml", "input: [", "line 2: not valid YAML"),
        (
            "yaml",
            "# j.yaml\nclusters: 3\n```\n```bash\ndaskmeans run j.yaml --out w",
            "unknown key 'clusters'",
        ),
    ],
)
def test_a_mistake_on_a_page_is_refused(reader: Reader, tmp_path: Path, language: str, text: str, told: str) -> None:
    page = tmp_path / "bad.md"
    page.write_text(f"```{language}\n{text}\n```\n")
    with pytest.raises(PageError, match=re.escape(told)):
        reader.follow(page)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("Text.\n\n```bash\nls\n", "line 3: the block has no end"),
        ("> Text:\n> ```bash\n> ls\n> ```\n", "line 2: a block .* not in a quotation"),
        ("~~~\nls\n~~~\n", "line 1: a block begins with ```"),
    ],
)
def test_a_block_that_would_be_overlooked_is_refused(text: str, told: str) -> None:
    with pytest.raises(PageError, match=told):
        list(treat(text))


if __name__ == "__main__":
    for each in PAGES:
        print(f"\n{name_page(each)}")
        try:
            for step in treat(each.read_text()):
                print(step)
        except PageError as error:
            print(f"      REFUSED  {error}")
