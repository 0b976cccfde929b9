"""Ids that are made where files have none: the numbers of the rows, or their files and rows."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from upath import UPath

from daskmeans.runtime.client import logger
from daskmeans.vectors.files import bare_path, common_root
from daskmeans.vectors.partitioning import Slice

# The column of ids, unless another is named.
ID_FIELD = "id"

# Where ids come from: a column, the number of a row in the whole input, or its file and its number there.
FIELD, ROW, FILE_ROW = "field", "row", "file-row"
ID_SOURCES = (FIELD, FILE_ROW)  # those that users ask for; rows are numbered where there is no column


def id_settings(id_from: str) -> dict[str, str]:
    """Return the setting of a step that reads ids; none by default, as in outputs of earlier versions."""
    return {} if id_from == FIELD else {"id_from": id_from}


@dataclass(frozen=True)
class Numbering:
    """How ids are made.

    Attributes
    ----------
    kind : {"row", "file-row"}
    root : str
        Start of the paths of all files, which ids leave out.
    """

    kind: str
    root: str

    @property
    def type(self) -> pa.DataType:
        """Type of the ids."""
        return pa.int64() if self.kind == ROW else pa.string()

    def make_ids(self, piece: Slice, first: int, rows: int) -> pa.Array:
        """Return the ids of `rows` rows of the file of `piece` from row `first` of it on.

        Examples
        --------
        >>> from upath import UPath
        >>> piece = Slice(UPath("/in/b/0.npy"), first=10, rows=5, number=70)
        >>> Numbering("row", "/in/").make_ids(piece, 12, 2).to_pylist()
        [72, 73]
        >>> Numbering("file-row", "/in/").make_ids(piece, 12, 2).to_pylist()
        ['b/0.npy:12', 'b/0.npy:13']
        """
        start = first if self.kind == FILE_ROW else piece.number + first - piece.first
        numbers = pa.array(np.arange(start, start + rows, dtype=np.int64))
        if self.kind == ROW:
            return numbers
        name = bare_path(piece.path).removeprefix(self.root)
        return pc.binary_join_element_wise(pa.scalar(name), numbers.cast(pa.string()), ":")


def choose_numbering(
    id_from: str, id_field: str, format: str, schemas: Sequence[pa.Schema], files: Sequence[UPath]
) -> Numbering | None:
    """Return how ids of rows in `files` are made, on request or for want of a column; None if they are in a column."""
    root = common_root(files)
    if id_from != FIELD:
        return Numbering(id_from, root)
    if format == "npy":
        return Numbering(ROW, root)
    if id_field != ID_FIELD or any(id_field in schema.names for schema in schemas):
        return None
    names = ", ".join(dict.fromkeys(name for schema in schemas for name in schema.names))
    _warn_of_numbers(str(files[0]) if len(files) == 1 else root, id_field, names)
    return Numbering(ROW, root)


@functools.cache  # a step opens its input several times
def _warn_of_numbers(place: str, id_field: str, names: str) -> None:
    logger.warning(
        "%s: there is no column %r, so the ids are the numbers of the rows, from 0 through all files; --id-field names "
        "a column of ids (the columns are %s), and --id-from file-row makes ids of file and row",
        place,
        id_field,
        names,
    )
