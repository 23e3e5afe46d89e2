"""Progress bars that also work while Lightning shows its own."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sized
from typing import TypeVar

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import RichProgressBar
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from cap.training.resume.stop import stop

Item = TypeVar("Item")


def tracked(
    items: Iterable[Item],
    *,
    description: str,
    total: int | None = None,
    trainer: Trainer | None = None,
    can_stop: bool = True,
) -> Iterator[Item]:
    """Iterate with a progress bar and an estimate of what remains.

    Args:
        items: What to iterate over.
        description: What the bar says.
        total: How many items to expect; None takes the length of ``items`` where it has one.
        trainer: A trainer that is fitting: the bar then joins its display, since a terminal has room for one only. Of
            several processes the first one shows it.
        can_stop: Whether a request to stop ends the pass where a trainer is fitting; False finishes it.

    Yields:
        The items.

    Raises:
        StoppedError: If the run that is fitting is asked to stop meanwhile.
    """
    if total is None and isinstance(items, Sized):
        total = len(items)
    if trainer is not None and trainer.world_size == 1 and can_stop:
        items = _until_stopped(items)
    if trainer is not None and not trainer.is_global_zero:
        yield from items
        return
    bar = trainer.progress_bar_callback if trainer is not None else None
    if isinstance(bar, RichProgressBar) and bar.is_enabled and bar.progress is not None:
        task = bar.progress.add_task(f"[white]{description}", total=total)
        try:
            for item in items:
                yield item
                bar.progress.advance(task)
        finally:
            bar.progress.remove_task(task)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as progress:
        yield from progress.track(items, total=total, description=description)


def _until_stopped(items: Iterable[Item]) -> Iterator[Item]:
    """Give a pass over many rows up when the run is asked to stop; several processes finish it together."""
    for item in items:
        stop.check()
        yield item


__all__ = ["tracked"]
