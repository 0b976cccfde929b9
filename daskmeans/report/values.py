"""Values of metadata on a page: pictures are shown, other bytes are counted."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from html import escape
from typing import Any

from dask.utils import format_bytes

# Bytes that pictures begin with, and how browsers call them; WebP has its own mark behind a length.
PICTURES = {b"\x89PNG\r\n\x1a\n": "png", b"\xff\xd8\xff": "jpeg", b"GIF87a": "gif", b"GIF89a": "gif"}
# Larger pictures are only named: a page holds those of all its pairs.
MOST_BYTES = 1 << 20


def picture_type(content: bytes) -> str | None:
    """Return the kind of picture that `content` is, if it is one.

    Examples
    --------
    >>> picture_type(b"GIF89a..."), picture_type(b"RIFF....WEBPVP8 "), picture_type(b"<svg/>")
    ('gif', 'webp', None)
    """
    if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        return "webp"
    return next((kind for start, kind in PICTURES.items() if content.startswith(start)), None)


def describe_value(value: Any) -> str:
    """Return a value as text; of bytes, how many there are.

    Examples
    --------
    >>> describe_value(b"GIF89a"), describe_value({"bytes": b"GIF89a", "path": "cat.gif"}), describe_value(3)
    ('picture of 6 B', 'cat.gif, picture of 6 B', '3')
    """
    content = find_bytes(value)
    if content is None:
        return str(value)
    told = f"{'picture' if picture_type(content) else 'binary data'} of {format_bytes(len(content))}"
    path = value.get("path") if isinstance(value, Mapping) else None
    return f"{path}, {told}" if path else told


def find_bytes(value: Any) -> bytes | None:
    """Return the bytes of `value`: of itself, or of a struct as data sets of pictures have it."""
    held = value.get("bytes") if isinstance(value, Mapping) else value
    return held if isinstance(held, bytes) else None


def render_picture(name: str, value: Any) -> str:
    """Return `value` as HTML, if it is a picture of moderate size; else nothing."""
    content = find_bytes(value)
    kind = picture_type(content) if content and len(content) <= MOST_BYTES else None
    if content is None or kind is None:
        return ""
    data = base64.b64encode(content).decode()
    return f'<img class="picture" alt="{escape(name)}" src="data:image/{kind};base64,{data}">'
