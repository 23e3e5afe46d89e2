"""The formats of one run side by side, and which of them to ship."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cap.runs.card import spoken

DENSE = "dense"
HALF_A_POINT = 0.005


@dataclass(frozen=True, kw_only=True)
class Side:
    """Hold what is compared of one format.

    Args:
        name: The format, or ``dense``.
        n_bytes: Of its weights on disk.
        score: On the run's validation rows.
        milliseconds: Medians, by shape of input; empty where nothing was timed.
        speed_up: Times the dense model's speed, by the same shapes.
        faster: The shapes at which three of four rounds were faster than the dense model.
        device: What it was timed on.
    """

    name: str
    n_bytes: int
    score: float
    milliseconds: Mapping[str, float]
    speed_up: Mapping[str, float]
    faster: frozenset[str]
    device: str

    @property
    def megabytes(self) -> float:
        """Size in 10^6 bytes."""
        return self.n_bytes / 1e6


def side_of(result: Mapping[str, Any], metric: str) -> Side:
    """Read one format off what its export measured, see ``cap.formats.exports``."""
    return Side(
        name=result["format"],
        n_bytes=result["bytes"],
        score=(result["scores"] or result["scores_of_run"])[metric],
        milliseconds=result["latency_ms"],
        speed_up=result["speed_up"],
        faster=frozenset(name for name, (first, _) in result["speed_up_quartiles"].items() if first > 1),
        device=result["device"],
    )


def dense_side(results: Sequence[Mapping[str, Any]], metric: str) -> Side:
    """Make one of the dense model that all were measured beside: the mean of its medians on the device of most."""
    device = _device_of_most(result["device"] for result in results)
    timed = [result["dense_latency_ms"] for result in results if result["device"] == device]
    shapes = list(dict.fromkeys(shape for one in timed for shape in one))
    milliseconds = {shape: statistics.fmean(one[shape] for one in timed if shape in one) for shape in shapes}
    return Side(
        name=DENSE,
        n_bytes=results[0]["size"]["dense_bytes"],
        score=results[0]["scores_of_run"][metric],
        milliseconds=milliseconds,
        speed_up=dict.fromkeys(shapes, 1.0),
        faster=frozenset(),
        device=device,
    )


def chosen_shapes(dense: Side) -> list[str]:
    """Choose a shape of input for one short row, and one for a full batch of long rows; none where none was timed."""
    shapes = sorted(dense.milliseconds, key=lambda shape: [int(part.partition("=")[2]) for part in shape.split(",")])
    return list(dict.fromkeys([shapes[0], shapes[-1]])) if shapes else []


def recommendation(dense: Side, formats: Sequence[Side], metric: str) -> str:
    """Say in a sentence which format to ship for the smallest size and for the lowest latency.

    Latencies are compared by speed beside the dense model, which was called in turns with each: a machine that was
    slower for a while then favours none. Formats that were timed on another device than most take no part in that.

    Args:
        dense: What they were measured beside.
        formats: One at least.
        metric: The score's name.
    """
    smallest = min(formats, key=lambda side: side.n_bytes)
    size = f"{smallest.megabytes:.1f} MB, {smallest.n_bytes / dense.n_bytes:.0%} of the dense model's"
    kept = [side for side in formats if _keeps_score(side, dense)]
    said = [
        f"Ship {smallest.name} for the smallest size "
        f"({_described(size, smallest, dense, metric, min(kept, key=lambda side: side.n_bytes, default=None))})"
    ]
    for shape in chosen_shapes(dense):
        timed = [side for side in formats if shape in side.faster and side.device == dense.device]
        if not timed:
            said.append(f"none for latency at {spoken(shape)}, where none is faster than the dense model")
            continue
        fastest = max(timed, key=lambda side: side.speed_up[shape])
        speed = f"{fastest.milliseconds[shape]:.2f} ms, {fastest.speed_up[shape]:.2f} times the dense model's speed"
        kept = [side for side in timed if _keeps_score(side, dense)]
        instead = max(kept, key=lambda side: side.speed_up[shape], default=None)
        described = _described(speed, fastest, dense, metric, instead)
        said.append(f"{fastest.name} for the lowest latency at {spoken(shape)} ({described})")
    if len(said) == 1:
        return f"{said[0]}; latency was not measured."
    return f"{', '.join(said[:-1])}, and {said[-1]}."


def table_rows(dense: Side, formats: Sequence[Side], metric: str) -> list[list[str]]:
    """Write a table with the titles of its columns first, and the dense model before the formats."""
    shapes = chosen_shapes(dense)
    titles = ["format", "MB", "of the dense model's", metric, *(f"ms, {spoken(shape)} (speed-up)" for shape in shapes)]
    rows = [
        [
            _called(side, dense),
            f"{side.megabytes:.1f}",
            f"{side.n_bytes / dense.n_bytes:.1%}",
            f"{side.score:.4f}",
            *(
                f"{side.milliseconds[shape]:.2f} ({side.speed_up[shape]:.2f} x)" if shape in side.milliseconds else ""
                for shape in shapes
            ),
        ]
        for side in (dense, *formats)
    ]
    return [titles, *rows]


def _called(side: Side, dense: Side) -> str:
    if side is dense:
        return f"{DENSE}; score of the run's model"
    return side.name if side.device == dense.device else f"{side.name}, on {side.device}"


def _keeps_score(side: Side, dense: Side) -> bool:
    return side.score >= dense.score - HALF_A_POINT


def _described(measured: str, side: Side, dense: Side, metric: str, instead: Side | None) -> str:
    """Add the score to what was measured, and where that fell what else there is."""
    said = f"{measured}, {metric} {side.score:.4f}"
    if side.score != dense.score:
        said += f" where the run has {dense.score:.4f}"
    if _keeps_score(side, dense):
        return said
    return f"{said}; of those that keep it within half a point, {'none' if instead is None else instead.name}"


def _device_of_most(devices: Iterable[str]) -> str:
    return Counter(devices).most_common(1)[0][0]


__all__ = ["DENSE", "Side", "chosen_shapes", "dense_side", "recommendation", "side_of", "table_rows"]
