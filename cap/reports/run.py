"""One completed run as tables and pictures see it, read from its record; see ``cap.runs.record`` for the keys."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from cap.base.settings import flatten, what_counts
from cap.runs.best import best_at_target
from cap.runs.reading import TERMS, at, first_number, mapping, named, number

# Tasks whose rows are a user's own: the name alone does not tell one from another.
_OWN_ROWS = ("custom", "tokens", "embed")
# Keys that conf/ fills in with the value of another one; older records do not have all of them.
_REPEATS = {"schedule.sparsity": "sparsity", "pruning.final_sparsity": "sparsity", "task.max_length": "max_length"}
# What of a pruning type is not our default.
_PRUNING_NOTES = (
    ("score_init", "zero", "scores from 0"),
    ("importance", "random", "random units"),
    ("threshold", "published", "published threshold"),
)


@dataclass(frozen=True, eq=False)
class Run:
    """Read a record of a completed run.

    Args:
        path: The record's file.
        shown: That path as a reader may see it.
        record: Its content, whose required keys are there; see ``cap.reports.collect``.
    """

    path: Path
    shown: str
    record: Mapping[str, Any]

    @property
    def config(self) -> Mapping[str, Any]:
        """The resolved configuration."""
        return mapping(self.record.get("config"))

    @cached_property
    def settings(self) -> dict[str, Any]:
        """The configuration as dotted keys, without the seed, what changes no result, and what only repeats a key."""
        found = dict(flatten(what_counts(self.config)))
        found.pop("seed", None)
        return {key: value for key, value in found.items() if key not in _REPEATS or value != found.get(_REPEATS[key])}

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What the runs of one configuration have in common whatever their seed: the settings, and the rows."""
        # The same folder name may hold other rows tomorrow; the mean of both would be of nothing.
        rows = {"data": ("fingerprint",), "unlabelled": ("unlabelled", "fingerprint")}
        return {**self.settings, **{name: at(self.record, "data", *keys) for name, keys in rows.items()}}

    @property
    def weights(self) -> Any:
        """Hashes of the models that were given to it; None where an old record has none."""
        return self.record.get("weights_sha256") or None

    @property
    def task(self) -> str:
        """The task; one of the user's own is told from another by its data."""
        name = named(self.config.get("task"))
        return f"{name} ({at(self.record, 'data', 'source')})" if name in _OWN_ROWS else name

    @property
    def model(self) -> str:
        """The pre-trained model, without the folders above it."""
        label = (
            self.record.get("model") or self.settings.get("model.name_or_path") or self.settings.get("model.package")
        )
        return Path(str(label)).name if Path(str(label)).is_absolute() else str(label or "")

    @property
    def pruning(self) -> str:
        """The pruning type, and what of it is not the default: its pattern, where scores start, the threshold."""
        pruning = self.config.get("pruning")
        given = mapping(pruning)
        notes = [note for key, value, note in _PRUNING_NOTES if given.get(key) == value]
        pattern = [str(given["pattern"])] if given.get("pattern") else []
        return ", ".join([named(pruning), *pattern, *notes])

    @property
    def terms(self) -> tuple[str, ...]:
        """The contrastive terms that were on, by the paper's names."""
        switches = mapping(self.config.get("contrast"))
        return tuple(name for switch, name in TERMS.items() if switches.get(switch))

    @property
    def contrast(self) -> str:
        """The contrastive terms in words."""
        return "none" if not self.terms else "all three" if len(self.terms) == len(TERMS) else ", ".join(self.terms)

    @property
    def metric(self) -> str:
        """The score's name."""
        return str(self.record["metric"])

    @property
    def seed(self) -> int | None:
        """The seed; None where an old record does not say."""
        seed = self.record.get("seed", self.config.get("seed"))
        return seed if isinstance(seed, int) else None

    @property
    def asked(self) -> float | None:
        """The sparsity that was asked for."""
        return first_number(at(self.record, "sparsity", "asked"), self.config.get("sparsity"))

    @property
    def reached(self) -> float | None:
        """The fraction of prunable weights that are zero."""
        return number(at(self.record, "sparsity", "prunable"))

    @property
    def score(self) -> float | None:
        """The pruned model's score."""
        return number(at(self.record, "scores", "pruned", self.metric))

    @property
    def best(self) -> float | None:
        """The best validation at the final sparsity, chosen on the rows that it is scored on."""
        return best_at_target(self.record)

    @property
    def teacher(self) -> float | None:
        """The teacher's score."""
        return number(at(self.record, "scores", "teacher", self.metric))

    @property
    def retention(self) -> float | None:
        """The pruned model's score over the teacher's."""
        return number(self.record.get("retention"))

    @property
    def above_majority(self) -> float | None:
        """The same, both counted from the majority class."""
        return number(self.record.get("retention_above_majority"))

    @property
    def path_after_target(self) -> float | None:
        """The sum of the learning rate over the steps after the final sparsity was reached."""
        return number(at(self.record, "dynamics", "path_after_target"))

    @property
    def has_comparable_seconds(self) -> bool:
        """Whether its times say what it cost: they do not where another run shared the machine."""
        return self.record.get("seconds_comparable") is not False

    @property
    def seconds_per_step(self) -> float | None:
        """The median time of a training step; None where times are not comparable."""
        return number(self.record.get("seconds_per_step")) if self.has_comparable_seconds else None

    @property
    def minutes_per_epoch(self) -> float | None:
        """Training, validation, importance and snapshots over the epochs; None where the epochs were not whole."""
        fit, epochs = number(at(self.record, "seconds", "fit")), number(self.settings.get("trainer.max_epochs"))
        if fit is None or epochs is None or epochs <= 0 or self._is_cut_short:
            return None
        if not self.has_comparable_seconds:
            return None
        seconds = mapping(self.record.get("seconds"))
        return (fit + sum(number(seconds.get(phase)) or 0.0 for phase in ("importance", "snapshots"))) / epochs / 60

    @property
    def is_smoke(self) -> bool:
        """True if the run was kept short: fewer steps than its epochs have, or fewer rows than the task has."""
        limit, rows = self.settings.get("data.max_train_rows"), number(at(self.record, "data", "n_rows", "train"))
        # Of an encoder what is counted are texts, of which a row may have several, and others may have the same.
        is_counted = rows is not None and named(self.config.get("task")) != "embed"
        has_fewer_rows = limit is not None and (not is_counted or (rows or 0) >= limit)
        return self._is_cut_short or has_fewer_rows

    @property
    def _is_cut_short(self) -> bool:
        steps, part = self.settings.get("trainer.max_steps"), self.settings.get("trainer.limit_train_batches")
        if self.settings.get("learning_rate") == 0:  # nothing is trained: no step is missing
            return False
        epochs, trained = self.settings.get("trainer.max_epochs"), number(self.record.get("steps"))
        if epochs == -1 or (trained is not None and steps is not None and trained < steps):
            steps = None  # the steps alone say how long it is, or the epochs were over before them
        # Lightning reads the whole number 1 as one batch, and 1.0 as all of them.
        is_whole = part is None or (isinstance(part, float) and part == 1.0)
        return steps not in (None, -1) or not is_whole


__all__ = ["Run"]
