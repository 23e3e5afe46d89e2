from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cases import cases

GRADUAL = ["soft_movement", "movement", "magnitude", "first_order", "platon", "random", "static_scores"]


@pytest.fixture
def kept(compose_config, tiny_overrides, tmp_path):
    """Run a configuration and return its folder and record."""
    from cap.train import train

    def run(*overrides: str) -> tuple[Path, dict]:
        train(compose_config(*tiny_overrides, *overrides))
        return tmp_path / "run", json.loads((tmp_path / "run" / "record.json").read_text())

    return run


@pytest.mark.parametrize("pruning", cases(GRADUAL, daily=["movement"]))
def test_gradual_schedule_keeps_models_of_exactly_the_levels_that_were_asked_for(kept, pruning):
    _, record = kept(f"pruning={pruning}", "sparsity=0.9", "keep_levels=[0.25,0.5,0.9]")
    found = {line["sparsity"]["asked"]: line["sparsity"]["prunable"] for line in record["kept"]}
    n_weights, n_matrices = 16_384, 12  # each matrix is rounded to a weight
    assert found == pytest.approx({0.25: 0.25, 0.5: 0.5, 0.9: 0.9}, abs=n_matrices / n_weights / 2)


def test_a_type_that_prunes_at_once_keeps_no_level_on_the_way(compose_config, tiny_overrides):
    from cap.base.errors import InputError
    from cap.train import train

    with pytest.raises(InputError, match=r"keep_levels needs a pruning type that prunes little by little.*\[0\.5\]"):
        train(compose_config(*tiny_overrides, "pruning=admm", "sparsity=0.9", "keep_levels=[0.5]"))


def test_kept_models_are_loaded_by_stock_transformers_and_score_what_the_record_says(kept, compose_config, tmp_path):
    from transformers import AutoModelForSequenceClassification

    from cap.models.families import prunable_linears
    from cap.pruning.masks import count_zeros

    folder, record = kept("pruning=magnitude", "sparsity=0.9", "keep_levels=[0.5]")
    (line,) = record["kept"]
    counts = count_zeros(prunable_linears(AutoModelForSequenceClassification.from_pretrained(folder / line["folder"])))
    assert sum(n for n, _ in counts.values()) / sum(n for _, n in counts.values()) == line["sparsity"]["prunable"]
    assert set(line["scores"]) == {"accuracy"}


def test_levels_of_a_stepwise_schedule_are_kept_with_both_sides_of_their_units(pictures, kept):
    from transformers import AutoModelForSequenceClassification

    from cap.models.families import prunable

    folder, record = kept(
        "pruning=structured",
        "schedule.levels=[0.25,0.5]",
        "schedule.epochs_per_level=1",
        "keep_levels=[0.25,0.5]",
    )
    assert [line["folder"] for line in record["kept"]] == ["levels/0.25", "model"]
    assert (folder / "pictures" / "kept_models.png").is_file()
    model = AutoModelForSequenceClassification.from_pretrained(folder / "levels" / "0.25")
    units = [units for kind in (prunable(model).heads, prunable(model).ffn) for units in kind.values()]
    dead = [(u.outgoing.weight == 0).all(dim=0) for u in units]
    assert sum(int(d.sum()) for d in dead) > 0
    assert all(not bool(linear.bias[d].any()) for u, d in zip(units, dead, strict=True) for linear in u.incoming)


SCHEDULES = {
    "gradual": (["pruning=magnitude", "sparsity=0.9"], False),
    "level by level": (["pruning=magnitude", "schedule=stepwise", "schedule.levels=[0.5,0.9]", "sparsity=0.9"], True),
}


@pytest.mark.parametrize(("overrides", "is_retrained"), SCHEDULES.values(), ids=SCHEDULES)
def test_record_and_card_say_whether_a_kept_model_was_trained_at_its_sparsity(kept, overrides, is_retrained):
    folder, record = kept(*overrides, "keep_levels=[0.5,0.9]", "contrast=none")
    level, own = record["kept"]
    assert (level["is_retrained"], own["is_retrained"]) == (is_retrained, True)
    assert any("models kept at 0.5 were saved" in warning for warning in record["warnings"]) is not is_retrained
    card = (folder / level["folder"] / "README.md").read_text(encoding="utf-8")
    assert ("without training at it" in card) is not is_retrained
    assert f"| accuracy | {record['scores']['teacher']['accuracy']:.4f} | {level['scores']['accuracy']:.4f} |" in card
    assert f"{level['sparsity']['prunable']:.4f} of the prunable weights are zero (0.5 was asked for)" in card


def test_a_jump_of_a_cubic_schedule_is_kept_at_the_end_of_its_retraining(kept):
    prunings = ["schedule.n_prunings=2", "schedule.initial_sparsity=0.2", "schedule.flat_after=0.5"]
    _, record = kept("pruning=movement", *prunings, "keep_levels=[0.2,0.5]")
    assert [line["step"] for line in record["kept"]] == [4, 8]  # of 8 steps: jumps at 2 and 4
    assert [line["sparsity"]["prunable"] for line in record["kept"]] == pytest.approx([0.2, 0.5], abs=1e-3)


def test_a_level_may_be_named_by_its_first_digits(kept):
    prunings = ["schedule.n_prunings=3", "schedule.initial_sparsity=0.2", "schedule.flat_after=0.4"]
    _, record = kept("pruning=movement", *prunings, "keep_levels=[0.2,0.46,0.497]")
    assert [line["folder"] for line in record["kept"]] == ["levels/0.2", "levels/0.46", "model"]
    assert [line["sparsity"]["asked"] for line in record["kept"]] == [0.2, 0.46, 0.5]
    assert [line["sparsity"]["prunable"] for line in record["kept"]] == pytest.approx([0.2, 0.4625, 0.5], abs=1e-3)


def test_kept_levels_change_nothing_of_the_run(kept, compose_config, tiny_overrides, tmp_path):
    from cap.train import train

    folder, _ = kept("pruning=first_order", "keep_levels=[0.25]")
    train(compose_config(*tiny_overrides, "pruning=first_order", f"output_dir={tmp_path / 'without'}"))
    weights = Path("model") / "model.safetensors"
    assert (folder / weights).read_bytes() == (tmp_path / "without" / weights).read_bytes()


REFUSED = {
    "not rising": (["keep_levels=[0.5,0.25]"], "keep_levels must rise"),
    "beyond the target": (["keep_levels=[0.9]"], "keep_levels must rise, above 0 and up to sparsity=0.5"),
    "a type that takes nothing back": (
        ["pruning=second_order", "keep_levels=[0.25]"],
        "cannot be taken back needs a schedule that stops at them, got cubic without levels; set schedule.n_prunings",
    ),
    "no level of the schedule": (
        ["experiment=high_sparsity", "pruning=second_order", "sparsity=0.97", "keep_levels=[0.5,0.62]"],
        r"jumps from one to the next \(0.3, 0.548, .*0.97\), got 0.5, 0.62; choose among them, or set others",
    ),
}


@pytest.mark.parametrize(("overrides", "message"), REFUSED.values(), ids=REFUSED)
def test_levels_that_no_run_passes_are_refused(compose_config, overrides, message):
    from cap.base.errors import InputError
    from cap.config.check import check
    from cap.training.ready import make_ready

    with pytest.raises(InputError, match=message):
        make_ready(check(compose_config(*overrides)))
