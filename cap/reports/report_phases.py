"""The phases of ``python -m cap.report``: read the runs, draw the pictures, write tables and page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cap.base.errors import InputError, some_of
from cap.base.files import atomic_folder, ensure_writable, is_new_or_empty
from cap.reports.collect import Collection, collect
from cap.reports.costs import plot_score_against_bytes, plot_score_against_latency
from cap.reports.differences import COMPARISON_CAPTION, COMPARISON_HEADER, comparison_rows, comparisons_csv
from cap.reports.export_table import EXPORT_CAPTION, EXPORT_HEADER, export_rows
from cap.reports.page import build_page, summary
from cap.reports.pictures import plot_ablation, plot_score_against_sparsity
from cap.reports.published import Published, published_for
from cap.reports.style import panels_of
from cap.reports.tables import (
    CAPTION,
    COLUMNS,
    Group,
    cells,
    commands,
    csv_text,
    escape_markdown,
    group_runs,
    latex,
    markdown,
)

_PAGE = "index.html"
_TABLES = ("table.md", "table.csv", "table.tex", "differences.csv")
_PICTURES = {
    "Score against sparsity": "score_against_sparsity.png",
    "Score against latency": "score_against_latency.png",
    "Score against size": "score_against_size.png",
    "What the contrastive terms add": "ablation.png",
}
_MARK = '<meta name="generator" content="cap.report">'


@dataclass(frozen=True)
class Found:
    """Hold what a report is about.

    Args:
        collection: The runs, and what was left out.
        groups: The completed ones by configuration, over their seeds.
        published: The scores of others that stand beside them.
    """

    collection: Collection
    groups: list[Group]
    published: list[Published]

    @property
    def sentence(self) -> str:
        """Say how much was found."""
        return summary(self.groups, self.collection)


def require_free(output: Path) -> None:
    """Check that a folder is new, empty, or holds an earlier report and nothing else.

    Raises:
        InputError: If it is a file or holds something else.
    """
    if is_new_or_empty(output):
        return
    found = {path.name for path in output.iterdir()} if output.is_dir() else set()
    strange = sorted(found - {_PAGE, *_TABLES, *_PICTURES.values()})
    page = output / _PAGE
    if strange or not page.is_file() or _MARK not in page.read_text(encoding="utf-8", errors="replace"):
        what = f"a folder with {some_of(strange) or 'other files'}" if output.is_dir() else "a file"
        raise InputError(
            f"--output must be a new or empty folder, or hold nothing but an earlier report, got {output}, {what}; "
            f"choose another --output"
        )


def read(folders: Sequence[Path]) -> Found:
    """Read the runs below folders.

    Raises:
        InputError: If a folder holds none.
    """
    collection = collect(folders)
    groups = group_runs(collection.runs)
    return Found(collection, groups, published_for(panels_of(groups)))


def write(found: Found, output: Path, *, title: str) -> Path:
    """Write the report, whole or not at all.

    Args:
        found: What it is about.
        output: The folder; an earlier report there is replaced.
        title: The heading of the page and of ``table.md``.

    Returns:
        The page.

    Raises:
        InputError: If the folder cannot be written.
    """
    groups, collection = found.groups, found.collection
    ensure_writable(output.parent, "--output")
    with atomic_folder(output) as folder:
        pictures = _draw(groups, found.published, folder)
        (folder / "table.md").write_text(_markdown(title, groups, collection), encoding="utf-8")
        (folder / "table.csv").write_text(csv_text(groups), encoding="utf-8")
        (folder / "differences.csv").write_text(comparisons_csv(groups), encoding="utf-8")
        (folder / "table.tex").write_text(latex(groups), encoding="utf-8")
        page = build_page(
            title=title,
            groups=groups,
            collection=collection,
            published=found.published,
            pictures=pictures,
            folder=output,
        )
        (folder / _PAGE).write_text(page, encoding="utf-8")
    return output / _PAGE


def _draw(groups: Sequence[Group], published: Sequence[Published], folder: Path) -> dict[str, tuple[str, Path | None]]:
    paths = {title: folder / name for title, name in _PICTURES.items()}
    sparsity, latency, size, ablation = paths
    no_export = "no record holds a measured export (python -m cap.export)."
    sources = sorted({f"{row.method}: {row.source}" for row in published if row.drawn})
    beside = f" Hollow: published scores of BERT-base; {'; '.join(sources)}." if sources else ""
    drawn = {
        sparsity: plot_score_against_sparsity(groups, published, paths[sparsity]),
        latency: plot_score_against_latency(groups, paths[latency]),
        size: plot_score_against_bytes(groups, paths[size]),
        ablation: plot_ablation(groups, paths[ablation]),
    }
    captions = {
        sparsity: "Means over seeds; error bars: standard deviation." + beside,
        latency: "Means over seeds of each export: marker by format, colour by pruning type; a panel for each shape of "
        "batch and each machine, since times on two machines compare with nothing.",
        size: "Means over seeds of each export: marker by format, colour by pruning type.",
        ablation: "Score minus that of the same configuration with fewer contrastive terms, mean over the seeds that "
        "both have; error bars: standard deviation of these differences. Beside each: pruning type and sparsity.",
    }
    reasons = {
        sparsity: "there is no completed run.",
        latency: no_export,
        size: no_export,
        ablation: "no two configurations differ in their contrastive terms only.",
    }
    return {title: ((captions if path else reasons)[title], path) for title, path in drawn.items()}


def _markdown(title: str, groups: Sequence[Group], collection: Collection) -> str:
    parts = [f"# {escape_markdown(title)}", summary(groups, collection)]
    if groups:
        parts += [markdown([column.title for column in COLUMNS], map(cells, groups)), CAPTION]
        compared = comparison_rows(groups)
        if compared:
            parts += ["## Differences", markdown(COMPARISON_HEADER, compared), COMPARISON_CAPTION]
        parts += [
            "## Commands",
            *(f"{escape_markdown(name)}:\n\n```\n{command}\n```" for name, command in commands(groups)),
        ]
    exports = export_rows(collection.runs)
    if exports:
        parts += ["## Exports", markdown(EXPORT_HEADER, exports), EXPORT_CAPTION]
    if collection.left_out:
        rows = ([left.shown, left.reason] for left in collection.left_out)
        parts += ["## Not in the table", markdown(["run", "reason"], rows)]
    if collection.notes:
        parts += ["## Notes", "\n".join(f"- {escape_markdown(note)}" for note in collection.notes)]
    return "\n\n".join(parts) + "\n"


__all__ = ["Found", "read", "require_free", "write"]
