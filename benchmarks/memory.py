"""``python -m benchmarks.memory``: what a memory budget holds, and what a gather from mapped banks costs.

Keys: ``rows= dim= encodings= tokens= budget_gb= steps= repeats= folder= output=``. Everything is made up in a temporary
folder (``folder``, else the system's) and goes through the classes that a run uses.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from omegaconf import OmegaConf
from rich.console import Console
from rich.table import Column, Table
from transformers import BertTokenizerFast

from cap.base.files import write_json
from cap.base.memory_budget import MemoryBudget
from cap.data.tokens import TokenRows
from cap.objectives.memory import Memory, Source
from cap.runs.environment import environment
from cap.training.progress import tracked

BATCH, EXTRAS = 32, 4096
GB = 1024**3
_ROWS_PER_CHUNK = 8000
_N_COLD = 3
# Freed blocks up to this size may stay with the process: the highest threshold that glibc's malloc sets itself.
_KEPT_BY_MALLOC = 32 * 1024**2
# Needed whole, whether they fit or not: the length of each example, where its tokens lie, and its label, all int64.
_HELD_BYTES_PER_ROW = 3 * 8
_STATUS = Path("/proc/self/status")
_IO = Path("/proc/self/io")


@dataclass
class Settings:
    """Hold the keys of the command line.

    Args:
        rows: Training examples.
        dim: Of an encoding.
        encodings: Of each example: 1 pretrained, 1 finetuned, the rest snapshots; >= 3.
        tokens: Of each example.
        budget_gb: As ``memory.budget_gb``.
        steps: Batches that are gathered under the budget.
        repeats: Gathers of each kind that are timed.
        folder: Where the temporary folder is made; None takes the system's.
        output: Where the figures go.
    """

    rows: int = 400_000
    dim: int = 768
    encodings: int = 11
    tokens: int = 40
    budget_gb: float = 1.0
    steps: int = 300
    repeats: int = 25
    folder: str | None = None
    output: str = "benchmarks/results/memory.json"


def benchmark(settings: Settings) -> dict[str, Any]:
    """Make up the files, measure, print two tables and keep the figures."""
    size = _require_room(settings)
    with tempfile.TemporaryDirectory(dir=settings.folder) as name:
        folder = Path(name)
        banks = write_files(folder, settings)
        # A process of its own: memory that was freed and kept would hide what is taken.
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            memory = pool.apply(measure_memory, (folder, banks, settings))
        seconds = measure_gathers(banks, settings)
    results = {
        "environment": environment(),
        "settings": {key: value for key, value in asdict(settings).items() if key not in ("folder", "output")},
        "files_gb": size / GB,
        "memory": memory,
        "gather_seconds": seconds,
    }
    _show(results)
    write_json(Path(settings.output), results)
    return results


def _require_room(settings: Settings) -> int:
    """Return the bytes of all files, after a look at disk and memory."""
    size = _bytes_of_files(settings)
    where = Path(settings.folder or tempfile.gettempdir())
    found = shutil.disk_usage(where).free
    if found < 1.05 * size:
        raise SystemExit(
            f"this benchmark writes {size / GB:.1f} GiB into a temporary folder, and {where} has {found / GB:.1f} GiB "
            "free; give folder=DIR on another disk, or fewer rows="
        )
    held = (settings.encodings - 1) * settings.rows * settings.dim * 2
    if psutil.virtual_memory().available < 1.2 * held:
        raise SystemExit(
            f"gathering is also timed from memory, which takes {1.2 * held / GB:.1f} GiB; "
            f"{psutil.virtual_memory().available / GB:.1f} GiB are available: give fewer rows="
        )
    return size


def _bytes_of_files(settings: Settings) -> int:
    """Count encodings and teacher logits in float16, two columns of tokens in int32, and the lengths."""
    per_row = settings.encodings * settings.dim * 2 + 2 * 2 + settings.tokens * 2 * 4 + 8
    return settings.rows * per_row


def write_files(folder: Path, settings: Settings) -> list[Path]:
    """Write banks of random directions, teacher logits and tokens, chunk by chunk; return the banks' files."""
    generator = np.random.default_rng(0)
    # One chunk over and over: no figure here depends on the values.
    chunk = generator.standard_normal((_ROWS_PER_CHUNK, settings.dim), dtype=np.float32)
    chunk /= np.linalg.norm(chunk, axis=1, keepdims=True)
    rows = settings.rows
    banks = [folder / f"bank-{number}.npy" for number in range(settings.encodings)]
    for number, path in enumerate(tracked(banks, description="writing the banks")):
        _write(path, (rows, settings.dim), np.roll(chunk, number, axis=0).astype(np.float16))
    _write(folder / "logits.npy", (rows, 2), chunk[:, :2].astype(np.float16))
    (folder / "tokens").mkdir()
    flat = generator.integers(1, 4, settings.tokens * _ROWS_PER_CHUNK, dtype=np.int32)
    for name in ("input_ids", "token_type_ids"):
        _write(folder / "tokens" / f"{name}.npy", (rows * settings.tokens,), flat)
    np.save(folder / "tokens" / "lengths.npy", np.full(rows, settings.tokens))
    return banks


def _write(path: Path, shape: tuple[int, ...], chunk: np.ndarray) -> None:
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(
            file, {"shape": shape, "fortran_order": False, "descr": np.lib.format.dtype_to_descr(chunk.dtype)}
        )
        for start in range(0, shape[0], len(chunk)):
            file.write(chunk[: shape[0] - start].tobytes())
        # What has not reached the disk cannot be dropped from the page cache later on.
        file.flush()
        os.fsync(file.fileno())


def measure_memory(folder: Path, banks: list[Path], settings: Settings) -> dict[str, Any]:
    """Open everything under the budget, gather batches as training does, and watch this process's own memory.

    Raises:
        RuntimeError: If the budget does not hold, as ``require_held`` judges it.
    """
    tokenizer = BertTokenizerFast(vocab={"[PAD]": 0, "[UNK]": 1})
    _start_threads()
    before = anonymous_bytes()
    with _watched() as peak:
        budget = MemoryBudget(settings.budget_gb)
        labels = torch.arange(settings.rows) % 2
        rows = TokenRows(folder / "tokens", labels, tokenizer, budget=budget)
        memory = _memory(banks, budget, settings.rows)
        memory.set_teacher_logits(folder / "logits.npy")
        opened = anonymous_bytes()
        generator = torch.Generator().manual_seed(0)
        batch_bytes = 0
        for _ in tracked(range(settings.steps), description=f"steps within {settings.budget_gb:g} GiB"):
            example_id = torch.randperm(settings.rows, generator=generator)[:BATCH]
            bank_id = torch.cat([example_id, memory.draw_extras(EXTRAS, exclude=example_id, generator=generator)])
            # All extras of every snapshot: nine times what a step of training gathers of them.
            batch = [memory.gather(source, bank_id) for source in _SOURCES]
            batch += [memory.teacher_logits(example_id), *rows.__getitems__(example_id.tolist()).values()]
            batch_bytes = max(batch_bytes, sum(tensor.nbytes for tensor in batch))
            del batch
        after = anonymous_bytes()
    grown, most = max(peak) - before, allowed_bytes(settings.rows, settings.budget_gb, batch_bytes)
    require_held(grown, most, _bytes_of_files(settings), settings.budget_gb, bytes_mapped=budget.bytes_mapped)
    counts = {"read_or_held": budget.bytes_in_memory, "mapped": budget.bytes_mapped, "gathered_batch": batch_bytes}
    watched = {"opened": opened - before, "peak": grown, "after_steps": after - before, "allowed": most}
    return {
        "measure": "RssAnon of /proc/self/status" if _STATUS.exists() else "unique set size (psutil)",
        "counted_gb": {name: value / GB for name, value in counts.items()},
        "grown_gb": {name: value / GB for name, value in watched.items()},
    }


def allowed_bytes(rows: int, budget_gb: float, batch_bytes: int) -> float:
    """Say how much more a process may hold, counted from the sizes alone: the budget's own count may be what is wrong.

    Args:
        rows: Training examples.
        budget_gb: As ``memory.budget_gb``.
        batch_bytes: Of one gathered batch.

    Returns:
        The budget, or where it is smaller what has to be held whole, and the batch; without what malloc keeps.
    """
    return max(budget_gb * GB, rows * _HELD_BYTES_PER_ROW) + batch_bytes


def require_held(grown: float, allowed: float, files: int, budget_gb: float, *, bytes_mapped: int) -> None:
    """Check what was measured.

    Args:
        grown: By how much a process's own memory grew at its peak, bytes.
        allowed: What ``allowed_bytes`` says.
        files: Bytes of all files that were opened.
        budget_gb: As ``memory.budget_gb``.
        bytes_mapped: What the budget says was mapped.

    Raises:
        RuntimeError: If more was held than allowed, or nothing was mapped although the files exceed the budget.
    """
    if grown > allowed + _KEPT_BY_MALLOC:
        raise RuntimeError(
            f"the budget does not hold: {grown / GB:.3f} GiB more at the peak, {allowed / GB:.3f} allowed"
        )
    if files > budget_gb * GB and not bytes_mapped:
        raise RuntimeError(f"{files / GB:.3f} GiB of files do not fit into {budget_gb:g} GiB, but nothing was mapped")


def _start_threads() -> None:
    """Gather something large: what torch's threads take once is none of the budget's."""
    torch.zeros(100_000, 64).index_select(0, torch.arange(100_000))


_SOURCES: tuple[Source, ...] = ("pretrained", "finetuned", "snapshots")


def _memory(banks: list[Path], budget: MemoryBudget, n_rows: int) -> Memory:
    memory = Memory(n_examples=n_rows, budget=budget)
    for number, path in enumerate(banks):
        memory.add(_SOURCES[min(number, 2)], path)
    return memory


def anonymous_bytes() -> int:
    """Measure what this process has in memory that is no page of a file.

    Elsewhere than on Linux this is what psutil has that comes closest: what is shared with no other process.
    """
    if not _STATUS.exists():
        return int(psutil.Process().memory_full_info().uss)
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith("RssAnon"))
    return int(line.split()[1]) * 1024


@contextmanager
def _watched() -> Iterator[list[int]]:
    """Collect this process's own memory every few milliseconds while the block runs."""
    seen, is_over = [anonymous_bytes()], threading.Event()

    def watch() -> None:
        while not is_over.wait(0.002):
            seen.append(anonymous_bytes())

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield seen
    finally:
        is_over.set()
        thread.join()


def measure_gathers(banks: list[Path], settings: Settings) -> dict[str, dict[str, float | None]]:
    """Time gathers from memory, from mapped banks, and from mapped banks whose pages are not in the page cache."""
    n_snapshots = len(banks) - 1
    per_encoding = EXTRAS // n_snapshots
    shapes = {
        f"{BATCH} + {EXTRAS} rows x 1": (BATCH + EXTRAS, banks[:1]),
        f"{BATCH} + {per_encoding} rows x {n_snapshots}": (BATCH + per_encoding, banks[1:]),
        f"{BATCH} + {EXTRAS} rows x {n_snapshots}": (BATCH + EXTRAS, banks[1:]),
    }
    return {name: _time_gathers(name, n_rows, files, settings) for name, (n_rows, files) in shapes.items()}


def _time_gathers(name: str, n_rows: int, files: list[Path], settings: Settings) -> dict[str, float | None]:
    generator = torch.Generator().manual_seed(1)
    draws = [torch.randperm(settings.rows, generator=generator)[:n_rows] for _ in range(settings.repeats + _N_COLD)]
    figures = _time_cold(files, draws[:_N_COLD], settings.rows)
    sides = {
        "in_memory": _snapshots(files, float("inf"), settings.rows),
        "mapped": _snapshots(files, 0.0, settings.rows),
    }
    for memory in sides.values():
        _touch(memory, settings.rows)
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    for draw in tracked(draws[_N_COLD:], description=name):
        found = []
        for side, memory in sides.items():
            elapsed, rows = _timed(memory, draw)
            seconds[side].append(elapsed)
            found.append(rows)
        if not torch.equal(*found):
            raise RuntimeError("mapped rows differ from those in memory")
    return {**{side: statistics.median(values) for side, values in seconds.items()}, **figures}


def _touch(memory: Memory, n_rows: int) -> None:
    """Touch every page, as a long run has done after a while: the first touch costs more, with a mapped bank."""
    for ids in torch.arange(0, n_rows, 2).split(BATCH + EXTRAS):
        memory.gather("snapshots", ids)


def _time_cold(files: list[Path], draws: list[torch.Tensor], n_rows: int) -> dict[str, float | None]:
    """Time the first and the second gather after a start without page cache."""
    if not hasattr(os, "posix_fadvise"):
        return {"mapped_cold_first": None, "mapped_cold_second": None, "mapped_cold_first_read_gb": None}
    first, second, read = [], [], []
    for draw in tracked(draws, description="without page cache"):
        _drop(files)
        memory, started = _snapshots(files, 0.0, n_rows), _bytes_read()
        first.append(_timed(memory, draw)[0])
        read.append((_bytes_read() - started) / GB)
        second.append(_timed(memory, draw.flip(0).add(1).remainder(n_rows))[0])
        del memory  # a mapped page cannot be dropped
    return {
        "mapped_cold_first": statistics.median(first),
        "mapped_cold_second": statistics.median(second),
        "mapped_cold_first_read_gb": statistics.median(read) if _IO.exists() else None,
    }


def _snapshots(files: list[Path], budget_gb: float, n_rows: int) -> Memory:
    memory = Memory(n_examples=n_rows, budget=MemoryBudget(budget_gb))
    for path in files:
        memory.add("snapshots", path)
    return memory


def _timed(memory: Memory, example_id: torch.Tensor) -> tuple[float, torch.Tensor]:
    started = time.perf_counter()
    rows = memory.gather("snapshots", example_id)
    return time.perf_counter() - started, rows


def _drop(files: list[Path]) -> None:
    for path in files:
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _bytes_read() -> int:
    """Count what this process has had fetched from disks; 0 where the system does not tell."""
    lines = _IO.read_text().splitlines() if _IO.exists() else []
    return next((int(line.split()[1]) for line in lines if line.startswith("read_bytes")), 0)


def _show(results: dict[str, Any]) -> None:
    table = Table("anonymous memory", "GiB")
    for group in ("counted_gb", "grown_gb"):
        for name, value in results["memory"][group].items():
            table.add_row(f"{group.removesuffix('_gb')}: {name.replace('_', ' ')}", f"{value:.3f}")
    Console().print(table)
    table = Table(
        Column("gather, ms (median)", no_wrap=True), "in memory", "mapped", "ratio", "uncached: first", "second"
    )
    for name, row in results["gather_seconds"].items():
        cold = [row["mapped_cold_first"], row["mapped_cold_second"]]
        table.add_row(
            name,
            *(f"{1000 * row[side]:.2f}" for side in ("in_memory", "mapped")),
            f"{row['mapped'] / row['in_memory']:.2f}",
            *("" if value is None else f"{1000 * value:.0f}" for value in cold),
        )
    Console().print(table)


if __name__ == "__main__":
    given = OmegaConf.merge(OmegaConf.structured(Settings), OmegaConf.from_cli(sys.argv[1:]))
    benchmark(OmegaConf.to_object(given))
