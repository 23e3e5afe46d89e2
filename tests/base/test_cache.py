from __future__ import annotations

import json
import logging
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from cap.base.cache import CacheEntry

ROWS = np.arange(6).reshape(2, 3)


def entry_of(folder: Path) -> CacheEntry:
    return CacheEntry(folder / "key", "the rows", seal="seal.json", required=["below/rows.npy"])


def write(aside: Path) -> None:
    (aside / "below").mkdir()
    np.save(aside / "below" / "rows.npy", ROWS)
    np.save(aside / "more.npy", ROWS)


def never(aside: Path) -> None:
    pytest.fail("it was built again")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.name.endswith(".lock"))


def test_entry_is_built_once_and_then_found(tmp_path):
    assert not entry_of(tmp_path).ensure(write)
    assert entry_of(tmp_path).ensure(never)
    assert names(tmp_path) == ["key"]
    assert names(tmp_path / "key") == ["below", "more.npy", "seal.json"]


def test_entry_has_no_name_while_it_is_built(tmp_path):
    entry, seen = entry_of(tmp_path), []
    entry.ensure(lambda aside: (write(aside), seen.append(entry.is_whole())))
    assert seen == [False]
    assert entry.is_whole()


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt], ids=["error", "ctrl-c"])
def test_builder_that_fails_leaves_nothing_and_frees_the_entry(tmp_path, error):
    def fail(aside: Path) -> None:
        write(aside)
        raise error

    with pytest.raises(error):
        entry_of(tmp_path).ensure(fail)
    assert names(tmp_path) == []
    assert not entry_of(tmp_path).ensure(write)


def rows_of(folder: Path) -> Path:
    return folder / "below" / "rows.npy"


def drop_from_seal(folder: Path, name: str) -> None:
    hashes = json.loads((folder / "seal.json").read_text())
    del hashes[name]
    (folder / "seal.json").write_text(json.dumps(hashes))


DAMAGES = {
    "cut": lambda folder: rows_of(folder).write_bytes(rows_of(folder).read_bytes()[:-1]),
    "changed": lambda folder: np.save(rows_of(folder), ROWS + 1),
    "lost": lambda folder: rows_of(folder).unlink(),
    "no seal": lambda folder: (folder / "seal.json").unlink(),
    "half a seal": lambda folder: (folder / "seal.json").write_text('{"below/rows.npy": "4'),
    "seal of nothing": lambda folder: (folder / "seal.json").write_text("{}"),
    "seal of less": lambda folder: drop_from_seal(folder, "below/rows.npy"),
    "another seal": lambda folder: (folder / "seal.json").write_text('["below/rows.npy"]'),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_damaged_entry_is_said_and_built_again(tmp_path, caplog, damage):
    entry_of(tmp_path).ensure(write)
    good = rows_of(tmp_path / "key").read_bytes()
    damage(tmp_path / "key")
    assert not entry_of(tmp_path).ensure(write)
    assert rows_of(tmp_path / "key").read_bytes() == good
    assert "the rows: the entry key of the cache is damaged and is made again" in caplog.text
    assert names(tmp_path) == ["key"]


def test_seal_of_nothing_makes_nothing_whole(tmp_path):
    entry = CacheEntry(tmp_path / "key", "the rows", seal="seal.json")
    entry.ensure(lambda aside: None)
    assert (tmp_path / "key" / "seal.json").read_text() == "{}\n"
    assert not entry.is_whole()


def test_entry_that_cannot_be_used_is_built_again(tmp_path):
    class Broken(CacheEntry):
        def try_out(self) -> None:
            raise OSError("no configuration")

    entry_of(tmp_path).ensure(write)
    assert not Broken(tmp_path / "key", "the rows", seal="seal.json").is_whole()


def test_two_that_want_the_same_entry_build_it_once_and_who_waits_says_so(tmp_path, caplog):
    caplog.set_level(logging.INFO, logger="cap")
    is_building, found = threading.Event(), []

    def is_said() -> bool:
        return "the rows: another run is making it; waiting" in caplog.messages

    def build(aside: Path) -> None:
        is_building.set()
        deadline = time.monotonic() + 60
        while not is_said() and time.monotonic() < deadline:
            time.sleep(0.01)
        write(aside)

    first = threading.Thread(target=lambda: found.append(entry_of(tmp_path).ensure(build)))
    first.start()
    is_building.wait(60)
    assert entry_of(tmp_path).ensure(never)
    first.join()
    assert found == [False]
    assert is_said()


def killed_while_building(folder: Path, *, resumes: bool) -> None:
    """Let a process build an entry, and kill it when half of it is written."""
    program = (
        "import sys, time; from pathlib import Path; from cap.base.cache import CacheEntry\n"
        "def build(aside):\n"
        "    aside.mkdir(exist_ok=True); (aside / 'half.npy').write_text('half'); print('half', flush=True)\n"
        "    time.sleep(60)\n"
        f"CacheEntry(Path(sys.argv[1]) / 'key', 'the rows', seal='seal.json').ensure(build, resumes={resumes})"
    )
    root = Path(__file__).parents[2]
    with subprocess.Popen([sys.executable, "-c", program, str(folder)], cwd=root, stdout=subprocess.PIPE) as builder:
        assert builder.stdout is not None
        assert builder.stdout.readline() == b"half\n"
        builder.send_signal(signal.SIGKILL)


def test_entry_of_a_killed_builder_is_not_there_and_the_next_one_builds_it(tmp_path):
    killed_while_building(tmp_path, resumes=False)
    assert not (tmp_path / "key").exists()
    assert not entry_of(tmp_path).ensure(write)
    assert names(tmp_path / "key") == ["below", "more.npy", "seal.json"]


def test_builder_that_resumes_finds_what_a_killed_one_had_done(tmp_path):
    killed_while_building(tmp_path, resumes=True)
    assert not (tmp_path / "key").exists()
    found = []
    entry_of(tmp_path).ensure(lambda aside: (found.extend(names(aside)), write(aside)), resumes=True)
    assert found == ["half.npy"]
    assert names(tmp_path) == ["key"]
    assert entry_of(tmp_path).is_whole()
