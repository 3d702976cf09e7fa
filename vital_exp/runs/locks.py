"""Locks on files. The system releases the locks of a process when the process ends in any way."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

if sys.platform != "win32":
    import fcntl


def hold(path: Path, handle: int | None = None, exclusive: bool = True) -> int:
    """Lock a file until the returned handle is closed.

    Args:
        path: the file; made if it does not exist.
        handle: the handle of an earlier call, to change its lock; None: the file is opened.
        exclusive: whether the lock excludes all others; a shared lock excludes exclusive locks only.

    Raises:
        BlockingIOError: another lock prevents this one; the handle is closed.
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
    """Lock a file as :func:`hold` does, but wait while another lock prevents it; return the handle."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    if sys.platform != "win32":
        try:
            fcntl.flock(handle, fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH)
        except BaseException:
            os.close(handle)
            raise
    return handle


def hold_byte(handle: int, number: int) -> bool:
    """Lock one byte of an open file, even beyond the file's end; return False if another process holds the lock.

    The lock ends with :func:`give_back_byte`, with the process, or when the process closes any handle of the file.
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
    """Release the lock on a byte of an open file."""
    if sys.platform != "win32":
        with suppress(OSError):  # a file system without locks
            fcntl.lockf(handle, fcntl.LOCK_UN, 1, number)


@contextmanager
def _alone(handle: int) -> Iterator[None]:
    """Wait for the exclusive lock of a file; closing the handle releases the lock."""
    if sys.platform != "win32":
        with suppress(OSError):  # a file system without locks: only appends from several machines may mix there
            fcntl.flock(handle, fcntl.LOCK_EX)
    yield


def append(path: Path, rows: str, header: str = "") -> None:
    """Append rows to a text file, all or none; several processes may append at once.

    Args:
        path: the file; made if it does not exist.
        rows: text, with line ends.
        header: written before the rows if the file is empty.

    Raises:
        OSError: writing fails, for example on a full disk; the file is unchanged.
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
    """Write all bytes: os.write may write only a part, and report a full disk at the next call."""
    while content:
        content = content[os.write(handle, content) :]
