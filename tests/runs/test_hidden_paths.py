"""Where things lie on a machine is on no card and in nothing that is pushed."""

from __future__ import annotations

import pytest

from cap.runs.hidden_paths import without_folders, without_places


@pytest.mark.parametrize(
    ("typed", "shown"),
    [
        ("data_dir=/home/me/data/sst2", "data_dir=sst2"),
        ("'data_dir=~/sst2/'", "data_dir=sst2"),
        ("'data_dir=/home/me/my data'", "'data_dir=my data'"),
        ("'runs=[/data/a,/srv/b]'", "'runs=[a,b]'"),
        ("output_dir=outputs/a", "output_dir=outputs/a"),
        ("model.name_or_path=google-bert/bert-base-uncased", "model.name_or_path=google-bert/bert-base-uncased"),
        ("'schedule.levels=[0.5,0.9]'", "'schedule.levels=[0.5,0.9]'"),
        ("'hydra.searchpath=[file:///home/me/conf,pkg://conf]'", "'hydra.searchpath=[conf,pkg://conf]'"),
    ],
    ids=["path", "home", "with a blank", "list", "relative", "hub name", "numbers", "address of a file"],
)
def test_absolute_paths_become_their_last_part(typed: str, shown: str) -> None:
    assert without_folders(f"python -m cap.train {typed}") == f"python -m cap.train {shown}"


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("/srv/some rows/sst2", "sst2"),
        ("C:\\Users\\me\\rows", "rows"),
        ("/home/me/", "~"),
        ("The teacher (/home/me/t) lacks '~/labels', 3 / 4.", "The teacher (t) lacks 'labels', 3 / 4."),
        ("see https://x.org/a/b and/or c", "see https://x.org/a/b and/or c"),
        ("google-bert/bert-base-uncased", "google-bert/bert-base-uncased"),
        ("outputs/a", "outputs/a"),
        ("found in file:///home/me/conf first", "found in conf first"),
    ],
    ids=["with a blank", "windows", "home", "sentence", "address", "hub name", "relative", "address of a file"],
)
def test_absolute_paths_in_a_record_become_their_last_part(value: str, shown: str) -> None:
    assert without_places({"a": [value], "b": {"c": value}}) == {"a": [shown], "b": {"c": shown}}


def test_a_command_in_a_record_is_taken_apart_as_a_shell_would() -> None:
    assert without_places({"command": "x 'a=/home/me/my b' c=1"}) == {"command": "x 'a=my b' c=1"}
