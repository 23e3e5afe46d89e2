from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.cases import cases

PRUNING_TYPES = [
    "magnitude",
    "movement",
    "soft_movement",
    "first_order",
    "platon",
    "admm",
    "second_order",
    "random",
]  # of single weights


def run(compose_config, overrides: list[str]) -> tuple[float, Path, dict]:
    from cap.train import train

    cfg = compose_config(*overrides)
    score = train(cfg)
    run_dir = Path(cfg.output_dir)
    return score, run_dir, json.loads((run_dir / "record.json").read_text())


def prunable_names(weights: dict[str, torch.Tensor]) -> list[str]:
    """Name the prunable weights without the package's help: matrices of the encoder layers, LayerNorm being 1-D."""
    return [
        name for name in weights if ".encoder.layer." in name and name.endswith("weight") and weights[name].ndim == 2
    ]


@pytest.mark.parametrize("pruning", PRUNING_TYPES)
def test_saves_exactly_the_sparsity_that_was_asked_for_and_adds_no_other_zero(
    compose_config, tiny_overrides, tiny_model, pruning
):
    interval = ["pruning.interval=2"] if pruning == "admm" else []
    _, run_dir, record = run(compose_config, [*tiny_overrides, f"pruning={pruning}", "sparsity=0.9", *interval])
    weights = load_file(run_dir / "model" / "model.safetensors")
    names = prunable_names(weights)
    n_zero = sum(int((weights[name] == 0).sum()) for name in names)
    n = sum(weights[name].numel() for name in names)
    assert len(names) == 12
    assert abs(n_zero - 0.9 * n) <= len(names)
    assert record["sparsity"]["prunable"] == pytest.approx(n_zero / n)
    before = load_file(tiny_model / "model.safetensors")
    # Biases start as zeros and may still hold some; the embedding of the padding token stays zero.
    others = {name.removeprefix("bert."): w for name, w in weights.items() if name not in names}
    added = {name: int((w == 0).sum()) for name, w in others.items() if name in before}
    assert all(n <= int((before[name] == 0).sum()) for name, n in added.items())


def test_record_states_the_score_of_the_reloaded_model(compose_config, tiny_overrides):
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    learns = ["finetune.max_epochs=20", "student_init=teacher", "pruning=magnitude", "contrast=none", "sparsity=0.3"]
    score, run_dir, record = run(compose_config, [*tiny_overrides, *learns])
    model = AutoModelForSequenceClassification.from_pretrained(run_dir / "model").eval()
    tokenizer = AutoTokenizer.from_pretrained(run_dir / "model")
    rows = [json.loads(line) for line in (Path(record_data_dir(run_dir)) / "validation.jsonl").read_text().splitlines()]
    inputs = tokenizer([row["sentence"] for row in rows], padding=True, return_tensors="pt")
    with torch.no_grad():
        predicted = model(**inputs).logits.argmax(dim=1)
    accuracy = float((predicted == torch.tensor([row["label"] for row in rows])).float().mean())
    assert accuracy > 0.8  # a model that learned nothing would score the same whatever was loaded
    assert score == pytest.approx(accuracy)
    assert record["scores"]["pruned"]["accuracy"] == pytest.approx(accuracy)


def test_record_names_how_encodings_are_pooled(compose_config, tiny_overrides, tmp_path):
    short = ["trainer.max_steps=2", "contrast.snapshots=false"]
    records = {
        pool: run(compose_config, [*tiny_overrides, *short, f"contrast.pool={pool}", f"output_dir={tmp_path / pool}"])[
            2
        ]
        for pool in ("auto", "mean")
    }
    assert {pool: record["pooling"] for pool, record in records.items()} == {"auto": "pooler", "mean": "mean"}


def record_data_dir(run_dir: Path) -> str:
    from omegaconf import OmegaConf

    return str(OmegaConf.load(run_dir / "config.yaml").data_dir)


def test_finished_folder_holds_what_the_design_lists_and_names_no_place_that_nobody_typed(
    compose_config, pictures, tiny_overrides, tiny_model
):
    _, run_dir, record = run(compose_config, tiny_overrides)
    found = {path.name for path in run_dir.iterdir()}
    assert found == {"record.json", "config.yaml", "model", "report.md", "pictures", "logs", "train.log"}
    assert {path.suffix for path in (run_dir / "pictures").iterdir()} == {".png"}
    assert record["status"] == "completed"
    del record["config"], record["command"]
    assert '"/' not in json.dumps(record)
    assert str(tiny_model.parent.parent) not in json.dumps(record)
    texts = [path.read_text() for path in (run_dir / "model").glob("*.json")]
    assert not [text for text in texts if str(tiny_model) in text]
    # The labels are those of the task, in the Hub's order.
    config = json.loads((run_dir / "model" / "config.json").read_text())
    assert config["id2label"] == {"0": "negative", "1": "positive"}


def test_second_run_reuses_teacher_and_frozen_encodings(compose_config, tiny_overrides, tmp_path, caplog):
    import logging

    run(compose_config, tiny_overrides)
    caplog.set_level(logging.INFO, logger="cap")
    caplog.clear()
    run(compose_config, [*tiny_overrides, f"output_dir={tmp_path / 'second'}", "sparsity=0.7"])
    found = [record.message for record in caplog.records if "found in the cache" in record.message]
    assert len(found) == 3  # teacher, pre-trained encodings, fine-tuned encodings


def test_a_cached_teacher_gives_the_same_pruned_model_as_a_fresh_one(compose_config, tiny_overrides, tmp_path):
    _, first, _ = run(compose_config, tiny_overrides)
    _, second, _ = run(compose_config, [*tiny_overrides, f"output_dir={tmp_path / 'second'}"])
    one, two = (load_file(folder / "model" / "model.safetensors") for folder in (first, second))
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize(
    ("overrides", "terms"),
    [
        ([], {"ce", "kd", "prc", "snc", "fic", "total"}),
        (["contrast=none"], {"ce", "kd", "total"}),
        (["contrast=none", "distill=none"], {"ce", "total"}),
        (["teacher=none"], {"ce", "prc", "snc", "total"}),
        (["contrast.snapshots=false"], {"ce", "kd", "prc", "fic", "total"}),
        (["pruning=soft_movement"], {"ce", "kd", "prc", "snc", "fic", "scores", "total"}),
    ],
    ids=["all", "no contrast", "labels only", "no teacher", "no snapshots", "with scores"],
)
def test_logs_the_loss_terms_that_are_switched_on(compose_config, tiny_overrides, overrides, terms):
    import csv

    base = ["pruning=movement"] if "pruning=soft_movement" not in overrides else []
    _, run_dir, _ = run(compose_config, [*tiny_overrides, *base, *overrides])
    with (run_dir / "logs" / "metrics.csv").open() as file:
        columns = csv.DictReader(file).fieldnames or []
    assert {name.removeprefix("loss/") for name in columns if name.startswith("loss/")} == terms


@pytest.mark.parametrize("importance", cases(["gradient", "random"], daily=["gradient"]))
def test_structured_run_prunes_half_of_heads_and_ffn_units(compose_config, tiny_overrides, importance):
    structured = ["pruning=structured", f"pruning.importance={importance}", "schedule.epochs_per_level=1"]
    _, run_dir, record = run(compose_config, [*tiny_overrides, *structured, "sparsity=0.5"])
    weights = load_file(run_dir / "model" / "model.safetensors")
    names = prunable_names(weights)
    assert sum(int((weights[name] == 0).sum()) for name in names) == sum(weights[name].numel() for name in names) // 2
    units = {kind: list(zip(*layers.values(), strict=True)) for kind, layers in record["units"].items()}
    assert [sum(counts) for counts in units["heads"]] == [4, 8]
    assert [sum(counts) for counts in units["ffn"]] == [64, 128]
    assert len(record["levels"]) == 5


def test_a_level_is_ranked_before_its_snapshot_is_taken_and_pruned_afterwards(
    compose_config, tiny_overrides, monkeypatch
):
    from cap.pruning.structured import Structured
    from cap.training.callbacks import importance as callbacks

    events: list[str] = []
    real_measure, real_move = callbacks.measure_importance, Structured.update_masks

    def measure(module, *args, **options):
        events.append(f"importance beside {module.memory.n_encodings('snapshots')} snapshots")
        real_measure(module, *args, **options)

    def move(self, sparsity):
        events.append(f"masks to {sparsity}")
        return real_move(self, sparsity)

    monkeypatch.setattr(callbacks, "measure_importance", measure)
    monkeypatch.setattr(Structured, "update_masks", move)
    levels = ["pruning=structured", "sparsity=0.75", "schedule.levels=[0.25,0.5,0.75]", "schedule.epochs_per_level=1"]
    run(compose_config, [*tiny_overrides, *levels])
    assert events == [
        "importance beside 0 snapshots",
        "masks to 0.25",
        "importance beside 0 snapshots",
        "masks to 0.5",
        "importance beside 1 snapshots",
        "masks to 0.75",
    ]


def test_a_run_of_admm_that_only_prunes_says_so_in_its_record(compose_config, tiny_overrides, caplog):
    from cap.train import train

    admm = ["pruning=admm", "pruning.interval=1000"]
    _, _, record = run(compose_config, [*tiny_overrides, *admm])
    assert any("this run only prunes. Lower pruning.interval" in warning for warning in record["warnings"])
    caplog.clear()
    train(compose_config(*tiny_overrides, *admm, "dry_run=true"))
    assert "this run only prunes. Lower pruning.interval" in caplog.text


def test_a_target_that_cannot_be_met_is_refused_before_anything_is_trained(compose_config, tiny_overrides, tmp_path):
    from cap.base.errors import InputError

    with pytest.raises(InputError, match=r"reaches sparsity 0\.75 at most, got 0\.9"):
        run(compose_config, [*tiny_overrides, "pruning=structured", "sparsity=0.9"])
    assert not (tmp_path / "run").exists()
    assert not (tmp_path / "cache" / "teachers").exists()


def test_stepwise_schedule_scores_every_level(compose_config, tiny_overrides):
    stepwise = ["schedule=stepwise", "schedule.epochs_per_level=null", "schedule.levels=[0.2,0.4,0.6]"]
    _, _, record = run(compose_config, [*tiny_overrides, *stepwise, "sparsity=0.6"])
    # The end of a level, before its masks move to the next; of an epoch; and of the run.
    expected = [(3, 0.2), (4, 0.4), (5, 0.4), (8, 0.6)]
    assert [(level["step"], level["target"]) for level in record["levels"]] == expected
    assert [level["sparsity"] for level in record["levels"]] == pytest.approx([0.2, 0.4, 0.4, 0.6], abs=1e-3)


def test_soft_movement_with_the_published_threshold_records_what_was_reached(compose_config, tiny_overrides):
    _, _, record = run(
        compose_config,
        [
            *tiny_overrides,
            "pruning=soft_movement",
            "pruning.threshold=published",
            "pruning.score_init=zero",
            "sparsity=0.9",
        ],
    )
    assert record["sparsity"]["asked"] == 0.9
    assert 0 <= record["sparsity"]["prunable"] < 1
    # So few steps move no score to the threshold.
    (missed,) = [warning for warning in record["warnings"] if "was asked for" in warning]
    assert "which was 190; raise that, or set pruning.threshold=target" in missed


def test_accumulated_batches_move_masks_once_a_step(compose_config, tiny_overrides):
    _, _, record = run(compose_config, [*tiny_overrides, "trainer.accumulate_grad_batches=2", "sparsity=0.8"])
    assert record["steps"] == 4
    assert record["sparsity"]["prunable"] == pytest.approx(0.8, abs=1e-3)


@pytest.mark.parametrize("precision", ["bf16-mixed", "64-true"])
def test_a_run_in_another_precision_saves_float32_weights_with_the_asked_sparsity(
    compose_config, tiny_overrides, precision
):
    _, run_dir, record = run(compose_config, [*tiny_overrides, f"trainer.precision={precision}", "sparsity=0.8"])
    weights = load_file(run_dir / "model" / "model.safetensors")
    assert json.loads((run_dir / "model" / "config.json").read_text())["dtype"] == "float32"
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}
    assert record["sparsity"]["prunable"] == pytest.approx(0.8, abs=1e-3)


def test_student_can_start_from_the_teacher(compose_config, tiny_overrides):
    score, _, record = run(
        compose_config,
        [*tiny_overrides, "student_init=teacher", "finetune.max_epochs=10", "learning_rate=1e-6", "sparsity=0.0"],
    )
    assert score == pytest.approx(record["scores"]["teacher"]["accuracy"])


def test_warns_in_log_and_record_when_every_answer_is_the_same(compose_config, tiny_overrides):
    _, _, record = run(compose_config, [*tiny_overrides, "sparsity=0.99", "learning_rate=1e-7", "pruning=random"])
    (said,) = (warning for warning in record["warnings"] if "one and the same answer to every row" in warning)
    # The student has started from its teacher already, and there are no scores that could start elsewhere.
    assert said.endswith("Give it more steps (trainer.max_epochs) or a lower sparsity.")


def test_run_too_short_for_a_snapshot_says_so(compose_config, tiny_overrides):
    _, _, record = run(compose_config, [*tiny_overrides, "trainer.max_steps=1"])
    assert any("No snapshot was taken" in warning for warning in record["warnings"])


def test_other_configuration_in_the_folder_is_refused_and_left_as_it_was(compose_config, tiny_overrides):
    from cap.base.errors import InputError
    from cap.train import train

    _, run_dir, record = run(compose_config, tiny_overrides)
    with pytest.raises(InputError, match="hold a run of this configuration"):
        train(compose_config(*tiny_overrides, "sparsity=0.7"))
    assert json.loads((run_dir / "record.json").read_text()) == record


def test_folder_with_something_else_is_refused_and_left_as_it_was(compose_config, tiny_overrides, tmp_path):
    from cap.base.errors import InputError
    from cap.train import train

    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match=r"thesis\.txt"):
        train(compose_config(*tiny_overrides))
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["thesis.txt"]


def test_infinite_loss_stops_with_the_term_and_the_step(compose_config, tiny_overrides, tmp_path, monkeypatch):
    from cap.base.errors import RunError
    from cap.train import train
    from cap.training.module import CapModule

    real = CapModule.loss_terms

    def breaks_in_the_third_step(module, *args, **kwargs):
        terms = real(module, *args, **kwargs)
        if "kd" in terms and module.training and module.trainer.global_step == 2:
            terms["kd"] = terms["kd"] * float("nan")
        return terms

    monkeypatch.setattr(CapModule, "loss_terms", breaks_in_the_third_step)
    with pytest.raises(RunError, match="at step 2 loss/kd = nan"):
        train(compose_config(*tiny_overrides, "checkpoint.every_n_steps=1"))
    record = json.loads((tmp_path / "run" / "record.json").read_text())
    assert record["status"] == "failed"
    assert "loss/kd" in record["error"]
    assert not (tmp_path / "run" / "model").exists()
    kept = torch.load(tmp_path / "run" / "checkpoints" / "step-0000002.ckpt", weights_only=True)
    assert kept["global_step"] == 2


def test_interrupted_run_never_looks_complete(compose_config, tiny_overrides, tmp_path, monkeypatch):
    from cap.finetune import finetune
    from cap.train import train
    from cap.training.module import CapModule

    def interrupt(self, output, batch):
        raise KeyboardInterrupt

    overrides = [*tiny_overrides, "contrast=none"]
    finetune(compose_config(*overrides))  # so that the teacher is there, and the run itself is interrupted
    monkeypatch.setattr(CapModule, "loss_terms", interrupt)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        train(compose_config(*overrides))
    assert json.loads((tmp_path / "run" / "record.json").read_text())["status"] == "interrupted"


def test_masks_saved_are_those_of_the_last_training_step(compose_config, tiny_overrides, monkeypatch):
    from cap.pruning.weights import WeightPruner

    seen: list[dict[str, torch.Tensor]] = []
    real = WeightPruner.update_masks

    def remember(self, sparsity):
        counts = real(self, sparsity)
        seen.append({name: mask.clone() for name, mask in self.masks.items()})
        return counts

    monkeypatch.setattr(WeightPruner, "update_masks", remember)
    _, run_dir, record = run(compose_config, [*tiny_overrides, "sparsity=0.9", "pruning=movement"])
    weights = load_file(run_dir / "model" / "model.safetensors")
    assert record["steps"] == 8
    assert all(torch.equal(weights[f"{name}.weight"] != 0, mask) for name, mask in seen[-1].items())


def test_without_a_teacher_the_labels_weigh_one(compose_config, tiny_overrides, monkeypatch):
    from cap.training.module import CapModule

    seen = []
    real = CapModule.__init__

    def remember(self, student, **settings):
        seen.append(settings["distill"])
        real(self, student, **settings)

    monkeypatch.setattr(CapModule, "__init__", remember)
    _, _, record = run(compose_config, [*tiny_overrides, "teacher=none"])
    assert (seen[-1].weight, seen[-1].ce_weight) == (0.0, 1.0)
    assert any("no teacher to distil from" in warning for warning in record["warnings"])


def test_levels_end_with_the_saved_model_when_no_validation_falls_on_the_last_step(compose_config, tiny_overrides):
    _, _, record = run(compose_config, [*tiny_overrides, "trainer.max_steps=5", "sparsity=0.5"])
    assert record["levels"][-1]["step"] == 5
    assert record["levels"][-1]["scores"] == record["scores"]["pruned"]


def test_scores_during_training_are_of_one_kind_and_the_final_one_says_that_it_is_of_another(
    compose_config, tiny_overrides
):
    limited = ["trainer.limit_val_batches=0.5", "data.eval_batch_size=4", "trainer.precision=bf16-mixed"]
    # Levels end in the middle of an epoch: what is scored there is what a validation scores.
    stepwise = ["schedule=stepwise", "schedule.levels=[0.2,0.4,0.6]", "schedule.epochs_per_level=null"]
    levels = ["pruning=magnitude", "sparsity=0.6", *stepwise]
    _, run_dir, record = run(compose_config, [*tiny_overrides, *levels, *limited])
    kinds = [(level["share"], level["precision"]) for level in record["levels"]]
    assert kinds == [(0.5, "bf16-mixed")] * (len(kinds) - 1) + [(1.0, "32-true")]
    assert len(kinds) >= 4
    assert record["levels"][-1]["scores"] == record["scores"]["pruned"]
    report = (run_dir / "report.md").read_text(encoding="utf-8")
    assert "| share of rows | precision |" in report


def test_banks_that_nothing_reads_are_not_filled(compose_config, tiny_overrides, monkeypatch):
    from cap.objectives.memory import Memory

    filled, real = [], Memory.add
    monkeypatch.setattr(
        Memory, "add", lambda memory, source, *rest: (filled.append(source), real(memory, source, *rest))
    )
    run(compose_config, [*tiny_overrides, "contrast=none", "trainer.max_steps=1"])
    assert filled == []


def test_a_run_without_validation_scores_its_final_model_alone(compose_config, tiny_overrides):
    stepwise = ["schedule=stepwise", "schedule.levels=[0.2,0.4,0.6]", "schedule.epochs_per_level=null"]
    _, _, record = run(
        compose_config,
        [*tiny_overrides, *stepwise, "pruning=magnitude", "sparsity=0.6", "trainer.limit_val_batches=0"],
    )
    assert [level["step"] for level in record["levels"]] == [record["dynamics"]["steps"]]
    assert record["levels"][0]["share"] == 1.0


def test_folder_in_use_by_another_process_is_refused(compose_config, tiny_overrides, tmp_path):
    from cap.base.errors import InputError
    from cap.base.files import locked
    from cap.train import train

    with locked(tmp_path / "run"), pytest.raises(InputError, match="another process is running"):
        train(compose_config(*tiny_overrides))


def test_epochs_per_level_set_the_length_that_the_record_states(compose_config, tiny_overrides):
    levels = ["schedule=stepwise", "schedule.levels=[0.3,0.6]", "schedule.epochs_per_level=2", "sparsity=0.6"]
    _, _, record = run(compose_config, [*tiny_overrides, *levels])
    assert record["config"]["trainer"]["max_epochs"] == 4
    assert record["steps"] == 16


def test_the_cards_own_lines_load_and_ask_the_saved_model(compose_config, tiny_overrides, monkeypatch):
    _, run_dir, _ = run(compose_config, tiny_overrides)
    monkeypatch.chdir(run_dir)
    (lines,) = (part.split("```")[0] for part in (run_dir / "model" / "README.md").read_text().split("```python\n")[1:])
    report = (run_dir / "report.md").read_text().split("```python\n")[1].split("```")[0]
    asked = lines[lines.index("inputs = ") :]
    assert report.endswith(asked)
    assert len(asked.splitlines()) == 4
    names: dict = {}
    exec(lines, names)
    assert names["logits"].shape == (1, 2)
    assert names["answers"][0] in ("negative", "positive")
