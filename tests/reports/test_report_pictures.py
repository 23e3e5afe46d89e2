from __future__ import annotations

from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure
from matplotlib.image import imread

from cap.reports import costs as report_costs
from cap.reports import pictures as report_plots
from cap.reports.collect import collect
from cap.reports.costs import (
    Machine,
    Timing,
    plot_score_against_bytes,
    plot_score_against_latency,
    read_exports,
)
from cap.reports.pictures import difference, plot_ablation, plot_score_against_sparsity
from cap.reports.published import published_for
from cap.reports.style import MARKERS, lines_of
from cap.reports.tables import Group, group_runs
from cap.runs.style import COLOURS
from tests.reports.made_records import SWITCHES, made_exports, made_record, write_grid, write_run

SIX = ("first_order", "magnitude", "movement", "random", "soft_movement", "structured")
SUBSETS = tuple(terms for size in range(4) for terms in combinations(SWITCHES, size))
PUBLISHED = published_for([("qqp", "accuracy")])


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """Catch the figures in place of writing them, which takes most of a picture's time."""
    caught: list[Figure] = []
    for module in (report_plots, report_costs):
        monkeypatch.setattr(module, "save", lambda figure, path: caught.append(figure) or path)
    return caught


def grid(folder: Path, **choices: Any) -> list[Group]:
    return group_runs(collect([write_grid(folder, **choices)]).runs)


def groups_of(folder: Path, *records: dict[str, Any]) -> list[Group]:
    for number, record in enumerate(records):
        write_run(folder / str(number), record)
    return group_runs(collect([folder]).runs)


def bars(axes: Axes) -> list[ErrorbarContainer]:
    return [container for container in axes.containers if isinstance(container, ErrorbarContainer)]


def labels(figure: Figure) -> list[str]:
    return [text.get_text() for legend in figure.legends for text in legend.get_texts()]


def overlap(figure: Figure) -> list[tuple[int, int]]:
    """Name the pairs of axes and legends whose boxes, labels included, lie over each other."""
    figure.draw_without_rendering()
    renderer = figure._get_renderer()
    boxes = [axes.get_tightbbox(renderer) for axes in figure.axes]
    boxes += [legend.get_window_extent(renderer) for legend in figure.legends]
    return [(i, j) for (i, one), (j, two) in combinations(enumerate(boxes), 2) if one.padded(-2).overlaps(two)]


def luminance(colour: str) -> float:
    return float(np.dot(to_rgb(colour), (0.2126, 0.7152, 0.0722)))


# ---- score against sparsity


def test_pictures_are_written(tmp_path: Path) -> None:
    groups = grid(tmp_path / "runs", tasks=("qqp",), exports=True)
    drawn = [
        plot_score_against_sparsity(groups, PUBLISHED, tmp_path / "a.png"),
        plot_ablation(groups, tmp_path / "b.png"),
        plot_score_against_latency(groups, tmp_path / "c.png"),
        plot_score_against_bytes(groups, tmp_path / "d.png"),
    ]
    assert all(imread(path).std() > 0 for path in drawn)


def test_without_runs_nothing_is_drawn(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    assert plot_score_against_sparsity([], PUBLISHED, path) is None
    assert [plot([], path) for plot in (plot_ablation, plot_score_against_latency, plot_score_against_bytes)] == [
        None
    ] * 3
    assert not path.exists()


def test_a_line_for_each_pruning_type_and_contrast_goes_through_the_means_with_their_spread(
    tmp_path: Path, figures: list[Figure]
) -> None:
    groups = grid(tmp_path)
    plot_score_against_sparsity(groups, [], tmp_path / "a.png")
    (axes,) = figures[0].axes
    drawn = {container.get_label(): container for container in bars(axes)}
    assert len(drawn) == 2 * 2
    own = [group for group in groups if group.first.pruning == "movement" and group.first.contrast == "none"]
    line, _, (spread,) = drawn["movement, no contrast"]
    assert line.get_xdata() == pytest.approx([0.50001, 0.90001, 0.97001])
    assert line.get_ydata() == pytest.approx([group.mean("score") for group in own])
    heights = [segment[1, 1] - segment[0, 1] for segment in spread.get_segments()]
    assert heights == pytest.approx([2 * group.deviation("score") for group in own])


def test_twelve_lines_differ_in_marker_and_those_of_one_colour_in_dashes(tmp_path: Path) -> None:
    lines = lines_of(grid(tmp_path, prunings=SIX, seeds=(1,)))
    assert len({line.marker for line in lines}) == len(lines) == 12
    assert len({(line.colour, line.dashes) for line in lines}) == 12
    assert len({line.colour for line in lines}) == len(SIX)


def test_colours_differ_in_lightness_or_hue_and_none_is_too_light_for_paper() -> None:
    assert len(set(COLOURS)) == len(COLOURS)
    assert len(set(MARKERS)) == len(MARKERS) == 12
    assert max(map(luminance, COLOURS)) < 0.75


@pytest.mark.parametrize("tasks", [("qqp",), ("mnli", "qqp", "sst2")], ids=["one", "three"])
def test_nothing_in_a_full_picture_lies_over_something_else(
    tmp_path: Path, figures: list[Figure], tasks: tuple[str, ...]
) -> None:
    groups = grid(tmp_path, tasks=tasks, prunings=SIX, seeds=(1,))
    plot_score_against_sparsity(groups, published_for((task, "accuracy") for task in tasks), tmp_path / "a.png")
    assert [axes.get_title() for axes in figures[0].axes] == list(tasks)
    assert overlap(figures[0]) == []


def test_published_scores_are_hollow_and_named_as_those_of_bert_base(tmp_path: Path, figures: list[Figure]) -> None:
    plot_score_against_sparsity(grid(tmp_path, tasks=("qqp",)), PUBLISHED, tmp_path / "a.png")
    (axes,) = figures[0].axes
    hollow = {line.get_label(): line for line in axes.lines if line.get_markerfacecolor() == "none"}
    assert set(hollow) == {row.method for row in PUBLISHED if row.drawn}
    assert len({line.get_marker() for line in hollow.values()}) == len(hollow)
    assert dict(zip(*hollow["CAP"].get_data(), strict=True)) == {0.5: 0.916, 0.9: 0.907, 0.97: 0.902}
    assert "BERT-base, published (hollow)" in [legend.get_title().get_text() for legend in figures[0].legends]


@pytest.mark.parametrize("task", ["sst2", "docstrings"])
def test_published_scores_of_another_task_are_not_drawn(tmp_path: Path, figures: list[Figure], task: str) -> None:
    plot_score_against_sparsity(grid(tmp_path, tasks=(task,)), PUBLISHED, tmp_path / "a.png")
    assert not [line for line in figures[0].axes[0].lines if line.get_markerfacecolor() == "none"]
    assert len(figures[0].legends) == 1


def test_runs_of_a_task_on_other_rows_are_not_joined_by_a_line(tmp_path: Path) -> None:
    records = []
    for source, fingerprint in (("folder half", "aa" * 8), ("folder all", "bb" * 8), ("folder all", "cc" * 8)):
        for sparsity in (0.5, 0.9):
            records.append(made_record(sparsity=sparsity, terms=()))
            records[-1]["data"] |= {"source": source, "fingerprint": fingerprint}
    records.append(made_record(task="mrpc", sparsity=0.5, terms=()))
    lines = lines_of(groups_of(tmp_path, *records))
    assert {line.label: len(line.groups) for line in lines} == {
        "movement, no contrast (data=folder half)": 2,
        "movement, no contrast (data=folder all bbbbbbbb)": 2,
        "movement, no contrast (data=folder all cccccccc)": 2,
        "movement, no contrast (data=None)": 1,
    }


def test_smoke_runs_and_others_are_not_joined_by_a_line(tmp_path: Path) -> None:
    short = made_record(sparsity=0.5)
    short["config"]["trainer"]["max_steps"] = 60
    found = [line.label for line in lines_of(groups_of(tmp_path, made_record(sparsity=0.9), short))]
    assert found == ["movement, contrast all three", "movement, contrast all three, smoke"]


def test_lines_that_would_bear_one_name_say_what_differs(tmp_path: Path) -> None:
    other = made_record(sparsity=0.5)
    other["config"]["batch_size"] = 16
    found = {line.label for line in lines_of(groups_of(tmp_path, made_record(sparsity=0.9), other))}
    assert found == {f"movement, contrast all three (batch_size={size})" for size in (16, 32)}


def test_levels_and_epochs_that_follow_from_the_sparsity_do_not_split_a_line(tmp_path: Path) -> None:
    records = [made_record(pruning="structured", sparsity=sparsity) for sparsity in (0.3, 0.6)]
    for record, n_levels in zip(records, (3, 6), strict=True):
        record["config"]["schedule"] |= {"levels": None, "epochs_per_level": 2}
        record["config"]["trainer"]["max_epochs"] = 2 * n_levels
    assert [len(line.groups) for line in lines_of(groups_of(tmp_path, *records))] == [2]


# ---- what the terms add


def test_a_difference_is_taken_between_runs_of_one_seed(tmp_path: Path) -> None:
    on = [made_record(seed=seed, score=score) for seed, score in ((1, 0.80), (2, 0.90), (3, 0.99))]
    off = [made_record(seed=seed, score=score, terms=()) for seed, score in ((1, 0.79), (2, 0.87))]
    with_terms, without = groups_of(tmp_path, *on, *off)
    mean, deviation = difference(with_terms, without)
    assert mean == pytest.approx(0.02)
    assert deviation == pytest.approx(0.01 * 2**0.5)


def test_a_difference_without_a_common_seed_is_that_of_the_means_and_has_no_spread(tmp_path: Path) -> None:
    records = [made_record(seed=1, score=0.8), made_record(seed=2, score=0.7, terms=())]
    assert difference(*groups_of(tmp_path, *records)) == (pytest.approx(0.1), None)


def test_the_ablation_has_a_bar_for_each_set_of_terms_but_none(tmp_path: Path, figures: list[Figure]) -> None:
    plot_ablation(grid(tmp_path, sparsities=(0.9,), terms=SUBSETS), tmp_path / "a.png")
    (axes,) = figures[0].axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["magnitude, 0.9", "movement, 0.9"]
    assert len(axes.patches) == 2 * 7
    assert len({(bar.get_facecolor(), bar.get_hatch()) for bar in axes.patches}) == 7
    assert {label.removesuffix(" minus none") for label in labels(figures[0])} >= {"PrC", "SnC, FiC", "all three"}
    assert overlap(figures[0]) == []


def test_runs_that_differ_in_more_than_their_terms_are_no_ablation(tmp_path: Path) -> None:
    other = made_record(terms=())
    other["config"]["batch_size"] = 16
    assert plot_ablation(groups_of(tmp_path, made_record(), other), tmp_path / "a.png") is None


# ---- latency and size


def test_records_without_exports_have_no_picture_of_costs(tmp_path: Path) -> None:
    groups = groups_of(tmp_path, made_record())
    assert plot_score_against_latency(groups, tmp_path / "a.png") is None
    assert plot_score_against_bytes(groups, tmp_path / "a.png") is None


@pytest.mark.parametrize(
    "exports", [None, [], {"compact": None}, {"compact": {"bytes": None, "latency_ms": {"a": "b"}}}]
)
def test_exports_that_measured_nothing_are_no_exports(tmp_path: Path, exports: object) -> None:
    (group,) = groups_of(tmp_path, made_record() | {"exports": exports})
    assert read_exports(group.first) == []


def test_an_export_keeps_the_runs_score_unless_it_was_scored_again(tmp_path: Path) -> None:
    (group,) = groups_of(tmp_path, made_record(score=0.8) | {"exports": made_exports(0.9)})
    found = {export.format: export for export in read_exports(group.first)}
    assert {name: export.score for name, export in found.items()} == {
        "compact": 0.8,
        "int8": 0.7,
        "dense, with zeros": 0.8,
    }
    assert found["dense, with zeros"].megabytes == 90.0
    unknown = Machine("", None)
    assert found["dense, with zeros"].latency_ms[Timing("batch=1,tokens=32", unknown)] == 8.0


def on(device: str, threads: int, latency: float, dense: float) -> dict[str, Any]:
    """Make up an export that was timed in one shape of batch."""
    setting = "batch=1,tokens=32"
    return {
        "bytes": 5e7,
        "device": device,
        "threads": threads,
        "latency_ms": {setting: latency},
        "dense_latency_ms": {setting: dense},
    }


def drawn_costs(axes: Axes) -> list[float]:
    return sorted(float(cost) for line in axes.lines for cost in line.get_xdata())


@pytest.mark.parametrize(
    ("other", "words"),
    [(("H200", 16), "H200, 16 threads"), (("EPYC", 12), "EPYC, 12 threads")],
    ids=["device", "threads"],
)
def test_exports_that_were_timed_on_two_machines_share_no_panel_and_no_dense_time(
    tmp_path: Path, figures: list[Figure], other: tuple[str, int], words: str
) -> None:
    exports = {"compact": on("EPYC", 2, 20.0, 40.0), "semi_structured": on(*other, 0.5, 1.0)}
    plot_score_against_latency(groups_of(tmp_path, made_record() | {"exports": exports}), tmp_path / "a.png")
    found = {axes.get_title(): drawn_costs(axes) for axes in figures[0].axes}
    assert found == {
        "sst2, batch=1, tokens=32\nEPYC, 2 threads": [20.0, 40.0],
        f"sst2, batch=1, tokens=32\n{words}": [0.5, 1.0],
    }
    assert overlap(figures[0]) == []


def test_seeds_that_were_timed_on_two_machines_are_not_averaged(tmp_path: Path, figures: list[Figure]) -> None:
    records = [
        made_record(seed=1) | {"exports": {"compact": on("EPYC", 2, 20.0, 40.0)}},
        made_record(seed=2) | {"exports": {"compact": on("EPYC", 2, 24.0, 44.0)}},
        made_record(seed=3) | {"exports": {"compact": on("Xeon", 2, 90.0, 99.0)}},
    ]
    plot_score_against_latency(groups_of(tmp_path, *records), tmp_path / "a.png")
    assert [drawn_costs(axes) for axes in figures[0].axes] == [[22.0, 42.0], [90.0, 99.0]]


@pytest.mark.parametrize(
    ("machine", "words"),
    [
        (Machine("EPYC", 2), "EPYC, 2 threads"),
        (Machine("EPYC", 1), "EPYC, 1 thread"),
        (Machine("EPYC", None), "EPYC"),
        (Machine("", 2), "2 threads"),
        (Machine("", None), ""),
    ],
    ids=["both", "one", "no threads", "no device", "unknown"],
)
def test_a_machine_is_named_by_device_and_threads(machine: Machine, words: str) -> None:
    assert str(machine) == words


def test_latency_has_a_panel_for_each_shape_of_batch_and_starts_at_zero(tmp_path: Path, figures: list[Figure]) -> None:
    plot_score_against_latency(grid(tmp_path, exports=True), tmp_path / "a.png")
    titles = [axes.get_title() for axes in figures[0].axes]
    assert titles == ["sst2, batch=1, tokens=32", "sst2, batch=32, tokens=128"]
    assert all(axes.get_xlim()[0] == 0.0 for axes in figures[0].axes)
    assert overlap(figures[0]) == []


def test_size_is_drawn_in_megabytes_with_a_marker_for_each_format(tmp_path: Path, figures: list[Figure]) -> None:
    plot_score_against_bytes(groups_of(tmp_path, made_record() | {"exports": made_exports(0.9)}), tmp_path / "a.png")
    (axes,) = figures[0].axes
    assert sorted(float(line.get_xdata()[0]) for line in axes.lines) == pytest.approx([40 * 0.55, 90 * 0.55, 90.0])
    assert len({line.get_marker() for line in axes.lines}) == 3
    assert {"compact", "int8", "dense, with zeros"} <= set(labels(figures[0]))
