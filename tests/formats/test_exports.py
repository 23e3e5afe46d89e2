"""What an export measured: in words, on cards, and in the record of its run."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from cap.base.errors import InputError
from cap.formats.exports import export_table, in_words, note_in_run, timing
from cap.formats.latency import Latency, ModelLatency, Quartiles
from cap.runs.finished import FinishedRun, require_keys
from cap.runs.folder import hold
from tests.runs.made_cards import EXPORT, RECORD

ZEROS = "zeros inside the units that are left cost as much as any weight"


def result(quartiles: dict[str, tuple[float, float, float]], **changed: Any) -> dict[str, Any]:
    return EXPORT | {
        "latency_ms": {name: 1.0 / median for name, (_, median, _) in quartiles.items()},
        "dense_latency_ms": dict.fromkeys(quartiles, 1.0),
        "speed_up": {name: median for name, (_, median, _) in quartiles.items()},
        "speed_up_quartiles": {name: [first, third] for name, (first, _, third) in quartiles.items()},
        **changed,
    }


SMALL, LARGE = "batch=1,tokens=32", "batch=32,tokens=128"
FASTER, CHANCE, SLOWER = (1.2, 1.5, 1.7), (0.98, 1.3, 1.5), (0.8, 0.9, 0.95)


@pytest.mark.parametrize(
    ("quartiles", "expected"),
    [
        ({SMALL: FASTER, LARGE: FASTER}, ", and a call runs at 1.50 times its speed."),
        (
            {SMALL: SLOWER, LARGE: FASTER},
            ", and a call runs at 1.50 times its speed at batch 32, tokens 128, but it is not faster at batch 1, "
            f"tokens 32 (0.90 times): {ZEROS}.",
        ),
        ({SMALL: CHANCE}, f", but it is not faster at batch 1, tokens 32 (1.30 times): {ZEROS}."),
        (
            {SMALL: CHANCE, LARGE: SLOWER},
            f", but it is not faster at batch 1, tokens 32; batch 32, tokens 128 (0.90 to 1.30 times): {ZEROS}.",
        ),
        ({}, "; latency was not measured."),
    ],
    ids=["all faster", "one faster", "by chance", "none", "not measured"],
)
def test_a_shape_of_input_is_faster_where_three_of_four_rounds_were(quartiles, expected) -> None:
    said = in_words(result(quartiles), no_gain=None, is_dense_again=False)
    assert said == f"The weights take 50% less space on disk than the dense model's{expected}"


@pytest.mark.parametrize("quartiles", [{}, {SMALL: FASTER}, {SMALL: SLOWER}], ids=["none", "faster", "slower"])
def test_what_is_dense_again_is_never_faster(quartiles) -> None:
    said = in_words(result(quartiles), no_gain=None, is_dense_again=True)
    assert said.endswith("once loaded it is the dense model again, zeros and all, and no faster.")


def test_a_format_has_its_own_reason() -> None:
    assert in_words(result({SMALL: SLOWER}), no_gain="int8 is slow", is_dense_again=False).endswith(": int8 is slow.")


def test_zeros_are_no_reason_where_there_are_none() -> None:
    without = result({SMALL: SLOWER}, sparsity=EXPORT["sparsity"] | {"zero_left": 0})
    said = in_words(without, no_gain=None, is_dense_again=False)
    assert said.endswith(": the units that are gone are too small a part of such a call.")


def test_scores_that_were_measured_again_stand_beside_those_of_the_run() -> None:
    said = in_words(result({}, scores={"accuracy": 0.8}), no_gain=None, is_dense_again=False)
    assert said.endswith("Scores: accuracy 0.8100 before the export, 0.8000 after it.")


def test_the_table_shows_both_scores_and_what_the_format_counts() -> None:
    given = result({SMALL: FASTER}, scores={"accuracy": 0.8}, details={"bound_bytes": 1234, "heads": {}})
    table = export_table(given, Path("small"))
    rows = list(zip(*(list(column.cells) for column in table.columns), strict=True))
    assert rows[0] == ("accuracy", "0.8100", "0.8000")
    assert ("bound bytes", "", "1,234") in rows
    assert rows[-1] == ("ms, batch 1, tokens 32", "1.00", "0.67 (1.50 x)")


def latency(dense: float, export: Quartiles) -> Latency:
    once = ModelLatency(Quartiles(dense, dense, dense), Quartiles(1.0, 1.0, 1.0))
    return Latency(1, 32, 7, {"dense": once, "export": ModelLatency(Quartiles(1.0, 2.0, 3.0), export)})


def test_timing_keeps_quartiles_and_rounds() -> None:
    found = timing([latency(4.0, Quartiles(1.5, 2.0, 2.5))], torch.device("cpu"))
    assert found["latency_ms"] == {SMALL: 2.0}
    assert found["dense_latency_ms"] == {SMALL: 4.0}
    assert found["speed_up"] == {SMALL: 2.0}
    assert found["speed_up_quartiles"] == {SMALL: [1.5, 2.5]}
    assert found["rounds"] == {SMALL: 7}


def test_a_timing_on_the_cpu_names_the_cpu_even_beside_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *device: "some GPU")
    on_cpu, on_gpu = timing([], torch.device("cpu")), timing([], torch.device("cuda"))
    assert "GPU" not in on_cpu["device"]
    assert "threads" not in on_cpu["device"]
    assert on_cpu["threads"] == torch.get_num_threads()
    assert (on_gpu["device"], on_gpu["threads"]) == ("some GPU", None)


@pytest.fixture
def run(tmp_path: Path) -> FinishedRun:
    folder = tmp_path / "run"
    (folder / "model").mkdir(parents=True)
    record = RECORD | {"status": "completed", "config_hash": "abc"}
    (folder / "record.json").write_text(json.dumps(record))
    return FinishedRun(folder, "run", record)


def note(run: FinishedRun, given: dict[str, Any]) -> None:
    note_in_run(run, given, auto_class="AutoModelForSequenceClassification", terms="mine")


def stored(run: FinishedRun) -> dict[str, Any]:
    return json.loads((run.folder / "record.json").read_text())


def test_a_note_keeps_what_was_noted_in_the_meantime_and_renews_the_runs_card(run: FinishedRun) -> None:
    changed = stored(run) | {"exports": {"sparse": {"bytes": 3, "latency_ms": {}}}, "warnings": ["new"]}
    (run.folder / "record.json").write_text(json.dumps(changed))
    note(run, result({SMALL: FASTER}))
    found = stored(run)
    assert set(found["exports"]) == {"sparse", "compact"}
    assert found["warnings"] == ["new"]
    card = (run.folder / "model" / "README.md").read_text()
    assert "| compact | batch 1, tokens 32 | 1.00 | 0.67 | 1.50 | some CPU, 2 threads |" in card


@pytest.mark.parametrize(
    ("later", "kept"), [({}, 1.5), ({SMALL: SLOWER}, 0.9)], ids=["none, so it stays", "another, which replaces it"]
)
def test_a_measured_latency_is_not_replaced_by_none(run: FinishedRun, later, kept: float) -> None:
    note(run, result({SMALL: FASTER}))
    note(run, result(later, bytes=7))
    found = stored(run)["exports"]["compact"]
    assert found["speed_up"] == {SMALL: kept}
    assert found["bytes"] == 7


def test_units_that_went_are_counted_in_the_record_and_not_listed(run: FinishedRun) -> None:
    note(run, result({}, details={"heads": {"after": 2, "removed": {"layer": [1, 2]}}, "note": None}))
    assert stored(run)["exports"]["compact"]["details"] == {"heads": {"after": 2}, "note": None}


@pytest.mark.parametrize("key", ["config_hash", "status"])
def test_a_run_that_was_replaced_in_the_meantime_is_left_alone(run: FinishedRun, key: str, caplog) -> None:
    other = stored(run) | {key: "other"}
    (run.folder / "record.json").write_text(json.dumps(other))
    note(run, result({}))
    assert stored(run) == other
    assert "the export is whole, but could not be noted in the record of run run" in caplog.text


def test_a_run_that_another_process_holds_is_left_alone(run: FinishedRun, caplog) -> None:
    before, lock = stored(run), hold(run.folder)
    try:
        note(run, result({}))
    finally:
        lock.release()
    assert stored(run) == before
    assert "must not be in use" in caplog.text


def test_a_record_that_cannot_be_written_is_a_warning(
    run: FinishedRun, monkeypatch: pytest.MonkeyPatch, caplog
) -> None:
    def refuse(*_: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("cap.formats.exports.write_record", refuse)
    caplog.set_level(logging.WARNING)
    note(run, result({}))
    assert "disk full" in caplog.text
    hold(run.folder).release()


def test_keys_that_a_record_lacks_are_all_named(run: FinishedRun) -> None:
    with pytest.raises(
        InputError,
        match=r"without scores\.dense, metric\.name, colour; run it again: python -m cap",
    ):
        require_keys(run, ("scores.pruned", "scores.dense", "metric", "metric.name", "colour", "seed"))


def test_a_key_may_be_null(run: FinishedRun) -> None:
    require_keys(run, ("retention_reason",))


def test_a_speed_that_another_runtime_has_a_part_in_is_said_to_be_so() -> None:
    said = in_words(result({SMALL: SLOWER}), no_gain="int8 is slow", is_dense_again=False, runtime="onnxruntime")
    assert said.endswith("It runs in onnxruntime, the dense model in torch: part of the difference is that.")


def test_of_a_batch_only_tensors_go_to_a_device():
    import torch

    from cap.data.batch import on_device
    from cap.formats.export_formats import tensors_on

    batch = on_device({"input_ids": torch.tensor([[1, 2]]), "example_id": torch.tensor([0])}, torch.device("cpu"))
    moved = tensors_on(batch, torch.device("meta"))
    assert not all(isinstance(value, torch.Tensor) for value in batch.values())
    assert {name: value.device.type for name, value in moved.items()} == {"input_ids": "meta", "example_id": "meta"}
