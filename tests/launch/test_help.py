"""What ``--help`` prints is what the files of conf/ say."""

from __future__ import annotations

import re
from string import Template

import pytest

from cap.config.places import conf_dir
from cap.launch.help import choices_of, keys_of


def groups() -> dict[str, set[str]]:
    """List the choices of each group of conf/train.yaml by their files."""
    return {
        folder.name: {file.stem for file in folder.glob("*.yaml")} for folder in conf_dir().iterdir() if folder.is_dir()
    }


def said_of() -> dict[str, str]:
    """Cut the choices of the help at the names of the groups, which begin their lines."""
    parts = re.split(r"^(\w+): ", choices_of("train"), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


@pytest.mark.parametrize("group", sorted(groups()))
def test_every_choice_of_a_group_is_named(group: str) -> None:
    words = set(re.findall(r"\w+", said_of()[group]))
    if "_squad" in words:
        words |= {f"{word}_squad" for word in words if word.startswith("cap_")}
    assert groups()[group] - words - {"null"} == set()


def test_nothing_but_groups_is_a_choice() -> None:
    assert said_of().keys() == groups().keys()


def test_keys_end_before_what_is_hydras_and_survive_as_a_template() -> None:
    keys = Template(keys_of("train")).substitute()
    assert "max_length: ${task.max_length}" in keys
    assert keys.startswith("sparsity: 0.5")
    assert "hydra" not in keys
