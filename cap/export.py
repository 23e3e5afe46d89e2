"""``python -m cap.export``: make a model that can be shipped, check it, and say what it gained."""

from __future__ import annotations

import copy
import gzip
import logging
import shlex
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from cap.cli import door
from cap.config import TaskConfig
from cap.data.datamodule import CapDataModule
from cap.data.sources import load_rows
from cap.data.tasks import Task
from cap.errors import RunError
from cap.export_config import ExportConfig, check_export
from cap.models.compact import Compacted, compact, save_compact
from cap.models.cost import count_cost
from cap.models.encoders import (
    PooledModel,
    evaluating,
    load_saved_model,
    load_tokenizer,
    resolve_source,
    save_model,
)
from cap.models.load import load
from cap.models.onnx import ONNX_FILE, OnnxModel, export_onnx, quantise_onnx, require_onnx
from cap.models.semi_structured import require_semi_structured, to_semi_structured
from cap.models.sparse import save_sparse
from cap.preparation import scoring_rows, task_of
from cap.results.card import write_export_card
from cap.results.finished import FinishedRun, read_runs
from cap.results.folder import MODEL, require_empty
from cap.results.latency import Latency, paired_latency
from cap.results.record import environment, write_record
from cap.storage import atomic_folder, write_json
from cap.training.evaluation import evaluate

log = logging.getLogger("cap.export")  # as a command, __name__ is __main__

EXPORT = "export.json"
Batch = Mapping[str, Tensor]
# A ratio this close to 1 is no speed-up on a machine that does other things, too.
_NOTICEABLE = 1.1
_WEIGHTS = ("*.safetensors", "*.onnx")


@dataclass(frozen=True, kw_only=True)
class Source:
    """Hold the run's model and what is needed to compare another with it."""

    run: FinishedRun
    task: Task
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    data: CapDataModule
    batch: dict[str, Tensor]

    @property
    def inputs(self) -> dict[str, Tensor]:
        """What a model is called with, without labels and numbers of rows."""
        return {name: self.batch[name] for name in self.tokenizer.model_input_names if name in self.batch}


@dataclass(frozen=True, kw_only=True)
class Format:
    """Describe a format.

    Args:
        write: Writes the export into a folder, and returns what a record should know of it.
        load: Loads what was written, as something that gives the logits of a batch.
        tolerance: How far its logits may be from the run's; None where a score says more.
        how_to_load: For people; None if ``cap.load`` does it.
        require: Checks beforehand whether the format is possible at all.
        beside: Gives what is timed, the dense model first, and where; None times on the CPU.
    """

    write: Callable[[Source, Path], dict[str, Any]]
    load: Callable[[Path], Callable[[Any], Any]]
    tolerance: float | None
    how_to_load: str | None = None
    require: Callable[[Source], None] = lambda source: None
    beside: Callable[[Source, Any], tuple[dict[str, Any], torch.device]] | None = None


def export(cfg: DictConfig) -> float:
    """Write an export of a finished run, compare its logits with the run's, and measure both beside each other.

    Args:
        cfg: The composed configuration.

    Returns:
        The largest difference between its logits and the run's.

    Raises:
        InputError: If something given cannot work.
        RunError: If the export does not give the run's logits.
    """
    config, folder = check_export(cfg, tuple(FORMATS))
    (run,) = read_runs([folder])
    target = Path(config.output_dir or Path("outputs") / "exports" / f"{run.name.replace('/', '-')}-{config.format}")
    require_empty(target)
    chosen = FORMATS[config.format]
    source = _read_source(run, config)
    chosen.require(source)
    with atomic_folder(target) as temporary:
        details = chosen.write(source, temporary)
        loaded = chosen.load(temporary)
        result = _describe(source, config, details, temporary, loaded)
        write_json(temporary / EXPORT, result)
        write_export_card(temporary, run.record, result, name=target.name, terms=source.task.terms)
    _note_in_run(run, config.format, result)
    Console().print(_table(result, target))
    log.info(str(result["sentence"]))
    return float(result["check"]["largest_difference"])


def _read_source(run: FinishedRun, config: ExportConfig) -> Source:
    settings = run.record["config"]
    given = config.data_dir or settings["data_dir"]
    data_dir = None if given is None else Path(given)
    task = task_of(TaskConfig(**settings["task"]), data_dir)
    rows = load_rows(task, data_dir=data_dir, max_train_rows=None, max_eval_rows=settings["data"]["max_eval_rows"])
    folder = run.folder / MODEL
    model = load_saved_model(folder, task.kind).eval()
    tokenizer = load_tokenizer(resolve_source(str(folder), package=None, sha256=None, revision=None))
    data = scoring_rows(
        task,
        rows,
        tokenizer,
        max_length=settings["max_length"],
        stride=settings["task"].get("stride"),
        eval_batch_size=max(config.check_rows, 2),
        cache_dir=Path(config.cache_dir),
    )
    first = next(iter(next(iter(data.eval_dataloaders().values()))))
    return Source(run=run, task=task, model=model, tokenizer=tokenizer, data=data, batch=first)


def _describe(
    source: Source, config: ExportConfig, details: dict[str, Any], folder: Path, loaded: Callable[[Any], Any]
) -> dict[str, Any]:
    """Check and measure an export."""
    chosen = FORMATS[config.format]
    difference = float((_logits(loaded, source.inputs) - _logits(source.model, source.inputs)).abs().max())
    if chosen.tolerance is not None and not difference <= chosen.tolerance:
        raise RunError(
            f"format={config.format} must give the run's logits within {chosen.tolerance:g}, but on "
            f"{len(source.batch['example_id'])} rows they are up to {difference:.3g} apart; nothing was kept"
        )
    smaller = loaded if isinstance(loaded, PreTrainedModel) else details.pop("model", source.model)
    details.pop("model", None)
    models: dict[str, Any] = {"dense": source.model, "export": loaded}
    device = None
    if chosen.beside is not None:
        models, device = chosen.beside(source, loaded)
    measured = (
        paired_latency(
            models,
            reference="dense",
            vocabulary_size=source.model.config.vocab_size,
            budget_seconds=config.latency_seconds,
            device=device,
        )
        if config.latency_seconds > 0
        else []
    )
    size = _size(source, folder, smaller)
    speed_up = {_setting(one): round(one.models["export"].speed_up.median, 4) for one in measured}
    typed = HydraConfig.get().overrides.task if HydraConfig.initialized() else sys.argv[1:]
    return {
        "format": config.format,
        "command": shlex.join(["python", "-m", "cap.export", *typed]),
        "run": source.run.record["config_hash"],
        "environment": environment(),
        "check": {"rows": len(source.batch["example_id"]), "largest_difference": difference},
        "scores": _scores_again(source, loaded) if chosen.tolerance is None else None,
        "details": details,
        "size": size,
        "bytes": size["bytes"],
        "latency_ms": {_setting(one): round(one.models["export"].milliseconds.median, 4) for one in measured},
        "dense_latency_ms": {_setting(one): round(one.models["dense"].milliseconds.median, 4) for one in measured},
        "speed_up": speed_up,
        "threads": torch.get_num_threads(),
        "device": environment()["device"],
        "loads_with_cap": chosen.how_to_load is None,
        "how_to_load": chosen.how_to_load,
        "sentence": _sentence(config.format, speed_up, size, details),
    }


def _logits(model: Callable[[Any], Any], inputs: Batch) -> Tensor:
    if not isinstance(model, PreTrainedModel):
        answer: Tensor = model(inputs)
        return answer
    with evaluating(model):
        output: Tensor = PooledModel(model, "first_token")(inputs).logits
    return output.float()


def _size(source: Source, folder: Path, smaller: PreTrainedModel) -> dict[str, int]:
    dense_file = source.run.folder / MODEL / "model.safetensors"
    cost, dense = (count_cost(model, tokens=128) for model in (smaller, source.model))
    return {
        "bytes": sum(path.stat().st_size for pattern in _WEIGHTS for path in folder.glob(pattern)),
        "dense_bytes": dense_file.stat().st_size,
        "dense_bytes_gzipped": len(gzip.compress(dense_file.read_bytes(), compresslevel=6)),
        "parameters": cost.parameters,
        "dense_parameters": dense.parameters,
        "prunable_parameters": cost.prunable_parameters,
        "dense_prunable_parameters": dense.prunable_parameters,
        "multiply_adds_of_128_tokens": cost.multiply_adds,
        "dense_multiply_adds_of_128_tokens": dense.multiply_adds,
    }


def _setting(latency: Latency) -> str:
    return f"batch={latency.batch_size},tokens={latency.length}"


def _sentence(name: str, speed_up: Mapping[str, float], size: Mapping[str, int], details: Mapping[str, Any]) -> str:
    """Say in words what was gained, above all where nothing was."""
    saved = 1 - size["bytes"] / size["dense_bytes"]
    smaller = (
        f"The weights take {abs(saved):.0%} {'less' if saved >= 0 else 'more'} space on disk than the dense model's"
    )
    if not speed_up:
        return f"{smaller}; latency was not measured."
    best, worst = max(speed_up.values()), min(speed_up.values())
    if best >= _NOTICEABLE:
        return f"{smaller}, and a call runs at {worst:.2f} to {best:.2f} times its speed."
    reason = {
        "sparse": "once loaded it is the dense model again, zeros and all",
        "compact": "zeros inside the units that are left cost as much as any weight",
    }.get(name, "its zeros cost as much as any weight")
    return f"{smaller}, but it is not faster ({best:.2f} times at best): {reason}."


def _scores_again(source: Source, loaded: Callable[[Any], Any]) -> dict[str, float]:
    scores, _ = evaluate(
        _AsPooled(loaded),
        source.data.eval_dataloaders(),
        source.data.metrics(),
        device=torch.device("cpu"),
        description="the export's score",
    )
    return scores


class _AsPooled(PooledModel):
    """Let an evaluation run something that only gives logits."""

    def __init__(self, logits: Callable[[Any], Any]) -> None:
        torch.nn.Module.__init__(self)
        self.logits = logits

    def forward(self, batch: Batch) -> Any:
        logits = self.logits(batch)
        return type("Output", (), {"logits": logits})


def _note_in_run(run: FinishedRun, name: str, result: Mapping[str, Any]) -> None:
    """Add the measurement to the run's record, where tables and pictures find it."""
    kept = {
        key: result[key] for key in ("bytes", "latency_ms", "dense_latency_ms", "speed_up", "check", "scores", "size")
    }
    exports = {
        **run.record.get("exports", {}),
        name: {**kept, "threads": result["threads"], "device": result["device"]},
    }
    write_record(run.folder, {**run.record, "exports": exports})


def _table(result: Mapping[str, Any], target: Path) -> Table:
    size = result["size"]
    table = Table(
        "", "dense", result["format"], caption=f"largest difference of logits {_difference(result)}; {target}"
    )
    table.add_row("MB on disk", f"{size['dense_bytes'] / 1e6:.1f}", f"{size['bytes'] / 1e6:.1f}")
    for name in ("parameters", "prunable_parameters", "multiply_adds_of_128_tokens"):
        table.add_row(name.replace("_", " "), f"{size[f'dense_{name}']:,}", f"{size[name]:,}")
    for setting, milliseconds in result["latency_ms"].items():
        found = f"{milliseconds:.2f} ({result['speed_up'][setting]:.2f} x)"
        table.add_row(f"ms, {setting}", f"{result['dense_latency_ms'][setting]:.2f}", found)
    return table


def _difference(result: Mapping[str, Any]) -> str:
    return f"{result['check']['largest_difference']:.3g} on {result['check']['rows']} rows"


def _write_compact(source: Source, folder: Path) -> dict[str, Any]:
    compacted = compact(source.model)
    save_compact(compacted.model, source.tokenizer, folder)
    _say_what_went(compacted)
    return compacted.for_record()


def _write_sparse(source: Source, folder: Path) -> dict[str, Any]:
    save_sparse(source.model, source.tokenizer, folder)
    return {}


def _write_onnx(source: Source, folder: Path) -> dict[str, Any]:
    compacted = compact(source.model)
    export_onnx(compacted.model, source.inputs, folder / ONNX_FILE)
    source.model.config.save_pretrained(folder)
    source.tokenizer.save_pretrained(folder)
    _say_what_went(compacted)
    return {**compacted.for_record(), "model": compacted.model}


def _write_int8(source: Source, folder: Path) -> dict[str, Any]:
    details = _write_onnx(source, folder)
    float_file = folder / "float32.onnx"
    shutil.move(folder / ONNX_FILE, float_file)
    quantise_onnx(float_file, folder / ONNX_FILE)
    float_file.unlink()
    return details


def _say_what_went(compacted: Compacted) -> None:
    counts = compacted.for_record()
    heads, ffn = counts["heads"], counts["ffn"]
    log.info(
        "attention heads: %d of %d left; FFN units: %s of %s left",
        heads["after"],
        heads["before"],
        f"{ffn['after']:,}",
        f"{ffn['before']:,}",
    )
    if compacted.note:
        log.warning(compacted.note)


def _load_onnx(folder: Path) -> OnnxModel:
    return OnnxModel(folder / ONNX_FILE)


def _write_plain(source: Source, folder: Path) -> dict[str, Any]:
    save_model(source.model, source.tokenizer, folder)
    return {}


class _OnGpu:
    """Run a 2:4 model on the GPU, with inputs and logits on the CPU."""

    def __init__(self, folder: Path) -> None:
        self.model = to_semi_structured(load(folder))

    def __call__(self, batch: Batch) -> Tensor:
        return _logits(self.model, {name: value.cuda() for name, value in batch.items()}).cpu()


def _beside_half(source: Source, loaded: Any) -> tuple[dict[str, Any], torch.device]:
    """Time against the dense model in the same precision on the same device."""
    dense = copy.deepcopy(source.model).half().cuda().eval()
    return {"dense": dense, "export": loaded.model}, torch.device("cuda")


_RUN_SEMI_STRUCTURED = """import cap
from cap.models.semi_structured import to_semi_structured

model = to_semi_structured(cap.load("{folder}"))"""
_RUN_ONNX = """import onnxruntime
from transformers import AutoTokenizer

session, tokenizer = onnxruntime.InferenceSession("{folder}/model.onnx"), AutoTokenizer.from_pretrained("{folder}")
logits = session.run(None, dict(tokenizer(["a text"], return_tensors="np")))[0]"""

FORMATS: dict[str, Format] = {
    "compact": Format(write=_write_compact, load=load, tolerance=1e-5),
    "sparse": Format(write=_write_sparse, load=load, tolerance=0.0),
    "onnx": Format(
        write=_write_onnx, load=_load_onnx, tolerance=1e-5, how_to_load=_RUN_ONNX, require=lambda source: require_onnx()
    ),
    "semi_structured": Format(
        write=_write_plain,
        load=_OnGpu,
        tolerance=None,
        beside=_beside_half,
        how_to_load=_RUN_SEMI_STRUCTURED,
        require=lambda source: require_semi_structured(source.model),
    ),
    "int8": Format(
        write=_write_int8, load=_load_onnx, tolerance=None, how_to_load=_RUN_ONNX, require=lambda source: require_onnx()
    ),
}

main = door(export, config_name="export", schema=ExportConfig)

if __name__ == "__main__":
    main()
