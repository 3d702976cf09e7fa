"""Data URIs, which hold pictures inside a page: the page needs no other file and no network access."""

from __future__ import annotations

import base64

JPEG, PNG = "image/jpeg", "image/png"


def data_uri(data: bytes, mime: str) -> str:
    """Return a file's content as a data URI of a MIME type."""
    return f"data:{mime};base64,{base64.b64encode(data).decode('ascii')}"
