"""Folders that are locked and replaced by their names."""

from __future__ import annotations

from pathlib import Path

import pytest

from cap.base.files import atomic_folder, real_folder


@pytest.mark.parametrize("typed", ["link", "."])
def test_a_folder_of_any_name_is_replaced_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, typed: str) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "there").mkdir()
    (tmp_path / "here" / "link").symlink_to(tmp_path / "there")
    monkeypatch.chdir(tmp_path / "here")
    folder = real_folder(Path(typed))
    with atomic_folder(folder) as temporary:
        (temporary / "file").write_text("new")
    assert (folder / "file").read_text() == "new"
    assert folder == tmp_path / ("there" if typed == "link" else "here")


def test_other_folders_are_named_as_they_were_typed() -> None:
    assert str(real_folder(Path("outputs/a"))) == "outputs/a"
