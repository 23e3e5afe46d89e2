"""The rooms of the package and the arrows between them, as data."""

from __future__ import annotations

import ast
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "cap"
# Doors may import every room, those that take seconds within their functions.
DOORS = {"train", "finetune", "probe", "evaluate", "export", "push", "report"}
# What each room may import, itself and base left out.
ARROWS: dict[str, set[str]] = {
    "base": set(),
    "data": set(),
    "models": set(),
    "objectives": set(),
    "pruning": {"models"},
    "runs": set(),
    "config": {"data", "pruning"},
    "training": {"config", "data", "models", "objectives", "pruning", "runs"},
    "formats": {"config", "data", "models", "pruning", "runs", "training"},
    "launch": {"config"},
    "reports": {"runs"},
}
# Below these nobody knows of a configuration: they take plain arguments.
PLAIN = ["base", "data", "models", "objectives", "pruning", "runs", "reports"]


def imported(file: Path) -> set[str]:
    """List the rooms and doors that a module imports, also within functions."""
    modules: list[str] = []
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module == "cap":
            modules += [f"cap.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            modules.append(node.module)
        elif isinstance(node, ast.Import):
            modules += [alias.name for alias in node.names]
    return {module.split(".")[1] for module in modules if module.startswith("cap.")}


def test_root_holds_doors_and_rooms_and_nothing_else():
    entries = {path.stem if path.suffix == ".py" else path.name for path in PACKAGE.iterdir()}
    assert entries - {"__pycache__", "py.typed"} == {"__init__", *DOORS, *ARROWS}


@pytest.mark.parametrize("room", sorted(ARROWS))
def test_room_imports_only_along_the_arrows(room):
    found = set().union(*(imported(file) for file in (PACKAGE / room).rglob("*.py")))
    assert found <= ARROWS[room] | {"base", room}


def test_arrows_form_no_circle():
    assert next(iter(TopologicalSorter(ARROWS).static_order())) in {"base", "data", "models", "objectives", "runs"}


@pytest.mark.parametrize("room", PLAIN)
def test_no_configuration_reaches_the_plain_rooms(room):
    sources = [file.read_text(encoding="utf-8") for file in (PACKAGE / room).rglob("*.py")]
    assert not any("omegaconf" in source or "DictConfig" in source for source in sources)


@pytest.mark.parametrize("door", sorted(DOORS))
def test_door_is_imported_by_no_room_and_no_other_door(door):
    others = [file for file in PACKAGE.rglob("*.py") if file != PACKAGE / f"{door}.py"]
    # cap.evaluate and cap.train share their names with what they do: only the modules of the root are doors.
    assert not [file for file in others if door in imported(file)]


@pytest.mark.parametrize("door", sorted(DOORS))
def test_door_imports_what_takes_seconds_after_its_verdict(door):
    tree = ast.parse((PACKAGE / f"{door}.py").read_text(encoding="utf-8"))
    modules = [node.module or "" for node in tree.body if isinstance(node, ast.ImportFrom)]
    modules += [alias.name for node in tree.body if isinstance(node, ast.Import) for alias in node.names]
    others = [module for module in modules if module.split(".")[0] not in {*sys.stdlib_module_names, "omegaconf"}]
    assert {".".join(module.split(".")[:2]) for module in others} <= {"cap.base", "cap.config", "cap.launch"}


@pytest.mark.parametrize("room", ["config", "launch"])
def test_rooms_that_judge_a_command_line_import_nothing_that_takes_seconds(room):
    sources = [file.read_text(encoding="utf-8") for file in (PACKAGE / room).rglob("*.py")]
    tops = [node for source in sources for node in ast.parse(source).body]
    found = {node.module.split(".")[0] for node in tops if isinstance(node, ast.ImportFrom) and node.module}
    found |= {alias.name.split(".")[0] for node in tops if isinstance(node, ast.Import) for alias in node.names}
    assert not found & {"torch", "lightning", "transformers", "datasets", "wandb"}
