"""The oldest versions that pyproject.toml allows, as constraints for pip: python ci/oldest.py > FILE

Those of what daskmeans needs, of the extra `test`, and of the extras in it.
"""

import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).parent.parent / "pyproject.toml"
# Extras of our own; the name and the bound of another package.
OWN, OTHER = r"{}\[([\w,-]+)\]", r"([\w-]+)(?:\[[\w,-]+\])?>=([\d.]+)"


def pins(project: dict[str, Any], requirements: list[str]) -> Iterator[str]:
    """A pin for each of `requirements`, and for those of the extras of `project` that are among them."""
    for requirement in requirements:
        if found := re.fullmatch(OWN.format(project["name"]), requirement):
            for extra in found[1].split(","):
                yield from pins(project, project["optional-dependencies"][extra])
        elif found := re.fullmatch(OTHER, requirement):
            yield f"{found[1]}=={found[2]}"
        else:
            sys.exit(f"{PROJECT}: {requirement!r} should have a lower bound, and no other")


if __name__ == "__main__":
    PARSED = tomllib.loads(PROJECT.read_text())["project"]
    print("\n".join(sorted(pins(PARSED, [*PARSED["dependencies"], f"{PARSED['name']}[test]"]))))
