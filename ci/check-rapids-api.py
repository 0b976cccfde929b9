#!/usr/bin/env python3
"""Check what our code uses of RAPIDS against the source inside its wheels, without importing them.

    ci/check-rapids-api.py wheels

Every name that daskmeans, workflows (notebooks too) and tests import from a package of RAPIDS, every attribute of it
and every argument of its calls is looked up where the wheels define it: in Python files, in the Cython files that lie
beside compiled modules, or else in the names and signatures that these hold. A variable called `xp` is cupy. Exit
status: 0, all is there; 1, something is not; 2, there are no wheels, and how to get them.
"""

from __future__ import annotations

import argparse
import ast
import json
import re
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parent.parent
# Import names and how their wheels are called. cupy is no part of RAPIDS: that its wheel is not there is only told.
CUPY = "cupy-cuda13x>=14"
WHEELS = {
    "cudf": "cudf-cu13==26.10.*",
    "cuml": "cuml-cu13==26.10.*",
    "cupy": CUPY,
    "cupy_backends": CUPY,
    "cupyx": CUPY,
    "dask_cuda": "dask-cuda==26.10.*",
    "dask_cudf": "dask-cudf-cu13==26.10.*",
    "pylibcudf": "pylibcudf-cu13==26.10.*",
    "raft_dask": "raft-dask-cu13==26.10.*",
    "rmm": "rmm-cu13==26.10.*",
}
# A class on the left takes any keyword argument, hands it to one on the right on each worker, and asks that one for
# attributes that it has not itself.
FORWARDS = {"cuml.dask.cluster.kmeans.KMeans": "cuml.cluster.kmeans.KMeans"}
# A call of the function on the left gives keyword arguments: fields of a dataclass in the same file, which the one on
# the right makes.
FIELDS = {"_of": "_of_gpus"}


# --- what our code uses ---


@dataclass(frozen=True)
class Use:
    """A name of theirs in our code; ``()`` in it stands for an instance of the class before it."""

    name: str
    where: str
    called: bool = False
    positional: int = 0
    keywords: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.name}({', '.join(['_'] * self.positional + list(self.keywords))})" if self.called else self.name


class Collector(ast.NodeVisitor):
    """Collects the uses of one file; what a variable stands for is known in the function that binds it."""

    def __init__(self, file: str) -> None:
        self.file, self.uses, self.scopes = file, [], [{}]  # type: ignore[var-annotated]
        self.fields: dict[str, list[str]] = {}

    def use(self, node: ast.AST, name: str, **call: object) -> None:
        self.uses.append(Use(name, f"{self.file}:{node.lineno}", **call))  # type: ignore[attr-defined, arg-type]

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        self.scopes.append({})
        self.generic_visit(node)
        self.scopes.pop()

    def visit_Import(self, node: ast.Import) -> None:
        for alias in node.names:
            if alias.name.partition(".")[0] in WHEELS:
                self.use(node, alias.name)
                bound = alias.name if alias.asname else alias.name.partition(".")[0]
                self.scopes[-1][alias.asname or bound] = bound

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        if node.module and node.level == 0 and node.module.partition(".")[0] in WHEELS:
            for alias in node.names:
                self.use(node, f"{node.module}.{alias.name}")
                self.scopes[-1][alias.asname or alias.name] = f"{node.module}.{alias.name}"

    def visit_Assign(self, node: ast.Assign) -> None:
        self.generic_visit(node)
        for target in node.targets:
            self.bind(target, node.value)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        self.generic_visit(node)
        if isinstance(node.target, ast.Name) and (made_by := _called(node.value)):
            self.fields.setdefault(made_by, []).append(node.target.id)

    def visit_With(self, node: ast.With) -> None:
        for item in node.items:
            self.bind(item.optional_vars, item.context_expr)
        self.generic_visit(node)

    def bind(self, target: ast.expr | None, value: ast.expr) -> None:
        if isinstance(target, ast.Name):
            self.scopes[-1][target.id] = self.name_of(value) if isinstance(value, ast.Call) else None

    def visit_Call(self, node: ast.Call) -> None:
        if name := self.name_of(node.func):
            hidden = [self.fields.get(FIELDS.get(_called(k.value), "")) for k in node.keywords if k.arg is None]
            if any(isinstance(a, ast.Starred) for a in node.args) or not all(hidden):
                sys.exit(f"{self.file}:{node.lineno}: {name} is called with * or **, which cannot be checked")
            keywords = [keyword.arg for keyword in node.keywords if keyword.arg is not None]
            keywords += [each for names in hidden for each in names or ()]
            self.use(node, name, called=True, positional=len(node.args), keywords=tuple(keywords))
            for each in [_innermost(node.func), *node.args, *(keyword.value for keyword in node.keywords)]:
                self.visit(each)
        else:
            self.generic_visit(node)

    def visit_Attribute(self, node: ast.Attribute) -> None:
        if name := self.name_of(node):
            self.use(node, name)
        self.visit(_innermost(node))

    def name_of(self, node: ast.expr) -> str | None:
        """What of theirs `node` stands for; a call of a class stands for an instance."""
        if getattr(node, "attr", getattr(node, "id", "")) == "xp":
            return "cupy"
        if isinstance(node, ast.Attribute):
            of = self.name_of(node.value)
            return f"{of}.{node.attr}" if of else None
        if isinstance(node, ast.Call):
            made = self.name_of(node.func)
            return f"{made}()" if made and made.rpartition(".")[2][:1].isupper() else None
        if isinstance(node, ast.Name):
            return next((scope[node.id] for scope in reversed(self.scopes) if node.id in scope), None)
        return None


def _called(node: ast.expr | None) -> str:
    """Name of the function that `node` calls."""
    return node.func.id if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) else ""


def _innermost(node: ast.expr) -> ast.expr:
    """What the attributes of `node` are attributes of."""
    while isinstance(node, ast.Attribute):
        node = node.value
    return node


def uses_in(sources: list[Path]) -> list[Use]:
    """What the Python files and notebooks below `sources` use, each thing once."""
    found: dict[str, Use] = {}
    for source in sources:
        for path in sorted([*source.rglob("*.py"), *source.rglob("*.ipynb")]):
            collector = Collector(str(path.relative_to(source.parent)))
            collector.visit(ast.parse(_code_of(path)))
            for use in collector.uses:
                found.setdefault(str(use), use)
    return sorted(found.values(), key=str)


def _code_of(path: Path) -> str:
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        return text
    return "\n".join("".join(cell["source"]) for cell in json.loads(text)["cells"] if cell["cell_type"] == "code")


# --- what their source defines ---


@dataclass(frozen=True)
class Definition:
    """Something that a module defines: a class, a function, any other value, or (no node) the module itself."""

    module: str
    path: str
    node: ast.AST | None = None

    @property
    def name(self) -> str:
        return f"{self.module}.{getattr(self.node, 'name', '')}"


class Compiled(LookupError):
    """A module of which only the compiled form is there; or a value, of which nothing is known before it is made."""


class Library:
    """The packages below a directory, in wheels or unpacked; those that are not there come from this environment."""

    def __init__(self, directory: Path) -> None:
        self.files: dict[str, Path | zipfile.ZipFile] = {}
        for wheel in sorted(directory.glob("*.whl")):
            archive = zipfile.ZipFile(wheel)
            self.files |= dict.fromkeys(archive.namelist(), archive)
        for path in directory.rglob("*"):
            if path.suffix in (".py", ".pyi", ".pyx", ".so") or path.name == "METADATA":
                self.files.setdefault(path.relative_to(directory).as_posix(), path)

    def versions(self) -> list[str]:
        return sorted(m[1] for name in self.files if (m := re.fullmatch(r"([^/]+)\.dist-info/METADATA", name)))

    def has(self, package: str) -> bool:
        return any(name.startswith(f"{package}/") for name in self.files)

    def _read(self, name: str) -> str | None:
        if (holder := self.files.get(name)) is not None:
            return (holder.read(name) if isinstance(holder, zipfile.ZipFile) else holder.read_bytes()).decode()
        if name.partition("/")[0] in WHEELS:
            return None
        found = (Path(place, name) for place in sys.path)
        return next((path.read_text(encoding="utf-8") for path in found if path.is_file()), None)

    @cache  # noqa: B019
    def module(self, name: str) -> tuple[str, ast.Module] | None:
        """Path and definitions of a module; None if there is none."""
        base = name.replace(".", "/")
        for path in (f"{base}/__init__.py", f"{base}.py", f"{base}.pyi", f"{base}.pyx"):
            if (text := self._read(path)) is not None:
                return path, ast.parse(_python_of(text) if path.endswith(".pyx") else text)
        if self.binary(name):
            raise Compiled(name)
        return None

    @cache  # noqa: B019
    def binary(self, module: str) -> bytes:
        """A compiled module; empty if there is none."""
        base = re.escape(module.replace(".", "/"))
        name = next((file for file in self.files if re.fullmatch(rf"{base}\.[^/]*so", file)), None)
        holder = self.files.get(name or "")
        if holder is None:
            return b""
        return holder.read(str(name)) if isinstance(holder, zipfile.ZipFile) else holder.read_bytes()

    def find(self, name: str) -> Definition | None:
        """What `name` stands for, wherever that is defined; None if nothing does."""
        if (module := self.module(name)) is not None:
            return Definition(name, module[0])
        of, _, last = name.rpartition(".")
        return self.member(of, last) if of else None

    def member(self, of: str, last: str) -> Definition | None:
        instance, of = of.endswith("()"), of.removesuffix("()")
        owner = self.find(of)
        if owner is None:
            return None
        if isinstance(owner.node, ast.ClassDef):
            return next((found for c in self.line(owner) if (found := _in_class(c, last, instance))), None)
        if owner.node is None:
            return self._in_module(owner.module, last)
        if isinstance(owner.node, (ast.Assign, ast.AnnAssign)):
            raise Compiled(f"the value of {of}")
        return None

    def _in_module(self, module: str, name: str) -> Definition | None:
        path, tree = self.module(module) or ("", ast.Module([], []))
        for node in _top(tree):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)) and node.name == name:
                return Definition(module, path, node)
            if name in _assigned(node):
                return Definition(module, path, node)
            if isinstance(node, ast.ImportFrom):
                source = _absolute(node, module, path)
                for alias in node.names:
                    if name == (alias.asname or alias.name):
                        return self.find(f"{source}.{alias.name}")
                    if alias.name == "*" and (found := self._in_module(source, name)):
                        return found
            if isinstance(node, ast.Import):
                for alias in node.names:
                    if name == (alias.asname or alias.name.partition(".")[0]):
                        return self.find(alias.name if alias.asname else name)
        return None

    def line(self, definition: Definition) -> Iterator[Definition]:
        """A class, those it inherits from, and those it forwards to."""
        yield definition
        for base in definition.node.bases:  # type: ignore[union-attr]
            found = self._in_module(definition.module, base.id) if isinstance(base, ast.Name) else None
            if found is not None and isinstance(found.node, ast.ClassDef):
                yield from self.line(found)
        if further := FORWARDS.get(definition.name):
            if (found := self.find(further)) is None:
                raise LookupError(f"{further}, to which {definition.name} forwards, is not there")
            yield from self.line(found)


def _python_of(cython: str) -> str:
    """Of a Cython file what Python can parse: imports, functions, classes, their methods and attributes."""
    lines, out, i, in_class = cython.splitlines(), [], 0, False
    while i < len(lines):
        head, i = lines[i], i + 1
        if re.match(r"[^\s#)]", head):  # a statement of the module, not the end of one
            in_class = re.match(r"(cdef )?class ", head) is not None
        if re.match(r"(from|import|class|cdef class|def) " + ("|    def " if in_class else ""), head):
            while head.count("(") > head.count(")") and i < len(lines):
                head, i = f"{head}\n{lines[i]}", i + 1
        if re.match(r"(cdef )?class ", head):
            out.append(head.removeprefix("cdef ") + "\n    pass")
        elif m := re.match(r"def |    def ", head):
            if in_class or m[0] == "def ":
                out.append(head + "\n" + " " * (len(m[0])) + "pass")
        elif re.match(r"(from|import) ", head) and "cimport" not in head:
            out.append(head)
        elif in_class and (m := re.match(r" {8,}(self\.\w+) = ", head)):
            out.append(f"        {m[1]} = None")
        elif m := re.match(r"(    )?\w+ = " if in_class else r"\w+ = ", head):
            out.append(m[0] + "None")
    return "\n".join(out)


def _top(tree: ast.AST) -> Iterator[ast.stmt]:
    """The statements of a module or class, also those inside of ``if`` and ``try``."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, (ast.If, ast.Try, ast.ExceptHandler)):
            yield from _top(node)
        elif isinstance(node, ast.stmt):
            yield node


def _assigned(node: ast.AST) -> set[str]:
    targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
    return {target.id for target in targets if isinstance(target, ast.Name)}


def _in_class(owner: Definition, name: str, instance: bool) -> Definition | None:
    for node in _top(owner.node):  # type: ignore[arg-type]
        if getattr(node, "name", None) == name or name in _assigned(node):
            return Definition(owner.module, owner.path, node)
    for node in ast.walk(owner.node) if instance else ():  # type: ignore[arg-type]
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and ast.unparse(node) == f"self.{name}":
            return Definition(owner.module, owner.path, node)
    return None


def _absolute(node: ast.ImportFrom, module: str, path: str) -> str:
    package = module if path.endswith("/__init__.py") else module.rpartition(".")[0]
    for _ in range(node.level - 1):
        package = package.rpartition(".")[0]
    return ".".join(filter(None, [package if node.level else "", node.module]))


# --- one against the other ---


def problem(use: Use, library: Library) -> tuple[str, str]:
    """Where `use` is defined, and what is wrong with it; empty if nothing is."""
    try:
        found = library.find(use.name)
        if found is None:
            return "", "there is no such name"
        return found.path, _misfit(use, found, library) if use.called else ""
    except Compiled as error:
        return _in_binary(use, str(error), library.binary(str(error)))


def _in_binary(use: Use, module: str, binary: bytes) -> tuple[str, str]:
    """As :func:`problem`, of what a compiled module says of itself: its names, and signatures in docstrings."""
    last = use.name.removesuffix("()").rpartition(".")[2]
    if not binary or use.name == module:
        return f"{module} is compiled, not checked", ""
    if last.encode() not in binary:
        return "", f"{module} is compiled, and there is no such name in it"
    found = set(re.findall(rb"[\0.]" + last.encode() + rb"\(([^\0\n]*)\)(?: ->[^\0\n]*)?[\0\n]", binary))
    if not use.called or len(found) != 1:
        return f"{module} is compiled; the name is in it", ""
    taken = [re.split(r"[ *]", each.partition("=")[0].strip())[-1] for each in found.pop().decode().split(",")]
    taken = [name for name in taken if name not in ("", "self")]
    if use.positional > len(taken):
        return "", f"it takes {len(taken)} positional arguments"
    if unknown := [name for name in use.keywords if name not in taken]:
        return "", f"there is no argument {', '.join(unknown)}"
    return f"{module} is compiled; its docstring has the signature", ""


def _misfit(use: Use, found: Definition, library: Library) -> str:
    """Why a call does not fit what it calls."""
    if isinstance(found.node, ast.FunctionDef):
        of_class = any(ast.unparse(each) == "classmethod" for each in found.node.decorator_list)
        bound = of_class or use.name.rpartition(".")[0].endswith("()")
        return _unfit(use, [found.node.args], skip=1 if bound else 0)
    if isinstance(found.node, (ast.Assign, ast.AnnAssign)):  # such as a ufunc; what it takes is known when it is made
        return ""
    if not isinstance(found.node, ast.ClassDef):
        return "it cannot be called"
    makers = (_in_class(c, "__init__", False) for c in library.line(found))
    signatures = [maker.node.args for maker in makers if maker and isinstance(maker.node, ast.FunctionDef)]
    return _unfit(use, signatures, skip=1) if signatures else "its arguments are not known"


def _unfit(use: Use, signatures: list[ast.arguments], skip: int) -> str:
    """What of a call the first of `signatures` does not take; one with ``**`` hands unknown names to the next."""
    first = signatures[0]
    ordered = [each.arg for each in first.posonlyargs + first.args][skip:]
    if use.positional > len(ordered) and first.vararg is None:
        return f"it takes {len(ordered)} positional arguments"
    unknown = list(use.keywords)
    for each in signatures:
        taken = {arg.arg for arg in each.args + each.kwonlyargs}
        unknown = [name for name in unknown if name not in taken]
        if each.kwarg is None:
            break
    if unknown:
        return f"there is no argument {', '.join(unknown)}"
    needed = ordered[use.positional : len(ordered) - len(first.defaults)]
    needed += [arg.arg for arg, default in zip(first.kwonlyargs, first.kw_defaults, strict=True) if default is None]
    missing = [name for name in needed if name not in use.keywords]
    return f"it needs {', '.join(missing)}" if missing else ""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("wheels", type=Path, help="a directory of wheels, or of unpacked packages")
    parser.add_argument("--source", type=Path, action="append", help="of our code [all but ci]")
    asked = parser.parse_args()
    uses = uses_in(asked.source or [ROOT / name for name in ("daskmeans", "benchmarks", "workflows", "tests")])
    library = Library(asked.wheels)
    packages = sorted({use.name.partition(".")[0] for use in uses})
    absent = [package for package in packages if not library.has(package)]
    if needed := [WHEELS[package] for package in absent if WHEELS[package] != CUPY]:
        print(f"not checked: {asked.wheels} lacks wheels; get them with\n\n"
              f"  pip download --no-deps -d {asked.wheels} {' '.join(needed)}", file=sys.stderr)  # fmt: skip
        return 2
    print(f"against {', '.join(library.versions()) or asked.wheels}\n")
    wrong = 0
    for use in uses:
        if use.name.partition(".")[0] in absent:
            place, fault = "no wheel, not checked", ""
        else:
            place, fault = problem(use, library)
        wrong += bool(fault)
        mark = "WRONG" if fault else "-" if "not checked" in place else "ok"
        print(f"{mark:5}  {use}\n       {use.where} <- {fault or place}")
    print(f"\n{len(uses)} uses, {wrong} wrong")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
