"""Checks of commands and Python that are not executed: what they name exists, and they call it as it can be called."""

from __future__ import annotations

import ast
import importlib.metadata
import inspect
from collections.abc import Iterable
from dataclasses import fields
from importlib.util import find_spec
from typing import Any

import click
from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

import daskmeans
from daskmeans.cli.main import main
from daskmeans.cli.options import Flag, find_given
from daskmeans.options import check
from daskmeans.runtime.cluster import ClusterSettings
from pages import OPTIONAL, Block, PageError, fail, find_imports


def parse_daskmeans(words: list[str]) -> click.Context:
    """Parse a command line of daskmeans as far as can be without doing anything."""
    root = click.Context(main, info_name="daskmeans")
    command = main.get_command(root, words[0] if words else "")
    if command is None:
        raise PageError(f"there is no command `daskmeans {' '.join(words[:1])}`")
    context = command.make_context(words[0], words[1:])
    for each in find_given(context):
        if isinstance(each, Flag) and each.is_idle(context.params):
            raise PageError(f"{each.opts[0]} has no effect here")
    if "scheduler" in context.params:
        check(ClusterSettings(**{each.name: context.params[each.name] for each in fields(ClusterSettings)}))
    return context


def check_package(word: str) -> None:
    """Make sure that what `pip install` is given is this package, with extras that it has, or one that is known."""
    try:
        wanted = Requirement("daskmeans" + word.removeprefix(".") if word.startswith(".") else word)
    except InvalidRequirement as error:
        raise PageError(f"{word!r} is nothing to install: {error}") from None
    facts = importlib.metadata.metadata("daskmeans")
    if wanted.name == "daskmeans":
        if unknown := wanted.extras - {*(facts.get_all("Provides-Extra") or ())}:
            raise PageError(f"daskmeans has no extra {', '.join(sorted(unknown))}")
    else:
        needed = {canonicalize_name(Requirement(each).name) for each in facts.get_all("Requires-Dist") or ()}
        if canonicalize_name(wanted.name) not in needed | {canonicalize_name(name) for name in OPTIONAL}:
            raise PageError(f"{wanted.name!r} is no package that is known here")


def check_python(block: Block) -> None:
    """Make sure that what a block takes from daskmeans is there, and that its calls have the arguments."""
    tree = ast.parse(block.text)
    if missing := [name for name in find_imports(tree) - OPTIONAL if find_spec(name) is None]:
        raise fail(block.number, f"there is no package {', '.join(missing)}")
    for node in ast.walk(tree):
        name = public_name(node.func if isinstance(node, ast.Call) else node)
        if name is None:
            continue
        number = block.number + node.lineno - 1  # type: ignore[attr-defined]
        if not hasattr(daskmeans, name):
            raise fail(number, f"daskmeans has no {name!r}")
        if isinstance(node, ast.Call):
            check_arguments(getattr(daskmeans, name), [each.arg for each in node.keywords], number)


def public_name(node: ast.AST) -> str | None:
    """Return the name that a node takes from daskmeans, if it is such a node."""
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in ("dkm", "daskmeans"):
        return node.attr
    return None


def check_arguments(function: Any, given: Iterable[str | None], number: int) -> None:
    known = inspect.signature(function).parameters
    if any(each.kind is inspect.Parameter.VAR_KEYWORD for each in known.values()):
        return
    if unknown := [name for name in given if name is not None and name not in known]:
        raise fail(number, f"{function.__name__} has no argument {', '.join(unknown)}")
