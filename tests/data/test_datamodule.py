from __future__ import annotations

import logging
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lightning import Callback, LightningModule, Trainer

from cap.base.errors import InputError
from cap.data.datamodule import CapDataModule
from cap.data.sources import load_rows
from cap.data.tasks import get_task

N_TRAIN, N_VALIDATION = 43, 10
MakeData = Callable[..., CapDataModule]


@pytest.fixture
def make_data(tmp_path: Path, pair_columns, write_split, tokenizer) -> MakeData:
    write_split(tmp_path / "data", "train", pair_columns(N_TRAIN))
    write_split(tmp_path / "data", "validation", pair_columns(N_VALIDATION))
    task = get_task("qqp")
    rows = load_rows(task, data_dir=tmp_path / "data", max_train_rows=None, max_eval_rows=None)
    settings = {"tokenizer": tokenizer, "tokenizer_key": "k", "max_length": 16, "batch_size": 4, "eval_batch_size": 8}

    def make(**more) -> CapDataModule:
        more = {"rows": rows, "task": task, "seed": 3, "cache_dir": tmp_path / "cache"} | settings | more
        return CapDataModule(**more)

    return make


def ids(loader) -> list[int]:
    return torch.cat([batch["example_id"] for batch in loader]).tolist()


def test_a_batch_is_what_the_tokenizer_says(make_data: MakeData, pair_columns, tokenizer) -> None:
    batch = next(iter(make_data().train_dataloader()))
    columns = pair_columns(N_TRAIN)
    rows = batch["example_id"].tolist()
    expected = tokenizer(
        [columns["question1"][row] for row in rows],
        [columns["question2"][row] for row in rows],
        truncation="longest_first",
        max_length=16,
        padding=True,
        return_tensors="pt",
    )
    assert {name: batch[name].tolist() for name in expected} == {name: ids.tolist() for name, ids in expected.items()}
    assert batch["labels"].tolist() == [columns["label"][row] for row in rows]


def test_everything_in_a_batch_is_an_int64_tensor(make_data: MakeData) -> None:
    batch = next(iter(make_data().train_dataloader()))
    assert {name: tensor.dtype for name, tensor in batch.items()} == dict.fromkeys(
        ("input_ids", "token_type_ids", "attention_mask", "labels", "example_id"), torch.int64
    )


def test_a_batch_is_padded_to_its_own_longest_row(make_data: MakeData) -> None:
    for batch in make_data().train_dataloader():
        assert batch["attention_mask"].sum(dim=1).max() == batch["input_ids"].shape[1] <= 16


def test_every_training_row_comes_once_an_epoch(make_data: MakeData) -> None:
    assert sorted(ids(make_data().train_dataloader())) == list(range(N_TRAIN))


def test_labels_of_a_training_batch_are_not_those_of_one_length(tmp_path: Path, write_split, tokenizer) -> None:
    # Long sentences are of class 1, short ones of class 0.
    sentences = [" ".join(["cat"] * (1 + row % 12)) for row in range(240)]
    columns = {"sentence": sentences, "label": [int(row % 12 >= 6) for row in range(240)]}
    for split in ("train", "validation"):
        write_split(tmp_path / "sst2", split, columns)
    task = get_task("sst2")
    rows = load_rows(task, data_dir=tmp_path / "sst2", max_train_rows=None, max_eval_rows=None)
    data = CapDataModule(
        rows=rows,
        task=task,
        tokenizer=tokenizer,
        tokenizer_key="k",
        max_length=16,
        batch_size=8,
        seed=3,
        cache_dir=tmp_path / "cache",
    )
    assert {int(batch["labels"].sum()) for batch in data.train_dataloader()} == {4}


def test_encoding_gives_every_training_row_once_the_longest_first(make_data: MakeData) -> None:
    batches = list(make_data().encoding_dataloader())
    assert sorted(ids(batches)) == list(range(N_TRAIN))
    lengths = torch.cat([batch["attention_mask"].sum(dim=1) for batch in batches])
    assert lengths.tolist() == sorted(lengths.tolist(), reverse=True)


def test_every_validation_row_comes_once(make_data: MakeData) -> None:
    data = make_data()
    assert list(data.eval_dataloaders()) == ["validation"]
    assert [sorted(ids(loader)) for loader in data.val_dataloader()] == [list(range(N_VALIDATION))]


def test_labels_are_indexed_by_example_id(make_data: MakeData, pair_columns) -> None:
    data = make_data()
    assert data.n_train == N_TRAIN
    assert data.train_labels.tolist() == pair_columns(N_TRAIN)["label"]
    assert data.train_groups is None


def test_every_split_is_scored_by_names_of_its_own(tmp_path: Path, write_split, tokenizer) -> None:
    columns = {"premise": ["the cat"] * 4, "hypothesis": ["a dog"] * 4}
    labels = {"train": [2, 2, 2, 0], "validation_matched": [2, 2, 0, 1], "validation_mismatched": [2, 0, 0, 1]}
    for split, values in labels.items():
        write_split(tmp_path / "data", split, columns | {"label": values})
    task = get_task("mnli")
    rows = load_rows(task, data_dir=tmp_path / "data", max_train_rows=None, max_eval_rows=None)
    common = {"tokenizer_key": "k", "max_length": 8, "batch_size": 3, "seed": 1, "cache_dir": tmp_path}
    data = CapDataModule(rows=rows, task=task, tokenizer=tokenizer, **common)
    assert data.majority() == {"accuracy": pytest.approx(2 / 4), "accuracy_mismatched": pytest.approx(1 / 4)}
    scores = {}
    for split, metrics in data.metrics().items():
        metrics.update(torch.tensor([[1.0, 0.0, 0.0]]), {"labels": torch.tensor([0])})
        scores[split] = metrics.compute()
    assert scores == {"validation_matched": {"accuracy": 1.0}, "validation_mismatched": {"accuracy_mismatched": 1.0}}


def test_a_stride_without_windows_is_refused(make_data: MakeData) -> None:
    with pytest.raises(InputError, match=r"task\.stride belongs to .* got 128 for task=qqp"):
        make_data(stride=128)


def test_single_sentences_and_values_are_served(tmp_path: Path, write_split, tokenizer) -> None:
    columns = {"sentence": ["the cat", "a dog sat on the mat", "fast"], "score": [0.5, 2.0, 1.0]}
    for split in ("train", "validation"):
        write_split(tmp_path / "data", split, columns)
    row = {"text_columns": ("sentence",), "label_column": "score", "labels": (), "metrics": ("pearson",)}
    task = type(get_task("sst2"))(name="custom", kind="number", hub_path=None, hub_config=None, **row)
    rows = load_rows(task, data_dir=tmp_path / "data", max_train_rows=None, max_eval_rows=None)
    common = {"tokenizer_key": "k", "max_length": 8, "batch_size": 3, "seed": 1, "cache_dir": tmp_path}
    batch = next(iter(CapDataModule(rows=rows, task=task, tokenizer=tokenizer, **common).encoding_dataloader()))
    assert batch["labels"].dtype == torch.float32
    assert dict(zip(batch["example_id"].tolist(), batch["labels"].tolist(), strict=True)) == {0: 0.5, 1: 2.0, 2: 1.0}


def test_a_tokenizer_without_token_types_gives_none(make_data: MakeData, tokenizer) -> None:
    from transformers import BertTokenizerFast

    plain = BertTokenizerFast(vocab=tokenizer.get_vocab(), model_input_names=["input_ids", "attention_mask"])
    batch = next(iter(make_data(tokenizer=plain, tokenizer_key="plain").train_dataloader()))
    assert sorted(batch) == ["attention_mask", "example_id", "input_ids", "labels"]


def _validation(data: CapDataModule) -> list:
    return [batch for loader in data.eval_dataloaders().values() for batch in loader]


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (
            {"vocab_size": 8},
            r"got 8 and the token '.+' with the number \d+: tokens were added to the tokenizer alone",
        ),
        (
            {"vocab_size": 1000, "type_vocab_size": 1},
            r"token type, got 1 and the type 1 from its tokenizer; take token",
        ),
        ({"vocab_size": 1000, "type_vocab_size": 0}, None),
        ({"vocab_size": 1000, "type_vocab_size": 2}, None),
    ],
    ids=["tokens", "types", "no types", "enough"],
)
def test_a_model_without_an_embedding_for_a_token_is_refused(make_data: MakeData, config, said) -> None:
    from transformers import PretrainedConfig

    data, model = make_data(), PretrainedConfig(**config)
    highest = max(int(batch["input_ids"].max()) for batch in (*data.train_dataloader(), *_validation(data)))
    data.require_embedded(PretrainedConfig(vocab_size=highest + 1))
    with pytest.raises(InputError, match=f"got {highest} and the token '.+' with the number {highest}: tokens were"):
        data.require_embedded(PretrainedConfig(vocab_size=highest))
    if said is None:
        data.require_embedded(model)
    else:
        with pytest.raises(InputError, match=said):
            data.require_embedded(model)


@pytest.mark.parametrize("seed", [3, 4])
def test_the_seed_fixes_the_order(make_data: MakeData, seed: int) -> None:
    order = ids(make_data(seed=3).train_dataloader())
    assert (ids(make_data(seed=seed).train_dataloader()) == order) is (seed == 3)


def test_worker_processes_give_the_same_batches(make_data: MakeData) -> None:
    assert ids(make_data(num_workers=1).train_dataloader()) == ids(make_data().train_dataloader())


def of_rank(data: CapDataModule, rank: int, size: int, limit: int | float = 1.0) -> CapDataModule:
    data.trainer = SimpleNamespace(world_size=size, global_rank=rank, limit_val_batches=limit)
    return data


def test_processes_take_the_training_steps_of_one_with_as_many_rows_a_batch(make_data: MakeData) -> None:
    shares = [of_rank(make_data(), rank, 2).train_dataloader() for rank in range(2)]
    steps = [ids(blocks) for blocks in zip(*shares, strict=True)]
    assert steps == [batch["example_id"].tolist() for batch in make_data(batch_size=8).train_dataloader()]


def in_turns(data: CapDataModule, rank: int, size: int, order: int = 0) -> list[list[int]]:
    data.trainer = SimpleNamespace(global_rank=rank, world_size=size)
    return [batch["example_id"].tolist() for batch in data.dataloader_in_turns(6, order)]


def test_processes_take_whole_batches_of_another_size_in_turn(make_data: MakeData) -> None:
    whole = in_turns(make_data(), 0, 1)
    assert [len(batch) for batch in whole] == [6] * (N_TRAIN // 6)
    assert len(set(chain(*whole))) == len(whole) * 6
    shares = [in_turns(make_data(), rank, 3) for rank in range(3)]
    assert [shares[i % 3][i // 3] for i in range(len(whole))] == whole


def test_order_of_batches_of_another_size_is_fixed_by_its_number(make_data: MakeData) -> None:
    assert in_turns(make_data(), 0, 1, order=5) == in_turns(make_data(), 0, 1, order=5) != in_turns(make_data(), 0, 1)


def test_rows_that_fill_no_batch_are_one(make_data: MakeData) -> None:
    (batch,) = make_data().dataloader_in_turns(100, 0)
    assert sorted(batch["example_id"].tolist()) == list(range(N_TRAIN))


@pytest.mark.parametrize("eval_batch_size", [2, 8, 64])
@pytest.mark.parametrize("size", [2, 3, 7, N_VALIDATION])
def test_processes_share_the_validation_rows_of_training_and_none_is_idle(
    make_data: MakeData, size: int, eval_batch_size: int
) -> None:
    data = make_data(eval_batch_size=eval_batch_size)
    shares = [list(of_rank(data, rank, size).val_dataloader()[0]) for rank in range(size)]
    assert sorted(row for share in shares for row in ids(share)) == list(range(N_VALIDATION))
    assert min(len(share) for share in shares) >= 1
    assert max(len(batch["example_id"]) for share in shares for batch in share) <= eval_batch_size


# Ten rows in five batches of two.
@pytest.mark.parametrize(
    ("limit", "size", "n_rows"),
    [(1, 2, 2), (2, 4, 4), (3, 2, 6), (3, 4, 6), (99, 4, 10), (0.5, 4, 4), (0.9, 2, 8), (0.9, 4, 8), (1.0, 4, 10)],
)
def test_processes_validate_the_rows_that_one_is_limited_to(
    make_data: MakeData, limit: int | float, size: int, n_rows: int
) -> None:
    expected = ids(of_rank(make_data(eval_batch_size=2), 0, 1, limit).val_dataloader()[0])
    data = make_data(eval_batch_size=2)
    shares = [list(of_rank(data, rank, size, limit).val_dataloader()[0]) for rank in range(size)]
    assert sorted(row for share in shares for row in ids(share)) == sorted(expected)
    assert len(expected) == n_rows
    assert min(len(share) for share in shares) >= 1


@pytest.mark.parametrize("limit", [1, 0.5], ids=["batches", "fraction"])
def test_a_trainer_of_several_processes_does_not_limit_validation_once_more(
    make_data: MakeData, limit: int | float
) -> None:
    data = of_rank(make_data(eval_batch_size=5), 1, 2, limit)
    first = ids(data.val_dataloader()[0])
    assert data.trainer.limit_val_batches == 1.0
    assert ids(data.val_dataloader()[0]) == first


def test_every_trainer_limits_validation_for_itself(make_data: MakeData) -> None:
    data = make_data(eval_batch_size=5)
    assert len(ids(of_rank(data, 0, 2, 1).val_dataloader()[0])) == 3
    assert len(ids(of_rank(data, 0, 2, 1.0).val_dataloader()[0])) == 5


def test_a_run_without_validation_keeps_its_limit_and_scores_levels_on_all_rows(make_data: MakeData) -> None:
    data = of_rank(make_data(), 0, 1, 0)
    assert len(ids(data.limited_dataloaders()["validation"])) == N_VALIDATION
    assert (data.limited_share(), data.trainer.limit_val_batches) == (1.0, 0)


def test_share_that_is_validated_is_that_of_the_rows(make_data: MakeData) -> None:
    assert of_rank(make_data(eval_batch_size=4), 0, 1, 0.4).limited_share() == 0.4  # 1 of 3 batches, 4 of 10 rows
    assert make_data().limited_share() == 1.0


@pytest.fixture
def long_and_short(tmp_path: Path, write_split, tokenizer) -> Callable[..., CapDataModule]:
    """Make 240 sentences, two thirds of them short and of class 0, whose class follows from the row number."""
    n_words = [12 if row % 3 == 0 else 2 for row in range(240)]
    columns = {"sentence": [" ".join(["cat"] * n) for n in n_words], "label": [int(n > 6) for n in n_words]}
    for split in ("train", "validation"):
        write_split(tmp_path / "sst2", split, columns)
    task = get_task("sst2")
    rows = load_rows(task, data_dir=tmp_path / "sst2", max_train_rows=None, max_eval_rows=None)

    def make(**more) -> CapDataModule:
        sizes = {"batch_size": 8, "eval_batch_size": 6, "seed": 3}
        places = {"cache_dir": tmp_path / "cache", "tokenizer": tokenizer, "tokenizer_key": "k", "max_length": 16}
        return CapDataModule(**({"rows": rows, "task": task} | sizes | places | more))

    return make


@pytest.mark.parametrize("limit", [10, 0.25], ids=["batches", "fraction"])
def test_limited_validation_scores_short_and_long_rows_alike(long_and_short, limit: int | float) -> None:
    batches = list(of_rank(long_and_short(), 0, 1, limit).val_dataloader()[0])
    is_long = torch.cat([batch["labels"] for batch in batches])
    assert len(is_long) == 60
    assert 10 <= int(is_long.sum()) <= 30  # 20 expected; the 60 longest are all of class 1
    assert batches[0]["input_ids"].shape[1] > batches[-1]["input_ids"].shape[1]


def test_limited_validation_scores_the_same_rows_in_every_run(long_and_short) -> None:
    first = ids(of_rank(long_and_short(seed=3), 0, 1, 0.25).val_dataloader()[0])
    assert ids(of_rank(long_and_short(seed=4, batch_size=2), 0, 1, 0.25).val_dataloader()[0]) == first


def test_a_fraction_that_leaves_no_validation_batch_is_refused(make_data: MakeData) -> None:
    with pytest.raises(
        InputError, match=r"limit_val_batches must leave .* the 3 batches .* got 0\.3; set 0\.334 or more"
    ):
        of_rank(make_data(eval_batch_size=4), 1, 2, 0.3).val_dataloader()


def test_fewer_validation_rows_than_processes_are_refused(make_data: MakeData) -> None:
    with pytest.raises(InputError, match=r"as many as processes at least, got 10 for .* = 11"):
        of_rank(make_data(), 0, 11).val_dataloader()


@pytest.mark.parametrize("size", [1, 2, 3, 9])
def test_shares_to_encode_are_the_batches_of_one_process(make_data: MakeData, size: int) -> None:
    whole = [batch["example_id"].tolist() for batch in make_data().encoding_dataloader()]
    shares = [make_data().encoding_dataloader(rank, size) for rank in range(size)]
    assert [[batch["example_id"].tolist() for batch in share] for share in shares] == [
        whole[rank::size] for rank in range(size)
    ]


@pytest.mark.parametrize("size", [1, 2, 3])
def test_shares_to_score_give_every_row_once(make_data: MakeData, size: int) -> None:
    shares = [make_data().eval_dataloaders(rank, size)["validation"] for rank in range(size)]
    assert sorted(batch_id for share in shares for batch in share for batch_id in batch["example_id"].tolist()) == list(
        range(N_VALIDATION)
    )


@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize(
    "loader",
    [
        lambda data: data.train_dataloader(),
        lambda data: data.val_dataloader()[0],
        lambda data: data.eval_dataloaders()["validation"],
        lambda data: data.encoding_dataloader(),
    ],
    ids=["train", "validation in training", "validation", "encoding"],
)
def test_reading_batches_leaves_the_stream_of_random_numbers_alone(
    make_data: MakeData, loader: Callable, num_workers: int
) -> None:
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    assert len(list(loader(make_data(num_workers=num_workers)))) > 0
    assert torch.equal(torch.rand(3), expected)


def test_a_batch_that_was_fetched_and_not_used_comes_again(make_data: MakeData) -> None:
    whole = [batch["example_id"].tolist() for batch in make_data().train_dataloader()]
    loader = make_data().train_dataloader()
    batches = iter(loader)
    for _ in range(4):
        next(batches)
    resumed = make_data().train_dataloader()
    resumed.load_state_dict(loader.state_dict())
    assert [batch["example_id"].tolist() for batch in resumed] == whole[3:]


def test_a_pass_that_has_not_begun_has_used_nothing(make_data: MakeData) -> None:
    loader = make_data().train_dataloader()
    list(loader)
    iter(loader)
    assert loader.state_dict() == {"epoch": 0, "n_batches": 0}


def test_a_resumed_pass_that_has_not_begun_keeps_its_place(make_data: MakeData) -> None:
    loader = make_data().train_dataloader()
    loader.load_state_dict({"epoch": 1, "n_batches": 5})
    iter(loader)
    assert loader.state_dict() == {"epoch": 1, "n_batches": 5}


def test_rows_are_tokenised_once(make_data: MakeData, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    first = ids(make_data().train_dataloader())
    assert "tokenising 43 rows" in caplog.text
    caplog.clear()
    assert ids(make_data().train_dataloader()) == first
    assert "tokenising" not in caplog.text


@pytest.mark.parametrize("more", [{"max_length": 12}, {"tokenizer_key": "other"}], ids=["max_length", "tokenizer"])
def test_another_setting_has_another_key(make_data: MakeData, more: dict) -> None:
    assert make_data(**more).key != make_data().key


def test_settings_that_do_not_touch_the_tokens_keep_the_key(make_data: MakeData) -> None:
    assert make_data(seed=9, batch_size=2, eval_batch_size=2).key == make_data().key


@pytest.mark.parametrize("damage", ["cut", "changed", "lost", "no list"])
def test_a_damaged_cache_is_made_again_and_said(
    make_data: MakeData, tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    expected = [batch["input_ids"].tolist() for batch in make_data().train_dataloader()]
    folder = tmp_path / "cache" / "tokenised" / make_data().key
    file = folder / "tokens" / "input_ids.npy"
    harm: dict[str, Callable[[], object]] = {
        "cut": lambda: file.write_bytes(file.read_bytes()[:-4]),
        "changed": lambda: np.save(file, np.load(file) + 1),
        "lost": file.unlink,
        "no list": (folder / "files.json").unlink,
    }
    harm[damage]()
    assert [batch["input_ids"].tolist() for batch in make_data().train_dataloader()] == expected
    assert "damaged" in caplog.text


@pytest.mark.parametrize("max_length", [4, 600])
def test_an_impossible_length_is_refused(make_data: MakeData, tokenizer, max_length: int, monkeypatch) -> None:
    monkeypatch.setattr(tokenizer, "model_max_length", 512)
    with pytest.raises(InputError, match=rf"between 5 and what the model reads \(512\), got {max_length}"):
        make_data(max_length=max_length)


def test_a_tokenizer_without_padding_is_refused(make_data: MakeData, tokenizer, monkeypatch) -> None:
    monkeypatch.setattr(tokenizer, "_pad_token", None, raising=False)
    monkeypatch.setitem(tokenizer._special_tokens_map, "pad_token", None)
    with pytest.raises(InputError, match="padding token"):
        make_data()


class Recorder(LightningModule):
    """Learn nothing, and write down which rows came in which step."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen: list[list[int]] = []

    def training_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> torch.Tensor:
        self.seen.append(batch["example_id"].tolist())
        return self.weight.sum()

    def validation_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> None:
        pass

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class SaveAt(Callback):
    """Save one checkpoint, before the batch that begins a step: it has been fetched, and nothing done with it."""

    def __init__(self, step: int, file: Path) -> None:
        self.step, self.file = step, file

    def on_train_batch_start(self, trainer: Trainer, *unused: object) -> None:
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.file)


class SaveAfterEpoch(Callback):
    """Save one checkpoint at the end of an epoch."""

    def __init__(self, epoch: int, file: Path) -> None:
        self.epoch, self.file = epoch, file

    def on_train_epoch_end(self, trainer: Trainer, *unused: object) -> None:
        if trainer.current_epoch == self.epoch:
            trainer.save_checkpoint(self.file)


def fit(
    folder: Path, data: CapDataModule, callback: Callback, checkpoint: Path | None = None, **more
) -> list[list[int]]:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    module = Recorder()
    trainer = Trainer(
        default_root_dir=folder,
        callbacks=[callback],
        enable_checkpointing=False,
        num_sanity_val_steps=0,
        **quiet,
        **more,
    )
    trainer.fit(module, datamodule=data, ckpt_path=checkpoint)
    return module.seen


# How many worker processes a machine should have is the caller's concern.
@pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers")
# Lightning 2.6 still asks torch in the old way whether a tree is a leaf.
@pytest.mark.filterwarnings("ignore:.*LeafSpec.*is deprecated:FutureWarning")
class TestUnderLightning:
    def test_every_epoch_has_an_order_of_its_own(self, tmp_path: Path, make_data: MakeData) -> None:
        seen = fit(tmp_path, make_data(), Callback(), max_epochs=2)
        first, second = seen[:11], seen[11:]
        assert sorted(chain(*first)) == sorted(chain(*second)) == list(range(N_TRAIN))
        assert first != second

    @pytest.mark.parametrize("step", [1, 7, 8, 11, 12, 21])
    @pytest.mark.parametrize("more", [{}, {"limit_train_batches": 8}], ids=["whole epochs", "cut epochs"])
    def test_a_resumed_run_sees_the_rows_it_has_not_seen(
        self, tmp_path: Path, make_data: MakeData, step: int, more: dict
    ) -> None:
        limits = {"max_steps": 24, "max_epochs": -1, **more}
        whole = fit(tmp_path, make_data(), SaveAt(step, tmp_path / "one.ckpt"), **limits)
        resumed = fit(tmp_path, make_data(), Callback(), tmp_path / "one.ckpt", **limits)
        assert resumed == whole[step:]

    def test_a_run_resumed_after_an_epoch_starts_the_next(self, tmp_path: Path, make_data: MakeData) -> None:
        whole = fit(tmp_path, make_data(), SaveAfterEpoch(0, tmp_path / "one.ckpt"), max_epochs=2)
        resumed = fit(tmp_path, make_data(), Callback(), tmp_path / "one.ckpt", max_epochs=2)
        assert resumed == whole[11:]


def test_rows_that_are_only_scored_need_no_training_rows(tmp_path, pair_columns, write_split, tokenizer) -> None:
    for split in ("train", "validation"):
        write_split(tmp_path / "data", split, pair_columns(6))
    task = get_task("qqp")
    rows = load_rows(task, data_dir=tmp_path / "data", max_train_rows=None, max_eval_rows=None).without_training()
    scored = CapDataModule(
        rows=rows, task=task, tokenizer=tokenizer, tokenizer_key="k", max_length=8, cache_dir=tmp_path / "cache"
    )
    scored.setup()
    assert list(rows.fingerprints) == list(scored.eval_dataloaders()) == ["validation"]
    assert len(list((tmp_path / "cache" / "tokenised").glob("[!.]*"))) == 1
    assert list(scored.keys) == ["validation"]
