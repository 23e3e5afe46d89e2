"""From a run to every export, back into memory, and into the record that tables are made of."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch

from tests.cases import cases
from tests.formats.made_exports import QUICK, lines_of_card, make_export, make_run, read, write_rows

FORMATS = ["compact", "sparse", "onnx", "int8"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory, tiny_model, tiny_data) -> dict[str, Path]:
    """Make two finished runs: one of half the units, one of nearly all weights."""
    root = tmp_path_factory.mktemp("runs")
    common = ["task=sst2", f"data_dir={tiny_data}", f"model.name_or_path={tiny_model}"]
    halves = ["pruning=structured", "sparsity=0.5", "schedule.levels=[0.5]", "contrast=none"]
    halves += ["learning_rate=1e-2", "schedule.epochs_per_level=5"]
    halves += ["finetune.learning_rate=1e-2", "finetune.max_epochs=5"]  # so that teacher and run know something
    return {
        "structured": make_run(root / "structured", *common, *halves),
        "unstructured": make_run(root / "unstructured", *common, *QUICK, "pruning=magnitude", "sparsity=0.97"),
    }


@pytest.fixture(scope="module")
def exported(runs):
    """Export a run, each format once."""
    made: dict[tuple[str, str], Path] = {}

    def get(kind: str, name: str) -> Path:
        if (kind, name) not in made:
            made[kind, name] = make_export(runs[kind], name, runs[kind].parent / f"{kind}-{name}")
        return made[kind, name]

    return get


@pytest.fixture
def own_run(runs, tmp_path) -> Path:
    """Copy a run, to be damaged."""
    return Path(shutil.copytree(runs["structured"], tmp_path / "runs" / "own"))


def dense_logits(run: Path, ids: torch.Tensor) -> torch.Tensor:
    from cap.models.encoders import load_saved_model

    with torch.no_grad():
        return load_saved_model(run / "model", "classes").eval()(input_ids=ids).logits


def some_ids() -> torch.Tensor:
    return torch.randint(5, 20, (3, 7), generator=torch.Generator().manual_seed(0))


def refusal(run: Path, name: str, target: Path, *overrides: str) -> str:
    from cap.base.errors import InputError

    with pytest.raises(InputError) as caught:
        make_export(run, name, target, *overrides)
    assert not target.exists()
    return str(caught.value)


@pytest.mark.parametrize("name", cases(FORMATS, daily=["compact", "sparse", "onnx"]))
def test_an_export_is_checked_measured_and_noted_in_the_run(runs, exported, name: str) -> None:
    result = read(exported("structured", name))
    assert result["check"]["rows"] == 16
    assert result["data"]["is_the_runs"]
    noted = read(runs["structured"], "record.json")["exports"][name]
    assert noted["bytes"] == result["size"]["bytes"] > 0
    assert "removed" not in json.dumps(noted)
    assert noted["sparsity"]["zero_or_gone"] == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("name", ["compact", "sparse", "onnx"])
def test_a_format_that_keeps_the_logits_is_not_scored_again(exported, name: str) -> None:
    result = read(exported("structured", name))
    assert (result["scores"], result["retention"]) == (None, None)
    assert result["check"]["relative_difference"] <= result["check"]["tolerance"] == 1e-5


@pytest.mark.ends
def test_a_format_that_changes_the_logits_has_its_own_scores_everywhere(runs, exported, capsys) -> None:
    folder = exported("structured", "int8")
    result, record = read(folder), read(runs["structured"], "record.json")
    assert record["exports"]["int8"]["scores"] == result["scores"]
    teacher, score = record["scores"]["teacher"]["accuracy"], result["scores"]["accuracy"]
    assert result["retention"]["retention"] == pytest.approx(score / teacher)
    card = (folder / "README.md").read_text()
    assert "| on the validation rows | dense teacher | before export | this model | learned nothing |" in card
    before = record["scores"]["pruned"]["accuracy"]
    assert f"| accuracy | {teacher:.4f} | {before:.4f} | {score:.4f} | 0.5000 |" in card
    assert f"Retention of accuracy: {score / teacher:.3f};" in card
    assert f"accuracy {before:.4f} before the export, {score:.4f} after it" in result["sentence"]
    assert "are zero, counted before rounding to int8." in card


def test_half_of_the_units_are_half_of_the_prunable_parameters(exported) -> None:
    folder = exported("structured", "compact")
    size = read(folder)["size"]
    assert size["prunable_parameters"] * 2 == size["dense_prunable_parameters"]
    assert size["bytes"] < size["dense_bytes"]
    assert (
        f"{size['prunable_parameters']:,} prunable parameters are left here, of which 0 are zero."
        in (folder / "README.md").read_text()
    )


def test_a_sparse_file_stands_beside_its_bound(exported, runs) -> None:
    from safetensors.torch import load_file

    folder = exported("unstructured", "sparse")
    weights = load_file(runs["unstructured"] / "model" / "model.safetensors")
    matrices = [value for key, value in weights.items() if "encoder.layer" in key and value.ndim == 2]
    n_bits, n_kept = sum(m.numel() for m in matrices), sum(int(m.count_nonzero()) for m in matrices)
    details = read(folder)["details"]
    assert details["bound_bytes"] == n_bits // 8 + 4 * n_kept
    assert details["encoder_bytes"] == (folder / "encoder.safetensors").stat().st_size
    assert details["times_the_bound"] == pytest.approx(details["encoder_bytes"] / details["bound_bytes"], abs=1e-4)
    assert read(runs["unstructured"], "record.json")["exports"]["sparse"]["details"] == details


@pytest.mark.parametrize("name", ["compact", "sparse"])
def test_cap_load_takes_the_very_output_dir(runs, exported, name: str) -> None:
    import cap

    with torch.no_grad():
        found = cap.load(exported("structured", name))(input_ids=some_ids()).logits
    torch.testing.assert_close(found, dense_logits(runs["structured"], some_ids()), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["compact", "sparse", "onnx"])
def test_the_cards_own_lines_load_the_model(exported, name: str, monkeypatch) -> None:
    folder = exported("structured", name)
    monkeypatch.chdir(folder.parent)
    names: dict = {}
    exec(lines_of_card(folder), names)
    assert "tokenizer" in names
    assert "model" in names or names["logits"].shape == (1, 2)


def test_cap_load_names_what_runs_a_graph(exported) -> None:
    import cap
    from cap.base.errors import InputError

    with pytest.raises(InputError, match=r"model\.onnx, a graph that onnxruntime runs; .* Load in its README\.md"):
        cap.load(exported("structured", "onnx"))


@pytest.mark.parametrize("name", cases(["onnx", "int8"], daily=["onnx"]))
def test_a_graph_is_evaluated_with_the_scores_that_were_measured_of_it(
    runs, exported, name: str, tiny_data, tmp_path
) -> None:
    from cap.evaluate import evaluate
    from tests.composing import composer

    folder = exported("structured", name)
    given = [f"model_dir={folder}", f"data_dir={tiny_data}", "accelerator=cpu", "max_length=32"]
    folders = [f"cache_dir={tmp_path / 'cache'}", f"output_dir={tmp_path / 'out'}"]
    score = evaluate(composer("evaluate")("task=sst2", *given, *folders))
    expected = read(folder)["scores"] or read(runs["structured"], "record.json")["scores"]["pruned"]
    assert score == expected["accuracy"]


@pytest.mark.ends
def test_the_whole_way_from_a_run_to_a_report_of_it_and_its_exports(runs, exported, tmp_path) -> None:
    import cap
    from cap.formats.onnx import OnnxModel
    from cap.report import report
    from cap.reports.collect import collect
    from cap.reports.costs import read_exports

    folders = {name: exported("structured", name) for name in FORMATS}
    ids = some_ids()
    expected = dense_logits(runs["structured"], ids)
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    with torch.no_grad():
        found = {name: cap.load(folders[name])(**batch).logits for name in ("compact", "sparse")}
    found |= {name: OnnxModel(folders[name] / "model.onnx")(batch) for name in ("onnx", "int8")}
    distances = {name: float((logits - expected).abs().max()) for name, logits in found.items()}
    assert max(distances["compact"], distances["sparse"], distances["onnx"]) < 1e-5
    assert distances["int8"] < 0.1
    said, _ = report([runs["structured"]], output=tmp_path / "report", title="One run")
    assert said.startswith("1 completed run")
    assert (tmp_path / "report" / "score_against_size.png").is_file()
    (run,) = collect([runs["structured"]]).runs
    assert {export.format for export in read_exports(run)} >= set(FORMATS)


def test_latency_is_measured_noted_put_on_the_runs_card_and_not_lost_again(own_run, tmp_path) -> None:
    result = read(make_export(own_run, "compact", tmp_path / "timed", "latency_seconds=0.001"))
    settings = {f"batch={size},tokens={length}" for size in (1, 32) for length in (32, 128)}
    timed = ("latency_ms", "dense_latency_ms", "speed_up", "speed_up_quartiles", "rounds")
    assert all(set(result[key]) == settings for key in timed)
    assert set(result["rounds"].values()) == {5}
    assert all(first <= third for first, third in result["speed_up_quartiles"].values())
    make_export(own_run, "compact", tmp_path / "not timed")
    noted = read(own_run, "record.json")["exports"]["compact"]
    assert {key: noted[key] for key in timed} == {key: result[key] for key in timed}
    row = f"| compact | batch 32, tokens 128 | {noted['dense_latency_ms']['batch=32,tokens=128']:.2f} | "
    for card in (own_run / "model" / "README.md").read_text(), (tmp_path / "timed" / "README.md").read_text():
        assert card.count(f"{result['device']}, 1 thread") >= 1
        assert "1 threads" not in card
    assert row in (own_run / "model" / "README.md").read_text()


def test_every_name_of_a_format_has_one_and_no_other() -> None:
    from cap.config.export import FORMAT_NAMES
    from cap.formats.export_formats import FORMATS

    assert sorted(FORMAT_NAMES) == sorted(FORMATS)


def test_lengths_that_the_model_cannot_read_are_left_out_with_a_note(runs, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("cap.formats.export_phases.longest_input", lambda config: 64)
    result = read(make_export(runs["unstructured"], "compact", tmp_path / "short", "latency_seconds=0.001"))
    assert set(result["latency_ms"]) == {"batch=1,tokens=32", "batch=32,tokens=32"}
    assert result["notes"] == [
        "Latency was measured up to 64 tokens only, which are the most that the model reads.",
    ]


@pytest.fixture
def other_rows(tmp_path) -> Path:
    """Write other rows of the same task, one of them for validation."""
    rows = [{"sentence": "the film is good", "label": 1}, {"sentence": "the very bad book", "label": 0}]
    return write_rows(tmp_path / "other", rows, n_validation=1)


@pytest.mark.ends
def test_logits_are_compared_on_other_rows_with_a_note_even_on_a_single_one(runs, other_rows, tmp_path) -> None:
    folder = make_export(runs["unstructured"], "onnx", tmp_path / "onnx", f"data_dir={other_rows}")
    result = read(folder)
    assert result["check"]["rows"] == 1
    assert not result["data"]["is_the_runs"]
    (note,) = result["notes"]
    assert note.startswith("The logits were compared on other rows than the run's: folder other, fingerprint ")
    assert f"- {note}" in (folder / "README.md").read_text()


def test_scores_are_not_measured_on_other_rows_than_the_runs(runs, other_rows, tmp_path) -> None:
    message = refusal(runs["unstructured"], "int8", tmp_path / "int8", f"data_dir={other_rows}")
    assert "format=int8 changes the logits, so its scores are measured again, on the rows of the run; got" in message


def test_the_runs_rows_at_another_place_are_the_runs_rows(runs, tiny_data, tmp_path) -> None:
    moved = shutil.copytree(tiny_data, tmp_path / "moved")
    result = read(make_export(runs["unstructured"], "sparse", tmp_path / "sparse", f"data_dir={moved}"))
    assert (result["data"]["is_the_runs"], result["notes"]) == (True, [])


def test_rows_that_are_gone_are_asked_for(runs, tmp_path) -> None:
    message = refusal(runs["unstructured"], "compact", tmp_path / "out", f"data_dir={tmp_path / 'gone'}")
    assert "an export is checked on rows of the run's task, which could not be read (data_dir must be" in message
    assert message.endswith("give data_dir=DIR with them")


def test_logits_that_differ_leave_nothing_behind(runs, monkeypatch, tmp_path) -> None:
    from cap.base.errors import RunError
    from cap.formats.export_formats import FORMATS

    strict = dataclasses.replace(FORMATS["compact"], tolerance=-1.0)
    monkeypatch.setitem(FORMATS, "compact", strict)
    with pytest.raises(RunError, match="must give the run's logits within -1"):
        make_export(runs["structured"], "compact", tmp_path / "compact")
    assert not (tmp_path / "compact").exists()


def test_a_weight_that_changes_no_logit_is_missed_all_the_same(runs, monkeypatch, tmp_path) -> None:
    from cap.base.errors import RunError
    from cap.formats.export_formats import FORMATS
    from cap.formats.load import load

    def changed(folder: Path):
        model = load(folder)
        with torch.no_grad():
            model.get_input_embeddings().weight[3] += 1.0  # of a token that no row has
        return model

    monkeypatch.setitem(FORMATS, "sparse", dataclasses.replace(FORMATS["sparse"], load=changed))
    with pytest.raises(RunError, match="must give every weight back bit by bit"):
        make_export(runs["structured"], "sparse", tmp_path / "sparse")


def test_a_graph_that_is_right_for_one_shape_only_is_found_out(runs, monkeypatch, tmp_path) -> None:
    from cap.base.errors import RunError
    from cap.formats.export_formats import FORMATS
    from cap.formats.load import load
    from cap.formats.parity import logits_of

    def traced_on_many_rows(folder: Path):
        logits = logits_of(load(folder))
        return lambda batch: logits(batch) + float(len(batch["input_ids"]) == 1)

    wrong = dataclasses.replace(FORMATS["compact"], load=traced_on_many_rows)
    monkeypatch.setitem(FORMATS, "compact", wrong)
    with pytest.raises(RunError, match="on 16 rows they are up to 1 apart"):
        make_export(runs["structured"], "compact", tmp_path / "compact")


@pytest.mark.parametrize(
    ("lengths", "n_rows", "expected"),
    [
        ([5, 9, 7, 3], 4, [[1, 2], [0, 3], [1, 2, 0, 3], [3]]),
        ([5, 9, 7, 3], 99, [[1, 2], [0, 3], [1, 2, 0, 3], [3]]),
        ([5, 9, 7, 3, 8], 3, [[1, 4], [3], [1, 4, 3]]),
        ([5, 9], 2, [[1], [0], [1, 0]]),
        ([5, 9], 1, [[1]]),
        ([5], 64, [[0]]),
    ],
    ids=["all", "fewer than asked", "odd", "two", "one of two", "only one"],
)
def test_the_longest_and_shortest_rows_are_checked_apart_together_and_alone(lengths, n_rows, expected) -> None:
    from cap.formats.export_source import choose_rows

    assert choose_rows(torch.tensor(lengths), n_rows) == expected


@pytest.mark.parametrize(
    ("data_dir", "terms"),
    [(None, "Quora's, non-commercial"), ("mine", "those of the makers of the data")],
    ids=["from the Hub", "from a folder"],
)
def test_a_tasks_own_terms_hold_for_its_own_rows_only(data_dir, terms: str) -> None:
    from cap.data.tasks import data_terms, get_task

    assert data_terms(get_task("qqp"), data_dir) == terms


@pytest.mark.parametrize(
    ("name", "overrides", "expected"),
    [
        ("tarball", [], "format must be one of"),
        ("compact", ["check_rows=0"], "check_rows must be at least 1, got 0"),
        ("semi_structured", [], "at most 2 of every 4 weights kept"),
        ("masks", [], "format=masks stores masks on weights that were never trained, but 12 of the 12 matrices"),
    ],
    ids=["unknown format", "no rows", "no pattern", "weights were trained"],
)
def test_what_cannot_work_is_refused(runs, tmp_path, name: str, overrides: list[str], expected: str) -> None:
    assert expected in refusal(runs["structured"], name, tmp_path / "out", *overrides)


def test_a_damaged_model_is_refused(own_run, tmp_path) -> None:
    weights = own_run / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    assert "must be a whole folder that BertForSequenceClassification" in refusal(own_run, "compact", tmp_path / "out")


def test_a_record_of_another_version_is_refused_with_the_keys_it_lacks(own_run, tmp_path) -> None:
    record = read(own_run, "record.json")
    del record["config"]["data"], record["sparsity"]["asked"]
    (own_run / "record.json").write_text(json.dumps(record))
    message = refusal(own_run, "compact", tmp_path / "out")
    lacking = "config.data.eval_batch_size, config.data.max_eval_rows, config.data.max_train_rows"
    assert f"got one without sparsity.asked, {lacking}; run it again: python -m cap.train" in message


def test_keys_of_a_task_that_this_version_does_not_know_are_left_out_with_a_word(own_run, tmp_path, caplog) -> None:
    record = read(own_run, "record.json")
    record["config"]["task"]["flavour"] = "sweet"
    (own_run / "record.json").write_text(json.dumps(record))
    make_export(own_run, "compact", tmp_path / "out")
    assert any("does not know; left out: flavour" in record.message for record in caplog.records)


def test_a_folder_that_is_no_run_is_refused(tmp_path) -> None:
    assert "a run is the folder of a finished one, with record.json" in refusal(tmp_path, "compact", tmp_path / "out")


def test_an_output_folder_that_holds_something_is_refused(runs, tmp_path) -> None:
    from cap.base.errors import InputError

    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match=r"output_dir must be new or empty, got .* with notes\.txt"):
        make_export(runs["structured"], "compact", tmp_path)


def test_an_export_of_fewer_layers_stands_beside_the_dense_model(tiny_model, tiny_data, tmp_path) -> None:
    layers = ["pruning=layers", "sparsity=0.5", *QUICK]
    run = make_run(tmp_path / "run", "task=sst2", f"data_dir={tiny_data}", f"model.name_or_path={tiny_model}", *layers)
    size = read(make_export(run, "compact", tmp_path / "small"))["size"]
    n_layer = 4 * 32 * 32 + 2 * 32 * 64
    assert (size["prunable_parameters"], size["dense_prunable_parameters"]) == (n_layer, 2 * n_layer)
    n_gone = size["dense_parameters"] - size["parameters"]
    assert size["dense_bytes"] == (run / "model" / "model.safetensors").stat().st_size + 4 * n_gone
    assert size["dense_multiply_adds_of_128_tokens"] == 2 * size["multiply_adds_of_128_tokens"]
    assert "as large and as slow" not in (run / "model" / "README.md").read_text(encoding="utf-8")
