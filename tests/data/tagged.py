"""Made-up sentences whose words are tagged, in the tiny model's vocabulary."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from tests.conftest import NASTY, NICE, THINGS

LABELS = ["B-mood", "B-thing", "I-mood", "O"]


def tagged_rows(n_rows: int, *, seed: int) -> list[dict[str, Any]]:
    """Make sentences with one thing and one mood each, the latter of one to three words."""
    draw = random.Random(seed)
    rows = []
    for _ in range(n_rows):
        mood = ["very"] * draw.randrange(3) + [draw.choice(NICE + NASTY)]
        tags = ["O", "B-thing", "O", "B-mood", *["I-mood"] * (len(mood) - 1)]
        rows.append({"tokens": ["the", draw.choice(THINGS), "is", *mood], "tags": tags})
    return rows


def write_tagged(folder: Path, *, n_rows: int = 32, **columns: Any) -> Path:
    """Write training and half as many validation rows as json lines, some columns replaced in each."""
    folder.mkdir(exist_ok=True)
    for split, n, seed in (("train", n_rows, 0), ("validation", n_rows // 2, 1)):
        lines = [json.dumps(row | columns) for row in tagged_rows(n, seed=seed)]
        (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder
