"""Where progress bars are shown: on a terminal and in a notebook, not in a file or a pipe. Imports no torch."""

from __future__ import annotations

import sys


def hidden(asked: bool) -> bool | None:
    """Return tqdm's ``disable``: None hides a bar unless stderr is a terminal, which a notebook's is not.

    Args:
        asked: whether bars are asked for.
    """
    return (False if in_notebook() else None) if asked else True


def in_notebook() -> bool:
    """Return whether this is the kernel of a notebook."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return "IPKernelApp" in getattr(shell, "config", {})
