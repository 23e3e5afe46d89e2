"""Runs whose scores alone learn, on the weights that the student starts from."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.formats.made_exports import make_export, make_run, read

POOLER = ["bert.pooler.dense.weight", "bert.pooler.dense.bias"]
ATTENTION = ["self.query", "self.key", "self.value", "attention.output.dense"]
TYPES = [*ATTENTION, "intermediate.dense", r"\d.output.dense"]


@pytest.fixture(scope="module")
def static_run(tmp_path_factory, tiny_model, tiny_data) -> Path:
    """Train with every term of the loss, and with a decay that would change any weight in the optimizer."""
    data = ["task=sst2", f"data_dir={tiny_data}", f"model.name_or_path={tiny_model}"]
    keys = ["pruning=static_scores", "sparsity=0.9", "weight_decay=0.1", "learning_rate=1e-2", "trainer.max_epochs=2"]
    return make_run(tmp_path_factory.mktemp("static") / "run", *data, *keys)


def weights_of(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "model" / "model.safetensors")


def matrices(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: w for name, w in weights.items() if ".layer." in name and w.ndim == 2}


def test_every_weight_that_stays_is_the_pre_trained_one_to_the_bit(static_run, tiny_model) -> None:
    after = weights_of(static_run)
    before = {f"bert.{name}": weight for name, weight in load_file(tiny_model / "model.safetensors").items()}
    changed = {name for name, weight in before.items() if not torch.equal(after[name], weight)}
    assert changed == {*matrices(after), *POOLER}
    kept = {name: weight != 0 for name, weight in matrices(after).items()}
    assert all(torch.equal(after[name][mask], before[name][mask]) for name, mask in kept.items())


def test_every_type_of_matrix_is_pruned_to_the_target(static_run) -> None:
    found = matrices(weights_of(static_run))
    for kind in TYPES:
        own = torch.cat([weight.flatten() for name, weight in found.items() if re.search(rf"\.{kind}\.weight", name)])
        assert int((own == 0).sum()) == round(0.9 * own.numel())


def test_scores_have_chosen_others_than_magnitude_would(static_run) -> None:
    for weight in matrices(weights_of(static_run)).values():
        sizes = weight[weight != 0].abs()
        assert sizes.min() < 0.02 < sizes.max()  # weights are drawn with a standard deviation of 0.02


def test_record_says_that_weights_have_no_path_and_warns_of_nothing(static_run) -> None:
    record = json.loads((static_run / "record.json").read_text(encoding="utf-8"))
    assert (record["dynamics"]["path"], record["dynamics"]["path_after_target"]) == (0.0, 0.0)
    assert record["config"]["student_init"] == "pretrained"
    assert set(record["gradient_shares"]) == {"ce", "kd", "prc", "snc", "fic"}
    assert all(math.isfinite(share) and share > 0 for share in record["gradient_shares"].values())
    assert not [warning for warning in record["warnings"] if "path_after_target" in warning]


def test_frozen_head_needs_a_teacher_whose_weights_then_all_stay(compose_config, tiny_overrides, tmp_path) -> None:
    from cap.base.errors import InputError
    from cap.config.check import check
    from cap.train import train

    frozen = [*tiny_overrides, "pruning=static_scores", "freeze=[embeddings,pooler,head]", "contrast=none"]
    with pytest.raises(InputError, match="keeps an untrained task head"):
        check(compose_config(*frozen))
    train(compose_config(*frozen, "student_init=teacher"))
    after = weights_of(tmp_path / "run")
    (teacher,) = (load_file(file) for file in (tmp_path / "cache" / "teachers").glob("*/model.safetensors"))
    assert all(torch.equal(weight, teacher[name] * (weight != 0)) for name, weight in after.items())
    warnings = json.loads((tmp_path / "run" / "record.json").read_text(encoding="utf-8"))["warnings"]
    assert [w for w in warnings if "masks of pruning=static_scores lie on the teacher's weights" in w]


@pytest.mark.parametrize(
    "overrides",
    [["trainer.max_steps=1"], ["trainer.max_steps=2", "schedule.warmup=0.9"]],
    ids=["one step", "warm-up alone"],
)
def test_run_in_which_no_score_can_learn_is_refused(compose_config, tiny_overrides, tmp_path, overrides) -> None:
    from cap.base.errors import InputError
    from cap.train import train

    with pytest.raises(InputError, match=r"pruning=static_scores learns nothing but scores, .* of the \d steps"):
        train(compose_config(*tiny_overrides, "pruning=static_scores", *overrides))
    assert not (tmp_path / "run").exists()


def test_masks_of_a_run_are_exported_noted_and_scored_as_the_run_was(static_run, tiny_model) -> None:
    from hydra import compose, initialize_config_dir

    from cap.config.places import conf_dir
    from cap.evaluate import evaluate

    folder = make_export(static_run, "masks", static_run.parent / "masks")
    result = read(folder)
    assert result["check"]["largest_difference"] == 0.0
    assert result["check"]["is_bit_identical"]
    assert set(load_file(folder / "trained.safetensors")) == {*POOLER, "classifier.weight", "classifier.bias"}
    assert read(static_run, "record.json")["exports"]["masks"]["details"] == result["details"]
    (note,) = result["notes"]
    assert f"need the base model, folder {tiny_model.name}, which is not in this folder" in note
    data_dir = read(static_run, "record.json")["config"]["data_dir"]
    given = ["task=sst2", f"model_dir={folder}", f"data_dir={data_dir}", "accelerator=cpu", "max_length=32"]
    folders = [f"cache_dir={folder.parent / 'cache'}", f"output_dir={folder.parent / 'scores'}"]
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        score = evaluate(compose("evaluate", overrides=[*given, *folders]))
    assert score == read(static_run, "record.json")["scores"]["pruned"]["accuracy"]
