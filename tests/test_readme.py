from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
RECORDS = ROOT / "benchmarks" / "records"


@pytest.mark.parametrize("page", ["README.md", "benchmarks/README.md", "docs/long_runs.md", "docs/method.md"])
def test_tables_are_what_the_committed_measurements_say(page):
    from benchmarks.results_table import tables

    text = (ROOT / page).read_text(encoding="utf-8")
    found = tables(ROOT, page)
    assert found
    assert [text.partition(begin)[2].partition(end)[0].strip() for (begin, end), _ in found] == [t for _, t in found]


def test_committed_records_are_complete_and_hold_no_absolute_path():
    # In one test: a bake-off may write another one while the workers collect.
    found = [path for pattern in ("*.json", "bake_off/*.json") for path in RECORDS.glob(pattern)]
    records = {path.name: path.read_text(encoding="utf-8") for path in found}
    assert records
    assert [name for name, text in records.items() if json.loads(text)["status"] != "completed"] == []
    assert [name for name, text in records.items() if re.search(r'"/\w', text)] == []


def test_readme_stays_under_200_lines_and_its_links_lead_somewhere():
    assert len(README.splitlines()) < 200
    links = re.findall(r"\]\(([^)#:]+)\)", README)
    assert links
    assert all((ROOT / link).exists() for link in links)


def test_docs_list_every_family():
    from cap.models.families import FAMILIES

    families = (
        (ROOT / "docs" / "pruning.md").read_text(encoding="utf-8").partition("## Families")[2].partition("## ")[0]
    )
    rows = [line.split("|")[1] for line in families.splitlines() if line.startswith("| `")]
    assert sorted(re.findall(r"`([^`]+)`", " ".join(rows))) == sorted([*FAMILIES, "model_type"])


# What a file of conf/ says about itself or takes from another key; a user sets the key that is listed in its place.
OF_CONF_ALONE = {
    "task.name",
    "task.max_length",
    "model.package",
    "model.sha256",
    "schedule.name",
    "schedule.sparsity",
    "pruning.name",
    "pruning.freezes",
    "pruning.final_sparsity",
    "pruning.regularizer_weights",
    "contrast.default_weights",
}


def keys_of_conf() -> set[str]:
    """List the keys of conf/train.yaml and of its groups, but for those of Lightning's own classes."""
    import yaml

    def flat(content: dict[str, object], prefix: str) -> set[str]:
        found = set()
        for key, value in content.items():
            name = f"{prefix}{key}"
            if key in ("defaults", "hydra", "_target_") or name == "trainer":
                continue
            found |= flat(value, f"{name}.") if isinstance(value, dict) and name not in OF_CONF_ALONE else {name}
        return found

    keys = flat(yaml.safe_load((ROOT / "conf" / "train.yaml").read_text(encoding="utf-8")), "")
    for group in ("contrast", "distill", "finetune", "model", "pruning", "schedule", "task"):
        for file in (ROOT / "conf" / group).glob("*.yaml"):
            text = file.read_text(encoding="utf-8")
            keys |= flat(yaml.safe_load(text), "" if "@package _global_" in text else f"{group}.")
    return keys


def test_docs_list_every_key():
    listed = set()
    for line in (ROOT / "docs" / "keys.md").read_text(encoding="utf-8").splitlines():
        group = ""
        for quoted in re.findall(r"`([^`]+)`", line):
            key = quoted.partition("=")[0]
            listed.add(group + key if key.startswith(".") else key)
            group = group if key.startswith(".") else key.rpartition(".")[0] or key
    assert keys_of_conf() - OF_CONF_ALONE - listed == set()


def test_docs_list_the_columns_of_every_task():
    from cap.data.tasks import TASKS

    keys = (ROOT / "docs" / "keys.md").read_text(encoding="utf-8").partition("## Columns")[2].partition("## ")[0]
    listed = {}
    for line in keys.splitlines():
        if line.startswith("| `"):
            names, texts, answer = (re.findall(r"`([^`]+)`", cell) for cell in line.split("|")[1:4])
            listed |= {name: (tuple(texts), answer[0] if answer else "") for name in names}
    fixed = {name: (task.text_columns, task.label_column) for name, task in TASKS.items() if task.hub_path is not None}
    assert {name: listed.get(name) for name in fixed} == fixed


@pytest.mark.parametrize(
    "command", re.findall(r"^python -m cap\.(?:train|finetune) ([^#\n]*)", README, flags=re.MULTILINE)
)
def test_readmes_commands_pass_the_rules(compose_config, command):
    from cap.config.check import check
    from cap.training.ready import make_ready

    # The first value of each that a grid names; commas in brackets belong to a list.
    overrides = [re.split(r",(?![^\[]*\])", word)[0] for word in shlex.split(command) if "=" in word]
    assert make_ready(check(compose_config(*overrides))).hash
