"""What every door shares: Hydra's composition, one readable message for a known error, and the log."""

from __future__ import annotations

import functools
import logging
import os
import re
import shlex
import signal
import sys
import time
import warnings
from collections.abc import Callable, Container, Iterable, Iterator
from itertools import pairwise
from typing import NoReturn

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console
from rich.logging import RichHandler

from cap.base.errors import InputError, RunError, StoppedError, nearest_first, out_of_memory_reason
from cap.base.files import full_disk_reason
from cap.config.places import conf_dir
from cap.config.schema import TrainConfig, register
from cap.launch.arguments import as_overrides, multirun_first
from cap.launch.grid import LineFormatter, listed, watched
from cap.launch.help import register_resolvers
from cap.launch.processes import is_first_process

_SECONDS_OF_THE_FIRST = 5.0
_N_SUGGESTIONS = 3
# Groups whose files set keys of all others.
_RECIPES = ("experiment", "debug")
# What people type who know other trainers, by its name there.
_NAMES_ELSEWHERE = {
    "bf16": "trainer.precision",
    "bs": "batch_size",
    "fp16": "trainer.precision",
    "epochs": "trainer.max_epochs",
    "gpus": "trainer.devices",
    "lr": "learning_rate",
    "max_steps": "trainer.max_steps",
    "model_name_or_path": "model.name_or_path",
    "num_train_epochs": "trainer.max_epochs",
    "per_device_train_batch_size": "batch_size",
    "run": "model_dir",
}
_LOGGER = re.compile(r"logger\.\w+$")
# What a value must be, by OmegaConf's name of its type.
_REQUIRED = {"Integer": "a whole number, like 10", "Float": "a number, like 0.5 or 3e-5", "bool": "true or false"}


def door(
    job: Callable[[DictConfig], float | None],
    *,
    config_name: str = "train",
    schema: type = TrainConfig,
    opening: str = "",
) -> Callable[[], None]:
    """Make a command of a function of the composed configuration.

    A known error becomes one message and exit code 2 (bad input) or 1 (a run that had to stop). Inside a multirun it is
    raised again instead, since leaving the process there would end the whole grid.

    Args:
        job: Returns the monitored score, which sweepers read.
        config_name: The file of conf/ that it is composed from.
        schema: The dataclass of its keys, which that file calls ``<config_name>_schema``.
        opening: What ``--help`` says first, where that file is not of this command alone.

    Returns:
        The command, which reads ``sys.argv``.
    """
    register()
    register_resolvers(opening)  # launchers' processes do not pass through the command
    _share_config_store()
    ConfigStore.instance().store(name=f"{config_name}_schema", node=schema)

    @hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name=config_name)
    @functools.wraps(job)
    def composed(cfg: DictConfig) -> float | None:
        set_up_log()  # a launcher's processes have not passed through the command
        if HydraConfig.get().mode == RunMode.MULTIRUN:
            with watched(HydraConfig.get().job.num, show_traceback=cfg.traceback):
                return job(cfg)
        try:
            return job(cfg)
        except (InputError, RunError) as error:
            if cfg.traceback:
                raise
            _leave(error)
        except StoppedError as error:
            _leave(error)
        except Exception as error:
            reason = full_disk_reason(error) or out_of_memory_reason(error)
            if reason is None or cfg.traceback:
                raise
            _leave(RunError(reason))

    def command() -> None:
        set_up_log()
        register_resolvers(opening)  # this door need not be the last one that was made
        # Otherwise Hydra prints composition errors its own way and always exits with 1.
        os.environ["HYDRA_FULL_ERROR"] = "1"
        known = known_keys(config_name, schema)
        sys.argv[1:] = as_overrides(multirun_first(sys.argv[1:]), known, schema)
        try:
            _refuse_hyphens(sys.argv[1:], known)
            with listed():
                composed()
        except (InputError, RunError, StoppedError) as error:
            if "traceback=true" in sys.argv or any(argument.startswith("debug=") for argument in sys.argv):
                raise
            _leave(error)
        except BrokenPipeError:  # the reader has closed the pipe, as head does
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        except KeyboardInterrupt:
            _leave(StoppedError(signal.SIGINT, is_clean=False))
        except (HydraException, OmegaConfBaseException) as error:
            _leave(InputError(explain(error, known)))

    return command


def _refuse_hyphens(arguments: Iterable[str], known: Container[str]) -> None:
    """Refuse ``--sparsity 0.5``, to which Hydra answers with the list of its own options."""
    for argument in arguments:
        key = argument.removeprefix("--")
        if key != argument and key in known:
            raise InputError(f"a key is set as {key}=VALUE, without hyphens and blanks, got {argument}")


def _share_config_store() -> None:
    """Let Hydra's copies of its sources share the store of typed configurations.

    For ``--help`` Hydra 1.3 copies all sources a hundred times, the store with them, which takes longer than everything
    else together. Nothing in the store is changed in place: it hands out copies.
    """
    ConfigStore.__deepcopy__ = lambda store, memo: store  # type: ignore[attr-defined]


def typed_command(config_name: str = "train") -> list[str]:
    """Return the arguments that start the same job alone, in a process of its own: where conf/ is, then overrides.

    Args:
        config_name: The file of conf/ that the door is composed from unless ``--config-name`` names another one.
    """
    config = HydraConfig.get()
    flags: list[str] = []
    for source in config.runtime.config_sources:
        path = source.path if source.schema == "file" else f"{source.schema}://{source.path}"
        if source.provider == "main" and path != str(conf_dir()):
            flags += ["--config-path", path]
        if source.provider == "command-line":
            flags += ["--config-dir", path]
    if config.job.config_name not in (None, config_name):
        flags += ["--config-name", str(config.job.config_name)]
    searchpath = [override for override in config.overrides.hydra if override.startswith("hydra.searchpath=")]
    return [*flags, *searchpath, *config.overrides.task]


def typed_line(config_name: str) -> str:
    """Return the command line of this job, for its record; of a multirun, what starts this job alone.

    Args:
        config_name: The door, and its file of conf/: ``train`` for ``python -m cap.train``.
    """
    command = ["python", "-m", f"cap.{config_name}"]
    if not HydraConfig.initialized():
        return shlex.join([*command, *sys.argv[1:]])
    arguments, here = typed_command(config_name), f"{HydraConfig.get().runtime.cwd}/"
    # Hydra makes this path absolute, which nobody may have typed.
    pairs = pairwise(["", *arguments])
    shown = [word.removeprefix(here) if before == "--config-dir" else word for before, word in pairs]
    return shlex.join([*command, *shown])


def quoted(value: str) -> str:
    """Write a text as the value of an override, whatever characters are in it."""
    return QuotedString(value, Quote.single).with_quotes()


def explain(error: Exception, known: Iterable[str]) -> str:
    """Say in one message what a composition error means, the nearest of the known keys first."""
    if isinstance(error, MissingConfigException) and error.options and error.missing_cfg_file:
        named = error.missing_cfg_file
        # A path or a name of the Hub has slashes of its own, and so have Hydra's groups.
        group, _, given = named.partition("/") if named.startswith("model/") else named.rpartition("/")
        said = f"{group} must be one of {', '.join(nearest_first(given, error.options))}; got {given!r}"
        way_out = f". A folder or a model of the Hub is model.name_or_path={given}"
        return said + way_out if group == "model" else said
    first_line, *_ = str(error).splitlines() or [type(error).__name__]
    cause = error.__cause__
    if isinstance(error, OverrideParseException):
        return _explain_grammar(error.override, str(error))
    if first_line.startswith("Ambiguous value for argument "):
        key, _, value = first_line.partition("'")[2].rpartition("'")[0].partition("=")
        said = (
            f"{key} got several values, {value}; a list takes brackets, '{key}=[{value}]', and -m starts a run for each"
        )
        is_one_number = re.fullmatch(r"\d+,\d+", value) is not None
        return f"{said}; a number takes a point, {key}={value.replace(',', '.')}" if is_one_number else said
    if isinstance(error, ConfigCompositionException) and "Could not override" in first_line:
        given = first_line.partition("'")[2].rpartition("'")[0]
        of_another = _of_another_choice(given, cause)
        if of_another is not None:
            return of_another
        nearest = nearest_first(given, known)[:_N_SUGGESTIONS]
        meant = _NAMES_ELSEWHERE.get(given)
        if meant in set(known):
            return f"there is no key {given!r}; here it is {meant}"
        said = f"there is no key {given!r}; the nearest known ones are {', '.join(nearest)}"
        # Loggers take more than the files of conf/logger set.
        return f"{said}; what else the logger takes is given with a plus: +{given}=" if _LOGGER.match(given) else said
    if "is not a ListConfig" in str(cause):
        return f"{first_line.removesuffix('.')}: this key holds a list; write it in brackets, key=[first,second]"
    of_another_type = _of_another_type(cause)
    if of_another_type is not None:
        return of_another_type
    if cause is not None and str(cause):
        return f"{first_line.removesuffix('.')}: {str(cause).splitlines()[0]}"
    return " ".join(line.strip() for line in str(error).splitlines())


@functools.cache
def known_keys(config_name: str = "train", schema: type = TrainConfig) -> frozenset[str]:
    """List the keys that a user can set: those of the schema, and of every yaml file of the groups it is composed of.

    Args:
        config_name: The file of conf/ that lists the groups.
        schema: The dataclass of its keys.
    """
    keys = set(_flatten(OmegaConf.structured(schema), ""))
    composed = OmegaConf.load(conf_dir() / f"{config_name}.yaml")
    groups = {str(group) for entry in composed.defaults if isinstance(entry, DictConfig) for group in entry}
    for group in groups & {folder.name for folder in conf_dir().iterdir() if folder.is_dir()}:
        keys.add(group)
        if group not in _RECIPES:
            keys |= {f"{group}.{key}" for node in _choices(group).values() for key in _flatten(node, "")}
    return frozenset(key for key in keys if "defaults" not in key)


def _explain_grammar(argument: str, said: str) -> str:
    """Say what is wrong with an argument that Hydra cannot read."""
    if "missing EQUAL" in said:
        return f"a key is set as KEY=VALUE, without blanks around the equals sign, got {argument!r}"
    key, _, value = argument.partition("=")
    reason, *_ = said.splitlines()
    is_list = value.startswith("[") and value.endswith("]")
    entries = ",".join(f"'{entry.strip()}'" for entry in value[1:-1].split(","))
    quoted = f"[{entries}]" if is_list else f"'{value}'"
    return (
        f"{argument!r} cannot be read, Hydra says: {reason}; close what is open, or put "
        f'{"what has" if is_list else "a value with"} such characters in quotes of its own, "{key}={quoted}"'
    )


def _of_another_choice(given: str, cause: BaseException | None) -> str | None:
    """Say whose a key is that only other choices of its group have; None if none has it."""
    group, _, key = given.partition(".")
    # What OmegaConf could not override says where it looked.
    node = getattr(cause, "parent_node", None)
    if group in _RECIPES or not isinstance(node, DictConfig) or getattr(cause, "full_key", None) != given:
        return None
    choices = _choices(group)
    having = [name for name, content in choices.items() if key in set(_flatten(content, ""))]
    chosen = [name for name, content in choices.items() if content.get("_target_") == node.get("_target_")]
    if not having or not chosen:
        return None
    return f"{group}={chosen[0]} has no key {key}; it belongs to {group}={', '.join(having)}"


def _of_another_type(cause: BaseException | None) -> str | None:
    """Say what a value must be that the schema does not take; None if something else is wrong with it."""
    problem = re.match(r"Value '(.*)' (?:of type '.*' could not be converted to|is not a valid) (\w+)", str(cause))
    key = getattr(cause, "full_key", None)
    if problem is None or not key or problem[2] not in _REQUIRED:
        return None
    return f"{key} must be {_REQUIRED[problem[2]]}, got {problem[1]!r}"


def _choices(group: str) -> dict[str, DictConfig]:
    """Read what each yaml file of a group puts into that group, by the name of the choice."""
    found = {}
    for file in sorted((conf_dir() / group).glob("*.yaml")):
        content = OmegaConf.load(file)
        if isinstance(content, DictConfig):
            # A file that also chooses for other groups holds its own below its name.
            found[file.stem] = content.get(group, content)
    return found


def _flatten(node: object, prefix: str) -> Iterator[str]:
    if not isinstance(node, DictConfig):
        return
    for key in node:
        name = f"{prefix}{key!s}"
        yield name
        if not OmegaConf.is_missing(node, str(key)) and not OmegaConf.is_interpolation(node, str(key)):
            yield from _flatten(node[key], f"{name}.")


def _leave(error: InputError | RunError | StoppedError) -> NoReturn:
    if isinstance(error, InputError) and not is_first_process():
        # Every process of a run meets the same bad input, and the first one says it; one that this process alone has
        # met is still to be said when that would have ended them all.
        time.sleep(_SECONDS_OF_THE_FIRST)
    sys.stderr.write(f"error: {error}\n")
    raise SystemExit(error.exit_code) from error


def set_up_log() -> None:
    """Show cap's log on the terminal, beside the progress bars."""
    logger = logging.getLogger("cap")
    if not logger.handlers:
        console = Console(stderr=True)
        handler: logging.Handler
        if console.is_terminal:
            handler = RichHandler(console=console, show_path=False, log_time_format="%X", markup=False)
        else:
            handler = logging.StreamHandler()
            handler.setFormatter(LineFormatter("%(asctime)s %(levelname)s %(message)s", "%H:%M:%S"))
        logger.addHandler(handler)
    logger.propagate = False  # Hydra's own handler at the root would say everything twice
    logger.setLevel(logging.INFO)
    # Lightning 2.6 uses a name that torch 2.13 calls deprecated; a user of cap can do nothing about it.
    warnings.filterwarnings("ignore", message=r".*isinstance\(treespec, LeafSpec\).*", category=FutureWarning)
    # Lightning's own tips and hardware lines would bury what the run has to say.
    _set_up_log_of("lightning.pytorch", logging.WARNING)
    _set_up_log_of("lightning.pytorch.profilers", logging.INFO)  # debug=profile is about its table
    _set_up_log_of("lightning.fabric", logging.INFO)


def _set_up_log_of(name: str, level: int) -> None:
    """Set up a logger of Lightning before Lightning is imported.

    A logger that has no handler by then gets another level at the import. Its messages would also reach Hydra's
    handler at the root, and appear twice.
    """
    logger = logging.getLogger(name)
    if not logger.handlers:
        logger.addHandler(logging.StreamHandler())
    for handler in logger.handlers:
        handler.setLevel(level)
    logger.propagate = False


__all__ = ["door", "explain", "known_keys", "quoted", "set_up_log", "typed_command", "typed_line"]
