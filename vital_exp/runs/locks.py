"""Locks on files: the system takes them back when a process ends, however it ends, so none outlives its job."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

if sys.platform != "win32":
    import fcntl


def hold(path: Path, handle: int | None = None, exclusive: bool = True) -> int:
    """Hold a lock on a file until its handle is closed, and return the handle.

    Args:
        path: the file; made if it does not exist.
        handle: of an earlier call, whose lock becomes exclusive or shared.
        exclusive: nobody else may hold it; else others may hold it too, but none exclusively.

    Raises:
        BlockingIOError: others hold it.
    """
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644) if handle is None else handle
    if sys.platform != "win32":
        try:
            fcntl.flock(handle, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            raise
        except OSError:  # a file system without locks
            pass
    return handle


def wait_for(path: Path, exclusive: bool = True) -> int:
    """Hold a lock on a file as :func:`hold` does, but wait until nobody else's lock prevents it; return the handle."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    if sys.platform != "win32":
        try:
            fcntl.flock(handle, fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH)
        except BaseException:
            os.close(handle)
            raise
    return handle


def hold_byte(handle: int, number: int) -> bool:
    """Hold a lock on one byte of an open file, which need not be that long; return False if another process holds it.

    The lock ends with the process, with :func:`give_back_byte`, or when the process closes any handle of the file.
    """
    if sys.platform != "win32":
        try:
            fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, number)
        except (BlockingIOError, PermissionError):
            return False
        except OSError:  # a file system without locks
            pass
    return True


def give_back_byte(handle: int, number: int) -> None:
    """End the lock on a byte of an open file."""
    if sys.platform != "win32":
        with suppress(OSError):  # a file system without locks
            fcntl.lockf(handle, fcntl.LOCK_UN, 1, number)


@contextmanager
def _alone(handle: int) -> Iterator[None]:
    """Wait until no other process is writing to a file."""
    if sys.platform != "win32":
        with suppress(OSError):  # a file system without locks: an append is whole there, but for several machines
            fcntl.flock(handle, fcntl.LOCK_EX)
    yield


def append(path: Path, rows: str, header: str = "") -> None:
    """Append rows to a text file whole, or not at all; several processes may do so at once.

    Args:
        path: the file; made if it does not exist.
        rows: with their line ends.
        header: put first into an empty file.

    Raises:
        OSError: the disk is full; the file is as it was.
    """
    handle = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        with _alone(handle):
            before = os.fstat(handle).st_size
            try:
                _write(handle, (rows if before else header + rows).encode())
                os.fsync(handle)
            except OSError:
                os.ftruncate(handle, before)
                raise
    except OSError as error:
        error.filename = error.filename or str(path)
        raise
    finally:
        os.close(handle)


def _write(handle: int, content: bytes) -> None:
    """Write everything: the system may take a part at a time, before it says that the disk is full."""
    while content:
        content = content[os.write(handle, content) :]
