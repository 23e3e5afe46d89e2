"""What stands above a model card's text, for the Hub's pages and searches: licence, data, scores."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

UNKNOWN = "unknown"
"""What is said of a licence, or of terms, that cannot be told; the Hub knows the word, too."""
# What the Hub calls the use of a model, by the class of transformers that loads it, and that use in words.
_USES = {
    "AutoModelForSequenceClassification": ("text-classification", "Text Classification"),
    "AutoModelForTokenClassification": ("token-classification", "Token Classification"),
    "AutoModelForQuestionAnswering": ("question-answering", "Question Answering"),
}
_OTHER_USE = ("feature-extraction", "Feature Extraction")
# What the Hub calls metrics that have another name here.
_METRICS = {"matthews": "matthews_correlation", "pearson": "pearsonr", "spearman": "spearmanr"}
_F1 = "f1"


@dataclass(frozen=True, kw_only=True)
class OnHub:
    """Say what the card of a repository says beyond that of a folder.

    Args:
        repository: Its name, ``owner/name``.
        auto_class: The class of transformers for such a model.
        licence: Of the model, as the Hub calls it.
        base_model: The Hub's name of the pre-trained model; None where it has none.
        base_licence: Of the pre-trained model, from its own card.
        dataset: The Hub's name of the data and of their configuration, for rows from there; None for other rows.
        split: The split that was scored.
    """

    repository: str
    auto_class: str
    licence: str = UNKNOWN
    base_model: str | None = None
    base_licence: str = UNKNOWN
    dataset: tuple[str, str | None] | None = None
    split: str = "validation"

    @property
    def name(self) -> str:
        """The repository's name without its owner."""
        return self.repository.rpartition("/")[2]

    @property
    def use(self) -> tuple[str, str]:
        """What the Hub calls the use of such a model, and that in words."""
        return _USES.get(self.auto_class, _OTHER_USE)


def metadata(
    record: Mapping[str, Any], scores: Mapping[str, float], *, library: str | None, on_hub: OnHub | None
) -> str:
    """Write what stands above a card: in a folder the few words that a search looks for, on the Hub all of it.

    Args:
        record: Of the run.
        scores: Of this model, by name.
        library: Whose class loads it, as the Hub calls it; None where only this program does.
        on_hub: Of the repository; None for a folder.

    Returns:
        YAML between two lines of dashes.
    """
    more: dict[str, Any] = {}
    if on_hub is not None:
        more = {
            "license": on_hub.licence,
            "base_model": on_hub.base_model,
            "datasets": [on_hub.dataset[0]] if on_hub.dataset else None,
            "pipeline_tag": on_hub.use[0],
            "model_name": on_hub.name,
            "eval_results": [_result(record, name, score, on_hub) for name, score in scores.items()],
        }
    data = ModelCardData(
        library_name=library,
        tags=["pruning", "sparsity", record["config"]["pruning"]["name"]],
        **more,
    )
    return f"---\n{data.to_yaml()}\n---"


def _result(record: Mapping[str, Any], name: str, score: float, on_hub: OnHub) -> EvalResult:
    task = record["config"]["task"]["name"]
    path, config = on_hub.dataset or (task, None)
    use, words = on_hub.use
    return EvalResult(
        task_type=use,
        task_name=words,
        dataset_type=path,
        dataset_name=task if on_hub.dataset else str(record["data"]["source"]),
        dataset_config=config,
        dataset_split=on_hub.split,
        metric_type=_METRICS.get(name, _F1 if name.endswith(_F1) else name),
        metric_name=name.replace("_", " "),
        metric_value=score,
    )


__all__ = ["UNKNOWN", "OnHub", "metadata"]
