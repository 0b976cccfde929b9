"""A user who follows a page from top to bottom, in a directory of their own."""

from __future__ import annotations

import contextlib
import glob
import json
import os
import re
import shutil
import subprocess
import sys
import traceback
import warnings
from dataclasses import fields
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click
import dask
import dask.config
import distributed
import distributed.cli.dask_scheduler
import distributed.cli.dask_worker
import pytest
from click.core import ParameterSource
from click.testing import CliRunner
from distributed.deploy.cluster import Cluster

from daskmeans import config
from daskmeans.cli.main import main
from daskmeans.errors import ClusterSizeWarning, ConvergenceWarning, DaskmeansError, PrecisionWarning, ScalingWarning
from daskmeans.runtime.cluster import ClusterSettings
from helpers import ROOT
from objectstore import SECRET, ObjectStore
from page_checks import check_package, check_python, parse_daskmeans
from page_data import read_matrix
from pages import NAMED, Block, Command, PageError, Step, fail, find_rule, treat

# What stands on the pages for a scheduler, for an S3 server, and for a directory that all machines see.
SCHEDULER, SERVER, SHARED = "tcp://host:8786", "https://minio.example.org:9000", "/shared/"
# Flags of `dask cuda worker`, for where its package is not installed.
CUDA_WORKER = {"--scheduler-file", "--memory-limit", "--device-memory-limit", "--rmm-pool-size", "--nthreads"}
SERVERS = {"dask scheduler": distributed.cli.dask_scheduler.main, "dask worker": distributed.cli.dask_worker.main}
SECONDS = 120  # that a script may take
VARIABLE = re.compile(r"\$(?:(\w+)|\{(\w+)\})")
PIECE = re.compile(r"""'([^']*)'|"((?:\\.|[^"\\])*)"|\\(.)|([^'"\\]+)""", re.DOTALL)


class Reader:
    """Does what a page says.

    Parameters
    ----------
    folder : Path
        The directory to begin in.
    data : Path
        What :func:`page_data.write_data` wrote; the directory gets links to these files.
    cluster : LocalCluster
        What commands run on that do not start workers with flags of their own.
    """

    def __init__(self, folder: Path, data: Path, cluster: distributed.LocalCluster) -> None:
        self.folder, self.data, self.cluster = folder, data, cluster
        self.store: ObjectStore | None = None
        self.namespace: dict[str, Any] = {"__name__": "__main__", "X": read_matrix(data)}
        self._patch = pytest.MonkeyPatch()
        self._lasting = contextlib.ExitStack()

    def follow(self, page: Path) -> list[Step]:
        """Do all that `page` says; return what that was.

        Raises
        ------
        PageError
            Something on the page is not known, or does not work.
        """
        text = page.read_text()
        steps = [*treat(text)]
        link_files(self.data, self.folder)
        (self.folder / "workflows").symlink_to(ROOT / "workflows")
        (self.folder / "scheduler.json").write_text(json.dumps({"address": self.cluster.scheduler_address}))
        with self._lasting:
            self._lasting.callback(self._patch.undo)
            self._patch.chdir(self.folder)
            self._patch.setenv("MPLBACKEND", "agg")
            if "s3://" in text:
                self._lasting.enter_context(self._open_store(text))
            self._lasting.callback(self._close_python)
            for step in steps:
                try:
                    self._do(step, page)
                except (PageError, DaskmeansError, click.ClickException, OSError) as error:
                    message = error.format_message() if isinstance(error, click.ClickException) else str(error)
                    where = "" if re.match(r"line \d+:", message) else f"line {step.what.number}: "
                    shown = f"`{step.what.text}`: " if isinstance(step.what, Command) else ""
                    raise PageError(f"{page.name}, {where}{shown}{message}") from error
        return steps

    def _do(self, step: Step, page: Path) -> None:
        what, how = step.what, step.how
        if isinstance(what, Command):
            with contextlib.ExitStack() as stack:
                patch = stack.enter_context(pytest.MonkeyPatch.context())
                for each in what.variables:
                    self._set(self._expand(each)[0], patch, stack)
                rule = find_rule(what)
                words = [word for raw in what.words for word in self._expand(raw)]
                METHODS.get(rule.split()[0] if rule.startswith("daskmeans") else rule, Reader._run_program)(
                    self, words, how, what.status
                )
        elif how == "run":
            self._run_python(what, page)
        elif how == "checked":
            check_python(what)
        elif how == "written":
            named = NAMED.match(what.lines[0])
            assert named is not None
            Path(named["name"]).write_text(self._substitute(what.text))

    def _expand(self, raw: str) -> list[str]:
        """Return the words that a shell makes of one as it is written: without quotes, with variables and globs."""
        word, pattern = "", False
        for single, double, escaped, plain in PIECE.findall(raw):
            word += single + escaped + re.sub(r'\\(["\\$`])', r"\1", expand_variables(double)) + expand_variables(plain)
            pattern |= "*" in plain or "?" in plain
        word = self._substitute(word)
        return (sorted(glob.glob(word)) if pattern else []) or [word]

    def _substitute(self, text: str) -> str:
        """Put what is here in the place of what stands for it on a page."""
        text = text.replace(SCHEDULER, self.cluster.scheduler_address).replace(SHARED, f"{self.folder}/")
        return text.replace(SERVER, self.store.options["endpoint_url"]) if self.store else text

    def _set(self, word: str, patch: pytest.MonkeyPatch, stack: contextlib.ExitStack) -> None:
        """Set a variable, ``NAME=value``; one of Dask is a setting too, as Dask reads them when it is imported."""
        name, _, value = word.partition("=")
        patch.setenv(name, value)
        if name.startswith("DASK_"):
            key = name.removeprefix("DASK_").lower().replace("__", ".")
            package, _, setting = key.partition(".")
            if package == "daskmeans" and setting.replace("_", "-") not in config._defaults[package]:
                raise PageError(f"there is no setting {key}")
            stack.enter_context(dask.config.set({key: dask.config.interpret_value(value)}))

    def _export(self, words: list[str], how: str, status: int) -> None:
        for word in words[1:]:
            self._set(word, self._patch, self._lasting)

    def _change_directory(self, words: list[str], how: str, status: int) -> None:
        self._patch.chdir(words[1])

    def _clone(self, words: list[str], how: str, status: int) -> None:
        """Make a directory that looks like the repository, with the data of the page in it."""
        address, *given = [word for word in words[2:] if not word.startswith("-")]
        target = Path(given[0] if given else Path(address).stem)
        target.mkdir()
        for each in ROOT.iterdir():
            if each.name not in os.listdir(self.data):
                (target / each.name).symlink_to(each)
        link_files(self.data, target)

    def _daskmeans(self, words: list[str], how: str, status: int) -> None:
        words = words[2 if words[0] == "dask" else 1 :]
        if not {"--help", "--help-gpu", "-h", "--version"} & {*words}:
            context = parse_daskmeans(words)
            if how == "parsed":
                return
            given = [each.name for each in fields(ClusterSettings)
                     if context.get_parameter_source(each.name) not in (None, ParameterSource.DEFAULT)]  # fmt: skip
            if not given and (words[0] != "info" or context.params["advise"]):
                words += ["--scheduler", self.cluster.scheduler_address]
        with warnings.catch_warnings():
            ignore_advice()
            result = CliRunner(env={"COLUMNS": "200"}).invoke(main, words)
        if result.exception and not isinstance(result.exception, SystemExit):
            raise PageError("".join(traceback.format_exception(result.exception)))
        if result.exit_code != status:
            raise PageError(f"exit status {result.exit_code}, not {status}: {result.output[-2000:].strip()}")

    def _parse_server(self, words: list[str], how: str, status: int) -> None:
        SERVERS[" ".join(words[:2])].make_context(words[1], words[2:])

    def _parse_cuda_worker(self, words: list[str], how: str, status: int) -> None:
        if find_spec("dask_cuda"):
            from dask_cuda.cli import worker

            worker.make_context("worker", words[3:])
        elif unknown := {word.split("=")[0] for word in words[3:] if word.startswith("-")} - CUDA_WORKER:
            raise PageError(f"no flag of `dask cuda worker` that is known here: {', '.join(unknown)}")

    def _pip(self, words: list[str], how: str, status: int) -> None:
        wanted = iter(words[2:])
        for word in wanted:
            if word in ("-c", "-r"):
                if not (ROOT / (file := next(wanted, ""))).is_file():
                    raise PageError(f"there is no file {file!r}")
            elif word not in ("-e", "-U", "--upgrade", "-q", "--quiet"):
                check_package(word)

    def _python(self, words: list[str], how: str, status: int) -> None:
        if words[1:3] == ["-m", "daskmeans"]:
            self._daskmeans(words[2:], how, status)
        elif how == "checked":
            if not Path(words[1]).is_file():
                raise PageError(f"there is no file {words[1]!r}")
        else:
            self._run_program([sys.executable, *words[1:]], how, status)

    def _check_program(self, words: list[str], how: str, status: int) -> None:
        """Make sure that a script of the repository, or that of a virtual environment, can be meant."""
        name = words[-1] if words[0] in (".", "source") else words[0]
        if not (name.endswith("bin/activate") or os.access(ROOT / name, os.X_OK) or shutil.which(name)):
            raise PageError(f"there is no {name!r}")

    def _run_program(self, words: list[str], how: str, status: int) -> None:
        done = subprocess.run(words, capture_output=True, text=True, timeout=SECONDS, check=False)
        if done.returncode != status:
            told = (done.stdout + done.stderr)[-2000:].strip()
            raise PageError(f"exit status {done.returncode}, not {status}: {told}")

    def _run_python(self, block: Block, page: Path) -> None:
        text = "\n" * (block.number - 1) + self._substitute(block.text)
        try:
            with warnings.catch_warnings():
                ignore_advice()
                exec(compile(text, page.name, "exec"), self.namespace)
        except (Exception, SystemExit) as error:
            lines = [each.lineno for each in traceback.extract_tb(error.__traceback__) if each.filename == page.name]
            raise fail((lines or [block.number])[-1] or 0, f"{type(error).__name__}: {error}") from error

    def _close_python(self) -> None:
        """Close the clients and clusters that Python blocks have opened."""
        for kind in (distributed.Client, Cluster):
            for each in self.namespace.values():
                if isinstance(each, kind):
                    each.close()
        self.namespace.clear()

    @contextlib.contextmanager
    def _open_store(self, text: str) -> Any:
        """Start an S3 server, which holds what the page names in its bucket; commands and workers find it."""
        from s3fs import S3FileSystem

        self.store = ObjectStore()
        try:
            storage = self.store.at("").fs
            for name in {*re.findall(r"s3://bucket/([\w.-]+)", text)} & {*os.listdir(self.data)}:
                storage.put(str(self.data / name), f"bucket/{name}", recursive=True)
            values = {
                "AWS_ACCESS_KEY_ID": "testing",
                "AWS_SECRET_ACCESS_KEY": SECRET,
                "AWS_DEFAULT_REGION": "us-east-1",
                "AWS_ENDPOINT_URL": self.store.options["endpoint_url"],
            }
            for name, value in values.items():
                self._patch.setenv(name, value)
            with distributed.Client(self.cluster, set_as_default=False) as client:
                before = client.run(set_environment, values)
                try:
                    yield
                finally:
                    S3FileSystem.clear_instance_cache()
                    for worker, old in before.items():
                        client.run(set_environment, old, workers=[worker])
        finally:
            self.store.close()


METHODS = {
    ".": Reader._check_program,
    "cd": Reader._change_directory,
    "ci/": Reader._check_program,
    "dask cuda worker": Reader._parse_cuda_worker,
    "dask kmeans": Reader._daskmeans,
    "dask scheduler": Reader._parse_server,
    "dask worker": Reader._parse_server,
    "daskmeans": Reader._daskmeans,
    "export": Reader._export,
    "git clone": Reader._clone,
    "pip install": Reader._pip,
    "pytest": Reader._check_program,
    "python": Reader._python,
    "python -m venv": Reader._check_program,
    "source": Reader._check_program,
}


def ignore_advice() -> None:
    """Ignore what daskmeans says about rows as few as these."""
    for each in (ClusterSizeWarning, ConvergenceWarning, PrecisionWarning, ScalingWarning):
        warnings.simplefilter("ignore", each)


def link_files(source: Path, target: Path) -> None:
    """Make `target` look like `source`; the files are links."""
    shutil.copytree(source, target, copy_function=os.link, dirs_exist_ok=True)


def set_environment(values: dict[str, str | None]) -> dict[str, str | None]:
    """Set variables of this process, or remove those that are None, and forget S3 clients; return what they were."""
    from s3fs import S3FileSystem

    before = {name: os.environ.get(name) for name in values}
    for name, value in values.items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value
    S3FileSystem.clear_instance_cache()
    return before


def expand_variables(text: str) -> str:
    """Return `text` with the values of variables; one that is not set is an error."""

    def value(found: re.Match[str]) -> str:
        name = found[1] or found[2]
        if name not in os.environ:
            raise PageError(f"the variable {name} is not set")
        return os.environ[name]

    return VARIABLE.sub(value, text)
