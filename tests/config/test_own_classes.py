"""Pruning types from outside the package: what tells their versions apart, and what is said of those that cannot be."""

from __future__ import annotations

import importlib
import shutil
import sys

import pytest

OWN = """
import cap

class Own(cap.Magnitude):
    def __init__(self, *, scope: str = "matrix", words: list[str] = (), untold=None, **more) -> None:
        super().__init__(scope=scope)

class Strict(cap.Magnitude):
    def __init__(self, *, untold=None, pattern=None) -> None:
        super().__init__()

class NoPruner:
    def __init__(self, *, pattern=None) -> None:
        pass
"""


@pytest.fixture
def own(tmp_path, monkeypatch, request):
    """A module of this test's own, on the path."""
    from cap.base.files import content_key

    name = f"own_{content_key(request.node.name)[:8]}"
    monkeypatch.syspath_prepend(tmp_path)
    file = tmp_path / f"{name}.py"
    file.write_text(OWN, encoding="utf-8")
    return file


def rewrite(file, text) -> None:
    """Change a module as a later process would find it."""
    from cap.config.own_classes import code_key

    file.write_text(text, encoding="utf-8")
    sys.modules.pop(file.stem, None)
    code_key.cache_clear()
    importlib.invalidate_caches()
    shutil.rmtree(file.parent / "__pycache__", ignore_errors=True)  # of a file of the same second


@pytest.fixture
def composed(compose_config, tiny_overrides):
    def compose(file, kind="Own", *more):
        return compose_config(*tiny_overrides, "pruning=magnitude", f"pruning._target_={file.stem}.{kind}", *more)

    return compose


def test_a_changed_file_makes_another_run(own, composed) -> None:
    from cap.config.check import check

    before = check(composed(own))
    assert len(before.resolved["pruning"]["code_sha256"]) == 16
    rewrite(own, OWN.replace('"matrix"', '"global"'))
    assert check(composed(own)).hash != before.hash
    rewrite(own, OWN)
    assert check(composed(own)).hash == before.hash


def test_the_file_that_a_class_is_written_in_counts_not_the_one_that_passes_it_on(own, composed) -> None:
    from cap.config.check import check

    other = own.with_name(f"{own.stem}_passed_on.py")
    other.write_text(f"from {own.stem} import Own", encoding="utf-8")
    before = check(composed(other))
    rewrite(own, f"{OWN}\n# changed")
    sys.modules.pop(other.stem)
    assert check(composed(other)).hash != before.hash


def test_a_process_names_the_code_that_it_runs(own, composed) -> None:
    from cap.config.check import check

    before = check(composed(own))
    own.write_text(f"{OWN}\n# changed", encoding="utf-8")  # the class that was imported is the one before
    assert check(composed(own)).hash == before.hash


def test_runs_of_two_versions_are_no_runs_of_one_configuration(own, composed, tmp_path) -> None:
    from cap.config.check import check
    from cap.reports.run import Run

    configs = [check(composed(own)).resolved]
    rewrite(own, f"{OWN}\n# changed")
    configs.append(check(composed(own)).resolved)
    first, second = (Run(tmp_path, "run", {"config": config}).identity for config in configs)
    assert {key for key in first if first[key] != second[key]} == {"pruning.code_sha256"}


def test_our_own_types_have_no_such_key(compose_config, tiny_overrides) -> None:
    from cap.config.check import check

    assert "code_sha256" not in check(compose_config(*tiny_overrides)).resolved["pruning"]


def test_arguments_are_those_of_the_class_annotated_or_not(own, composed) -> None:
    from cap.base.errors import InputError
    from cap.config.check import check
    from cap.training.ready import make_ready

    plain = ["~pruning.scope"]
    make_ready(check(composed(own, "Own", "+pruning.untold=3", "+pruning.words=[a]", "+pruning.other=1")))
    make_ready(check(composed(own, "Strict", *plain, "+pruning.untold=3")))
    with pytest.raises(InputError, match=r"pruning\.wrong does not belong to pruning=strict, which takes untold"):
        make_ready(check(composed(own, "Strict", *plain, "+pruning.wrong=3")))
    with pytest.raises(InputError, match=r"pruning\.words must be a list, got 'a'"):
        make_ready(check(composed(own, "Own", "+pruning.words=a")))


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("nowhere_to_be_found.Own", r"pruning\._target_ must be a class that Python can import, MODULE\.CLASS, got "),
        ("Own", r"got 'Own': .*; is its folder on PYTHONPATH\?"),
        ("{own}_raises.Own", r"got '\w+_raises\.Own': .*division by zero; is its folder on PYTHONPATH"),
        (
            "{own}.Missing",
            r"pruning\._target_ must be a class that Python can import, MODULE\.CLASS, got '\w+\.Missing': ",
        ),
        ("{own}.NoPruner", r"pruning\._target_ must be a subclass of cap\.Pruner, got \w+\.NoPruner"),
    ],
)
def test_what_is_no_pruner_is_refused(own, compose_config, tiny_overrides, target, message) -> None:
    from cap.base.errors import InputError
    from cap.config.check import check
    from cap.training.ready import make_ready

    own.with_name(f"{own.stem}_raises.py").write_text("1 / 0", encoding="utf-8")
    plain = ["~pruning.scope", "pruning=magnitude"]
    with pytest.raises(InputError, match=message):
        make_ready(check(compose_config(*tiny_overrides, *plain, f"pruning._target_={target.format(own=own.stem)}")))


@pytest.mark.parametrize(("key", "said"), [("name", "folders and tables call"), ("_target_", "must name a class")])
def test_a_file_without_name_or_class_is_refused(compose_config, tiny_overrides, key, said) -> None:
    from cap.base.errors import InputError
    from cap.config.check import check

    with pytest.raises(InputError, match=rf"pruning\.{key} .*{said}.*, got None; add it"):
        check(compose_config(*tiny_overrides, f"~pruning.{key}"))
