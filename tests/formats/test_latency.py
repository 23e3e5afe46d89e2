from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from cap.formats.latency import Latency, paired_latency


class Clock:
    """A time that passes only where somebody lets it."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Worker:
    """A model that takes the given seconds, one after the other, the last one for ever."""

    def __init__(self, name: str, clock: Clock, log: list[tuple[str, dict[str, Any]]], *seconds: float) -> None:
        self.name, self.clock, self.log, self.seconds = name, clock, log, list(seconds)

    def __call__(self, batch: dict[str, Any]) -> None:
        self.log.append((self.name, batch))
        self.clock.now += self.seconds.pop(0) if len(self.seconds) > 1 else self.seconds[0]


@pytest.fixture
def measure():
    """Measure made-up models that take given seconds; return the results and the calls."""

    def run(seconds: dict[str, tuple[float, ...]], **options: Any) -> tuple[list[Latency], list[tuple[str, Any]]]:
        clock, log = Clock(), []
        models = {name: Worker(name, clock, log, *given) for name, given in seconds.items()}
        options = {"reference": "dense", "vocabulary_size": 50, "batch_sizes": (2,), "lengths": (3,), **options}
        return paired_latency(models, clock=clock, **options), log

    return run


def test_speed_up_is_the_reference_over_the_model(measure):
    ((found,), _) = measure({"dense": (4.0,), "small": (1.0,), "slow": (8.0,)})
    speed_ups = {name: model.speed_up.median for name, model in found.models.items()}
    assert speed_ups == pytest.approx({"dense": 1.0, "small": 4.0, "slow": 0.5})
    assert found.models["small"].milliseconds.median == pytest.approx(1000.0)


def test_speed_up_is_the_median_of_the_ratios_of_every_round_and_not_the_ratio_of_the_medians(measure):
    warm_up = (1.0, 1.0)
    dense, small = (1.0, 2.0, 30.0, 4.0, 5.0), (1.0, 4.0, 10.0, 1.0, 1.0)
    ((found,), _) = measure({"dense": warm_up + dense, "small": warm_up + small}, budget_seconds=1.0)
    # Ratios 1, 0.5, 3, 4, 5; the medians are 4 and 1.
    quartiles = found.models["small"].speed_up
    assert (quartiles.first, quartiles.median, quartiles.third) == pytest.approx((1.0, 3.0, 4.0))


def test_models_take_turns_on_the_same_batch_and_in_turns_backwards(measure):
    _, log = measure({"dense": (1.0,), "small": (1.0,)}, budget_seconds=12.0)
    assert [name for name, _ in log] == ["dense", "small", "small", "dense"] * (1 + 3)
    assert all(batch is log[0][1] for _, batch in log)


def test_seconds_stay_with_their_model_in_rounds_that_run_backwards(measure):
    ((found,), _) = measure({"dense": (4.0,), "small": (1.0,), "slow": (8.0,)}, budget_seconds=1.0)
    assert found.models["slow"].milliseconds.first == found.models["slow"].milliseconds.third == 8000.0


def test_warm_up_does_not_count(measure):
    ((found,), _) = measure({"dense": (100.0, 50.0, 1.0)}, budget_seconds=1.0)
    assert found.models["dense"].milliseconds.third == pytest.approx(1000.0)


@pytest.mark.parametrize(
    ("budget", "n_rounds"), [(0.001, 5), (2.0, 5), (24.0, 12), (1e6, 50)], ids=["none", "tight", "some", "plenty"]
)
def test_budget_decides_the_number_of_rounds_between_five_and_fifty(measure, budget, n_rounds):
    ((found,), log) = measure({"dense": (1.0,), "small": (1.0,)}, budget_seconds=budget)
    assert found.n_rounds == n_rounds
    assert len(log) == 2 * (2 + n_rounds)


def test_every_batch_size_is_measured_with_every_length(measure):
    found, log = measure({"dense": (1.0,)}, batch_sizes=(1, 4), lengths=(8, 16))
    assert [(one.batch_size, one.length) for one in found] == [(1, 8), (1, 16), (4, 8), (4, 16)]
    assert {tuple(batch["input_ids"].shape) for _, batch in log} == {(1, 8), (1, 16), (4, 8), (4, 16)}


def test_inputs_are_token_numbers_without_padding_and_the_same_for_the_same_seed(measure):
    batches = [measure({"dense": (1.0,)}, lengths=(400,), seed=seed)[1][0][1] for seed in (1, 1, 2)]
    ids = [batch["input_ids"] for batch in batches]
    assert ids[0].dtype == torch.int64
    assert (int(ids[0].min()), int(ids[0].max())) == (0, 49)
    assert bool((batches[0]["attention_mask"] == 1).all())
    assert torch.equal(ids[0], ids[1])
    assert not torch.equal(ids[0], ids[2])


class Doubling(nn.Module):
    def forward(self, batch):
        assert torch.is_inference_mode_enabled()
        return batch["input_ids"] * 2


def test_modules_run_in_inference_mode_beside_any_callable():
    models = {"dense": Doubling().eval(), "function": lambda batch: batch["input_ids"].numpy()}
    (found,) = paired_latency(
        models, reference="dense", vocabulary_size=9, batch_sizes=(1,), lengths=(4,), budget_seconds=0.0
    )
    assert found.n_rounds == 5
    assert min(model.milliseconds.first for model in found.models.values()) > 0


def test_transformers_model_gets_its_inputs_by_keyword():
    from transformers import BertConfig, BertForSequenceClassification

    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    model = BertForSequenceClassification(BertConfig(vocab_size=9, **sizes)).eval()
    (found,) = paired_latency(
        {"dense": model}, reference="dense", vocabulary_size=9, batch_sizes=(1,), lengths=(4,), budget_seconds=0.0
    )
    assert found.models["dense"].speed_up.median == 1.0


def test_model_in_training_mode_is_refused():
    with pytest.raises(ValueError, match="got a in training mode"):
        paired_latency({"a": Doubling()}, reference="a", vocabulary_size=9)


def test_reference_that_is_none_of_the_models_is_refused(measure):
    with pytest.raises(ValueError, match=r"reference must be one of the models \(small\), got 'dense'"):
        measure({"small": (1.0,)})
