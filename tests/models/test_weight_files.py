from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from cap.models.weight_files import weight_hashes


def test_weights_of_a_folder_are_named_by_their_bytes(tmp_path: Path) -> None:
    for name in ("model-1.safetensors", "model-2.safetensors", "pytorch_model.bin", "config.json"):
        (tmp_path / name).write_text(name)
    assert weight_hashes(str(tmp_path)) == {
        name: hashlib.sha256(name.encode()).hexdigest() for name in ("model-1.safetensors", "model-2.safetensors")
    }


def test_older_weights_are_named_where_there_are_no_safetensors(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_text("old")
    (tmp_path / "training_args.bin").write_text("not weights")
    assert list(weight_hashes(str(tmp_path))) == ["pytorch_model.bin"]


@pytest.mark.parametrize("name", ["nowhere/at-all", "/no/such/folder", "a b"])
def test_what_is_not_there_has_no_hashes(name: str) -> None:
    assert weight_hashes(name) == {}


def test_weights_in_the_hubs_cache_are_named_by_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blob, snapshot = tmp_path / "blobs" / ("0" * 64), tmp_path / "snapshots" / "c" / "model.safetensors"
    blob.parent.mkdir()
    blob.write_text("")
    snapshot.parent.mkdir(parents=True)
    snapshot.symlink_to(blob)
    asked = []

    def cached(repo: str, name: str, *, revision: str) -> str:
        asked.append((repo, name, revision))
        return str(snapshot)

    monkeypatch.setattr("cap.models.weight_files.try_to_load_from_cache", cached)
    assert weight_hashes("owner/name", revision="v2") == {"model.safetensors": "0" * 64}
    assert asked == [("owner/name", "model.safetensors", "v2")]
