from __future__ import annotations

from pathlib import Path

import pytest
import yaml

SWEEPS = sorted((Path(__file__).parent.parent / "sweeps").glob("*.yaml"))


def named_values(sweep: Path) -> list[str]:
    parameters = yaml.safe_load(sweep.read_text(encoding="utf-8"))["parameters"]
    return [f"{key}={value}" for key, spec in parameters.items() for value in spec.get("values", [spec.get("value")])]


@pytest.mark.parametrize(
    "override", [override for sweep in SWEEPS for override in named_values(sweep)], ids=lambda override: override
)
def test_every_value_that_a_sweep_names_passes_the_rules(compose_config, override):
    from cap.config import check

    assert check(compose_config(override)).hash


@pytest.mark.parametrize("sweep", SWEEPS, ids=lambda sweep: sweep.name)
def test_sweep_calls_the_door_with_hydras_syntax(sweep):
    command = yaml.safe_load(sweep.read_text(encoding="utf-8"))["command"]
    assert command[-1] == "${args_no_hyphens}"
    assert yaml.safe_load(sweep.read_text(encoding="utf-8"))["program"] == "cap.train"
