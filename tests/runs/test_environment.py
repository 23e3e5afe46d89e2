from __future__ import annotations

import json
import os
import platform
import subprocess
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from cap.runs import environment as environment_module
from cap.runs.environment import environment, forget_peak_memory, git_commit, peak_memory_gb


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    package = tmp_path / "project" / "package"
    package.mkdir(parents=True)
    (package / "code.py").write_text("answer = 42\n")
    _git(package, "init", "--quiet", "..")
    _git(package, "add", "code.py")
    _git(package, "commit", "--quiet", "--message", "Add the answer")
    return package


def _git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=A", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false"]
    variables = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    command = ["git", "-C", str(folder), *identity, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True, env=variables).stdout.strip()


@pytest.fixture
def surroundings(monkeypatch: pytest.MonkeyPatch) -> dict[str, str | None]:
    monkeypatch.setattr(environment_module, "git_commit", lambda folder: "0" * 40)
    return environment()


def test_environment_names_the_version_of_every_package_that_shapes_a_result(surroundings) -> None:
    packages = {"python", "torch", "lightning", "transformers", "datasets", "torchmetrics", "numpy"}
    assert all(surroundings[name] for name in packages)


def test_environment_names_no_host_and_no_folder(surroundings) -> None:
    text = json.dumps(surroundings)
    assert platform.node() not in text
    assert "/home" not in text
    assert str(Path.cwd()) not in text


def test_a_gpu_that_is_left_alone_is_not_named(monkeypatch) -> None:
    import torch

    from cap.runs.environment import environment

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *device: "a GPU")
    assert environment()["device"] == "a GPU"
    assert "threads" in environment(on_gpu=False)["device"]


def test_environment_names_a_device(surroundings) -> None:
    assert len(surroundings["device"]) > 3


def test_a_package_that_is_not_installed_has_no_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment_module, "_PACKAGES", ("no-such-package-as-this",))
    monkeypatch.setattr(environment_module, "git_commit", lambda folder: None)
    assert environment()["no-such-package-as-this"] is None


def test_commit_of_a_clean_checkout_is_its_head(checkout: Path) -> None:
    assert git_commit(checkout) == _git(checkout, "rev-parse", "HEAD")


def test_commit_of_a_modified_checkout_says_so(checkout: Path) -> None:
    (checkout / "code.py").write_text("answer = 43\n")
    assert git_commit(checkout) == _git(checkout, "rev-parse", "HEAD") + "-dirty"


@pytest.mark.parametrize("name", ["cap/pruning/mine.py", "conf/pruning/mine.yaml"])
def test_code_that_is_in_no_commit_makes_a_checkout_dirty(checkout: Path, name: str) -> None:
    file = checkout.parent / name
    file.parent.mkdir(parents=True)
    file.write_text("", encoding="utf-8")
    assert git_commit(checkout) == _git(checkout, "rev-parse", "HEAD") + "-dirty"


def test_files_that_are_not_tracked_do_not_make_a_checkout_dirty(checkout: Path) -> None:
    (checkout / "notes.txt").write_text("scratch")
    assert git_commit(checkout) == _git(checkout, "rev-parse", "HEAD")


def test_a_git_hook_s_variables_do_not_change_the_commit(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_DIR", "/nonexistent")
    assert git_commit(checkout) == _git(checkout, "rev-parse", "HEAD")


def test_an_installed_package_does_not_borrow_the_checkout_around_it(checkout: Path) -> None:
    installed = checkout / "site-packages" / "cap"
    installed.mkdir(parents=True)
    (installed / "code.py").write_text("answer = 42\n")
    assert git_commit(installed) is None


def test_there_is_no_commit_without_git(checkout: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git_commit(checkout) is None


def test_host_memory_peak_lies_between_what_is_held_now_and_what_the_machine_has() -> None:
    # The kernel counts resident pages in batches per thread, hence the tenth.
    held_gb, installed_gb = psutil.Process().memory_info().rss / 1e9, psutil.virtual_memory().total / 1e9
    assert 0.9 * held_gb < peak_memory_gb()["host"] < installed_gb


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux forgets the peak of a process")
def test_host_memory_peak_is_counted_from_where_it_was_forgotten() -> None:
    held = np.ones(50_000_000)  # 0.4 GB
    with_held = peak_memory_gb()["host"]
    del held
    forget_peak_memory()
    assert peak_memory_gb()["host"] < with_held - 0.3


def test_system_that_cannot_forget_the_peak_still_reports_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(environment_module, "_CLEAR_REFS", tmp_path / "none" / "clear_refs")
    monkeypatch.setattr(environment_module, "_STATUS", tmp_path / "status")
    forget_peak_memory()
    assert peak_memory_gb()["host"] > 0.1


@pytest.mark.skipif(torch.cuda.is_available(), reason="a process on a machine with an accelerator may have used it")
def test_device_memory_is_null_without_a_device() -> None:
    assert peak_memory_gb()["device"] is None


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux forgets the peak of a process")
def test_peak_memory_of_a_run_is_not_that_of_an_earlier_job(compose_config, tmp_path: Path) -> None:
    from cap.config.check import check
    from cap.training.record import RunRecord

    checked = check(compose_config())
    held = np.ones(50_000_000)
    with_held = peak_memory_gb()["host"]
    del held
    RunRecord(checked, tmp_path, command="python -m cap.train")
    assert peak_memory_gb()["host"] < with_held - 0.3
