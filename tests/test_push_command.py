"""``python -m cap.push`` from the door to what the Hub was sent."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import yaml

from cap.base import network
from cap.base.errors import InputError
from tests.hub_stub import TOKEN, HubStub, hub_stub
from tests.runs.made_cards import EXPORT, RECORD

HOME = "/home/some.body"
PATHS = {
    "data_dir": None,
    "output_dir": f"{HOME}/runs/a",
    "cache_dir": f"{HOME}/cache",
    "teacher": f"{HOME}/my models/teacher",
    "model": {"name_or_path": f"{HOME}/base", "package": None, "revision": None},
}
MODEL = ["README.md", "config.json", "model.safetensors", "record.json", "tokenizer.json"]


def push(*overrides: str) -> None:
    import cap.push
    from tests.composing import composer

    cap.push.push(composer("push")(*overrides))


def write_model(folder: Path) -> None:
    folder.mkdir(parents=True)
    config = {"architectures": ["BertForSequenceClassification"], "model_type": "bert"}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / "tokenizer.json").write_text('{"vocab": {"/home": 0}}', encoding="utf-8")
    (folder / "README.md").write_text("the card of the folder", encoding="utf-8")
    (folder / "optimizer.pt").write_bytes(b"state")
    (folder / ".notes.json").write_text("{}", encoding="utf-8")
    (folder / "checkpoints").mkdir()


def write_run(folder: Path, **changed: Any) -> Path:
    """Make up a finished run that has typed paths of this machine in many places."""
    record = copy.deepcopy(RECORD) | {
        "status": "completed",
        "config_hash": "abc",
        "command": f"python -m cap.train task=sst2 output_dir={HOME}/runs/a teacher='{HOME}/my models/teacher'",
        "warnings": [f"The teacher in {HOME}/t has 3 / 4 of it, see https://x.org/y."],
    }
    record["config"] |= PATHS
    write_model(folder / "model")
    (folder / "record.json").write_text(json.dumps(record | changed), encoding="utf-8")
    return folder


@pytest.fixture
def run(tmp_path) -> Path:
    return write_run(tmp_path / "a")


@pytest.fixture
def export(tmp_path) -> Path:
    """Make up a compact export of the run."""
    write_model(tmp_path / "small")
    result = EXPORT | {"run": "abc"}
    (tmp_path / "small" / "export.json").write_text(json.dumps(result), encoding="utf-8")
    return tmp_path / "small"


@pytest.fixture
def hub(monkeypatch):
    """Be the Hub, for this process's own libraries."""
    for name in ("http", "https", "all"):
        monkeypatch.delenv(f"{name}_proxy", raising=False)
        monkeypatch.delenv(f"{name.upper()}_PROXY", raising=False)
    network._answers.cache_clear()
    with hub_stub() as server:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", server.address)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        yield server


def files(hub: HubStub, name: str = "me/mine") -> dict[str, bytes]:
    return hub.repositories[name]["files"]


def card(content: bytes) -> tuple[dict[str, Any], str]:
    """Take a card apart: what stands above it, and its text."""
    _, above, text = content.decode().split("---\n", maxsplit=2)
    return yaml.safe_load(above), text


def test_a_push_makes_a_private_repository_of_the_model_its_card_and_its_record(hub, run):
    push(f"run={run}", "repo=mine")
    assert sorted(files(hub)) == MODEL
    assert files(hub)["model.safetensors"] == b"weights"
    assert [asked.get("visibility") for asked in hub.created] == ["private"]
    assert hub.repositories["me/mine"]["commits"] == ["Push package some-encoder at sparsity 0.9000"]


def test_only_who_says_so_makes_a_public_repository(hub, run):
    push(f"run={run}", "repo=me/mine", "private=false")
    assert hub.repositories["me/mine"]["private"] is False


def test_pushing_again_is_another_commit(hub, run):
    push(f"run={run}", "repo=mine")
    push(f"run={run}", "repo=mine")
    assert len(hub.repositories["me/mine"]["commits"]) == 2


def test_a_public_repository_is_not_pushed_to_unless_asked_and_stays_public(hub, run):
    hub.add("me/mine", private=False)
    with pytest.raises(InputError, match="which is public; give private=false"):
        push(f"run={run}", "repo=mine")
    assert (files(hub), hub.repositories["me/mine"]["private"]) == ({}, False)


def test_the_weights_of_another_format_go_and_other_files_stay(hub, run):
    theirs = {"LICENSE": b"mine", "onnx/model.onnx": b"theirs"}
    hub.add("me/mine", private=True, **theirs, **{"model.onnx": b"old", "export.json": b"old"})
    push(f"run={run}", "repo=mine")
    assert sorted(files(hub)) == sorted([*MODEL, *theirs])


def test_the_metadata_of_the_card_hold_the_scores_and_the_data(hub, run):
    push(f"run={run}", "repo=mine", "licence=apache-2.0")
    above, text = card(files(hub)["README.md"])
    assert (above["license"], above["datasets"], above["pipeline_tag"]) == (
        "apache-2.0",
        ["nyu-mll/glue"],
        "text-classification",
    )
    (index,) = above["model-index"]
    (result,) = index["results"]
    assert index["name"] == "mine"
    assert result["dataset"] == {"type": "nyu-mll/glue", "name": "sst2", "config": "sst2", "split": "validation"}
    assert result["metrics"] == [{"type": "accuracy", "value": 0.81, "name": "accuracy"}]
    assert 'from_pretrained("me/mine")' in text
    assert "Terms: those of the Stanford Sentiment Treebank and GLUE." in text


def test_what_is_unknown_of_licence_and_data_is_said(hub, tmp_path):
    config = RECORD["config"] | PATHS | {"data_dir": f"{HOME}/rows"}
    push(f"run={write_run(tmp_path / 'own', config=config)}", "repo=mine")
    above, text = card(files(hub)["README.md"])
    assert (above["license"], above.get("datasets")) == ("unknown", None)
    assert "Terms: unknown." in text
    assert "Of this model: unknown. Of the pre-trained model, from its own card: unknown." in text


def test_the_licence_is_that_of_the_pretrained_models_own_card(hub, tmp_path):
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "README.md").write_text("---\nlicense: mit\n---\n", encoding="utf-8")
    config = RECORD["config"] | PATHS | {"model": {"name_or_path": str(tmp_path / "base"), "package": None}}
    push(f"run={write_run(tmp_path / 'own', config=config)}", "repo=mine", "data_terms=those of my firm")
    above, text = card(files(hub)["README.md"])
    assert above["license"] == "mit"
    assert "Terms: those of my firm." in text


def test_a_package_that_only_a_record_names_is_not_imported(hub, tmp_path, monkeypatch):
    (tmp_path / "of_a_stranger.py").write_text("raise SystemExit('imported')\n", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    config = RECORD["config"] | PATHS | {"model": {"name_or_path": None, "package": "of_a_stranger"}}
    push(f"run={write_run(tmp_path / 'own', config=config)}", "repo=mine")
    assert "Of the pre-trained model, from its own card: unknown." in card(files(hub)["README.md"])[1]


def test_an_export_is_pushed_with_the_record_of_its_run_and_a_card_of_its_own(hub, run, export):
    push(f"run={run}", f"export={export}", "repo=mine")
    assert sorted(files(hub)) == sorted([*MODEL, "export.json"])
    above, text = card(files(hub)["README.md"])
    assert "library_name" not in above
    assert "Beside the folder that `hf download me/mine --local-dir mine` makes" in text
    assert 'cap.load("mine")' in text


@pytest.mark.parametrize("pushed", ["model", "export"])
def test_no_path_of_this_machine_leaves_it(hub, run, export, pushed):
    push(f"run={run}", "repo=mine", *([f"export={export}"] if pushed == "export" else []))
    told = {name: content.decode() for name, content in files(hub).items() if name != "tokenizer.json"}
    assert not [name for name, text in told.items() if "some.body" in text or "/home" in text]
    assert json.loads(told["record.json"])["config"]["teacher"] == "teacher"
    assert files(hub)["tokenizer.json"] == b'{"vocab": {"/home": 0}}'


def test_folders_that_a_sentence_encoder_names_are_pushed_with_it(hub, run):
    (run / "model" / "modules.json").write_text('[{"path": ""}, {"path": "1_Pooling"}]', encoding="utf-8")
    (run / "model" / "1_Pooling").mkdir()
    (run / "model" / "1_Pooling" / "config.json").write_text("{}", encoding="utf-8")
    push(f"run={run}", "repo=mine")
    assert sorted(files(hub)) == sorted([*MODEL, "modules.json", "1_Pooling/config.json"])


def test_a_dry_run_asks_the_hub_nothing_and_writes_the_folder(run, tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    push(f"run={run}", "repo=me/mine", "dry_run=true", f"output_dir={tmp_path / 'seen'}")
    assert sorted(path.name for path in (tmp_path / "seen").iterdir()) == MODEL


def test_a_machine_without_a_token_is_told_where_to_get_one(hub, run, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", "nowhere")
    with pytest.raises(InputError, match="needs a token that may write, got none; run `hf auth login`"):
        push(f"run={run}", "repo=mine")


@pytest.mark.parametrize(("token", "repo"), [("hf_other", "mine"), (TOKEN, "yours/mine")], ids=["unknown", "not mine"])
def test_a_token_that_the_hub_refuses_is_said(hub, run, monkeypatch, token, repo):
    monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(InputError, match="got one that the Hub refuses"):
        push(f"run={run}", f"repo={repo}")


@pytest.mark.parametrize(
    ("constant", "value", "said"),
    [
        ("ENDPOINT", "http://127.0.0.1:9", "got no connection to http://127.0.0.1:9"),
        ("HF_HUB_OFFLINE", True, "got HF_"),
    ],
    ids=["refused", "offline"],
)
def test_a_machine_without_the_hub_is_told_of_the_dry_run(hub, run, monkeypatch, constant, value, said):
    monkeypatch.setattr(huggingface_hub.constants, constant, value)
    with pytest.raises(InputError, match=f"{said}.*dry_run=true writes the folder"):
        push(f"run={run}", "repo=mine")


def test_an_export_given_as_the_run_is_recognised(hub, export):
    with pytest.raises(InputError, match="an export; give the run, and export="):
        push(f"run={export}", "repo=mine")


def test_masks_on_a_base_of_this_machine_are_refused(hub, tmp_path, export):
    result = json.loads((export / "export.json").read_text(encoding="utf-8"))
    (export / "export.json").write_text(json.dumps(result | {"format": "masks"}), encoding="utf-8")
    with pytest.raises(
        InputError, match=r"others must be able to load, got one in the folder base of this machine; push the run's"
    ):
        push(f"run={write_run(tmp_path / 'own', model='folder base')}", f"export={export}", "repo=mine")


def test_a_folder_without_a_model_is_refused(hub, run):
    (run / "model" / "config.json").unlink()
    with pytest.raises(InputError, match=r"a model has a config.json, got .* without one"):
        push(f"run={run}", "repo=mine")


def test_an_export_of_another_run_is_refused(hub, tmp_path, export):
    other = write_run(tmp_path / "other", config_hash="def")
    with pytest.raises(InputError, match=r"of another run \(abc\)"):
        push(f"run={other}", f"export={export}", "repo=mine")
