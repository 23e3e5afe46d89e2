from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "cap"
# Any room may import these.
SHARED = {"budget", "errors", "heads", "network", "storage"}
ALLOWED: dict[str, set[str]] = {
    "data": set(),
    "models": set(),
    "objectives": set(),
    "pruning": {"models"},
    "training": {"models", "objectives", "pruning"},
    "results": set(),
}
DOORS = ["train", "finetune", "probe", "evaluate", "export", "report"]


def imported_rooms(file: Path) -> set[str]:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    modules = [node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module]
    modules += [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    return {module.split(".")[1] for module in modules if module.startswith("cap.")}


def test_every_room_is_listed():
    assert {path.name for path in PACKAGE.iterdir() if path.is_dir() and path.name != "__pycache__"} == set(ALLOWED)


@pytest.mark.parametrize("room", sorted(ALLOWED))
def test_room_imports_only_along_the_arrows(room):
    found = set().union(*(imported_rooms(file) for file in (PACKAGE / room).glob("*.py")))
    assert found <= ALLOWED[room] | SHARED | {room}


@pytest.mark.parametrize("room", sorted(ALLOWED))
def test_no_room_reads_the_configuration(room):
    sources = [file.read_text(encoding="utf-8") for file in (PACKAGE / room).glob("*.py")]
    assert not any("omegaconf" in source or "DictConfig" in source for source in sources)


@pytest.mark.parametrize("door", DOORS)
def test_door_is_imported_by_no_room_and_no_other_door(door):
    others = [file for file in PACKAGE.rglob("*.py") if file.stem != door]
    assert not [file for file in others if door in imported_rooms(file)]
