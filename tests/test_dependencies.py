from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

PROJECT = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]


@pytest.mark.parametrize(("version", "expected"), [("2.6.0", True), ("2.6.9", True), ("2.7.0", False), ("3.0", False)])
def test_only_the_minor_version_whose_private_counters_a_resumed_run_sets_is_taken(version, expected):
    (lightning,) = (Requirement(line) for line in PROJECT["dependencies"] if line.startswith("lightning"))
    assert lightning.specifier.contains(version) is expected
