"""Several jobs that make one atlas: one at a time writes what they share, and each makes the units that it takes first.

So the same command may be started several times with the same folder, and a sweep's jobs may have one folder.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from vital_exp.atlases.store import KEY, safe_name
from vital_exp.errors import UsageError
from vital_exp.runs.locks import give_back_byte, hold, hold_byte, wait_for

FOLDER = ".locks"
SHARED = "shared"  # the lock of index, tables and pages; layers have names of their own
FIRST = 2**40  # the byte of whoever makes a layer's first pictures: above every unit's number

logger = logging.getLogger(__name__)


@contextmanager
def alone(folder: Path, name: str = SHARED, wait: bool = True, exclusive: bool = True) -> Iterator[bool]:
    """Hold a lock of an atlas inside the block; the system takes it back when the process ends, however it ends.

    Args:
        folder: of the atlas.
        name: of the lock.
        wait: whether to wait until no other job's lock prevents it.
        exclusive: whether no other job may hold it; else jobs that ask for it without ``exclusive`` hold it together.

    Yields:
        Whether it is held.

    Raises:
        UsageError: the folder cannot be written.
    """
    handle = None
    try:
        handle = hold(path := _path(folder, name), exclusive=exclusive)
    except BlockingIOError:
        if wait:
            logger.info("another job works on this atlas (%s): waiting for it", name)
            handle = wait_for(path, exclusive)
    except OSError as error:
        raise UsageError(KEY, folder, f"the folder cannot be written ({error.strerror or error})") from error
    try:
        yield handle is not None
    finally:
        if handle is not None:
            os.close(handle)


def _path(folder: Path, name: str) -> Path:
    (folder / FOLDER).mkdir(parents=True, exist_ok=True)
    return folder / FOLDER / safe_name(name)


class Claims:
    """The units of one layer that this process has taken; no other process makes them meanwhile.

    A unit is one byte of the layer's lock file, whose number is the unit's. The system takes a lock back when its
    process ends, however it ends. One process opens the claims of a layer once at a time.

    Args:
        folder: of the atlas.
        layer: its name.
    """

    def __init__(self, folder: Path, layer: str) -> None:
        self._handle = os.open(_path(folder, f"units {layer}"), os.O_RDWR | os.O_CREAT, 0o644)

    def take(self, units: Iterable[int]) -> list[int]:
        """Take the units that no other process has taken, and return them."""
        return [unit for unit in units if hold_byte(self._handle, unit)]

    def give_back(self, units: Iterable[int]) -> None:
        """Let other processes take units."""
        for unit in units:
            give_back_byte(self._handle, unit)

    def close(self) -> None:
        """Give everything back."""
        os.close(self._handle)
