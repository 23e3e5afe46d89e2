"""Which tools are compared with which: only those that prune the same kind of thing."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass

from omegaconf import DictConfig

from benchmarks.peers.cap_itself import run_compact, run_masked
from benchmarks.peers.depth import require_whole_layers, run_layers, run_sentence_transformers
from benchmarks.peers.heads_and_ffn import require_separate_heads, run_torch_pruning
from benchmarks.peers.model_pruning import require_epochs, run_model_pruning
from benchmarks.peers.student import Outcome
from cap.base.errors import InputError
from cap.config.check import Checked
from cap.training.planning import require_possible
from cap.training.preparation import Prepared, prepare
from cap.training.ready import Ready, make_ready


@dataclass(frozen=True)
class Side:
    """Describe one side of a comparison.

    Args:
        run: Trains and prunes in ``output_dir``, and says what came out.
        require: Refuses what this side cannot do, before any side has trained.
        package: What must be installed; None where all is there.
        is_ours: Whether it is this program's own.
    """

    run: Callable[[DictConfig], Outcome]
    require: Callable[[Ready, Prepared], object] = require_possible
    package: str | None = None
    is_ours: bool = False


# By what is pruned, and by the side's name.
COMPARISONS: dict[str, dict[str, Side]] = {
    "single weights": {
        "cap": Side(run_masked, is_ours=True),
        "ModelPruning": Side(run_model_pruning, require_epochs),
    },
    "structured": {
        "cap": Side(run_compact, is_ours=True),
        "cap, layers": Side(run_layers, require_whole_layers, is_ours=True),
        "Torch-Pruning": Side(run_torch_pruning, require_separate_heads, "torch-pruning"),
        "sentence-transformers": Side(run_sentence_transformers, require_whole_layers, "sentence-transformers"),
    },
}


def comparison_of(cfg: DictConfig) -> str:
    """Choose the comparison by the pruning type.

    Raises:
        InputError: If the sides would learn from more than labels and a teacher, or in several processes, or not at
            all, or the pruning type is no side of its own.
    """
    if cfg.dry_run:
        raise InputError("a comparison trains, got dry_run=true; leave it out, or give it to cap.train")
    contrast = cfg.contrast
    if contrast.pretrained or contrast.snapshots or contrast.finetuned or cfg.distill.snapshot_weight > 0:
        raise InputError(
            "other tools learn from labels and a teacher alone, got contrast or distill.snapshot_weight; set "
            "contrast=none distill.snapshot_weight=0"
        )
    if cfg.trainer.devices > 1 or cfg.trainer.num_nodes > 1:
        raise InputError(
            f"all sides run in one process, got trainer.devices={cfg.trainer.devices} and "
            f"trainer.num_nodes={cfg.trainer.num_nodes}; set both to 1"
        )
    if cfg.pruning.name == "layers":
        raise InputError("pruning=layers is a side of the structured comparison, got it alone; set pruning=structured")
    return "structured" if cfg.pruning.name == "structured" else "single weights"


def require_sides(sides: dict[str, Side], checked: Checked) -> None:
    """Check that every side can run, before the first one trains.

    Raises:
        InputError: If a package is missing, or a side cannot do what the configuration asks for.
    """
    packages = [side.package for side in sides.values() if side.package is not None]
    missing = [name for name in packages if importlib.util.find_spec(name.replace("-", "_")) is None]
    if missing:
        raise InputError(
            f"this comparison runs {' and '.join(packages)}, which must be installed, got none called "
            f"{' and '.join(missing)}; run `pip install -c constraints.txt -e '.[peers]'`"
        )
    ready = make_ready(checked)
    prepared = prepare(ready)
    for side in sides.values():
        side.require(ready, prepared)
