"""Where the one run of a process is made."""

from __future__ import annotations

import pytest

from cap.config.check import check
from cap.launch.job import run_folder
from cap.runs.folder import hold, put_in_place, replacement_of


@pytest.fixture
def folder_for(compose_config, tiny_overrides):
    """Name the run's folder for an ``output_dir``."""
    return lambda output_dir: run_folder(check(compose_config(*tiny_overrides, f"output_dir={output_dir}")))


def test_a_folder_is_named_as_it_was_typed(folder_for, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert str(folder_for("outputs/A")) == "outputs/A"


def test_two_names_of_one_folder_have_one_lock(folder_for, tmp_path):
    from cap.base.errors import InputError

    (tmp_path / "A").mkdir()
    (tmp_path / "latest").symlink_to("A")
    lock = hold(folder_for(tmp_path / "latest"))
    with pytest.raises(InputError, match="another process is running this configuration"):
        hold(folder_for(tmp_path / "A"))
    lock.release()


@pytest.mark.parametrize("typed", ["link", "."])
def test_a_folder_is_replaced_whatever_it_is_called(folder_for, tmp_path, monkeypatch, typed):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    (tmp_path / "there").mkdir()
    (tmp_path / "here" / "link").symlink_to(tmp_path / "there")
    for attempt in ("first", "second"):
        folder = folder_for(typed)
        replacement_of(folder).mkdir()
        (replacement_of(folder) / "record.json").write_text(attempt)
        put_in_place(folder)
        assert (folder.resolve() / "record.json").read_text() == attempt
        monkeypatch.chdir(tmp_path / "here")
    assert not list(tmp_path.rglob(".*.old"))
    assert (tmp_path / "here" / "link").is_symlink() is (typed == "link")
