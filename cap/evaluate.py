"""``python -m cap.evaluate``: score a saved model on a task's validation rows, and keep its answer to every row."""

from __future__ import annotations

from typing import Any, cast

from omegaconf import DictConfig, OmegaConf

from cap.config.evaluate import EvaluateConfig, check_evaluate
from cap.launch.cli import door, typed_line
from cap.launch.imports import first_import
from cap.launch.job import typed_overrides


def evaluate(cfg: DictConfig) -> float:
    """Score a model, and write ``predictions.csv`` and ``record.json``.

    Args:
        cfg: The composed configuration.

    Returns:
        The score on the task's first metric.

    Raises:
        InputError: If something given cannot work.
    """
    config, model_dir = check_evaluate(cfg)
    with first_import():
        from cap.formats import evaluate_phases as phases  # takes seconds: after the verdict
        from cap.training.seconds import PhaseSeconds

    device, given, seconds = phases.device_of(config), phases.given_model(model_dir), PhaseSeconds()
    task = phases.asked_task(config, given)
    with seconds.phase("load"):
        loaded = phases.load_asked(config, given, task, typed=typed_overrides())
    with seconds.phase("data"):
        data = phases.read_rows(config, task, loaded)
    resolved = cast(dict[str, Any], OmegaConf.to_container(cfg, resolve=True))
    record = phases.begin_record(task, loaded, data, command=typed_line("evaluate"), resolved=resolved)
    folder = phases.answer(config, task, loaded, data, record, device=device, seconds=seconds)
    phases.show(record, folder)
    return float(record["scores"]["model"][task.monitored])


main = door(evaluate, config_name="evaluate", schema=EvaluateConfig)

if __name__ == "__main__":
    main()
