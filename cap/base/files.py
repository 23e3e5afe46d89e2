"""Files that are either whole or absent, and keys that name content. Any room may import this."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
from filelock import FileLock

from cap.base.errors import InputError

_CHUNK_BYTES = 1 << 20
_OS_ERROR = re.compile(r"\(os error (\d+)\)")


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the same folder that becomes ``path`` when the block ends well.

    Args:
        path: The file to write; its parent is created.

    Yields:
        Where to write. After an exception it is removed and ``path`` is as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _beside(path, suffix=path.suffix)
    # Like any other output and unlike mkstemp's private files: the system applies the umask, and nobody reads it.
    temporary.touch(mode=0o666, exist_ok=False)
    try:
        mode = temporary.stat().st_mode
        yield temporary
        _flush_to_disk(temporary)
        temporary.chmod(mode)  # a writer may have put a file of its own in the place of this one
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder beside ``path`` that replaces it when the block ends well.

    Args:
        path: The folder to write; its parent is created, and what stands there is replaced whole.

    Yields:
        Where to write. After an exception it is removed and ``path`` is as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _beside(path)
    temporary.mkdir(mode=0o777)
    try:
        yield temporary
        replace_folder(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def replace_folder(new: Path, path: Path) -> None:
    """Give a complete folder the name ``path``; what stands there is replaced whole.

    Args:
        new: The folder, beside ``path``; every file below it is on the disk before the rename says that it is whole.
        path: Its name; after an exception what stood there stands there again.
    """
    # safetensors makes files that only their owner reads: here the umask decides, as it did for the folder.
    mode = new.stat().st_mode & 0o666
    for file in new.rglob("*"):
        if file.is_file():
            file.chmod(mode)
            _flush_to_disk(file)
    if not path.exists():
        new.rename(path)
        return
    # No call replaces a folder: the old one steps aside first, so that no moment shows half of each.
    aside = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.old."))
    path.rename(aside / "old")
    try:
        new.rename(path)
    except BaseException:
        (aside / "old").rename(path)
        raise
    finally:
        shutil.rmtree(aside)


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically; a NaN or infinity raises ``ValueError``, since JSON has none."""
    text = json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False)
    with atomic_file(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """Read a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


class GrowingArray:
    """Append rows to an ``.npy`` file, so that no process ever holds more than a batch of them.

    Written as a stream and not through a memory map: a disk that is full then raises an ``OSError``, where the page of
    a map that finds no room would kill the process.

    Args:
        path: The file; made with the first rows, and whole when the block ends well.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: BinaryIO | None = None
        self._kind: tuple[np.dtype, tuple[int, ...]] | None = None
        self._n_rows = 0

    def __enter__(self) -> GrowingArray:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is None:
            return
        with self._file:
            if error is None:
                self._write_header()

    def append(self, rows: np.ndarray) -> None:
        """Write some rows.

        Raises:
            ValueError: If they are not like those before.
        """
        kind = (rows.dtype, rows.shape[1:])
        if self._file is None:
            self._file, self._kind = self._path.open("wb"), kind
            self._write_header()
        if kind != self._kind:
            raise ValueError(f"rows of {self._path.name} must all be {self._kind}, got {kind}")
        self._file.write(np.ascontiguousarray(rows).data)
        self._n_rows += len(rows)

    def _write_header(self) -> None:
        # Once for its length and once for the number of rows: numpy pads headers so that the first axis can grow.
        assert self._file is not None
        assert self._kind is not None
        dtype, row_shape = self._kind
        header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False}
        self._file.seek(0)
        np.lib.format.write_array_header_1_0(self._file, {**header, "shape": (self._n_rows, *row_shape)})


def content_key(value: Any) -> str:
    """Name a JSON-able value by its content: 16 hex digits, the same for any order of keys."""
    text = json.dumps(value, sort_keys=True, allow_nan=False, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def file_sha256(path: Path) -> str:
    """Hash a file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def locked(path: Path) -> FileLock:
    """Return a lock that lets one process at a time make ``path``; it frees itself when its holder dies."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return FileLock(path.parent / f".{path.name}.lock")


def is_new_or_empty(folder: Path) -> bool:
    """Say whether there is nothing at a path yet, or an empty folder."""
    return not folder.exists() or (folder.is_dir() and not any(folder.iterdir()))


def real_folder(folder: Path) -> Path:
    """Follow a link, and give ``.`` and ``..`` their names: a folder is locked, and replaced whole, by its name."""
    return folder.resolve() if folder.is_symlink() or folder.name in ("", "..") else folder


def full_disk_reason(error: BaseException) -> str | None:
    """Say in words that an error means there is no room to write; None if it means something else."""
    # What safetensors and tokenizers raise is no OSError: Rust's number of it stands in their words.
    named = _OS_ERROR.search(str(error))
    number = error.errno if isinstance(error, OSError) else int(named[1]) if named else None
    if number not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return None
    where = f" while writing {error.filename}" if isinstance(error, OSError) and error.filename else ""
    return f"there must be room to write, but: {os.strerror(number)}{where}"


def ensure_writable(folder: Path, key: str) -> None:
    """Create a folder and prove that files can be written there.

    Args:
        folder: The folder.
        key: The configuration key that named it, for the message.

    Raises:
        InputError: If the folder cannot be created or written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise InputError(
            f"{key} must be a folder that can be written, got {folder} ({error.strerror or error}); "
            f"choose another {key} or change its permissions"
        ) from error


def ensure_lockable(folder: Path, key: str) -> None:
    """Create a folder and prove that files can be written and locked there: runs on several machines may share it.

    Args:
        folder: The folder.
        key: The configuration key that named it, for the message.

    Raises:
        InputError: If the folder cannot be created or written, or its file system has no locks.
    """
    ensure_writable(folder, key)
    try:
        with tempfile.TemporaryDirectory(dir=folder, prefix=".") as aside:
            lock = locked(Path(aside) / "anything")
            lock.acquire(timeout=0)
            lock.release()
    except OSError as error:
        raise InputError(
            f"{key} must lie where files can be locked, since runs wait for each other there, got {folder} "
            f"({error.strerror or error}); choose another {key}, or mount that file system with locks"
        ) from error


def _flush_to_disk(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _beside(path: Path, *, suffix: str = "") -> Path:
    """Name something new in the folder of ``path``; 64 random bits make it one that nobody else has."""
    return path.with_name(f".{path.name}.{secrets.token_hex(8)}{suffix}")


__all__ = [
    "GrowingArray",
    "atomic_file",
    "atomic_folder",
    "content_key",
    "ensure_lockable",
    "ensure_writable",
    "file_sha256",
    "full_disk_reason",
    "is_new_or_empty",
    "locked",
    "read_json",
    "real_folder",
    "replace_folder",
    "write_json",
]
