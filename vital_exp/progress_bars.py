"""Progress bars are shown on a terminal and in a notebook, not in a file or a pipe. Imports no torch."""

from __future__ import annotations

import sys


def hidden(asked: bool) -> bool | None:
    """Return tqdm's argument ``disable``: True hides a bar, False shows it, None shows it only if stderr is a terminal.

    Args:
        asked: whether the user wants progress bars.
    """
    return (False if in_notebook() else None) if asked else True


def in_notebook() -> bool:
    """Return whether this process is the kernel of a notebook."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return "IPKernelApp" in getattr(shell, "config", {})
