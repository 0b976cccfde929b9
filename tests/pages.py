"""The pages that a user follows: their code blocks, the commands in these, and how a test treats each of them.

`treat` says of every block and command one of these, and refuses whatever it does not know, so that nothing is skipped:

=======  ======================================================================================================
run      it is executed, and must end with the exit status that stands behind it (``# exit status 2``), or with 0
parsed   its words are parsed by the command that it calls, which is then not called: it would start a server,
         or needs a GPU, and there is none
checked  the files, packages, extras and names in it exist; nothing is installed, and what is Python is compiled
set      it changes the environment or the directory of the commands that follow on the page
written  a YAML file that the commands that follow read
shown    it is to be read only, such as output
=======  ======================================================================================================
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

import yaml

from daskmeans.runtime import gpus
from helpers import ROOT

# Languages of blocks that are not executed.
SHOWN = {"ini", "json", "sql", "text", "toml", "{note}", "{tip}", "{toctree}", "{warning}"}
# Packages that a page may import and that tests need not have. A block that imports a missing one is only checked.
OPTIONAL = {"cudf", "cuml", "cupy", "dask_cuda", "dask_cudf", "dask_jobqueue", "datasets", "duckdb", "polars", "torch"}
# How commands are treated, by their first words; the longest match counts.
COMMANDS = {
    ".": "checked",
    "cat": "run",
    "cd": "set",
    "ci/": "checked",
    "cp": "run",
    "dask cuda worker": "parsed",
    "dask kmeans": "run",
    "dask scheduler": "parsed",
    "dask worker": "parsed",
    "daskmeans": "run",
    "daskmeans demo": "parsed",  # tests/report/test_demo.py runs it, on less than all that is installed
    "export": "set",
    "git clone": "set",
    "head": "run",
    "ls": "run",
    "mkdir": "run",
    "pip install": "checked",
    "pytest": "checked",  # the command that runs this
    "python": "run",
    "python -m venv": "checked",
    "source": "checked",
}
# What makes a command need a GPU: its words, settings of a YAML file, or the environment.
GPU_FLAGS = {("device", "gpu"), ("engine", "cuml")}
GPU_ENVIRONMENT = {("DASK_DASKMEANS__DEVICE", "gpu"), ("DASK_DATAFRAME__BACKEND", "cudf")}
GPU_WORDS = {"cudf", "cuml", "gpu"}  # as strings in Python

FENCE = re.compile(r"(?P<indent> *)```(?P<language>\S*)\s*$")
STATUS = re.compile(r"# exit status (\d+)$")
NAMED = re.compile(r"# (?P<name>[\w.-]+\.ya?ml)$")
TOKEN = re.compile(
    r"""\s+
    | (?P<comment> \#.*)
    | (?P<operator> &&|\|\||[|;&<>()`]+)
    | (?P<word> (?: "(?:\\.|[^"\\`])*" | '[^']*' | \\. | [^\s"'\\|;&<>()`] )+ )""",
    re.VERBOSE,
)
ASSIGNMENT = re.compile(r"(?P<name>[A-Za-z_]\w*)=(?P<value>.*)", re.DOTALL)


class PageError(Exception):
    """What is wrong with a page."""


@dataclass(frozen=True)
class Block:
    """A block of code: its language, its lines, and the number of the first of them on the page."""

    language: str
    lines: tuple[str, ...]
    number: int

    @property
    def text(self) -> str:
        return "\n".join(self.lines) + "\n"


@dataclass(frozen=True)
class Command:
    """A command as it was written: its words with their quotes, variables set for it alone, and its exit status."""

    words: tuple[str, ...]
    variables: tuple[str, ...]
    status: int
    number: int

    @property
    def text(self) -> str:
        return " ".join((*self.variables, *self.words))


@dataclass(frozen=True)
class Step:
    """A command, or a block that is no list of commands, and how it is treated."""

    what: Command | Block
    how: str

    def __str__(self) -> str:
        what = self.what
        text = what.text if isinstance(what, Command) else f"{what.language}: {next(filter(None, what.lines), '')}"
        return f"{what.number:5} {self.how:8} {text}"


def find_pages() -> list[Path]:
    """Return the pages, by the order in which a user meets them."""
    quickstart = ROOT / "docs" / "quickstart.md"
    return [ROOT / "README.md", *filter(Path.exists, [quickstart]), *sorted((ROOT / "docs" / "guide").glob("*.md"))]


def has_gpu() -> bool:
    """Whether commands for GPUs can run here."""
    return Path("/proc/driver/nvidia/gpus").is_dir() and not gpus.missing_packages()


def fail(number: int, message: str) -> PageError:
    """Return the error of line `number`."""
    return PageError(f"line {number}: {message}")


def read_blocks(text: str) -> Iterator[Block]:
    """Yield the code blocks of a page."""
    opened: re.Match[str] | None = None
    start, lines = 0, []
    for number, line in enumerate(text.splitlines(), 1):
        if opened is None:
            if re.match(r"[\s>]*(~~~|>\s*```)", line):
                raise fail(number, "a block begins with ``` and is not in a quotation")
            if line.lstrip().startswith("```"):
                opened, start, lines = FENCE.match(line), number, []
                if opened is None or not opened["language"]:
                    raise fail(number, f"{line.strip()!r} names no language, such as bash, python or text")
        elif line.strip() == "```":
            yield Block(opened["language"], tuple(lines), start + 1)
            opened = None
        else:
            lines.append(line.removeprefix(opened["indent"]))
    if opened is not None:
        raise fail(start, "the block has no end")


def read_commands(block: Block) -> Iterator[Command]:
    """Yield the commands of a block: one a line or joined by ``&&``, continued where a line ends with a backslash."""
    lines = iter(enumerate(block.lines, block.number))
    for number, line in lines:
        whole = line
        while whole.endswith("\\"):
            _, more = next(lines, (0, None))
            if more is None:
                raise fail(number, "nothing follows the backslash")
            whole = whole[:-1] + more
        yield from _split(whole, number)


def _split(line: str, number: int) -> Iterator[Command]:
    words: list[str] = []
    commands, status, at = [words], 0, 0
    while at < len(line):
        token = TOKEN.match(line, at)
        if token is None:
            raise fail(number, f"a quote is not closed: {line[at:]!r}")
        at = token.end()
        if token["comment"]:
            status = int(found[1]) if (found := STATUS.search(token["comment"].strip())) else 0
        elif token["operator"] == "&&" or (token["operator"] == "&" and _is_server(words)):
            commands.append(words := [])
        elif token["operator"]:
            raise fail(number, f"{token['operator']!r} is not understood: give one command after the other")
        elif token["word"]:
            words.append(token["word"])
    for each in commands:
        if not each:
            continue
        first = next((i for i, word in enumerate(each) if not ASSIGNMENT.fullmatch(word)), len(each))
        if first == len(each):
            raise fail(number, f"no command: {' '.join(each)!r}; write `export NAME=value`")
        yield Command(tuple(each[first:]), tuple(each[:first]), status if each is commands[-1] else 0, number)


def _is_server(words: list[str]) -> bool:
    return words[:2] in (["dask", "scheduler"], ["dask", "worker"])


def find_rule(command: Command) -> str:
    """Return the longest of COMMANDS that `command` begins with."""
    words = (re.sub(r"^(python|pip)3(\.\d+)?$", r"\1", command.words[0]), *command.words[1:])
    if words[0].startswith("ci/"):
        return "ci/"
    for n in (3, 2, 1):
        if (name := " ".join(words[:n])) in COMMANDS:
            return name
    raise fail(command.number, f"unknown command {command.text!r}")


def treat(text: str) -> Iterator[Step]:
    """Yield what there is to do on a page, without doing it.

    Raises
    ------
    PageError
    """
    environment: dict[str, str] = {}
    settings: dict[str, dict] = {}
    for block in read_blocks(text):
        if block.language == "bash":
            for command in read_commands(block):
                how = COMMANDS[rule := find_rule(command)]
                here = environment | _variables(command)
                if rule == "export":
                    environment |= _variables(replace(command, variables=command.words[1:]))
                if how == "run" and _needs_gpu(command, here, settings):
                    how = "checked" if rule == "python" else "parsed"
                yield Step(command, how)
        elif block.language == "python":
            yield Step(block, _treat_python(block, environment))
        elif block.language == "yaml":
            named, found = NAMED.match(block.lines[0] if block.lines else ""), _parse_yaml(block)
            if named:
                settings[named["name"]] = found
            yield Step(block, "written" if named else "shown")
        elif block.language in SHOWN:
            yield Step(block, "shown")
        else:
            raise fail(block.number - 1, f"unknown language {block.language!r}")


def _parse_yaml(block: Block) -> dict:
    try:
        found = yaml.safe_load(block.text)
    except yaml.YAMLError as error:
        raise fail(block.number, f"not valid YAML: {error}") from None
    return found if isinstance(found, dict) else {}


def _variables(command: Command) -> dict[str, str]:
    pairs = (ASSIGNMENT.fullmatch(each) for each in command.variables)
    return {each["name"]: each["value"] for each in pairs if each}


def _needs_gpu(command: Command, environment: dict[str, str], settings: dict[str, dict]) -> bool:
    words = [part for word in command.words for part in word.split("=", 1)]
    flags = {(flag.removeprefix("--"), value) for flag, value in pairwise(words)}
    flags |= {(key, value) for word in words for key, value in settings.get(word, {}).items() if isinstance(value, str)}
    named = words[0] == "python" and any("gpu" in word for word in words[1:2])
    return not has_gpu() and (named or bool(flags & GPU_FLAGS) or bool({*environment.items()} & GPU_ENVIRONMENT))


def _treat_python(block: Block, environment: dict[str, str]) -> str:
    """How a Python block is treated: it is run, unless it needs a package or a GPU that is not here."""
    try:
        tree = ast.parse(block.text)
    except SyntaxError as error:
        raise fail(block.number + (error.lineno or 1) - 1, f"SyntaxError: {error.msg}") from None
    missing = {name for name in find_imports(tree) & OPTIONAL if find_spec(name) is None}
    constants = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and node.value in GPU_WORDS}
    on_gpu = constants or {*environment.items()} & GPU_ENVIRONMENT
    return "checked" if missing or (on_gpu and not has_gpu()) else "run"


def find_imports(tree: ast.AST) -> set[str]:
    """Return the packages that are imported in `tree`."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {each.name.split(".")[0] for each in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add((node.module or "").split(".")[0])
    return found
