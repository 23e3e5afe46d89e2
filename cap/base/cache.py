"""Entries of a cache: folders that one process makes, named by the key of their content, whole or not there."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from filelock import Timeout

from cap.base.files import atomic_folder, file_sha256, locked, read_json, replace_folder, write_json

log = logging.getLogger(__name__)


class CacheEntry:
    """Make a folder of a cache once: lock, check, build aside, seal.

    The seal is a file with the hashes of the others. It is written last, and only then does the folder get its name: no
    moment shows half an entry, and one that is damaged afterwards is noticed and made again.

    Args:
        folder: The entry, named by the key of its content.
        what: What it holds, in words, for the log.
        seal: Name of the seal.
        required: Files that every such entry has; others may be there.
    """

    def __init__(self, folder: Path, what: str, *, seal: str, required: Collection[str] = ()) -> None:
        self.folder = folder
        self.what = what
        self.seal = seal
        self.required = frozenset(required)

    def ensure(self, build: Callable[[Path], object], *, resumes: bool = False) -> bool:
        """Build the entry unless it is there.

        Args:
            build: Fills the folder that it is given.
            resumes: As in ``building``.

        Returns:
            True if it was there.
        """
        with self.held():
            if self.is_whole():
                return True
            with self.building(resumes=resumes) as aside:
                build(aside)
        return False

    @contextmanager
    def held(self) -> Iterator[None]:
        """Be the one process that looks and builds while this block runs; wait, and say so, while another one is."""
        lock = locked(self.folder)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            started = time.monotonic()
            log.info("%s: another run is making it; waiting", self.what)
            lock.acquire()  # freed by the system when its holder dies
            log.info("%s: waited %.0f s", self.what, time.monotonic() - started)
        try:
            yield
        finally:
            lock.release()

    def is_whole(self) -> bool:
        """Tell whether the entry is there and what was written; damage is said."""
        if not self.folder.exists():
            return False
        try:
            hashes = self.read_seal()
            is_complete = bool(hashes) and hashes.keys() >= self.required
            if is_complete and all(file_sha256(self.folder / name) == digest for name, digest in hashes.items()):
                self.try_out()
                return True
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            pass
        log.warning("%s: the entry %s of the cache is damaged and is made again", self.what, self.folder.name)
        return False

    @contextmanager
    def building(self, *, resumes: bool = False) -> Iterator[Path]:
        """Yield a folder aside; when the block ends well it is sealed and becomes the entry.

        Args:
            resumes: False yields an empty folder and removes it after an exception. True yields one that stays after
                an exception or a kill, for who builds the same entry next; it need not exist.

        Yields:
            Where to write. Within ``held`` no other process writes there.
        """
        if not resumes:
            with atomic_folder(self.folder) as aside:
                yield aside
                self.write_seal(aside)
            return
        aside = self.folder.with_name(f".{self.folder.name}.unfinished")
        yield aside
        self.write_seal(aside)
        replace_folder(aside, self.folder)

    def write_seal(self, folder: Path) -> None:
        """Write the hashes of a folder's arrays into it."""
        arrays = sorted(folder.rglob("*.npy"))
        write_json(folder / self.seal, {path.relative_to(folder).as_posix(): file_sha256(path) for path in arrays})

    def read_seal(self) -> Mapping[str, str]:
        """Read the hashes by file; what an unreadable seal raises says that the entry is damaged."""
        hashes: Mapping[str, str] = read_json(self.folder / self.seal)
        return hashes

    def try_out(self) -> None:
        """Use what no hash covers; raise an ``OSError``, ``ValueError`` or ``KeyError`` if that cannot be done."""


__all__ = ["CacheEntry"]
