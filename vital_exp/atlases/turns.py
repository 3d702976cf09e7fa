"""Several jobs that make one atlas: one at a time writes what they share, and each makes the layers it takes first.

So the same command may be started several times with the same folder, and a sweep's jobs may share one.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from vital_exp.atlases.store import KEY, safe_name
from vital_exp.errors import UsageError
from vital_exp.runs.locks import hold, wait_for

FOLDER = ".locks"
SHARED = "shared"  # the lock of index, tables and pages; layers have names of their own

logger = logging.getLogger(__name__)


@contextmanager
def alone(folder: Path, name: str = SHARED, wait: bool = True) -> Iterator[bool]:
    """Hold a lock of an atlas inside the block; the system takes it back when the process ends, however it ends.

    Args:
        folder: of the atlas.
        name: of the lock.
        wait: whether to wait until no other job holds it.

    Yields:
        Whether it is held.

    Raises:
        UsageError: the folder cannot be written.
    """
    handle = None
    try:
        (folder / FOLDER).mkdir(parents=True, exist_ok=True)
        handle = hold(path := folder / FOLDER / safe_name(name))
    except BlockingIOError:
        if wait:
            logger.info("another job works on this atlas (%s): waiting for it", name)
            handle = wait_for(path)
    except OSError as error:
        raise UsageError(KEY, folder, f"the folder cannot be written ({error.strerror or error})") from error
    try:
        yield handle is not None
    finally:
        if handle is not None:
            os.close(handle)


def free_first(folder: Path, layers: Sequence[str]) -> Iterator[str]:
    """Yield every layer once, while its lock is held: first those that no other job makes, then the others."""
    later = []
    for layer in layers:
        with alone(folder, f"layer {layer}", wait=False) as held:
            if held:
                yield layer
            else:
                later.append(layer)
    for layer in later:
        with alone(folder, f"layer {layer}"):
            yield layer
