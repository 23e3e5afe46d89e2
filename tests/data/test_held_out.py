"""Training rows that are scored in place of the validation rows."""

from __future__ import annotations

import json

import pytest

from cap.base.errors import InputError
from tests.formats.made_exports import make_run


def texts(rows) -> list[str]:
    return list(rows["sentence"])


@pytest.fixture
def load(tiny_data):
    """Load the rows of a task by hand."""
    from cap.data.custom import task_of
    from cap.data.held_out import scored_on_held_out
    from cap.data.sources import load_rows

    def load(n: int | None, **limits):
        task = task_of("sst2", tiny_data, {})
        task = task if n is None else scored_on_held_out(task)
        limits = {"max_train_rows": None, "max_eval_rows": None} | limits
        return load_rows(task, data_dir=tiny_data, held_out_rows=n, **limits)

    return load


def test_rows_are_parted_and_none_is_lost(load) -> None:
    whole, parted = load(None), load(10)
    train, held_out = texts(parted.splits["train"]), texts(parted.splits["validation"])
    assert (len(train), len(held_out)) == (len(whole.splits["train"]) - 10, 10)
    assert sorted(train + held_out) == sorted(texts(whole.splits["train"]))
    assert [list(rows["example_id"]) for rows in parted.splits.values()] == [[*range(len(train))], [*range(10)]]
    assert parted.fingerprint != whole.fingerprint


def test_they_are_drawn_from_all_rows_whatever_else_is_asked_for(load) -> None:
    held_out, train = texts(load(10).splits["validation"]), texts(load(10).splits["train"])
    fewer = load(10, max_train_rows=20)
    assert texts(fewer.splits["validation"]) == held_out
    assert texts(fewer.splits["train"]) == train[:20]
    assert texts(load(10, max_eval_rows=4).splits["validation"]) == held_out[:4]
    whole = texts(load(None).splits["train"])
    assert held_out != whole[:10]
    assert held_out != whole[-10:]


@pytest.mark.parametrize("n", [0, 10_000])
def test_some_rows_must_be_left(load, n) -> None:
    with pytest.raises(InputError, match=rf"data.held_out_rows must be at least 1 and leave some of the .* got {n}"):
        load(n)


def test_a_task_of_several_splits_is_scored_on_one() -> None:
    from cap.data.custom import task_of
    from cap.data.held_out import scored_on_held_out
    from cap.data.metrics import split_suffixes

    assert split_suffixes(scored_on_held_out(task_of("mnli", None, {}))) == {"validation_matched": ""}


def test_texts_without_an_answer_cannot_be_held_out(compose_config, tmp_path) -> None:
    from cap.config.check import check
    from cap.training.preparation import configured_task

    keys = ["task=embed", f"data_dir={tmp_path}", "contrast=none", "data.held_out_rows=5"]
    with pytest.raises(InputError, match="task=embed trains on texts without one"):
        configured_task(check(compose_config(*keys)).config)


def test_a_run_is_scored_on_them_and_says_so(load, tiny_model, tiny_data, tmp_path) -> None:
    data = ["task=sst2", f"data_dir={tiny_data}", f"model.name_or_path={tiny_model}", "data.held_out_rows=12"]
    run = make_run(tmp_path / "run", *data, "pruning=magnitude", "sparsity=0.5", "trainer.max_epochs=1")
    record = json.loads((run / "record.json").read_text(encoding="utf-8"))
    assert record["data"]["n_rows"]["validation"] == 12
    train, held_out = (list(load(12).splits[split]["label"]) for split in ("train", "validation"))
    majority = max((0, 1), key=train.count)
    assert record["scores"]["majority"]["accuracy"] == pytest.approx(held_out.count(majority) / 12)
    assert [line for line in record["warnings"] if line.startswith("Scores are of 12 training rows that were held out")]
    assert "on training rows that were held out" in (run / "model" / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(("is_given", "n_notes"), [(True, 2), (False, 1)])
def test_a_given_teacher_may_have_learned_them(load, tiny_data, is_given, n_notes) -> None:
    from cap.data.custom import task_of
    from cap.training.preparation import _notes_on_held_out

    assert len(_notes_on_held_out(load(10), task_of("sst2", tiny_data, {}), is_given=is_given)) == n_notes


def test_a_class_called_minus_one_has_no_witness_among_them(tmp_path) -> None:
    from cap.data.sources import Rows
    from cap.data.unlabelled import _require_clear_marks

    class Marked:
        labels = ("-1", "0", "1")
        label_column = "label"
        validation_splits = ("validation",)

    import datasets

    rows = Rows({"validation": datasets.Dataset.from_dict({"label": [0, 1, 2]})}, "made up", {})
    _require_clear_marks(rows, Marked)
    with pytest.raises(InputError, match=r"data\.keep_unlabelled=true needs to know what has no label"):
        _require_clear_marks(Rows(rows.splits, "made up", {}, has_held_out=True), Marked)
