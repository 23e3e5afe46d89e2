"""What ``import cap`` offers."""

from __future__ import annotations

import subprocess
import sys

import pytest
import yaml

import cap


def test_import_is_cheap_and_lists_its_names():
    program = (
        "import sys, cap; assert set(cap.__all__) <= set(dir(cap)); "
        "print([name for name in ('torch', 'transformers', 'lightning', 'numpy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=600)
    assert (done.stdout.strip(), done.returncode) == ("[]", 0), done.stderr


@pytest.mark.parametrize("name", cap.__all__)
def test_name_is_what_its_module_says(name):
    value = getattr(cap, name)
    assert (value.__name__, value.__module__) == (name, cap._HOME[name])


def test_table_and_listed_names_agree():
    assert sorted(cap._HOME) == sorted(cap.__all__)


def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'Cubik'"):
        cap.Cubik  # noqa: B018


def values_of(path: str, leave_out: set[str]) -> dict[str, object]:
    from cap.launch.cli import conf_dir

    values = yaml.safe_load((conf_dir() / path).read_text(encoding="utf-8"))
    values = values.get("pruning", values)
    return {key: value for key, value in values.items() if key not in leave_out and not key.startswith("_")}


@pytest.mark.parametrize(
    "name",
    [
        *("Magnitude", "Movement", "SoftMovement", "FirstOrder", "SecondOrder", "Platon", "Random", "StaticScores"),
        *("Structured", "Layers"),
    ],
)
def test_pruner_has_the_defaults_of_conf(name):
    home = cap._HOME[name].rpartition(".")[2]
    # Not the pruner's own: its name, when the callback moves masks, what is frozen, a table that cap.train looks up.
    others = {"name", "every_n_steps", "freezes", "regularizer_weights", "final_sparsity"}
    wanted = values_of(f"pruning/{home}.yaml", others)
    pruner_type = getattr(cap, name)
    needs_target = name in ("SoftMovement", "StaticScores", "Structured", "Layers")
    pruner = pruner_type(final_sparsity=0.5) if needs_target else pruner_type()
    found = {key: getattr(pruner, key) for key in wanted}
    # YAML 1.1 reads 1e-2 as a string, as OmegaConf does not.
    assert found == {key: float(value) if value == "1e-2" else value for key, value in wanted.items()}


@pytest.mark.parametrize("name", ["Cubic", "Stepwise", "OneShot"])
def test_schedule_has_the_defaults_of_conf(name):
    # cap.train alone restarts learning rates and optimizers, and sets the length of a run.
    of_train = {"sparsity", "rewind", "rewind_warmup", "restart_optimizer", "epochs_per_level"}
    wanted = values_of(f"schedule/{name.lower()}.yaml", of_train)
    plan = getattr(cap, name)(sparsity=0.5)
    assert {key: getattr(plan, key) for key in wanted} == wanted
