from __future__ import annotations

import itertools
import math
from pathlib import Path

import pytest
import yaml

FOLDER = Path(__file__).parents[2] / "sweeps"
TASKS = ["qqp", "mnli", "sst2", "squad"]
KINDS = {"grid": "", "bayes": "_bayes", "ablation": "_ablation"}
FILES = [FOLDER / f"{task}{ending}.yaml" for task in TASKS for ending in KINDS.values()]
SWITCHES = ["contrast.pretrained", "contrast.snapshots", "contrast.finetuned"]
# What a file may hold otherwise than its neighbours of the same kind: the published settings of its task.
OF_TASK = {
    "task",
    "experiment",
    "batch_size",
    "schedule.flat_before",
    "schedule.flat_after",
    "contrast.unsupervised_weight",
    "contrast.anchor_dropout",
    "pruning.regularizer_weight",
}


def read(file: Path) -> dict:
    return yaml.safe_load(file.read_text(encoding="utf-8"))


def values(spec: dict, *, end: str) -> list:
    """List what a parameter can be; of a distribution, one end."""
    return spec["values"] if "values" in spec else [spec[end] if end in spec else spec["value"]]


def combinations(file: Path) -> list[list[str]]:
    """List the runs of a sweep with the first of its seeds, as the arguments that an agent writes."""
    parameters = without(read(file)["parameters"], "seed")
    ends = ["min", "max"] if any("min" in spec for spec in parameters.values()) else ["value"]
    runs = []
    for end in ends:
        choices = [[f"{key}={value}" for value in values(spec, end=end)] for key, spec in parameters.items()]
        runs += [list(chosen) for chosen in itertools.product(*choices)]
    return runs


def name_of(arguments: list[str], file: Path) -> str:
    swept = [key for key, spec in read(file)["parameters"].items() if "value" not in spec]
    return " ".join([file.stem, *(argument for argument in arguments if argument.partition("=")[0] in swept)])


def searched(task: str, kind: str) -> list[str]:
    parameters = read(FOLDER / f"{task}{KINDS[kind]}.yaml")["parameters"]
    return [key for key, spec in parameters.items() if "min" in spec]


def without(parameters: dict, *keys: str) -> dict:
    return {key: spec for key, spec in parameters.items() if key not in keys}


# Files of one kind differ only in their task (see below): of the other tasks the first and the last run are enough.
RUNS = [
    pytest.param(run, id=name_of(run, file))
    for file in FILES
    for runs in [combinations(file)]
    for run in (runs if file.stem.startswith("qqp") else [runs[0], runs[-1]])
]


def test_every_task_has_a_file_of_each_kind_and_there_is_no_other():
    assert sorted(FOLDER.glob("*.yaml")) == sorted(FILES)


@pytest.mark.parametrize("arguments", RUNS)
def test_every_run_that_a_sweep_can_produce_passes_the_rules(compose_config, arguments):
    from cap.config.check import check
    from cap.training.ready import make_ready

    assert make_ready(check(compose_config(*arguments))).hash


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_key_is_one_that_can_be_set(file):
    from cap.launch.cli import known_keys

    assert set(read(file)["parameters"]) <= known_keys()


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_command_is_the_door_with_hydras_syntax(file):
    sweep = read(file)
    assert sweep["program"] == "cap.train"
    assert sweep["command"] == ["${env}", "python", "-m", "${program}", "${args_no_hyphens}"]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_metric_is_the_final_score_that_the_task_is_monitored_by(file):
    from cap.data.tasks import get_task

    sweep = read(file)
    task = get_task(sweep["parameters"]["task"]["value"])
    assert sweep["metric"] == {"name": f"final/{task.monitored}", "goal": "maximize"}


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_runs_are_logged_in_the_project_of_the_sweep(compose_config, file):
    sweep = read(file)
    assert sweep["parameters"]["logger"] == {"value": "wandb"}
    assert sweep["project"] == compose_config("logger=wandb").logger.project


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_runs_that_were_interrupted_go_on(file):
    assert read(file)["parameters"]["resume"] == {"value": True}


@pytest.mark.parametrize("task", TASKS)
def test_first_words_of_a_grid_state_its_number_of_runs(task):
    file = FOLDER / f"{task}.yaml"
    parameters = read(file)["parameters"]
    assert {"sparsity", "pruning", "contrast", "seed"} == {key for key, spec in parameters.items() if "values" in spec}
    n_runs = math.prod(len(spec.get("values", [None])) for spec in parameters.values())
    assert f" {n_runs} runs" in file.read_text(encoding="utf-8")


@pytest.mark.parametrize("task", TASKS)
def test_search_is_over_logarithms_and_ends(task):
    file = FOLDER / f"{task}_bayes.yaml"
    sweep = read(file)
    searched = [spec for spec in sweep["parameters"].values() if "min" in spec]
    assert {spec["distribution"] for spec in searched} == {"log_uniform_values"}
    assert f" {sweep['run_cap']} runs" in file.read_text(encoding="utf-8")


@pytest.mark.parametrize("task", TASKS)
def test_search_covers_the_published_values(compose_config, task):
    from omegaconf import OmegaConf

    parameters = read(FOLDER / f"{task}_bayes.yaml")["parameters"]
    published = compose_config(f"task={task}", f"experiment={parameters['experiment']['value']}")
    searched = {key: spec for key, spec in parameters.items() if "min" in spec}
    outside = [k for k, spec in searched.items() if not spec["min"] < OmegaConf.select(published, k) < spec["max"]]
    assert not outside


@pytest.mark.parametrize("task", TASKS)
def test_ablation_has_every_combination_of_the_terms_once(task):
    file = FOLDER / f"{task}_ablation.yaml"
    parameters = read(file)["parameters"]
    assert {*SWITCHES, "seed"} == {key for key, spec in parameters.items() if "values" in spec}
    assert all(sorted(parameters[switch]["values"]) == [False, True] for switch in SWITCHES)
    n_runs = 2 ** len(SWITCHES) * len(parameters["seed"]["values"])
    assert f" {n_runs} runs" in file.read_text(encoding="utf-8")


@pytest.mark.parametrize("task", TASKS)
def test_ablation_with_all_terms_off_is_contrast_none(compose_config, task):
    from cap.config.check import check

    all_off = combinations(FOLDER / f"{task}_ablation.yaml")[-1]
    others = [argument for argument in all_off if argument.partition("=")[0] not in SWITCHES]
    assert check(compose_config(*all_off)).hash == check(compose_config(*others, "contrast=none")).hash


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("kind", KINDS)
def test_settings_are_the_published_ones(compose_config, task, kind):
    from cap.config.check import check

    recipe = f"cap_{'movement' if kind == 'grid' else 'soft_movement'}{'_squad' if task == 'squad' else ''}"
    swept = check(compose_config(*combinations(FOLDER / f"{task}{KINDS[kind]}.yaml")[0])).resolved
    published = check(compose_config(f"task={task}", f"experiment={recipe}")).resolved
    contrast = without(swept["contrast"], *[key.removeprefix("contrast.") for key in searched(task, kind)])
    assert contrast.items() <= published["contrast"].items()
    assert without(swept["schedule"], "sparsity") == without(published["schedule"], "sparsity")
    alike = ["task", "distill", "finetune", "trainer", "batch_size", "learning_rate", "weight_decay", "max_length"]
    assert {key: swept[key] for key in alike} == {key: published[key] for key in alike}


@pytest.mark.parametrize("task", TASKS[1:])
@pytest.mark.parametrize("kind", KINDS)
def test_files_of_one_kind_differ_only_in_what_belongs_to_the_task(task, kind):
    first, other = read(FOLDER / f"qqp{KINDS[kind]}.yaml"), read(FOLDER / f"{task}{KINDS[kind]}.yaml")
    alike = ["program", "project", "method", "run_cap", "command"]
    assert [other.get(key) for key in alike] == [first.get(key) for key in alike]
    # Spans are no classes: there are no positives by label to weigh.
    of_task = [key for key in OF_TASK if key not in searched("qqp", kind)] + ["contrast.supervised_weight"]
    assert without(other["parameters"], *of_task) == without(first["parameters"], *of_task)


def test_question_answering_alone_has_no_weight_of_labels_to_search():
    labels = {"contrast.supervised_weight"}
    assert [set(searched(task, "bayes")) & labels for task in TASKS] == [labels, labels, labels, set()]
