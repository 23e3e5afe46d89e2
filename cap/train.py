"""``python -m cap.train``: prune a pre-trained encoder while it learns by contrast, and write down what it cost."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from cap.base.files import read_json
from cap.config.check import Checked, check
from cap.launch import grid
from cap.launch.cli import door, quoted, typed_command, typed_line
from cap.launch.devices import leased_devices
from cap.launch.imports import first_import
from cap.launch.job import goes_on, is_multirun, run_folder
from cap.launch.processes import check_processes, end_with_parent, is_first_process, is_one_of_many, run_processes

if TYPE_CHECKING:
    from cap.training import found


def train(cfg: DictConfig) -> float | None:
    """Run the main job, go on with it, or find it done.

    Args:
        cfg: The composed configuration.

    Returns:
        The pruned model's score on the task's first metric; None of a dry run.

    Raises:
        InputError: If something given cannot work.
        StoppedError: If the process was asked to stop.
        RunError: If the run had to stop.
    """
    end_with_parent()
    checked = check(cfg)
    is_first = _take_part(checked)
    if checked.config.dry_run:
        _say_what_it_would_do(checked, is_first=is_first)
        return None
    from cap.training import found  # without torch

    attempt = found.Attempt(
        checked=checked,
        run_dir=run_folder(checked),
        command=typed_line("train"),
        goes_on=goes_on(checked),
        is_first=is_first,
        is_alone=not is_one_of_many(),
        shows_found=not is_multirun(),
    )
    earlier = found.look(attempt)
    if earlier.is_done and earlier.record is not None:
        score = found.leave_done(attempt, earlier.record)
        grid.note(folder=attempt.run_dir, outcome="skipped")
        return score
    grid.note(folder=attempt.run_dir)
    return _train(attempt, earlier)


def _take_part(checked: Checked) -> bool:
    """Check that as many processes were started as are wanted; say whether this one speaks for the run."""
    check_processes(checked.n_processes, checked.config.trainer.num_nodes)
    # Runs of one process each may share a launcher; then every one of them is a first process.
    is_first = checked.n_processes == 1 or is_first_process()
    logging.getLogger("cap").setLevel(logging.INFO if is_first else logging.ERROR)
    return is_first


def _say_what_it_would_do(checked: Checked, *, is_first: bool) -> None:
    with first_import():
        from cap.formats.forecast import say_what_is_left  # takes seconds: after the verdict
        from cap.training import train_phases as phases

    with phases.keeping_determinism():
        ready = phases.make_ready(checked)
        prepared = phases.say_what_it_would_do(ready, is_first=is_first)
    if is_first:
        say_what_is_left(prepared.pretrained.model, ready.pruner, sparsity=checked.config.sparsity)


def _train(attempt: found.Attempt, earlier: found.Earlier) -> float:
    """Make the run on devices of its own: in this process, or in several that are started here."""
    with first_import():
        from cap.training import train_phases as phases  # takes seconds: after the verdict

    n_processes = attempt.checked.n_processes
    is_started_here = n_processes > 1 and attempt.is_alone
    is_grid = is_multirun() and (n_processes == 1 or is_started_here)
    # Not as a decorator: launchers send a door to other processes, and a context manager cannot go along.
    with phases.keeping_determinism():
        ready = phases.make_ready(attempt.checked)
        with leased_devices(ready, is_grid=is_grid) as devices:
            if is_started_here:
                return _run_processes(attempt, earlier, visible_devices=devices.names)
            ended = phases.run(ready, attempt, earlier, devices=devices.places)
    grid.note(outcome=ended.how)
    return ended.score


def _run_processes(attempt: found.Attempt, earlier: found.Earlier, *, visible_devices: list[str] | None) -> float:
    """Start the processes of the run, and read what they have made."""
    own = [f"output_dir={quoted(str(attempt.run_dir))}", f"resume={str(attempt.goes_on).lower()}"]
    n_here = attempt.checked.config.trainer.devices
    run_processes(n_here, [*typed_command(), *own], visible_devices=visible_devices)
    record = read_json(attempt.run_dir / "record.json")
    if record.get("resumed_at") != (earlier.record or {}).get("resumed_at"):
        grid.note(outcome="resumed")
    return float(record["scores"]["pruned"][record["metric"]])


main = door(
    train,
    opening="""\
python -m cap.train task=qqp sparsity=0.97

Fine-tune a teacher, prune a student of it, and save a model that transformers loads.""",
)

if __name__ == "__main__":
    main()
