"""``python -m sweeps.two_objectives study=NAME task=sst2``: search for high scores and high sparsity at once.

Optuna chooses, and ``python -m cap.train`` runs each choice in a process of its own. The study is a file beside the
runs: one that was interrupted goes on when the command is repeated, and several processes can share one.
"""

from __future__ import annotations

import logging
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, fields
from pathlib import Path

import optuna
from filelock import FileLock, Timeout
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import Trial, TrialState
from rich.console import Console

from cap.base.errors import InputError, RunError
from cap.base.signals import STOP_SIGNALS
from cap.config.check import check
from cap.config.places import conf_dir
from cap.config.schema import register
from cap.launch.cli import explain, known_keys, set_up_log
from cap.training.ready import make_ready
from sweeps.front import draw_front, front_table, write_trials
from sweeps.space import Space, read_space
from sweeps.trials import Reached, TrialError, run_trial

log = logging.getLogger("cap.sweeps")

Runner = Callable[[Sequence[str], Path, Path], Reached]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Hold the arguments that are the study's own; all others are those of every trial.

    Args:
        study: Its name, and that of its folder.
        n_trials: How many the study shall have in the end, failed ones included.
        space: W&B sweep file whose ranges are searched; empty is ``sweeps/<task>_bayes.yaml``.
        folder: Where studies lie.
        lowest_sparsity: Lower end of the search.
        highest_sparsity: Upper end of the search.
        search_seed: Of Optuna's sampler; the runs have their own ``seed``.
    """

    study: str = ""
    n_trials: int = 20
    space: str = ""
    folder: str = "outputs/studies"
    lowest_sparsity: float = 0.5
    highest_sparsity: float = 0.97
    search_seed: int = 1


def main() -> None:
    """Read the command line, run the study, show the front."""
    set_up_log()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    # Leaves the block that waits for a trial, which then is asked to stop, too. SIGINT has an exception of its own.
    for number in {*STOP_SIGNALS} - {signal.SIGINT}:
        signal.signal(number, lambda number, _frame: sys.exit(128 + number))
    try:
        settings, given = read_settings(sys.argv[1:])
        space = space_of(settings, given)
        require_composable(space)
        study = run_study(settings, space)
    except (InputError, RunError) as error:
        sys.stderr.write(f"error: {error}\n")
        raise SystemExit(2 if isinstance(error, InputError) else 1) from error
    except KeyboardInterrupt:
        sys.stderr.write("stopped; repeat the command to go on\n")
        raise SystemExit(130) from None
    Console().print(front_table(study))


def read_settings(arguments: Sequence[str]) -> tuple[Settings, dict[str, str]]:
    """Tell the study's own arguments from those of the trials.

    Returns:
        The settings, and all other arguments by key.

    Raises:
        InputError: If an argument is no ``key=value``, a value has the wrong type, or the study has no name.
    """
    given: dict[str, str] = {}
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if not equals or argument.startswith("-"):
            raise InputError(f"arguments must be key=value, got {argument!r}")
        given[key] = value
    own: dict[str, object] = {}
    for setting in fields(Settings):
        if setting.name in given:
            wanted: type = type(setting.default)
            try:
                own[setting.name] = wanted(given.pop(setting.name))
            except ValueError as error:
                raise InputError(f"{setting.name} must be of type {wanted.__name__}: {error}") from error
    settings = Settings(**own)  # type: ignore[arg-type]
    if not settings.study or Path(settings.study).name != settings.study:
        raise InputError(f"study names the study and its folder, got {settings.study!r}; set study=NAME")
    taken = sorted({"output_dir", "resume", "skip_completed"} & set(given))
    if taken:
        raise InputError(f"a study sets {', '.join(taken)} for each of its trials; leave it out, or set folder")
    return settings, given


def space_of(settings: Settings, given: Mapping[str, str]) -> Space:
    """Find the sweep file and read it."""
    file = Path(settings.space or Path(__file__).parent / f"{given.get('task')}_bayes.yaml")
    return read_space(file, given, lowest_sparsity=settings.lowest_sparsity, highest_sparsity=settings.highest_sparsity)


def require_composable(space: Space) -> None:
    """Refuse before the first trial what would make each of them fail.

    Raises:
        InputError: If the arguments at either end of the space break a rule.
    """
    register()
    for chosen in space.ends():
        try:
            with initialize_config_dir(str(conf_dir()), version_base="1.3"):
                make_ready(check(compose("train", overrides=space.arguments(chosen))))
        except (HydraException, OmegaConfBaseException) as error:
            raise InputError(explain(error, known_keys())) from error


def run_study(settings: Settings, space: Space, run: Runner = run_trial) -> optuna.Study:
    """Run trials until the study has as many as it shall have; write csv and picture after each.

    Args:
        settings: Of the study.
        space: What is chosen from.
        run: Runs one trial.

    Returns:
        The study. A trial that failed is part of it, with its reason.

    Raises:
        InputError: If the study was made with other arguments.
        RunError: If a trial was asked to stop; it goes on when the study does.
    """
    folder = Path(settings.folder) / settings.study
    folder.mkdir(parents=True, exist_ok=True)
    study = open_study(folder, settings, space)
    while True:
        with ExitStack() as held:
            trial = _next(study, settings, space, folder, held)
            if trial is None:
                return study
            _run(study, trial, space, folder, run)
        write_trials(study, folder / "trials.csv")
        draw_front(study, folder / "front.png")


def open_study(folder: Path, settings: Settings, space: Space) -> optuna.Study:
    """Open the study of a folder, or make it."""
    study = optuna.create_study(
        study_name=settings.study,
        storage=JournalStorage(JournalFileBackend(str(folder / "study.log"))),
        directions=["maximize", "maximize"],
        load_if_exists=True,
    )
    arguments = {"fixed": dict(space.fixed), "searched": {key: str(spec) for key, spec in space.searched.items()}}
    before = study.user_attrs.get("arguments", arguments)
    if before != arguments:
        raise InputError(
            f"study={settings.study} was made with other arguments, {before}, and scores of different tasks or "
            f"settings have no common front; got {arguments}. Repeat its command, or choose another name"
        )
    study.set_user_attr("arguments", arguments)
    return study


def _next(study: optuna.Study, settings: Settings, space: Space, folder: Path, held: ExitStack) -> Trial | None:
    """Take up a trial that nobody runs any more, or ask for a new one; hold its lock."""
    with FileLock(folder / ".next.lock"):
        trials = study.get_trials(deepcopy=False)
        for trial in trials:
            if trial.state == TrialState.RUNNING and _hold(folder, trial.number, held):
                log.info("trial %d goes on", trial.number)
                return Trial(study, trial._trial_id)
        if len(trials) >= settings.n_trials:
            return None
        # By the trial's number: processes that share the study, and one that goes on, would repeat each other's draws.
        # Trials that run elsewhere count as bad ones, so that nothing close to them is chosen meanwhile.
        study.sampler = optuna.samplers.TPESampler(seed=settings.search_seed + len(trials), constant_liar=True)
        asked = study.ask(dict(space.searched))
        _hold(folder, asked.number, held)
        return asked


def _hold(folder: Path, number: int, held: ExitStack) -> bool:
    try:
        # The system frees it when its holder is killed.
        held.enter_context(FileLock(folder / f".trial-{number:04d}.lock", timeout=0))
    except Timeout:
        return False
    return True


def _run(study: optuna.Study, trial: Trial, space: Space, folder: Path, run: Runner) -> None:
    name = f"{trial.number:04d}"
    log.info("trial %d: %s", trial.number, " ".join(f"{key}={value}" for key, value in trial.params.items()))
    try:
        reached = run(space.arguments(trial.params), folder / "trials" / name, folder / "logs" / f"{name}.log")
    except TrialError as error:
        log.error("trial %d failed: %s", trial.number, error)
        trial.set_user_attr("reason", str(error))
        study.tell(trial, state=TrialState.FAIL)
        return
    log.info("trial %d: %s %.4f at sparsity %.4f", trial.number, reached.metric, reached.score, reached.sparsity)
    trial.set_user_attr("metric", reached.metric)
    study.tell(trial, [reached.score, reached.sparsity])


if __name__ == "__main__":
    main()
