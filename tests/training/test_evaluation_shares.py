"""Scores of rows that several processes have a share of each."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.utils.data import DataLoader

from cap.base.files import read_json, write_json
from cap.data.metrics import TaskMetrics
from cap.data.tasks import get_task
from cap.models.pooled import PooledModel
from cap.training.evaluation import evaluate
from cap.training.parallel.ranks import ALONE
from cap.training.teacher import cached_scores
from tests.models.tiny_models import tiny_batch, tiny_classifier
from tests.training.ranks_in_threads import run_ranks

CPU = torch.device("cpu")
LABELS = torch.tensor([1, 0, 2, 2, 1, 0, 0])
# Which of the first split's rows each process has; of the second split the first process has all.
PARTS = {"one": [[0, 1, 2, 3, 4, 5, 6]], "two": [[6, 0, 3, 2], [5, 1, 4]], "one idle": [[0, 1, 2, 3, 4, 5, 6], []]}


@pytest.fixture
def model() -> PooledModel:
    return PooledModel(tiny_classifier(num_labels=3), "first_token").train()


def loader(rows: list[int]) -> DataLoader:
    """Serve made-up rows one by one."""
    ids = tiny_batch()["input_ids"].flatten()[: len(LABELS), None] % 25 + 5
    batches = [
        {
            "input_ids": ids[row : row + 1],
            "attention_mask": torch.ones(1, 1, dtype=torch.int64),
            "labels": LABELS[row : row + 1],
            "example_id": torch.tensor([row]),
        }
        for row in rows
    ]
    return DataLoader(batches, batch_size=None)


def loaders(part: list[int], *, is_first: bool) -> dict[str, DataLoader]:
    return {"matched": loader(part), "mismatched": loader([1, 2] if is_first else [])}


def metrics() -> dict[str, TaskMetrics]:
    task = get_task("mnli")
    return {"matched": TaskMetrics(task), "mismatched": TaskMetrics(task, suffix="_mismatched")}


def test_a_teacher_that_was_given_is_scored_on_the_rows_of_all_processes(model: PooledModel) -> None:
    from types import SimpleNamespace

    from cap.training import teacher

    def of(ranks) -> dict[str, float]:
        part = PARTS["two"][ranks.rank]
        rows = SimpleNamespace(eval_dataloaders=lambda rank, size: loaders(part, is_first=ranks.is_first))
        trainer = SimpleNamespace(strategy=SimpleNamespace(root_device=CPU, ranks=ranks))
        prepared = SimpleNamespace(datamodule=rows, metrics=metrics)
        return teacher._scores(copy.deepcopy(model), prepared, trainer)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(teacher, "ranks_of", lambda trainer: trainer.strategy.ranks)
        both = run_ranks(2, of)
    alone, _ = evaluate(model, loaders(PARTS["one"][0], is_first=True), metrics(), device=CPU, description="alone")
    assert both == [alone, alone]


def score(model: PooledModel, parts: list[list[int]]) -> list[tuple[dict[str, float], bool]]:
    return run_ranks(
        len(parts),
        lambda ranks: evaluate(
            copy.deepcopy(model),
            loaders(parts[ranks.rank], is_first=ranks.is_first),
            metrics(),
            device=CPU,
            description="scores",
            ranks=ranks,
        ),
    )


@pytest.mark.parametrize("parts", PARTS.values(), ids=PARTS.keys())
def test_every_process_gets_the_scores_of_all_rows(model: PooledModel, parts: list[list[int]]) -> None:
    alone = evaluate(
        model, loaders(list(range(7)), is_first=True), metrics(), device=CPU, description="scores", ranks=ALONE
    )
    assert set(alone[0]) == {"accuracy", "accuracy_mismatched"}
    assert score(model, parts) == [alone] * len(parts)


def test_one_class_is_noticed_over_the_rows_of_all_processes(model: PooledModel) -> None:
    with torch.no_grad():
        model.model.classifier.weight.zero_()
        model.model.classifier.bias.copy_(torch.tensor([0.0, 1.0, 0.0]))
    assert [is_constant for _, is_constant in score(model, PARTS["two"])] == [True, True]


def of_teacher(model: PooledModel, folder, ranks, part: list[int]) -> dict[str, float]:
    return cached_scores(
        copy.deepcopy(model),
        folder,
        data_key="rows",
        loaders=loaders(part, is_first=ranks.is_first),
        metrics=metrics(),
        device=CPU,
        ranks=ranks,
    )


def test_scores_of_a_teacher_are_those_of_all_rows_and_kept(model: PooledModel, tmp_path) -> None:
    (expected, _) = score(model, PARTS["one"])[0]
    parts = PARTS["two"]
    assert run_ranks(2, lambda ranks: of_teacher(model, tmp_path, ranks, parts[ranks.rank])) == [expected] * 2
    assert read_json(tmp_path / "scores-rows.json") == expected


def test_scores_that_were_kept_are_what_every_process_reads(model: PooledModel, tmp_path) -> None:
    write_json(tmp_path / "scores-rows.json", {"accuracy": 0.5})
    assert run_ranks(2, lambda ranks: of_teacher(model, tmp_path, ranks, [])) == [{"accuracy": 0.5}] * 2
