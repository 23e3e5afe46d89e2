"""Where things lie on a machine is on no card and in nothing that is pushed."""

from __future__ import annotations

import pytest

from cap.runs.places import without_folders


@pytest.mark.parametrize(
    ("typed", "shown"),
    [
        ("data_dir=/home/me/data/sst2", "data_dir=sst2"),
        ("'data_dir=~/sst2/'", "data_dir=sst2"),
        ("'data_dir=/home/me/my data'", "'data_dir=my data'"),
        ("'runs=[/home/a,/srv/b]'", "'runs=[a,b]'"),
        ("output_dir=outputs/a", "output_dir=outputs/a"),
        ("model.name_or_path=google-bert/bert-base-uncased", "model.name_or_path=google-bert/bert-base-uncased"),
        ("'schedule.levels=[0.5,0.9]'", "'schedule.levels=[0.5,0.9]'"),
    ],
    ids=["path", "home", "with a blank", "list", "relative", "hub name", "numbers"],
)
def test_absolute_paths_become_their_last_part(typed: str, shown: str) -> None:
    assert without_folders(f"python -m cap.train {typed}") == f"python -m cap.train {shown}"
