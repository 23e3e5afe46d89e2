"""What the records of the bake-off say, against what a hand computes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from tests.reports.made_records import SWITCHES, made_record

LIST = """
defaults: {pruning: movement, sparsity: 0.9, contrast: [cap, none], seeds: [1, 2, 3]}
blocks:
  - {name: main, priority: 1, task: sst2}
  - {name: other, priority: 2, task: mrpc}
  - name: changes
    priority: 3
    task: sst2
    contrast: cap
    shown: ablation
    variants: {no rewind: [a=1], no floor: [a=2]}
"""
# By arm: the scores of its seeds; the differences of contrast are 0.02, 0.01 and 0.03.
SCORES = {
    "sst2_movement_0.9_cap": [0.82, 0.80, 0.84],
    "sst2_movement_0.9_none": [0.80, 0.79, 0.81],
    "sst2_movement_0.9_cap_no-rewind": [0.72],
    "sst2_movement_0.9_cap_no-floor": [0.81, 0.80],
}


@pytest.fixture
def listed(tmp_path):
    from benchmarks.bake_off.cells import read_cells

    (tmp_path / "bake_off.yaml").write_text(LIST)
    return read_cells(tmp_path / "bake_off.yaml")


def cells_of(folder: Path, text: str):
    """Read the cells of a list."""
    from benchmarks.bake_off.cells import read_cells

    (folder / "list.yaml").write_text(text)
    return read_cells(folder / "list.yaml")


def write_records(listed, folder: Path, scores=SCORES, **changes) -> Path:
    from benchmarks.bake_off.records import small_record

    folder.mkdir(parents=True, exist_ok=True)
    for cell in listed:
        known = scores.get(cell.arm, [])
        if cell.seed > len(known):
            continue
        terms = SWITCHES if cell.contrast == "cap" else ()
        score = known[cell.seed - 1]
        record = made_record(task=cell.task, pruning=cell.pruning, terms=terms, seed=cell.seed, score=score)
        rates = {"no rewind": 1.0, "no floor": 2.0, "longer": 3.0, "all texts": 4.0}
        record["config"]["learning_rate"] = rates.get(cell.variant, 5e-5)  # a report leaves out the same run again
        record["config"]["sparsity"] = cell.sparsity
        record["dynamics"] = {"path_after_target": 0.25}
        chosen = f"task={cell.task} pruning={cell.pruning} sparsity={cell.sparsity} seed={cell.seed}"
        record["command"] = f"python -m cap.train {chosen}"
        record |= changes
        (folder / f"{cell.name}.json").write_text(json.dumps(small_record(record, cell, data_root=None)))
    return folder


@pytest.fixture
def arms(listed, tmp_path):
    from benchmarks.bake_off.summary import read_arms

    return read_arms(listed, write_records(listed, tmp_path / "records"))[0]


def test_the_table_has_mean_and_deviation_over_the_seeds_that_are_there(arms):
    from benchmarks.bake_off.summary import summary_table

    header, _, *rows = (
        [cell.strip() for cell in line.strip("|").split("|")] for line in summary_table(arms).splitlines()
    )
    assert len(rows) == 2  # mrpc has no record, and a change from the recipe is no row
    first = dict(zip(header, rows[0], strict=True))
    assert first["pruned"] == "0.820 ± 0.020"
    assert first["above majority"] == "0.800 ± 0.050"  # (0.82 - 0.5) / (0.9 - 0.5)
    assert (first["P"], first["seeds"], first["task"]) == ("0.250 ± 0.000", "3", "sst2, 8,000 rows")


@pytest.mark.parametrize(
    ("variant", "expected"),
    [("", "movement"), ("all texts", "movement, all texts"), ("movement, as published", "movement, as published")],
)
def test_a_row_names_its_pruning_type_whatever_else_is_different(listed, variant, expected):
    from dataclasses import replace

    from benchmarks.bake_off.summary import Arm

    assert Arm((replace(listed[0], variant=variant),), None).setting == expected


def test_the_difference_is_paired_by_seed_and_has_a_standard_error(arms):
    from benchmarks.bake_off.summary import comparisons, contrast_differences

    ((arm, difference),) = contrast_differences(arms)
    assert arm.first.arm == "sst2_movement_0.9_cap"
    assert difference.mean == pytest.approx(0.02)
    assert difference.standard_error == pytest.approx(0.01 / 3**0.5)
    assert not difference.is_clear  # three seeds take 4.3 standard errors
    assert comparisons(arms).splitlines()[1:] == [
        "- sst2, 8,000 rows, 0.9, contrast minus none: movement +2.00 ± 0.58 points (3 seeds, 3.5 standard errors, "
        "not clear below 4.3)"
    ]


def test_contrast_is_also_compared_with_as_many_seconds_and_a_change_with_the_recipe(tmp_path):
    from benchmarks.bake_off.summary import comparisons, page_part, read_arms

    listed = cells_of(
        tmp_path,
        "defaults: {seeds: [1, 2], task: sst2, pruning: movement, sparsity: 0.9, contrast: none}\n"
        "blocks:\n"
        "  - {name: main, priority: 1, contrast: [cap, none], pruning: [movement, magnitude]}\n"
        "  - {name: time, priority: 1, variants: {longer: [a=1]}, shown: seconds}\n"
        "  - {name: texts, priority: 1, variants: {all texts: [a=2]}}\n",
    )
    scores = {
        "sst2_movement_0.9_cap": [0.80, 0.82],
        "sst2_magnitude_0.9_cap": [0.50, 0.52],  # was given no run as long
        "sst2_movement_0.9_none": [0.79, 0.81],
        "sst2_movement_0.9_none_longer": [0.83, 0.85],
        "sst2_movement_0.9_none_all-texts": [0.84],
    }
    arms, found = read_arms(listed, write_records(listed, tmp_path / "records", scores))
    said = dict(line.split(": ") for line in comparisons(arms).splitlines()[1:])
    assert said == {
        "- sst2, 8,000 rows, 0.9, movement minus magnitude, the second highest": (
            "with contrast +30.00 ± 0.00 points (2 seeds, no error known)"
        ),
        "- sst2, 8,000 rows, 0.9, contrast minus none": "movement +1.00 ± 0.00 points (2 seeds, no error known)",
        "- sst2, 8,000 rows, 0.9, contrast minus none for about as many seconds": (
            "movement -3.00 ± 0.00 points (2 seeds, no error known)"
        ),
        "- sst2, 8,000 rows, 0.9, all texts minus the recipe": (
            "movement +5.00 points (one seed, from which nothing can be concluded)"
        ),
    }
    brief = page_part(arms, found, brief=True)
    assert "as many seconds: movement" in brief
    assert "all texts" not in brief  # it lacks a seed


def test_one_seed_has_no_standard_error_and_claims_nothing(listed, tmp_path):
    from benchmarks.bake_off.summary import comparisons, read_arms, summary_table

    scores = {"sst2_movement_0.9_cap": [0.9], "sst2_movement_0.9_none": [0.7, 0.7]}
    arms, _ = read_arms(listed, write_records(listed, tmp_path / "one", scores))
    assert "+20.00 points (one seed, from which nothing can be concluded)" in comparisons(arms)
    assert [line.split(" | ")[-1] for line in summary_table(arms).splitlines()[2:]] == ["1 of 3 |", "2 of 3 |"]


def test_a_brief_table_has_the_arms_with_all_seeds_alone(listed, tmp_path):
    from benchmarks.bake_off.summary import page_part, read_arms

    scores = {"sst2_movement_0.9_cap": [0.9], "sst2_movement_0.9_none": [0.7, 0.7, 0.7]}
    whole, brief = (
        [line.split(" | ")[-1] for line in page_part(*read, brief=brief).splitlines() if line.startswith("| sst2")]
        for read in [read_arms(listed, write_records(listed, tmp_path / "some", scores))]
        for brief in (False, True)
    )
    assert (whole, brief) == (["1 of 3 |", "3 |"], ["3 |"])


def test_controls_stay_in_a_brief_part_and_are_no_rivals(tmp_path):
    from benchmarks.bake_off.summary import page_part, read_arms

    listed = cells_of(
        tmp_path,
        "defaults: {contrast: none, seeds: [1, 2], task: sst2, pruning: magnitude}\n"
        "blocks:\n"
        "  - {name: levels, priority: 1, sparsity: [0.9, 0.5], pruning: [magnitude, movement]}\n"
        "  - {name: dense, priority: 1, sparsity: 0.0, variants: {dense student: []}, shown: control}\n"
        "  - {name: random, priority: 1, sparsity: 0.9, pruning: random, shown: control}\n",
    )
    scores = {
        "sst2_magnitude_0.9_none": [0.7, 0.7],
        "sst2_movement_0.9_none": [0.6, 0.6],
        "sst2_magnitude_0.5_none": [0.8],
        "sst2_magnitude_0_none_dense-student": [0.95],
        "sst2_random_0.9_none": [0.9, 0.9],
    }
    part = page_part(*read_arms(listed, write_records(listed, tmp_path / "records", scores)), brief=True)
    rows = [[cell.strip() for cell in line.split("|")] for line in part.splitlines() if line.startswith("| sst2")]
    assert [(row[2], row[-2]) for row in rows] == [
        ("magnitude", "2"),
        ("movement", "2"),
        ("dense student", "1 of 2"),
        ("random", "2"),
    ]
    assert "magnitude minus movement" in part
    assert (
        "- sst2, 8,000 rows, 0.9, minus random, each type with the scope that it has by itself: "
        "magnitude -20.00 ± 0.00 points (2 seeds, no error known); "
        "movement -30.00 ± 0.00 points (2 seeds, no error known)"
    ) in part.splitlines()
    assert part.splitlines()[-2].startswith("python -m cap.train task=sst2 pruning=magnitude sparsity=0.9 ")


def test_a_brief_part_has_the_first_sparsity_alone_and_counts_all(tmp_path):
    from benchmarks.bake_off.summary import page_part, read_arms

    listed = cells_of(
        tmp_path,
        "defaults: {contrast: none, seeds: [1], task: sst2}\n"
        "blocks: [{name: both, priority: 1, sparsity: [0.9, 0.5], pruning: [magnitude, movement]}]\n",
    )
    scores = {"sst2_magnitude_0.9_none": [0.7], "sst2_movement_0.9_none": [0.6], "sst2_magnitude_0.5_none": [0.8]}
    arms, found = read_arms(listed, write_records(listed, tmp_path / "both", scores))
    whole, brief = page_part(arms, found), page_part(arms, found, brief=True)
    assert [sum(line.startswith("| sst2") for line in part.splitlines()) for part in (whole, brief)] == [3, 2]
    assert all("3 of the 4 runs in the list have been made." in part for part in (whole, brief))
    # The command is that of the best at the first sparsity: at another one a model may keep more.
    assert all("pruning=magnitude sparsity=0.9 " in part.splitlines()[-2] for part in (whole, brief))


def test_the_first_pruning_type_is_compared_with_the_next_of_as_many_seeds(tmp_path):
    from benchmarks.bake_off.summary import commands, comparisons, page_part, read_arms, winners

    listed = cells_of(
        tmp_path,
        "defaults: {sparsity: 0.9, contrast: none, seeds: [1, 2, 3], task: sst2}\n"
        "blocks: [{name: types, priority: 1, pruning: [magnitude, movement, first_order, platon]}]\n",
    )
    scores = {
        "sst2_magnitude_0.9_none": [0.70, 0.72, 0.71],
        "sst2_movement_0.9_none": [0.80, 0.79, 0.81],
        "sst2_first_order_0.9_none": [0.82, 0.80, 0.84],
        "sst2_platon_0.9_none": [0.99],
    }
    arms, found = read_arms(listed, write_records(listed, tmp_path / "types", scores))
    assert page_part(arms, found).endswith(commands([arms[3]]))  # platon's mean is the highest
    ((first, second, difference, others),) = winners(arms)
    assert [arm.first.pruning for arm in others] == ["platon"]
    assert (first.first.pruning, second.first.pruning) == ("first_order", "movement")
    assert difference.by_seed == {1: pytest.approx(0.02), 2: pytest.approx(0.01), 3: pytest.approx(0.03)}
    assert comparisons(arms).splitlines()[1:] == [
        "- sst2, 8,000 rows, 0.9, first_order minus movement, the second highest: without contrast +2.00 ± 0.58 points "
        "(3 seeds, 3.5 standard errors, not clear below 4.3), not compared with types of fewer seeds: platon (1 of 3)"
    ]


def test_changes_from_the_recipe_are_compared_on_the_seeds_of_both(arms):
    from benchmarks.bake_off.summary import ablation_table, ablations

    found = {arm.first.variant: difference for arm, difference in ablations(arms)}
    assert list(found) == ["no rewind", "no floor"]  # the largest loss first
    assert found["no rewind"].by_seed == {1: pytest.approx(-0.1)}
    assert found["no floor"].by_seed == {1: pytest.approx(-0.01), 2: pytest.approx(0.0)}
    assert "| no rewind, both with contrast | -10.00 points (one seed) | 1 of 3 |" in ablation_table(arms)


def test_without_records_everything_says_so(listed, tmp_path):
    from benchmarks.bake_off.pictures import plot_ablations, plot_arms, plot_sparsities
    from benchmarks.bake_off.summary import NOTHING, ablation_table, commands, comparisons, page_part, read_arms

    arms, found = read_arms(listed, tmp_path / "nothing")
    assert [page_part(arms, found), ablation_table(arms), commands(arms), comparisons(arms)] == [NOTHING] * 3 + [""]
    assert (plot_arms(arms, tmp_path / "a.png"), plot_ablations(arms, tmp_path / "b.png")) == (None, None)
    assert plot_sparsities(arms, arms, tmp_path / "c.png") is None


def test_pictures_are_drawn(arms, tmp_path):
    from benchmarks.bake_off.pictures import plot_ablations, plot_arms

    drawn = [plot_arms(arms, tmp_path / "a.png"), plot_ablations(arms, tmp_path / "b.png")]
    assert [path.read_bytes()[:4] for path in drawn] == [b"\x89PNG"] * 2


def test_the_picture_over_sparsity_has_a_line_for_each_type_with_and_without_training(tmp_path, monkeypatch):
    from benchmarks.bake_off import pictures
    from benchmarks.bake_off.summary import read_arms

    listed = cells_of(
        tmp_path,
        "defaults: {seeds: [1, 2], task: sst2, pruning: magnitude}\n"
        "blocks:\n"
        "  - {name: levels, priority: 1, contrast: [none, cap], sparsity: [0.9, 0.5]}\n"
        "  - {name: changed, priority: 1, contrast: none, sparsity: 0.9, variants: {no rewind: []}}\n",
    )
    scores = {
        "sst2_magnitude_0.9_none": [0.70, 0.72],
        "sst2_magnitude_0.5_none": [0.80, 0.80],
        "sst2_magnitude_0.9_cap": [0.99],
        "sst2_magnitude_0.9_none_no-rewind": [0.99],
    }
    trained, _ = read_arms(listed, write_records(listed, tmp_path / "trained", scores))
    once = {"sst2_magnitude_0.9_none": [0.60]}
    untrained, _ = read_arms(listed, write_records(listed, tmp_path / "untrained", once))
    drawn: list[Figure] = []
    monkeypatch.setattr(pictures, "save", lambda figure, path: drawn.append(figure) or path)
    pictures.plot_sparsities(trained, untrained, tmp_path / "a.png")
    (ax,) = drawn[0].axes
    lines = {str(bars.get_label()): bars.lines[0].get_xydata().tolist() for bars in ax.containers}
    assert lines == {  # the majority class has 0.5
        "magnitude, the recipe": [[0.5, pytest.approx(30.0)], [0.9, pytest.approx(21.0)]],
        "magnitude, no training": [[0.9, pytest.approx(10.0)]],
    }


def test_a_control_far_below_is_an_arrow_and_a_teacher_of_many_arms_counts_once(tmp_path, monkeypatch):
    from benchmarks.bake_off import pictures
    from benchmarks.bake_off.summary import read_arms

    listed = cells_of(
        tmp_path,
        "defaults: {seeds: [1, 2], task: sst2, pruning: magnitude, sparsity: 0.9, contrast: none}\n"
        "blocks:\n"
        "  - {name: main, priority: 1, pruning: [magnitude, random]}\n"
        "  - {name: zeroed, priority: 1, variants: {no floor: []}, shown: control}\n",
    )
    scores = {
        "sst2_magnitude_0.9_none": [0.80, 0.60],  # the lower one is drawn although far from the higher
        "sst2_random_0.9_none": [0.70],
        "sst2_magnitude_0.9_none_no-floor": [0.50],
    }
    records = write_records(listed, tmp_path / "records", scores)
    for path in records.glob("*_seed2.json"):
        record = json.loads(path.read_text())
        record["scores"]["teacher"]["accuracy"] = 0.80
        path.write_text(json.dumps(record))
    drawn: list[Figure] = []
    monkeypatch.setattr(pictures, "save", lambda figure, path: drawn.append(figure) or path)
    pictures.plot_arms(read_arms(listed, records)[0], tmp_path / "a.png")
    (ax,) = drawn[0].axes
    assert [text.get_text() for text in ax.texts] == ["\N{LEFTWARDS ARROW} 0.0"]
    left, right = ax.get_xlim()
    assert 5 < left < 10 < 40 < right
    dots = [line.get_xdata().tolist() for line in ax.lines if line.get_linestyle() == "None"]
    assert dots == [pytest.approx([30.0, 10.0]), pytest.approx([20.0])]
    (teacher,) = (line for line in ax.lines if line.get_label() == "teacher (mean)")
    assert teacher.get_xdata()[0] == pytest.approx(35.0)  # 0.90 and 0.80, though three runs had the former


def test_kinds_of_machine_are_named_where_there_are_several(listed, tmp_path):
    from benchmarks.bake_off.summary import notes, read_arms

    folder = write_records(listed, tmp_path / "records")
    assert not [note for note in notes(*read_arms(listed, folder)) if "machine" in note]
    path = folder / "sst2_movement_0.9_none_seed2.json"
    record = json.loads(path.read_text())
    record["environment"]["device"] = "an accelerator"
    path.write_text(json.dumps(record))
    (note,) = [note for note in notes(*read_arms(listed, folder)) if "machine" in note]
    assert note.startswith("They were made on 2 kinds of machine: ")
    assert note.endswith(" (8); an accelerator (1).")


def test_other_commits_and_settings_are_noted(listed, tmp_path):
    from benchmarks.bake_off.summary import notes, read_arms

    folder = write_records(listed, tmp_path / "records")
    path = folder / "sst2_movement_0.9_none_seed2.json"
    record = json.loads(path.read_text())
    record["environment"]["git_commit"] = "feedfacefeedface-dirty"
    record["config"]["batch_size"] = 64
    path.write_text(json.dumps(record))
    said = notes(*read_arms(listed, folder))
    assert said[0] == "sst2_movement_0.9_none: its seeds were run with different settings."
    assert said[1] == "9 of the 18 runs in the list have been made."
    assert said[2] == "The runs were made at 2 commits: 727b4edf5 (8), feedfacef (1)."
    assert said[3].endswith("sst2_movement_0.9_none_seed2.json was made with changes that are in no commit.")


def test_a_report_reads_small_records(listed, tmp_path):
    from cap.report import report
    from cap.reports.tables import NONE

    records = write_records(listed, tmp_path / "records")
    said, _ = report([records], output=tmp_path / "report", title="Bake-off")
    assert said == "9 completed runs of 4 configurations."
    text = (tmp_path / "report" / "table.md").read_text()
    (row,) = [line for line in text.splitlines() if "| all three |" in line and "0.820 ± 0.020" in line]
    head = next(line for line in text.splitlines() if line.startswith("| task"))
    found = dict(zip(*([cell.strip() for cell in line.strip("|").split("|")] for line in (head, row)), strict=True))
    assert (found["s/step"], found["min/epoch"], found["seeds"]) == (NONE, NONE, "3")
    assert (found["best"], found["P"]) == (NONE, "0.2500 ± 0.0000")
    assert "```\npython -m cap.train task=sst2" in text
    assert "<code>python -m cap.train task=sst2" in (tmp_path / "report" / "index.html").read_text()
    assert "does not know" not in text


def test_pages_get_the_table_and_pictures_lie_beside_the_records(listed, tmp_path):
    from benchmarks.results_table import ABLATION, BAKE_OFF, draw, write

    folder = tmp_path / "benchmarks"
    records = write_records(listed, folder / "records" / "bake_off")
    untrained = write_records(listed, folder / "records" / "without_training")
    for name in ("bake_off.yaml", "without_training.yaml"):
        (folder / name).write_text(LIST)
    (folder / "README.md").write_text("\n".join(ABLATION))
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "method.md").write_text("")
    (tmp_path / "docs" / "long_runs.md").write_text("")
    (tmp_path / "README.md").write_text("\n".join(["above", *BAKE_OFF, "below"]))
    write(tmp_path)
    draw(tmp_path)
    assert {path.name for path in records.glob("*.png")} == {"arms.png", "ablation.png"}
    assert (untrained / "sparsities.png").is_file()
    assert (
        "| no floor, both with contrast | -0.50 ± 0.50 points (2 seeds) | 2 of 3 |"
        in (folder / "README.md").read_text()
    )
    page = (tmp_path / "README.md").read_text()
    words = [
        "above\n",
        "0.820 ± 0.020",
        "contrast minus none",
        "9 of the 18 runs in the list",
        "```\npython -m cap.train",
    ]
    assert [word in page for word in [*words, "below"]] == [True] * 6


def made_on(folder: Path, device: str) -> Path:
    """Say of all records of a folder that another machine made them."""
    for path in folder.glob("*.json"):
        record = json.loads(path.read_text())
        record["environment"]["device"] = device
        path.write_text(json.dumps(record))
    return folder


def test_runs_of_two_machines_are_in_one_row_and_compared_by_machine(listed, tmp_path):
    from benchmarks.bake_off.summary import ablations, page_part, read_arms
    from benchmarks.results_table import again_table

    assert again_table(tmp_path) == "No cell has a record yet."
    first = {"sst2_movement_0.9_cap": [0.80, 0.79], "sst2_movement_0.9_cap_no-rewind": [0.85]}
    second = {"sst2_movement_0.9_cap": [0.81, 0.74], "sst2_movement_0.9_cap_no-rewind": [0.85, 0.80]}
    folders = [tmp_path / "records" / name for name in ("bake_off", "again")]
    write_records(listed, folders[0], first)
    made_on(write_records(listed, folders[1], second), "an accelerator")
    arms, found = read_arms(listed, *folders, tmp_path / "none")
    assert found.left_out == ()
    part = page_part(arms, found)
    assert "| 0.785 ± 0.031 |" in part  # all four runs
    assert "2 of 3 (4 runs) |" in part
    # 0.05 and 0.04 with the first seed, 0.06 with the second: a seed counts once.
    ((_, difference),) = ablations(arms)
    assert difference.by_seed == pytest.approx({1: 0.045, 2: 0.06})
    rows, change, one_seed = (
        "sst2, 8,000 rows",
        "movement, no rewind, 0.9, with contrast",
        "one seed, from which nothing",
    )
    assert again_table(tmp_path).splitlines()[2:] == [
        f"| {rows} | movement, 0.9, with contrast | 1 | 0.800, AMD EPYC, 2 threads | 0.810, an accelerator |",
        f"| {rows} | movement, 0.9, with contrast | 2 | 0.790, AMD EPYC, 2 threads | 0.740, an accelerator |",
        f"| {rows} | {change} | 1 | 0.850, AMD EPYC, 2 threads | 0.850, an accelerator |",
        "",
        "movement, 0.9, with contrast, second minus first: -2.00 ± 3.00 points (2 seeds, 0.7 standard errors, not "
        f"clear below 12.7). {change}, second minus first: +0.00 points ({one_seed} can be concluded).",
    ]


def test_runs_of_other_machines_alone_are_not_compared(listed, tmp_path):
    from benchmarks.bake_off.summary import ablations, read_arms

    plain, change = "sst2_movement_0.9_cap", "sst2_movement_0.9_cap_no-rewind"
    write_records(listed, tmp_path / "here", {plain: [0.80]})
    made_on(write_records(listed, tmp_path / "there", {change: [0.85]}), "an accelerator")
    assert ablations(read_arms(listed, tmp_path / "here", tmp_path / "there")[0]) == []
    made_on(tmp_path / "here", "an accelerator")
    assert len(ablations(read_arms(listed, tmp_path / "here", tmp_path / "there")[0])) == 1


def test_teachers_are_compared_with_those_of_the_model(tmp_path):
    from benchmarks.bake_off.cells import read_cells
    from benchmarks.results_table import teachers_table

    lists = {
        "without_training": "pruning: [magnitude, second_order], sparsity: [0.5, 0.9]",
        "teachers": "pruning: magnitude, sparsity: 0.5, variants: {longer: [], shorter: []}",
    }
    for name, block in lists.items():
        path = tmp_path / f"{name}.yaml"
        path.write_text(
            f"defaults: {{contrast: none, seeds: [1, 2], task: sst2}}\nblocks: [{{name: a, priority: 1, {block}}}]\n"
        )
        listed = [cell for cell in read_cells(path) if cell.variant != "shorter"]
        write_records(listed, tmp_path / "records" / name, {cell.arm: [0.7, 0.8] for cell in listed})
    assert teachers_table(tmp_path).splitlines()[2:] == [
        "| sst2, 8,000 rows | those of conf/model | 0.900 ± 0.000 | 2 |",
        "| sst2, 8,000 rows | longer | 0.900 ± 0.000 | 2 |",
        "",
        "2 of the 4 runs in the list have been made.",
    ]


def test_records_of_no_run_of_the_list_are_in_no_table_and_named(listed, tmp_path):
    from benchmarks.bake_off.summary import notes, read_arms

    folder = write_records(listed, tmp_path / "records")
    changed = folder / "sst2_movement_0.9_cap_seed2.json"
    record = json.loads(changed.read_text())
    record["cell"]["overrides"].append("learning_rate=1")
    changed.write_text(json.dumps(record))
    gone = folder / "sst2_movement_0.9_cap_no-floor_seed1.json"
    gone.rename(folder / "sst2_movement_0.9_cap_no-roof_seed1.json")
    arms, found = read_arms(listed, folder)
    by_name = {arm.first.arm: arm.seeds for arm in arms}
    assert (by_name["sst2_movement_0.9_cap"], by_name["sst2_movement_0.9_cap_no-floor"]) == ("2 of 3", "1 of 3")
    (said,) = [note for note in notes(arms, found) if note.startswith("Left out")]
    names = "sst2_movement_0.9_cap_no-roof_seed1, sst2_movement_0.9_cap_seed2"
    assert said == f"Left out, since the list has no such run: {names}."


@pytest.mark.parametrize(
    ("key", "value"), [("steps", 7), ("data", {"fingerprint": "other", "n_rows": {"train": 8000}})]
)
def test_runs_of_other_steps_or_rows_are_not_compared(listed, tmp_path, key, value):
    from benchmarks.bake_off.summary import contrast_differences, read_arms

    folder = write_records(listed, tmp_path / "records")
    path = folder / "sst2_movement_0.9_none_seed2.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    ((_, difference),) = contrast_differences(read_arms(listed, folder)[0])
    assert set(difference.by_seed) == {1, 3}
