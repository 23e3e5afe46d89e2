from __future__ import annotations

import errno
import fcntl
import hashlib
import math
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from filelock import Timeout

from cap.base.errors import InputError
from cap.base.files import (
    atomic_file,
    atomic_folder,
    content_key,
    ensure_lockable,
    ensure_writable,
    file_sha256,
    full_disk_reason,
    locked,
    read_json,
    write_json,
)

# KeyboardInterrupt is what a user's Ctrl-C raises; it is no Exception.
interruptions = pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt], ids=["error", "ctrl-c"])


def _names(folder: Path) -> list[str]:
    return sorted(found.name for found in folder.iterdir())


def _stop_half_way(path: Path, error: type[BaseException]) -> None:
    path.write_text("half")
    raise error


# --- one file ----------------------------------------------------------------------------------------------------


def test_a_file_appears_when_its_block_ends(tmp_path: Path) -> None:
    with atomic_file(tmp_path / "a.txt") as temporary:
        temporary.write_text("new")
    assert (_names(tmp_path), (tmp_path / "a.txt").read_text()) == (["a.txt"], "new")


def test_a_file_replaces_the_old_one(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("old and longer")
    with atomic_file(tmp_path / "a.txt") as temporary:
        temporary.write_text("new")
    assert (_names(tmp_path), (tmp_path / "a.txt").read_text()) == (["a.txt"], "new")


def test_the_old_file_stands_until_the_block_ends(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("old")
    with atomic_file(tmp_path / "a.txt") as temporary:
        temporary.write_text("new")
        assert (tmp_path / "a.txt").read_text() == "old"


def test_no_file_stands_before_the_block_ends(tmp_path: Path) -> None:
    with atomic_file(tmp_path / "a.txt") as temporary:
        temporary.write_text("new")
        assert not (tmp_path / "a.txt").exists()


@interruptions
def test_an_exception_leaves_no_file(tmp_path: Path, error: type[BaseException]) -> None:
    with pytest.raises(error), atomic_file(tmp_path / "a.txt") as temporary:
        _stop_half_way(temporary, error)
    assert _names(tmp_path) == []


@interruptions
def test_an_exception_keeps_the_old_file(tmp_path: Path, error: type[BaseException]) -> None:
    (tmp_path / "a.txt").write_text("old")
    with pytest.raises(error), atomic_file(tmp_path / "a.txt") as temporary:
        _stop_half_way(temporary, error)
    assert (_names(tmp_path), (tmp_path / "a.txt").read_text()) == (["a.txt"], "old")


def test_a_temporary_file_is_beside_its_target(tmp_path: Path) -> None:
    with atomic_file(tmp_path / "new" / "a.txt") as temporary:
        assert temporary.parent == tmp_path / "new"  # a rename across file systems would copy


def test_a_temporary_file_keeps_the_suffix(tmp_path: Path) -> None:
    with atomic_file(tmp_path / "a.npy") as temporary:
        np.save(temporary, np.arange(3))  # numpy adds .npy to any other name
    assert (_names(tmp_path), np.load(tmp_path / "a.npy").tolist()) == (["a.npy"], [0, 1, 2])


def test_two_writers_of_one_file_do_not_share_a_temporary_one(tmp_path: Path) -> None:
    with atomic_file(tmp_path / "a.txt") as first, atomic_file(tmp_path / "a.txt") as second:
        assert first != second


def test_a_file_is_as_readable_as_any_other(tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("")
    with atomic_file(tmp_path / "a.txt") as temporary:
        temporary.write_text("new")
    assert (tmp_path / "a.txt").stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.fixture
def umask() -> Iterator[int]:
    """Set an unusual umask for a test."""
    before = os.umask(0o026)
    yield 0o026
    os.umask(before)


def test_permissions_follow_the_umask_of_the_process(tmp_path: Path, umask: int) -> None:
    with atomic_file(tmp_path / "a.txt") as temporary:
        temporary.write_text("new")
    with atomic_folder(tmp_path / "model") as temporary:
        (temporary / "weights").touch(mode=0o600)  # as safetensors writes
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("a.txt", "model", "model/weights")]
    assert modes == [0o666 & ~umask, 0o777 & ~umask, 0o666 & ~umask]


def test_a_file_that_a_writer_put_in_place_of_its_own_is_as_readable_as_any_other(tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("")
    with atomic_file(tmp_path / "a.txt") as temporary:
        (tmp_path / "private").touch(mode=0o600)
        (tmp_path / "private").replace(temporary)
    assert (tmp_path / "a.txt").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_write_leaves_the_umask_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # It belongs to the whole process: files that other threads create meanwhile would be writable for everybody.
    asked: list[int] = []
    monkeypatch.setattr(os, "umask", lambda mask: asked.append(mask) or 0o022)
    with atomic_file(tmp_path / "a.txt") as temporary:
        temporary.write_text("new")
    with atomic_folder(tmp_path / "model"):
        pass
    assert asked == []


# --- one folder --------------------------------------------------------------------------------------------------


def test_a_folder_appears_when_its_block_ends(tmp_path: Path) -> None:
    with atomic_folder(tmp_path / "model") as temporary:
        (temporary / "deep").mkdir()
        (temporary / "deep" / "weights").write_text("new")
    assert (_names(tmp_path), (tmp_path / "model/deep/weights").read_text()) == (["model"], "new")


def test_a_folder_replaces_the_old_one_whole(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "stale").write_text("old")
    with atomic_folder(tmp_path / "model") as temporary:
        (temporary / "weights").write_text("new")
    assert (_names(tmp_path), _names(tmp_path / "model")) == (["model"], ["weights"])


def test_the_old_folder_stands_until_the_block_ends(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "weights").write_text("old")
    with atomic_folder(tmp_path / "model") as temporary:
        (temporary / "weights").write_text("new")
        assert (tmp_path / "model" / "weights").read_text() == "old"


@interruptions
def test_an_exception_leaves_no_folder(tmp_path: Path, error: type[BaseException]) -> None:
    with pytest.raises(error), atomic_folder(tmp_path / "model") as temporary:
        _stop_half_way(temporary / "weights", error)
    assert _names(tmp_path) == []


@interruptions
def test_an_exception_keeps_the_old_folder(tmp_path: Path, error: type[BaseException]) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "weights").write_text("old")
    with pytest.raises(error), atomic_folder(tmp_path / "model") as temporary:
        _stop_half_way(temporary / "weights", error)
    assert (_names(tmp_path), (tmp_path / "model" / "weights").read_text()) == (["model"], "old")


def test_the_old_folder_comes_back_when_the_new_one_cannot_take_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "weights").write_text("old")
    rename = os.rename

    def fail_for_the_new_one(source: Path, target: Path) -> None:
        if (Path(source) / "is_new").exists():
            raise OSError("no rename today")
        rename(source, target)

    monkeypatch.setattr(os, "rename", fail_for_the_new_one)
    monkeypatch.setattr(os, "replace", fail_for_the_new_one)
    with pytest.raises(OSError, match="no rename today"), atomic_folder(tmp_path / "model") as temporary:
        (temporary / "is_new").write_text("")
    assert (_names(tmp_path), _names(tmp_path / "model")) == (["model"], ["weights"])


def test_a_temporary_folder_is_beside_its_target(tmp_path: Path) -> None:
    with atomic_folder(tmp_path / "new" / "model") as temporary:
        assert temporary.parent == tmp_path / "new"


def test_a_folder_is_as_readable_as_any_other(tmp_path: Path) -> None:
    (tmp_path / "plain").mkdir()
    with atomic_folder(tmp_path / "model"):
        pass
    assert (tmp_path / "model").stat().st_mode == (tmp_path / "plain").stat().st_mode


# --- JSON and keys -----------------------------------------------------------------------------------------------


def test_json_comes_back_as_it_went(tmp_path: Path) -> None:
    value = {"f1": 0.875, "rows": [1, 2], "why": None, "name": "Łukasz"}
    write_json(tmp_path / "record.json", value)
    assert read_json(tmp_path / "record.json") == value


def test_json_is_readable_by_people(tmp_path: Path) -> None:
    write_json(tmp_path / "record.json", {"name": "Łukasz"})
    assert (tmp_path / "record.json").read_text(encoding="utf-8") == '{\n  "name": "Łukasz"\n}\n'


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf], ids=["nan", "inf", "minus-inf"])
def test_json_refuses_what_json_has_not_and_leaves_the_old_file(tmp_path: Path, number: float) -> None:
    write_json(tmp_path / "record.json", {"f1": 0.5})
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(tmp_path / "record.json", {"scores": [{"f1": number}]})
    assert (_names(tmp_path), read_json(tmp_path / "record.json")) == (["record.json"], {"f1": 0.5})


def test_a_key_does_not_depend_on_the_order_of_names() -> None:
    assert content_key({"a": 1, "b": {"c": 2, "d": 3}}) == content_key({"b": {"d": 3, "c": 2}, "a": 1})


@pytest.mark.parametrize(
    "other",
    [{"a": 2, "b": ["x", "y"]}, {"a": 1, "b": ["y", "x"]}, {"a": 1}, {"a": "1", "b": ["x", "y"]}, None],
    ids=["value", "order-of-a-list", "missing-name", "type", "none"],
)
def test_a_key_changes_with_the_content(other: Any) -> None:
    assert content_key(other) != content_key({"a": 1, "b": ["x", "y"]})


def test_a_key_is_the_start_of_the_sha256_of_canonical_json() -> None:
    expected = hashlib.sha256(b'{"a": 1, "b": "\xc5\x81"}').hexdigest()[:16]
    assert content_key({"b": "Ł", "a": 1}) == expected


def test_a_key_refuses_nan() -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        content_key({"a": math.nan})


@pytest.mark.parametrize("n_bytes", [0, 3, 1 << 20, (1 << 20) + 1], ids=["empty", "short", "chunk", "chunk-and-one"])
def test_a_file_hash_is_that_of_its_bytes(tmp_path: Path, n_bytes: int) -> None:
    content = os.urandom(n_bytes)
    (tmp_path / "a").write_bytes(content)
    assert file_sha256(tmp_path / "a") == hashlib.sha256(content).hexdigest()


# --- folders that must take files --------------------------------------------------------------------------------


def test_a_writable_folder_is_created(tmp_path: Path) -> None:
    ensure_writable(tmp_path / "a" / "b", "cache_dir")
    assert (tmp_path / "a" / "b").is_dir()


@pytest.mark.parametrize("ensure", [ensure_writable, ensure_lockable])
def test_nothing_is_left_in_a_writable_folder(tmp_path: Path, ensure) -> None:
    ensure(tmp_path, "cache_dir")
    assert _names(tmp_path) == []


def test_a_file_system_without_locks_is_refused(tmp_path: Path, monkeypatch) -> None:
    def refuse(*arguments: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(InputError, match=r"cache_dir must lie where files can be locked.* got .*No locks available"):
        ensure_lockable(tmp_path, "cache_dir")
    assert _names(tmp_path) == []


# Permissions do not bind root, who may run the tests; a file in the way binds everybody.
@pytest.mark.parametrize("below", ["", "below", "far/below"], ids=["is-a-file", "below-a-file", "far-below-a-file"])
def test_a_folder_that_cannot_be_made_is_bad_input(tmp_path: Path, below: str) -> None:
    (tmp_path / "file").write_text("mine")
    folder = tmp_path / "file" / below
    with pytest.raises(
        InputError, match=rf"^cache_dir must be a folder that can be written, got {folder} \(.+\); choose"
    ):
        ensure_writable(folder, "cache_dir")


def test_a_file_in_the_way_is_left_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InputError):
        ensure_writable(tmp_path / "file", "cache_dir")
    assert (tmp_path / "file").read_text() == "mine"


# --- locks -------------------------------------------------------------------------------------------------------


def test_a_second_handle_cannot_take_a_lock_that_is_held(tmp_path: Path) -> None:
    second = locked(tmp_path / "teacher")
    with locked(tmp_path / "teacher"), pytest.raises(Timeout):
        second.acquire(timeout=0)


def test_another_process_cannot_take_a_lock_that_is_held(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from filelock import Timeout; from cap.base.files import locked\n"
        "try: locked(Path(sys.argv[1])).acquire(timeout=0)\n"
        "except Timeout: print('held')"
    )
    with locked(tmp_path / "teacher"):
        done = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path / "teacher")], capture_output=True, text=True, check=True
        )
    assert done.stdout == "held\n"


def test_the_holder_of_a_lock_can_take_it_again(tmp_path: Path) -> None:
    lock = locked(tmp_path / "teacher")
    with lock, lock.acquire(timeout=0):
        assert lock.is_locked


def test_a_lock_is_free_after_its_block(tmp_path: Path) -> None:
    with locked(tmp_path / "teacher"):
        pass
    with locked(tmp_path / "teacher").acquire(timeout=0) as second:
        assert second.is_locked


def test_two_targets_have_two_locks(tmp_path: Path) -> None:
    with locked(tmp_path / "a"), locked(tmp_path / "b").acquire(timeout=0) as second:
        assert second.is_locked


def test_a_lock_does_not_make_its_target(tmp_path: Path) -> None:
    with locked(tmp_path / "cache" / "teacher"):
        assert not (tmp_path / "cache" / "teacher").exists()


def growing(path: Path, *parts: np.ndarray) -> None:
    from cap.base.files import GrowingArray

    with GrowingArray(path) as array:
        for part in parts:
            array.append(part)


@pytest.mark.parametrize("dtype", [np.float16, np.int64], ids=["float16", "int64"])
@pytest.mark.parametrize("shape", [(1003, 5), (1003,)], ids=["rows", "numbers"])
def test_array_that_grew_is_the_file_that_numpy_would_write(tmp_path, shape, dtype):
    rows = np.arange(np.prod(shape)).astype(dtype).reshape(shape)
    growing(tmp_path / "grown.npy", rows[:1], rows[1:1], rows[1:700], rows[700:])
    np.save(tmp_path / "saved.npy", rows)
    assert (tmp_path / "grown.npy").read_bytes() == (tmp_path / "saved.npy").read_bytes()


def test_array_of_other_rows_than_before_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"must all be .*float16.* got .*float32"):
        growing(tmp_path / "grown.npy", np.zeros((1, 2), np.float16), np.zeros((1, 2), np.float32))


def test_weights_for_which_there_is_no_room_say_so(tmp_path):
    import resource

    import torch
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(SafetensorError) as error:
            save_file({"weight": torch.zeros(10_000)}, tmp_path / "model.safetensors")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert full_disk_reason(error.value) == "there must be room to write, but: File too large"


def test_no_other_error_is_a_full_disk():
    assert full_disk_reason(ValueError("28")) is None
    assert full_disk_reason(PermissionError(13, "Permission denied")) is None
    assert full_disk_reason(RuntimeError("No such file or directory (os error 2)")) is None


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_full_disk_is_an_error_and_no_crash():
    with pytest.raises(OSError, match="No space left"):
        growing(Path("/dev/full"), np.zeros((100_000, 8)))
