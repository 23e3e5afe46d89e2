from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.data.questions import question_columns
from tests.hub_cache import DATASET_REVISION, hub_environment, make_hub_dataset, make_hub_model

# The cache's folder and the switch that keeps the network out are read at import: another process has to.
LOAD = """
import json
from transformers import AutoModel, AutoTokenizer
from cap.data.sources import load_rows
from cap.data.tasks import get_task
from cap.base.errors import InputError
found = {}
qqp = load_rows(get_task("qqp"), data_dir=None, max_train_rows=2, max_eval_rows=None)
found["qqp"] = {"source": qqp.source, **{split: part[:] for split, part in qqp.splits.items()}}
squad = load_rows(get_task("squad"), data_dir=None, max_train_rows=None, max_eval_rows=None)
train = squad.splits["train"]
found["squad"] = {"source": squad.source, "answers": train["answers"][:], "starts": train["answer_starts"][:]}
try:
    load_rows(get_task("mrpc"), data_dir=None, max_train_rows=2, max_eval_rows=None)
except InputError as error:
    found["mrpc"] = str(error)
name = "google-bert/bert-base-uncased"
model, tokenizer = AutoModel.from_pretrained(name), AutoTokenizer.from_pretrained(name)
found["model"] = [type(model).__name__, tokenizer("cat")["input_ids"]]
print(json.dumps(found))
"""
COLUMNS = {"question1": ["NA", "b", ""], "question2": ["d", "None", "f"], "label": [1, 0, 1], "idx": [7, 8, 9]}


@pytest.fixture(scope="module")
def answer(tmp_path_factory, tokenizer) -> tuple[dict, str]:
    """Read two data sets and a model from a cache, and ask for a data set that is not in it; give answers and log."""
    from transformers import BertConfig, BertModel

    home, saved = tmp_path_factory.mktemp("home"), tmp_path_factory.mktemp("saved")
    hidden = COLUMNS | {"label": [-1, -1, -1]}
    splits = {"train": COLUMNS, "validation": COLUMNS, "test": hidden}
    make_hub_dataset(home, splits, class_names={"label": ["not_duplicate", "duplicate"]})
    questions = question_columns(id=[str(row) for row in range(12)])
    splits = {"train": questions, "validation": questions}
    make_hub_dataset(home, splits, path="rajpurkar/squad", config="plain_text")
    shape = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    BertModel(BertConfig(vocab_size=len(tokenizer), **shape)).save_pretrained(saved)
    tokenizer.save_pretrained(saved)
    make_hub_model(home, saved)
    environment = hub_environment(home, PYTHONPATH=str(Path(__file__).parents[2]))
    command = [sys.executable, "-c", LOAD]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=300)
    return json.loads(done.stdout), done.stderr


@pytest.mark.ends
def test_rows_come_from_a_cache_without_a_network(answer) -> None:
    rows, log = answer[0]["qqp"], answer[1]
    assert rows["source"] == f"hub nyu-mll/glue qqp at {DATASET_REVISION}"
    assert rows["train"] == {
        "question1": ["NA", "b"],
        "question2": ["d", "None"],
        "label": [1, 0],
        "example_id": [0, 1],
    }
    assert rows["validation"]["question1"] == ["NA", "b", ""]
    assert "examples/s" not in log


@pytest.mark.ends
def test_the_only_configuration_of_a_data_set_needs_no_name(answer) -> None:
    found, columns = answer[0]["squad"], question_columns()
    assert found["source"] == f"hub rajpurkar/squad at {DATASET_REVISION}"
    assert found["answers"] == [columns["answers"][row]["text"] for row in range(12)]
    assert found["starts"] == [columns["answers"][row]["answer_start"] for row in range(12)]


@pytest.mark.ends
def test_not_cached_and_no_network_says_both_ways_forward(answer) -> None:
    said = answer[0]["mrpc"]
    assert "needs the data set nyu-mll/glue mrpc" in said
    assert "data_dir=DIR with train.parquet, validation.parquet" in said
    assert "HF_HOME=DIR python -c" in said


def test_no_network_is_noticed_without_the_offline_switch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import datasets
    import huggingface_hub

    from cap.base import network
    from cap.base.errors import InputError
    from cap.data import hub
    from cap.data.tasks import get_task

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    # Port 9 of this machine refuses at once.
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(network.urllib.request, "getproxies", lambda: {"no": "localhost"})
    network._answers.cache_clear()
    with pytest.raises(InputError, match="neither the Hub nor the local cache"):
        hub.read_hub(get_task("qqp"))
    assert "does not answer" in caplog.text
    assert datasets.config.HF_HUB_OFFLINE is False


def test_a_connection_that_breaks_says_both_ways_forward(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    import datasets
    from huggingface_hub.errors import HfHubHTTPError

    from cap.base.errors import InputError
    from cap.data import hub
    from cap.data.tasks import get_task

    # httpx, or httpx2 since huggingface_hub 2.
    client = sys.modules[HfHubHTTPError.__mro__[1].__module__.partition(".")[0]]

    def break_off(*_: object) -> None:
        raise client.ReadError("connection reset")

    monkeypatch.setattr(datasets, "load_dataset", break_off)
    with pytest.raises(InputError, match=r"neither the Hub nor the local cache(.|\n)*HF_HOME=DIR python -c"):
        hub.read_hub(get_task("qqp"))


@pytest.mark.ends
def test_a_model_comes_from_a_cache_without_a_network(answer, tokenizer) -> None:
    assert answer[0]["model"] == ["BertModel", tokenizer("cat")["input_ids"]]
