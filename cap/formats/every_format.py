"""``python -m cap.export format=all``: every format that a run can have, side by side."""

from __future__ import annotations

import dataclasses
import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.table import Table

from cap.base.console import print_table
from cap.base.errors import InputError, RunError
from cap.base.files import atomic_file, atomic_folder, write_json
from cap.base.markdown import table
from cap.config.export import ExportConfig
from cap.formats.choice import Side, chosen_shapes, dense_side, recommendation, side_of, table_rows
from cap.formats.export_formats import FORMATS, auto_class
from cap.formats.export_phases import write_checked
from cap.formats.export_source import Source
from cap.formats.exports import note_in_run
from cap.runs.card import CARD, spoken
from cap.runs.formats_picture import Point, plot_formats

log = logging.getLogger("cap.export")

SUMMARY = "formats.json"
PICTURE = "formats.png"


@dataclass
class Made:
    """Hold what came of every format.

    Args:
        results: What each measured, see ``cap.formats.exports``, by format.
        refused: Why a format cannot be, by format.
    """

    results: dict[str, dict[str, Any]] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)

    def sides(self, metric: str) -> tuple[Side, list[Side]]:
        """Return the dense model, and the formats beside it."""
        results = list(self.results.values())
        return dense_side(results, metric), [side_of(result, metric) for result in results]


def export_every(source: Source, config: ExportConfig, target: Path, *, command: str) -> float:
    """Write every format that the run can have, see ``write_every``, note each in the run, and show them side by side.

    Returns:
        The largest difference between the logits of any of them and the run's.
    """
    made = write_every(source, config, target, command=command)
    _tell(source, made, target)
    return max(float(result["check"]["largest_difference"]) for result in made.results.values())


def write_every(source: Source, config: ExportConfig, target: Path, *, command: str) -> Made:
    """Write every format that the run can have into a folder of its name, each checked and measured; compare them.

    Beside them lie ``README.md`` with the table, ``formats.png``, and ``formats.json``: ``sentence``, ``refused`` and,
    by format, ``formats``: what ``export.json`` in its folder holds. All is written, or nothing.

    Args:
        source: The run's model and rows.
        config: How they are measured.
        target: The folder.
        command: What was typed.

    Raises:
        InputError: If the run can have none of them.
    """
    made = Made()
    with atomic_folder(target) as temporary:
        for name, chosen in FORMATS.items():
            log.info("format=%s", name)
            try:
                chosen.require(source)
                own = dataclasses.replace(config, format=name)
                made.results[name] = write_checked(source, own, temporary / name, command=command)
            except (InputError, RunError) as error:
                made.refused[name] = str(error)
        if not made.results:
            reasons = "\n".join(f"{name}: {reason}" for name, reason in made.refused.items())
            raise InputError(f"a run must be able to have one format at least, got none:\n{reasons}")
        _write_summary(made, source.run.record["metric"], temporary, name=target.name)
    return made


def _tell(source: Source, made: Made, target: Path) -> None:
    for result in made.results.values():
        note_in_run(source.run, result, auto_class=auto_class(source), terms=source.terms)
    for note in dict.fromkeys(note for result in made.results.values() for note in result["notes"]):
        log.warning(note)
    metric = source.run.record["metric"]
    dense, formats = made.sides(metric)
    titles, *rows = table_rows(dense, formats, metric)
    table = Table(*titles, caption=str(target))
    for row in rows:
        table.add_row(*row)
    print_table(table)
    for name, reason in made.refused.items():
        log.warning("no %s: %s", name, reason)
    log.info(recommendation(dense, formats, metric))


def _write_summary(made: Made, metric: str, folder: Path, *, name: str) -> None:
    dense, formats = made.sides(metric)
    sentence = recommendation(dense, formats, metric)
    write_json(folder / SUMMARY, {"sentence": sentence, "refused": made.refused, "formats": made.results})
    points = [
        Point(side.name, side.megabytes, side.score, side.milliseconds)
        for side in (dense, *formats)
        if side.device == dense.device
    ]
    titles = {shape: spoken(shape) for shape in chosen_shapes(dense)}
    picture = plot_formats(points, titles, metric=metric, path=folder / PICTURE)
    titles_of_table, *rows = table_rows(dense, formats, metric)
    parts = [f"# {name}", sentence, table(titles_of_table, rows)]
    if dense.milliseconds:
        parts.append(f"Latencies are medians on {dense.device}, each beside the dense model in one process.")
    if picture is not None:
        parts.append(f"![Size against latency]({PICTURE})")
    if made.refused:
        refused = (f"- {refused}: {' '.join(reason.split())}" for refused, reason in made.refused.items())
        parts.append("\n".join(["The run cannot have:", "", *refused]))
    parts.append("Each folder has its card, with the lines that load it.")
    with atomic_file(folder / CARD) as temporary:
        temporary.write_text("\n\n".join(parts) + "\n", encoding="utf-8")


__all__ = ["PICTURE", "SUMMARY", "Made", "export_every", "write_every"]
