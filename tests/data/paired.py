"""Made-up pairs of sentences that are more or less alike, in the tiny model's vocabulary."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from tests.conftest import NASTY, NICE, THINGS


def paired_rows(n_rows: int, *, seed: int) -> list[dict[str, Any]]:
    """Make pairs about one thing or two, in one mood or two: scores are 0, 1 and 2."""
    draw = random.Random(seed)
    rows = []
    for _ in range(n_rows):
        things, moods = draw.sample(THINGS, 2), [draw.choice(NICE), draw.choice(NASTY)]
        same_thing, same_mood = draw.random() < 0.5, draw.random() < 0.5
        other = things[0] if same_thing else things[1], moods[0] if same_mood else moods[1]
        first, second = (
            f"the {thing} is {'very ' * n_very}{mood}"
            for n_very, (thing, mood) in enumerate(((things[0], moods[0]), other))
        )
        rows.append({"sentence1": first, "sentence2": second, "score": same_thing + same_mood})
    return rows


def write_paired(folder: Path, *, n_rows: int = 32) -> Path:
    """Write training and as many validation pairs as json lines."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, seed in (("train", 0), ("validation", 1)):
        lines = [json.dumps(row) for row in paired_rows(n_rows, seed=seed)]
        (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder
