from __future__ import annotations

import csv
import io
import json
import math
import re
import statistics
from pathlib import Path
from typing import Any

import pytest

from cap.base.errors import InputError
from cap.reports.collect import KNOWN, Collection, collect
from cap.reports.tables import (
    COLUMNS,
    NONE,
    cells,
    csv_text,
    distinguish,
    escape_latex,
    escape_markdown,
    group_runs,
    latex,
    markdown,
)
from tests.reports.made_records import MAJORITY, TEACHER, made_record, write_grid, write_run

KEYS = [column.key for column in COLUMNS]


def read(folder: Path, *records: dict[str, Any]) -> Collection:
    for number, record in enumerate(records):
        write_run(folder / str(number), record)
    return collect([folder])


def only_row(folder: Path, *records: dict[str, Any]) -> dict[str, str]:
    (group,) = group_runs(read(folder, *records).runs)
    return dict(zip(KEYS, cells(group), strict=True))


def reasons(collection: Collection) -> dict[str, str]:
    return {Path(left.shown).parent.name: left.reason for left in collection.left_out}


# ---- what is read


def test_a_grid_gives_a_row_for_each_configuration(tmp_path: Path) -> None:
    groups = group_runs(collect([write_grid(tmp_path)]).runs)
    assert len(groups) == 2 * 3 * 2
    assert {group.seeds for group in groups} == {2}


def test_records_are_found_at_any_depth_and_hidden_folders_are_not_entered(tmp_path: Path) -> None:
    write_run(tmp_path / "a" / "b" / "c", made_record(seed=1))
    write_run(tmp_path / ".run.half-written", made_record(seed=2))
    assert [run.seed for run in collect([tmp_path]).runs] == [1]


def test_folders_behind_links_are_read_once_and_by_their_own_name_where_they_lie_below(tmp_path: Path) -> None:
    elsewhere, view = tmp_path / "scratch", tmp_path / "view"
    write_run(elsewhere / "r1", made_record(seed=1))
    write_run(view / "r2", made_record(seed=2))
    (view / "r1").symlink_to(elsewhere / "r1")
    (view / "a-latest").symlink_to("r2")
    (view / "round").symlink_to(view)
    collection = collect([view])
    assert [(run.seed, Path(run.shown).parent.name) for run in collection.runs] == [(1, "r1"), (2, "r2")]
    assert (collection.left_out, collection.notes) == ((), ())


def test_plain_json_files_count_where_they_lie_in_the_given_folder_itself(tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    for number, path in enumerate((tmp_path / "here.json", tmp_path / "below" / "there.json")):
        path.write_text(json.dumps(made_record(seed=number)))
    assert [run.path.name for run in collect([tmp_path]).runs] == ["here.json"]


def test_a_file_below_two_given_folders_is_read_once(tmp_path: Path) -> None:
    write_run(tmp_path / "grid" / "0", made_record())
    collection = collect([tmp_path, tmp_path / "grid"])
    assert (len(collection.runs), collection.notes) == (1, ())


@pytest.mark.parametrize("status", ["failed", "interrupted"])
def test_a_run_that_did_not_complete_is_listed_with_its_reason_and_never_averaged(tmp_path: Path, status: str) -> None:
    ended = made_record(seed=2, score=0.1) | {"status": status, "error": "RuntimeError: the loss\nis not finite"}
    collection = read(tmp_path, made_record(seed=1, score=0.8), ended)
    assert reasons(collection) == {"1": f"{status}: RuntimeError: the loss is not finite"}
    (group,) = group_runs(collection.runs)
    assert group.mean("score") == 0.8


def test_a_run_at_work_is_no_interrupted_one(tmp_path: Path) -> None:
    from cap.runs.folder import hold

    begun = made_record() | {"status": "interrupted", "error": None}
    lock = hold(write_run(tmp_path / "1", begun))
    assert reasons(collect([tmp_path])) == {"1": "running: it is in no table before it is complete"}
    lock.release()
    assert reasons(collect([tmp_path])) == {"1": "interrupted: the record does not say why"}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "unreadable: "),
        ("", "unreadable: "),
        ("[1]", "not the record of a run"),
        ("{}", "not the record of a run"),
        ('{"status": "done"}', "not the record of a run: no status of completed, interrupted, failed"),
        ('{"status": "completed", "kind": "probe"}', "not a run: probe"),
        (
            '{"status": "completed"}',
            "incomplete: without config.task.name, config.pruning.name, config.contrast, metric",
        ),
    ],
    ids=["cut", "empty", "list", "object", "status", "kind", "keys"],
)
def test_what_is_no_complete_record_is_listed_with_its_reason(tmp_path: Path, text: str, reason: str) -> None:
    write_run(tmp_path / "good", made_record())
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "record.json").write_text(text)
    collection = collect([tmp_path])
    assert reasons(collection)["bad"].startswith(reason)
    assert len(collection.runs) == 1


@pytest.mark.parametrize("score", [None, math.nan, "0.8", True], ids=str)
def test_a_score_that_is_no_number_makes_a_record_incomplete(tmp_path: Path, score: object) -> None:
    record = made_record()
    record["scores"]["pruned"]["accuracy"] = score
    assert reasons(read(tmp_path, record)) == {"0": "incomplete: without scores.pruned.accuracy"}


def test_a_runs_folder_without_a_record_is_listed(tmp_path: Path) -> None:
    write_run(tmp_path / "good", made_record())
    (tmp_path / "lost" / "checkpoints").mkdir(parents=True)
    (tmp_path / "lost" / "config.yaml").touch()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.yaml").touch()
    found = [(Path(left.shown).name, left.reason) for left in collect([tmp_path]).left_out]
    assert found == [("lost", "incomplete: the folder of a run without a record.json")]


def test_a_copy_of_a_run_is_counted_once_and_said(tmp_path: Path) -> None:
    collection = read(tmp_path, made_record(), made_record())
    assert [run.path.parent.name for run in collection.runs] == ["0"]
    (note,) = collection.notes
    assert re.search(r"1/record\.json is the same run as .*0/record\.json", note)
    assert "differ" not in note


def test_a_record_that_was_pushed_is_a_copy_though_it_names_no_places(tmp_path: Path) -> None:
    from cap.runs.hidden_paths import without_places

    made = made_record()
    made["config"]["data_dir"] = "/home/somebody/rows"
    collection = read(tmp_path, made, without_places(made))
    assert len(collection.runs) == 1


def test_runs_of_models_whose_folders_have_one_name_are_no_copies(tmp_path: Path) -> None:
    records = [made_record(score=0.8), made_record(score=0.7)]
    for record, owner in zip(records, "AB", strict=True):
        record["config"]["model"]["name_or_path"] = f"/data/{owner}/model"
        record["config_hash"] = owner
    assert len(read(tmp_path / "old", *records).runs) == 2
    for record, owner in zip(records, "AB", strict=True):
        record["config"]["model"]["name_or_path"] = "outputs/A/model"  # of two checkouts, say
        record["weights_sha256"] = {"model": {"model.safetensors": owner}}
    groups = group_runs(read(tmp_path / "new", *records).runs)
    assert [(group.seeds, group.mean("score")) for group in groups] == [(1, 0.8), (1, 0.7)]
    assert all(re.fullmatch("weights=[0-9a-f]{8}", group.note) for group in groups)


def test_an_old_record_without_hashes_is_the_run_that_has_them(tmp_path: Path) -> None:
    old, new = made_record(), made_record() | {"weights_sha256": {"model": {"model.safetensors": "a"}}}
    assert len(read(tmp_path, old, new).runs) == 1


def test_rows_are_told_by_their_content_and_not_by_their_folder(tmp_path: Path) -> None:
    records = [made_record(), made_record()]
    for record, folder in zip(records, ("/here/rows", "/there/rows"), strict=True):
        record["config"]["data_dir"], record["config_hash"] = folder, folder
    assert len(read(tmp_path, *records).runs) == 1


def test_a_record_is_a_copy_whatever_the_folder_of_its_model_is_called_above_its_name(tmp_path: Path) -> None:
    records = [made_record(), made_record()]
    for record, owner in zip(records, "AB", strict=True):
        record["config"]["model"]["name_or_path"] = f"/data/{owner}/model"
        record["config_hash"] = owner
        record["weights_sha256"] = {"model": {"model.safetensors": "the same"}}
    assert len(read(tmp_path, *records).runs) == 1


def test_a_run_on_other_rows_is_no_copy(tmp_path: Path) -> None:
    other = made_record()
    other["data"]["fingerprint"] = "feed"
    collection = read(tmp_path, made_record(), other)
    assert (len(collection.runs), collection.notes) == (2, ())


def test_a_copy_is_one_even_where_another_version_gave_it_another_hash(tmp_path: Path) -> None:
    other = made_record() | {"config_hash": "of another version"}
    other["config"]["pruning"]["pattern"] = None
    assert len(read(tmp_path, made_record(), other).runs) == 1


@pytest.mark.parametrize(
    ("status", "count", "said"),
    [
        ("completed", 1, "1 record is that of an evaluation (cap.evaluate), which is no run; it is in no table."),
        ("failed", 1, "1 record is that of an evaluation (cap.evaluate), which is no run; it is in no table."),
        ("completed", 3, "3 records are those of evaluations (cap.evaluate), which are no runs; they are in no table."),
    ],
    ids=["one", "failed", "three"],
)
def test_evaluations_are_no_failed_runs_but_are_counted_in_one_note(
    tmp_path: Path, status: str, count: int, said: str
) -> None:
    evaluation = {"status": status, "kind": "evaluation", "scores": {"model": {"accuracy": 0.8}}}
    collection = read(tmp_path, made_record(), *[evaluation] * count)
    assert (len(collection.runs), collection.left_out) == (1, ())
    assert collection.notes == (said,)


def test_a_second_result_of_the_same_run_is_not_averaged_but_said(tmp_path: Path) -> None:
    collection = read(tmp_path, made_record(score=0.8), made_record(score=0.7))
    assert [run.score for run in collection.runs] == [0.8]
    assert "their scores differ, 0.8 and 0.7" in collection.notes[0]


def test_a_record_of_another_version_is_read_as_far_as_it_goes(tmp_path: Path) -> None:
    record = made_record()
    del record["seconds_per_step"], record["retention"], record["config_hash"]
    record["flavour"] = "new"
    row = only_row(tmp_path, record)
    assert (row["score"], row["seconds_per_step"], row["retention"]) == ("0.800", NONE, NONE)
    said = " ".join(collect([tmp_path]).notes)
    assert all(f"no {key}, as another version wrote it" in said for key in ("seconds_per_step", "retention"))
    assert "the key flavour, which this version does not know" in said


def test_a_complete_record_of_this_version_needs_no_note(tmp_path: Path) -> None:
    assert read(tmp_path, made_record()).notes == ()


def test_warnings_of_a_run_become_notes(tmp_path: Path) -> None:
    record = made_record() | {"warnings": ["It predicts\none class."]}
    assert read(tmp_path, record).notes[0].endswith("0/record.json: It predicts one class.")


def test_the_code_that_made_the_runs_is_noted_where_it_differs(tmp_path: Path) -> None:
    first, second, third = (made_record(seed=seed) for seed in (1, 2, 3))
    second["environment"]["git_commit"] = "feedfacefeedface-dirty"
    third["commits"] = [first["environment"]["git_commit"], "0123456789abcdef"]
    notes = read(tmp_path, first, second, third).notes
    assert notes[0] == "The runs were made at 3 commits: 727b4edf5 (2), feedfacef (1), 012345678 (1)."
    assert notes[1].endswith("1/record.json was made with changes that are in no commit.")
    assert len(notes) == 2


def test_times_that_compare_with_nothing_are_not_shown(tmp_path: Path) -> None:
    record = made_record() | {"seconds_comparable": False}
    row = only_row(tmp_path, record)
    assert (row["seconds_per_step"], row["minutes_per_epoch"]) == (NONE, NONE)


def test_every_key_that_a_record_documents_is_known() -> None:
    from cap.runs import record

    table = record.__doc__.split("====\n")[1].split("\n====")[0]
    documented = {
        name for line in table.splitlines() if line.startswith("``") for name in re.findall(r"``(\w+)``", line[:35])
    }
    assert {"status", "seconds_per_step", "warnings"} <= documented
    assert documented <= KNOWN


@pytest.mark.parametrize("name", ["empty", "missing"])
def test_a_folder_without_a_record_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=name):
        collect([tmp_path / name])


# ---- groups and means


def test_a_row_holds_mean_and_sample_standard_deviation_over_seeds(tmp_path: Path) -> None:
    scores = [0.80, 0.83, 0.81]
    row = only_row(tmp_path, *(made_record(seed=seed, score=score) for seed, score in enumerate(scores)))
    mean, deviation = statistics.fmean(scores), math.sqrt(sum((s - sum(scores) / 3) ** 2 for s in scores) / 2)
    assert row["score"] == f"{mean:.3f} ± {deviation:.3f}"
    assert row["seeds"] == "3"


def test_a_single_seed_has_no_spread(tmp_path: Path) -> None:
    row = only_row(tmp_path, made_record(score=0.8))
    assert not any("±" in cell for cell in row.values())
    assert row["retention"] == f"{0.8 / TEACHER:.3f}"
    assert row["above_majority"] == f"{(0.8 - MAJORITY) / (TEACHER - MAJORITY):.3f}"


def test_a_number_that_one_seed_lacks_has_no_mean(tmp_path: Path) -> None:
    row = only_row(tmp_path, made_record(seed=1), made_record(seed=2) | {"retention": None})
    assert row["retention"] == NONE


@pytest.mark.parametrize("key", ["output_dir", "cache_dir", "logger", "traceback", "seed"])
def test_what_does_not_change_a_result_does_not_split_a_row(tmp_path: Path, key: str) -> None:
    other = made_record(seed=2)
    other["config"][key] = "other"
    assert only_row(tmp_path, made_record(seed=1), other)["seeds"] == "2"


@pytest.mark.parametrize(
    ("node", "key", "value"),
    [
        ("pruning", "pattern", None),
        ("task", "text_columns", None),
        ("new", "inside", {"deeper": None}),
        ("task", "max_length", 128),
        ("pruning", "final_sparsity", 0.9),
    ],
    ids=["null", "null of a group with values", "null in a group of nulls", "length again", "sparsity again"],
)
def test_a_new_key_that_says_nothing_new_does_not_split_a_row(
    tmp_path: Path, node: str, key: str, value: object
) -> None:
    newer = made_record(seed=2)
    newer["config"].setdefault(node, {})[key] = value
    assert only_row(tmp_path, made_record(seed=1), newer)["seeds"] == "2"


@pytest.mark.parametrize(
    ("node", "key", "value", "note"),
    [
        ("task", "max_length", 64, "task.max_length=64"),
        ("pruning", "final_sparsity", 0.5, "pruning.final_sparsity=0.5"),
    ],
    ids=["length", "sparsity"],
)
def test_a_key_that_should_repeat_another_but_does_not_splits_a_row(
    tmp_path: Path, node: str, key: str, value: float, note: str
) -> None:
    other = made_record(seed=2)
    other["config"][node][key] = value
    groups = group_runs(read(tmp_path, made_record(seed=1), other).runs)
    assert note in [group.note for group in groups]


def test_rows_that_look_alike_say_which_settings_differ(tmp_path: Path) -> None:
    other = made_record(seed=2)
    other["config"]["distill"]["weight"] = 0.0
    groups = group_runs(read(tmp_path, made_record(seed=1), other).runs)
    assert sorted(group.note for group in groups) == ["distill.weight=0.0", "distill.weight=0.9"]


RECIPE = {"rate": 3e-4, "freeze": ["embeddings"], "rewind": "last", "first": 0.3}


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        # Each differs from the first in one setting, which is its name; the first has the usual ones alone.
        (
            [{}, {"rate": 6e-4}, {"freeze": []}, {"rewind": "none"}, {"first": 0.0}],
            ["", "rate=0.0006", "freeze=[]", "rewind=none", "first=0.0"],
        ),
        # Of two neither is usual.
        ([{}, {"rate": 6e-4}], ["rate=0.0003", "rate=0.0006"]),
        # A key that one of them lacks.
        ([{}, {}, {"seed": 1}], ["rows=1", "rows=2", "rows=3, seed=1"]),
        # Of many keys those that few have, in the order of the configuration, and as many as it takes.
        (
            [{}, {}, {}, *({key: number for key in "abcd"} | {"e": number // 2} for number in range(4))],
            None,
        ),
    ],
    ids=["one change", "two", "missing", "many"],
)
def test_every_row_has_a_name_of_its_own(changes: list[dict[str, Any]], names: list[str] | None) -> None:
    alike = [RECIPE | change for change in changes]
    if names is None or names[0].startswith("rows"):
        alike = [{"rows": number} | settings for number, settings in enumerate(alike, start=1)]
    found = distinguish(alike)
    assert len(set(found)) == len(found)
    if names is not None:
        assert found == names


def test_a_name_grows_until_no_other_row_has_all_of_it() -> None:
    usual = dict.fromkeys("abcde", 0)
    alike = [usual, usual | {"f": 0}, usual | {"f": 1}, dict.fromkeys("abcde", 1), dict.fromkeys("abcd", 1) | {"e": 2}]
    assert distinguish(alike) == ["", "f=0", "f=1", "a=1, b=1, e=1, ...", "a=1, b=1, e=2, ..."]
    # The first three of the last but one are those of the row behind it, and its last one is another's.
    first, other = {"a": 1, "b": 1, "c": 1, "d": 1}, {"a": 1, "b": 1, "c": 1, "e": 1}
    names = distinguish([usual, usual | {"f": 0}, usual | {"f": 1}, usual | {"d": 1}, usual | first, usual | other])
    assert names[-2] == "a=1, b=1, c=1, d=1"


def test_runs_on_other_rows_are_not_averaged(tmp_path: Path) -> None:
    other = made_record(seed=2)
    other["data"]["fingerprint"] = "feed"
    groups = group_runs(read(tmp_path, made_record(seed=1), other).runs)
    assert sorted(group.note for group in groups) == ["data=87ffb43c3a3bba99", "data=feed"]


@pytest.mark.parametrize(
    ("node", "key", "value", "note"),
    [
        ("trainer", "max_steps", 60, "smoke"),
        ("data", "max_train_rows", 1000, "smoke"),
        ("trainer", "limit_train_batches", 0.1, "smoke"),
        ("trainer", "limit_train_batches", 1, "smoke"),
        ("trainer", "limit_train_batches", 1.0, ""),
        ("trainer", "limit_train_batches", None, ""),
        ("trainer", "max_steps", -1, ""),
        ("trainer", "max_steps", 10**6, ""),
        ("data", "max_train_rows", 10**9, ""),
        ("data", "max_eval_rows", 100, "scored on the first 100 rows"),
        ("data", "held_out_rows", 100, "scored on 100 training rows held out"),
    ],
    ids=[
        "steps",
        "rows",
        "batches",
        "one batch",
        "all batches",
        "no limit",
        "whole",
        "more steps than the epochs have",
        "more rows than there are",
        "eval",
        "held out",
    ],
)
def test_short_runs_are_labelled(tmp_path: Path, node: str, key: str, value: float, note: str) -> None:
    record = made_record()
    record["config"][node][key] = value
    assert only_row(tmp_path, record)["note"] == note


def test_a_run_that_was_given_steps_in_place_of_epochs_is_not_short(tmp_path: Path) -> None:
    record = made_record()
    record["config"]["trainer"] |= {"max_epochs": -1, "max_steps": record["steps"]}
    assert only_row(tmp_path, record)["note"] == ""


def test_minutes_an_epoch_are_those_of_all_that_an_epoch_needs(tmp_path: Path) -> None:
    record = made_record()
    record["seconds"] = {"data": 1000.0, "fit": 600.0, "importance": 60.0, "snapshots": 60.0}
    assert only_row(tmp_path, record)["minutes_per_epoch"] == "2.0"


def test_epochs_that_were_cut_short_have_no_minutes(tmp_path: Path) -> None:
    record = made_record()
    record["config"]["trainer"]["max_steps"] = 60
    assert only_row(tmp_path, record)["minutes_per_epoch"] == NONE


@pytest.mark.parametrize(
    ("terms", "words"),
    [
        ((), "none"),
        (("pretrained",), "PrC"),
        (("snapshots", "finetuned"), "SnC, FiC"),
        (("pretrained", "snapshots", "finetuned"), "all three"),
    ],
    ids=["none", "one", "two", "three"],
)
def test_contrast_is_named_by_its_terms(tmp_path: Path, terms: tuple[str, ...], words: str) -> None:
    assert only_row(tmp_path, made_record(terms=terms))["contrast"] == words


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ({"score_init": "zero"}, "movement, scores from 0"),
        ({"importance": "random"}, "movement, random units"),
        ({"threshold": "published", "score_init": "zero"}, "movement, scores from 0, published threshold"),
        ({"pattern": "2:4"}, "movement, 2:4"),
        ({"pattern": None, "score_init": "magnitude"}, "movement"),
    ],
    ids=["scores", "lot", "threshold", "pattern", "default"],
)
def test_a_pruning_type_is_named_with_what_is_not_its_default(tmp_path: Path, setting: dict, words: str) -> None:
    record = made_record()
    record["config"]["pruning"] |= setting
    assert only_row(tmp_path, record)["pruning"] == words


def test_a_model_folder_is_shown_without_the_folders_above_it(tmp_path: Path) -> None:
    assert only_row(tmp_path, made_record() | {"model": "/somewhere/private/model"})["model"] == "model"


def test_tasks_of_ones_own_are_told_apart_by_their_data(tmp_path: Path) -> None:
    assert only_row(tmp_path, made_record(task="custom"))["task"] == "custom (folder sst2_8k)"


# ---- formats


def unescaped_bars(line: str) -> int:
    return len(re.findall(r"(?<!\\)\|", line))


def test_markdown_has_as_many_cells_in_every_line_whatever_they_hold() -> None:
    lines = markdown(["a", "b"], [["x|y", "two\nlines"], ["", "`*[<"]]).splitlines()
    assert [unescaped_bars(line) for line in lines] == [3, 3, 3, 3]


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("soft_movement", "soft_movement"),
        ("_x_", r"\_x\_"),
        ("a|b", r"a\|b"),
        ("a\\|b", r"a\\\|b"),
        ("<b>", "&lt;b>"),
        ("a\n b", "a b"),
    ],
    ids=["word", "emphasis", "bar", "backslash", "tag", "lines"],
)
def test_markup_is_escaped_in_markdown(text: str, escaped: str) -> None:
    assert escape_markdown(text) == escaped


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("soft_movement", r"soft\_movement"),
        ("50 % & $1 #2", r"50 \% \& \$1 \#2"),
        ("{a}", r"\{a\}"),
        ("a\\b", r"a\textbackslash{}b"),
        ("~^<>", r"\textasciitilde{}\textasciicircum{}\textless{}\textgreater{}"),
        ("0.8 ± 0.1", r"0.8 $\pm$ 0.1"),
        (NONE, "--"),
    ],
    ids=["underscore", "signs", "braces", "backslash", "accents", "spread", "none"],
)
def test_special_signs_are_escaped_in_latex(text: str, escaped: str) -> None:
    assert escape_latex(text) == escaped


def test_latex_is_a_tabular_with_as_many_cells_in_every_row(tmp_path: Path) -> None:
    record = made_record(pruning="soft_movement") | {"model": "R&D_50%"}
    text = latex(group_runs(read(tmp_path, record).runs))
    rows = [line for line in text.splitlines() if line.endswith(r"\\")]
    assert [len(re.findall(r"(?<!\\)&", row)) for row in rows] == [len(COLUMNS) - 1] * 2
    assert text.count(r"\begin{tabular}") == text.count(r"\end{tabular}") == 1
    assert len(re.search(r"\\begin\{tabular\}\{([lr]+)\}", text)[1]) == len(COLUMNS)
    assert [text.index(rf"\{rule}") for rule in ("toprule", "midrule", "bottomrule")] == sorted(
        text.index(rf"\{rule}") for rule in ("toprule", "midrule", "bottomrule")
    )


def test_csv_holds_all_digits_the_seeds_and_the_records(tmp_path: Path) -> None:
    runs = read(tmp_path, made_record(seed=1, score=0.8123456), made_record(seed=5, score=0.8)).runs
    (row,) = csv.DictReader(io.StringIO(csv_text(group_runs(runs))))
    assert float(row["score"]) == pytest.approx(statistics.fmean([0.8123456, 0.8]), abs=1e-15)
    assert float(row["score_std"]) == pytest.approx(statistics.stdev([0.8123456, 0.8]), abs=1e-15)
    assert row["seed_list"] == "1 5"
    assert row["records"].split() == [run.shown for run in runs]


def test_csv_leaves_empty_what_has_no_value(tmp_path: Path) -> None:
    runs = read(tmp_path, made_record() | {"retention": None}).runs
    (row,) = csv.DictReader(io.StringIO(csv_text(group_runs(runs))))
    assert (row["retention"], row["retention_std"], row["score_std"]) == ("", "", "")
