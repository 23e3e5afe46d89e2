"""What a teacher that was given must be, so that a student can learn from it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from cap.base.errors import InputError, some_of
from cap.base.kinds import KINDS, Head
from cap.config.schema import TrainConfig
from cap.data.sources import Rows
from cap.data.tasks import Task
from cap.models.encoders import load_in_order, other_problem
from cap.models.families import longest_input
from cap.models.outputs import output_order
from cap.models.sources import ModelSource, load_config, load_tokenizer

log = logging.getLogger(__name__)

# Rows whose tokens a given teacher's tokenizer must reproduce.
_PROBE_TEXTS = 16
# Parts of keys of a configuration that say nothing of what its encoder and head compute.
_NOT_COMPUTED = (
    "dropout",
    "token_id",
    "initializer",
    "use_cache",
    "is_decoder",
    "cross_attention",
    "tie_word",
    "sparse_",
)
_ANOTHER = "give one fine-tuned on the task, or teacher=auto"


@dataclass(frozen=True)
class GivenTeacher:
    """Hold a teacher that was given, whose configuration fits and whose head was trained.

    Args:
        source: Where it comes from.
        model: With its task head.
    """

    source: ModelSource
    model: PreTrainedModel

    @property
    def label(self) -> str:
        """How messages and records name it."""
        return self.source.label

    def check_tokenizer(self, student: PreTrainedTokenizerBase, task: Task, rows: Rows) -> None:
        """Refuse it if it would read other tokens from the same text.

        Args:
            student: The student's tokenizer.
            task: Names the columns that are read.
            rows: Of which the first ones are tried: one as a whole, and some texts alone.

        Raises:
            InputError: If they are tokenised differently.
        """
        own, train = load_tokenizer(self.source), rows.splits["train"]
        texts = [" ".join(_text(train[0][column]) for column in task.text_columns)]
        texts += [_text(text) for column in task.text_columns for text in train[:_PROBE_TEXTS][column]]
        for text in texts[:_PROBE_TEXTS]:
            if own(text)["input_ids"] != student(text)["input_ids"]:
                raise InputError(
                    f"teacher and student must share a tokenizer, but {self.label} reads {text[:60]!r} differently; "
                    f"give a teacher fine-tuned from the same pre-trained model, or teacher=auto"
                )


def _text(given: str | Sequence[str]) -> str:
    """Return a text, or words as one."""
    return given if isinstance(given, str) else " ".join(given)


def load_given(config: TrainConfig, task: Task, student: PretrainedConfig) -> GivenTeacher | None:
    """Load the teacher that a configuration names, once its own has shown that it fits.

    Args:
        config: The configuration of the run.
        task: What the teacher must answer.
        student: Configuration of the pre-trained model.

    Returns:
        The teacher; None if cap makes it, or there is none.

    Raises:
        InputError: If it is not there, or does not fit the task or the student.
    """
    if config.teacher in ("auto", "none"):
        return None
    folder = Path(config.teacher)
    label = f"folder {folder.name}" if folder.is_dir() else config.teacher
    source = ModelSource(config.teacher, label, role="teacher")
    own = load_config(source)
    check_size(
        own,
        student,
        is_encoded=config.contrast.finetuned,
        is_start=config.student_init == "teacher",
        is_compared=config.distill.hidden_weight > 0,
        name=label,
    )
    longest = longest_input(own)
    if longest is not None and config.max_length > longest:
        raise InputError(
            f"teacher must read as many tokens as the student, got {label}, which reads {longest}, for "
            f"max_length={config.max_length}; lower max_length, or give another teacher"
        )
    check_labels(own, head=task.head, name=label)
    loaded, _ = load_in_order(source, head=task.head)  # what there is to say of its head has been said
    if loaded.drawn:
        raise InputError(
            f"teacher must be a model that was fine-tuned on the task, got {label} without "
            f"{some_of(loaded.drawn)}, so that its answers would be random; give one with a trained head, "
            f"or teacher=auto"
        )
    return GivenTeacher(source, loaded.model)


def check_labels(config: PretrainedConfig, *, head: Head, name: str) -> None:
    """Refuse a given teacher whose outputs mean something else than the task's labels.

    Raises:
        InputError: If it has another number of outputs, or other labels; where answers lie in the text, if its head is
            for another kind.
    """
    architectures, kind_of_answer = config.architectures or [], KINDS[head.kind]
    # Every classifier of two classes has as many outputs as a span.
    has_head = any(architecture.endswith(kind_of_answer.head) for architecture in architectures)
    if not kind_of_answer.is_of_text and not has_head:
        raise InputError(
            f"teacher must be a {kind_of_answer.model} for this task, got {name} with {list(architectures)} as its "
            f"architectures; {_ANOTHER}"
        )
    problem = other_problem(config, head.kind)
    if problem is not None:
        raise InputError(
            f"teacher must be trained for {kind_of_answer.problem_type} as this task is, got {name} for {problem}; "
            f"{_ANOTHER}"
        )
    _, notes = output_order(config, head=head, name=name, key="teacher", hint=_ANOTHER)
    for note in notes:
        log.warning("%s", note)


def check_size(
    teacher: PretrainedConfig,
    student: PretrainedConfig,
    *,
    is_encoded: bool,
    is_start: bool,
    is_compared: bool,
    name: str,
) -> None:
    """Refuse a given teacher whose encodings, hidden states or weights cannot be set beside the student's.

    Args:
        teacher: Configuration of the teacher.
        student: Configuration of the pre-trained model.
        is_encoded: True if the student is contrasted with the teacher's encodings.
        is_start: True if the student starts from the teacher's weights, so that all must agree that they are read with.
        is_compared: True if the student's hidden states are compared with the teacher's, layer by layer.
        name: How to call the teacher.

    Raises:
        InputError: If the family differs, or what else matters.
    """
    keys = ["model_type"]
    keys += ["hidden_size"] if is_encoded or is_compared else []
    keys += ["num_hidden_layers"] if is_start or is_compared else []
    keys += _what_is_computed(student) if is_start else []
    values = {key: (getattr(teacher, key, None), getattr(student, key, None)) for key in keys}
    found, wanted = ({key: pair[i] for key, pair in values.items() if pair[0] != pair[1]} for i in (0, 1))
    if found:
        raise InputError(
            f"teacher must be like the model in {wanted}, got {name} with {found}; give one fine-tuned from the same "
            f"model, or teacher=auto; the width matters to contrast.finetuned, distill.hidden_weight and "
            f"student_init=teacher, the depth to the last two, the rest to the last alone: student_init=pretrained "
            f"takes such a teacher"
        )


def _what_is_computed(config: PretrainedConfig) -> list[str]:
    """List what a family's own configuration says of its outputs: sizes, activations, epsilon, positions.

    Weights give other outputs under other values. Left out are names of tokens, which the tokenizers are compared for,
    and what acts in training alone.
    """
    own = type(config)().to_dict().keys() - PretrainedConfig().to_dict().keys()
    return sorted(key for key in own if not any(word in key for word in _NOT_COMPUTED))


__all__ = ["GivenTeacher", "check_labels", "check_size", "load_given"]
