"""From a run to every export, back into memory, and into the record that tables are made of."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch


@pytest.fixture(scope="module")
def tiny_run(tmp_path_factory, tiny_model, tiny_data):
    """Make two finished runs: one of half the units, one of nearly all weights."""
    from hydra import compose, initialize_config_dir

    from cap.cli import conf_dir
    from cap.config import register
    from cap.train import train

    def make(name: str, *overrides: str) -> Path:
        folder = tmp_path_factory.mktemp("runs") / name
        common = [
            "task=sst2",
            f"data_dir={tiny_data}",
            f"model.name_or_path={tiny_model}",
            f"output_dir={folder}",
            f"cache_dir={tmp_path_factory.getbasetemp() / 'cache'}",
            "max_length=32",
            "batch_size=8",
            "finetune.max_epochs=1",
            "trainer.max_epochs=1",
            "trainer.enable_progress_bar=false",
            "trainer.accelerator=cpu",
        ]
        register()
        with initialize_config_dir(str(conf_dir()), version_base="1.3"):
            cfg = compose("train", overrides=[*common, *overrides])
        train(cfg)
        return folder

    return {
        "structured": make("structured", "pruning=structured", "sparsity=0.5", "schedule.levels=[0.5]"),
        "unstructured": make("unstructured", "pruning=magnitude", "sparsity=0.97"),
    }


@pytest.fixture
def export(tmp_path):
    """Run the command as the command line would."""

    def run(folder: Path, name: str, *overrides: str) -> Path:
        from hydra import compose, initialize_config_dir
        from hydra.core.config_store import ConfigStore

        from cap.cli import conf_dir
        from cap.export import export as job
        from cap.export_config import ExportConfig

        target = tmp_path / name
        ConfigStore.instance().store(name="export_schema", node=ExportConfig)
        with initialize_config_dir(str(conf_dir()), version_base="1.3"):
            given = [f"run={folder}", f"format={name}", f"output_dir={target}", f"cache_dir={tmp_path / 'cache'}"]
            cfg = compose("export", overrides=[*given, "latency_seconds=0", *overrides])
        job(cfg)
        return target

    return run


def read(folder: Path) -> dict:
    return json.loads((folder / "export.json").read_text())


@pytest.mark.parametrize("name", ["compact", "sparse", "onnx", "int8"])
@pytest.mark.parametrize("kind", ["structured", "unstructured"])
def test_an_export_is_checked_measured_and_noted_in_the_run(tiny_run, export, kind: str, name: str) -> None:
    result = read(export(tiny_run[kind], name))
    assert result["check"]["rows"] == 16
    noted = json.loads((tiny_run[kind] / "record.json").read_text())["exports"][name]
    assert noted["bytes"] == result["size"]["bytes"] > 0
    assert (result["scores"] is not None) == (name == "int8")


def test_half_of_the_units_are_half_of_the_prunable_parameters(tiny_run, export) -> None:
    size = read(export(tiny_run["structured"], "compact"))["size"]
    assert size["prunable_parameters"] * 2 == size["dense_prunable_parameters"]
    assert size["bytes"] < size["dense_bytes"]


@pytest.mark.parametrize("name", ["compact", "sparse"])
def test_cap_load_takes_the_very_output_dir(tiny_run, export, name: str) -> None:
    import cap
    from cap.models.encoders import load_saved_model

    folder = export(tiny_run["structured"], name)
    ids = torch.randint(5, 20, (3, 7), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found = cap.load(folder)(input_ids=ids).logits
        expected = load_saved_model(tiny_run["structured"] / "model", "classes").eval()(input_ids=ids).logits
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["compact", "sparse", "onnx"])
def test_the_cards_own_lines_load_the_model(tiny_run, export, name: str, monkeypatch) -> None:
    folder = export(tiny_run["structured"], name)
    monkeypatch.chdir(folder.parent)
    (lines,) = (part.split("```")[0] for part in (folder / "README.md").read_text().split("```python\n")[1:])
    names: dict = {}
    exec(lines, names)
    assert "tokenizer" in names
    assert "model" in names or names["logits"].shape == (1, 2)


def test_a_model_that_is_not_faster_is_said_to_be_so() -> None:
    from cap.export import _sentence

    size = {"bytes": 50, "dense_bytes": 100}
    said = _sentence("sparse", {"batch=1,tokens=32": 1.01, "batch=32,tokens=128": 0.99}, size, {})
    assert said.startswith("The weights take 50% less space")
    assert "it is not faster (1.01 times at best): once loaded it is the dense model again" in said


def test_logits_that_differ_leave_nothing_behind(tiny_run, export, monkeypatch, tmp_path) -> None:
    import dataclasses

    from cap import export as door
    from cap.errors import RunError

    strict = dataclasses.replace(door.FORMATS["compact"], tolerance=-1.0)
    monkeypatch.setitem(door.FORMATS, "compact", strict)
    with pytest.raises(RunError, match="must give the run's logits within -1"):
        export(tiny_run["structured"], "compact")
    assert not (tmp_path / "compact").exists()


@pytest.mark.parametrize(
    ("name", "overrides", "expected"),
    [
        ("tarball", [], "format must be one of"),
        ("compact", ["check_rows=0"], "check_rows must be at least 1, got 0"),
        ("semi_structured", [], "at most 2 of every 4 weights kept"),
    ],
    ids=["unknown format", "no rows", "no pattern"],
)
def test_what_cannot_work_is_refused(tiny_run, export, name: str, overrides: list[str], expected: str) -> None:
    from cap.errors import InputError

    with pytest.raises(InputError, match=expected):
        export(tiny_run["structured"], name, *overrides)


def test_a_folder_that_is_no_run_is_refused(export, tmp_path) -> None:
    from cap.errors import InputError

    with pytest.raises(InputError, match="runs must be folders of finished runs"):
        export(tmp_path, "compact")


def test_an_output_folder_that_holds_something_is_refused(tiny_run, export, tmp_path) -> None:
    from cap.errors import InputError

    (tmp_path / "compact").mkdir()
    (tmp_path / "compact" / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match=r"output_dir must be new or empty, got .* with notes\.txt"):
        export(tiny_run["structured"], "compact")
