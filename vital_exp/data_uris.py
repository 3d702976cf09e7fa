"""Pictures inside a page: data URIs, so that nothing lies beside it and nothing is fetched."""

from __future__ import annotations

import base64

JPEG, PNG = "image/jpeg", "image/png"


def data_uri(data: bytes, mime: str) -> str:
    """Return the content of a file, of a MIME type, as a data URI."""
    return f"data:{mime};base64,{base64.b64encode(data).decode('ascii')}"
