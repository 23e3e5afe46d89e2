"""Fixtures shared by all tests: a tiny model, a tiny data set, a composed configuration."""

from __future__ import annotations

import gc
import json
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
from jaxtyping import install_import_hook

gc.disable()  # until all is imported that tests share

PACKAGE = Path(__file__).parent.parent / "cap"
# Shapes are checked at every call in the modules that declare some. Types alone are mypy's: to check them at every call
# in all modules took a third of the time of a tiny run.
WITH_SHAPES = [
    ".".join(file.relative_to(PACKAGE.parent).with_suffix("").parts)
    for file in sorted(PACKAGE.rglob("*.py"))
    if "from jaxtyping import" in file.read_text(encoding="utf-8")
]
install_import_hook(WITH_SHAPES, "beartype.beartype")

NICE = ["good", "fine", "great", "lovely"]
NASTY = ["bad", "poor", "awful", "ugly"]
THINGS = ["film", "book", "play", "song", "plot", "cast", "idea", "scene"]
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "a", "is", "very", *NICE, *NASTY, *THINGS]


def pytest_collection_finish(session: pytest.Session) -> None:
    """Let the garbage collector work again, and leave aside what was imported: an eighth of the time went into that."""
    gc.collect()
    gc.freeze()
    gc.enable()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> object:
    """Let the workers share the tests out as tests/scheduling.py says."""
    from tests.scheduling import TogetherScheduling

    return TogetherScheduling(config, log)


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    # Two workers on two cores: more threads than that only wait for each other.
    import torch

    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def log_as_it_was() -> Iterator[None]:
    """Give the logs back as they were, and refuse a test that leaves a run's log file open.

    Doors that run in this process set the logs up for a terminal that is closed when the test ends; and to a log file
    that is left with the logger later tests would write.
    """
    root, own = logging.getLogger(), logging.getLogger("cap")
    loggers = [own, *map(logging.getLogger, ("lightning.pytorch", "lightning.pytorch.profilers", "lightning.fabric"))]
    before = [(logger, list(logger.handlers), logger.propagate) for logger in loggers]
    levels = root.level, own.level
    yield
    left = [handler for handler in own.handlers if isinstance(handler, logging.FileHandler)]
    for logger, handlers, propagate in before:
        logger.handlers[:], logger.propagate = handlers, propagate
    # Those of pytest are of classes of their own.
    root.handlers[:] = [handler for handler in root.handlers if type(handler) is not logging.StreamHandler]
    root.setLevel(levels[0])
    own.setLevel(levels[1])
    for handler in left:
        handler.close()
    assert not left, f"the test left {left[0].baseFilename} open"


def save_bert(folder: Path, words: list[str]) -> Path:
    """Save a 2-layer BERT with random weights and a tokenizer of some words, as a pre-trained model would be saved."""
    import torch
    from transformers import BertConfig, BertForPreTraining, BertTokenizerFast

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=128,
    )
    bert = BertForPreTraining(config).bert
    torch.nn.init.normal_(bert.pooler.dense.bias, std=0.02)  # a pooler whose bias is all zero was never trained
    bert.save_pretrained(folder)
    BertTokenizerFast(vocab={word: i for i, word in enumerate(words)}, model_max_length=128).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory) -> Path:
    """Save a model that knows whole words alone."""
    return save_bert(tmp_path_factory.mktemp("tiny") / "model", WORDS)


@pytest.fixture(scope="session")
def sparse_model(tiny_model, tmp_path_factory) -> Path:
    """Save the tiny model with six of ten weights in every matrix of its layers set to zero."""
    from transformers import AutoModel, AutoTokenizer

    from cap.models.families import prunable
    from cap.pruning.magnitude import Magnitude

    folder = tmp_path_factory.mktemp("sparse") / "model"
    model, pruner = AutoModel.from_pretrained(tiny_model), Magnitude()
    pruner.attach(prunable(model), seed=0)
    pruner.update_masks(0.6)
    pruner.fold()
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def spelling_model(tmp_path_factory) -> Path:
    """Save a model that can spell other words."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = list(dict.fromkeys([*WORDS, *letters, *(f"##{letter}" for letter in letters)]))
    return save_bert(tmp_path_factory.mktemp("spelling") / "model", words)


def sentences(n_rows: int, *, seed: int) -> list[dict[str, object]]:
    """Make up sentences whose label is whether their adjective is nice."""
    import random

    draw = random.Random(seed)
    rows = []
    for row in range(n_rows):
        label = row % 2
        adjective = draw.choice(NICE if label else NASTY)
        rows.append(
            {"sentence": f"the {draw.choice(THINGS)} is {'very ' * draw.randrange(3)}{adjective}", "label": label}
        )
    return rows


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory) -> Path:
    """Write 32 training and 16 validation sentences in SST-2's columns."""
    folder = tmp_path_factory.mktemp("data") / "sst2"
    folder.mkdir()
    for split, n_rows, seed in (("train", 32, 0), ("validation", 16, 1)):
        lines = [json.dumps(row) for row in sentences(n_rows, seed=seed)]
        (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def compose_config():
    """Compose conf/train.yaml with overrides, as the command line would."""
    from tests.composing import composer

    return composer()


@pytest.fixture
def pictures() -> None:
    """Let the runs of a test draw their pictures."""


@pytest.fixture
def tiny_overrides(request, monkeypatch, tiny_model, tiny_data, tmp_path) -> list[str]:
    """Choose the tiny model and data, a run folder of its own, and a run of a few steps.

    Runs in this process draw no pictures but where a test asks for them: they take half of the time of such a run.
    """
    if "pictures" not in request.fixturenames:
        monkeypatch.setattr("cap.runs.page._draw_pictures", lambda run_dir, record: None)
    return [
        "task=sst2",
        f"data_dir={tiny_data}",
        f"model.name_or_path={tiny_model}",
        f"output_dir={tmp_path / 'run'}",
        f"cache_dir={tmp_path / 'cache'}",
        "max_length=32",
        "batch_size=8",
        "learning_rate=1e-3",
        "finetune.learning_rate=1e-3",
        "finetune.max_epochs=1",
        "trainer.max_epochs=2",
        "trainer.log_every_n_steps=1",
        "trainer.enable_progress_bar=false",
        "trainer.accelerator=cpu",
        "contrast.snapshot_count=2",
    ]
