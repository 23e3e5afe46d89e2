"""Pruning types from outside the package: what tells their versions apart, and what is said of those that cannot be."""

from __future__ import annotations

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


@pytest.fixture
def composed(compose_config, tiny_overrides):
    def compose(file, kind="Own", *more):
        return compose_config(*tiny_overrides, "pruning=magnitude", f"pruning._target_={file.stem}.{kind}", *more)

    return compose


def test_a_changed_file_makes_another_run(own, composed) -> None:
    from cap.config.check import check

    before = check(composed(own))
    assert len(before.resolved["pruning"]["code"]) == 16
    assert check(composed(own)).hash == before.hash
    own.write_text(OWN.replace('"matrix"', '"global"'), encoding="utf-8")
    assert check(composed(own)).hash != before.hash


def test_runs_of_two_versions_are_no_runs_of_one_configuration(own, composed, tmp_path) -> None:
    from cap.config.check import check
    from cap.runs.identity import Run

    configs = [check(composed(own)).resolved]
    own.write_text(f"{OWN}\n# changed", encoding="utf-8")
    configs.append(check(composed(own)).resolved)
    first, second = (Run(tmp_path, "run", {"config": config}).identity for config in configs)
    assert {key for key in first if first[key] != second[key]} == {"pruning.code"}


def test_our_own_types_have_no_such_key(compose_config, tiny_overrides) -> None:
    from cap.config.check import check

    assert "code" not in check(compose_config(*tiny_overrides)).resolved["pruning"]


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
        ("Own", r"whose module 'Own' is not found; put its folder on PYTHONPATH"),
        ("{own}.Missing", r"pruning\._target_ must be a class that Python can import, got '\w+\.Missing': "),
        ("{own}.NoPruner", r"pruning\._target_ must be a subclass of cap\.Pruner, got \w+\.NoPruner"),
    ],
)
def test_what_is_no_pruner_is_refused(own, compose_config, tiny_overrides, target, message) -> None:
    from cap.base.errors import InputError
    from cap.config.check import check
    from cap.training.ready import make_ready

    plain = ["~pruning.scope", "pruning=magnitude"]
    with pytest.raises(InputError, match=message):
        make_ready(check(compose_config(*tiny_overrides, *plain, f"pruning._target_={target.format(own=own.stem)}")))


@pytest.mark.parametrize(("key", "said"), [("name", "folders and tables call"), ("_target_", "must name a class")])
def test_a_file_without_name_or_class_is_refused(compose_config, tiny_overrides, key, said) -> None:
    from cap.base.errors import InputError
    from cap.config.check import check

    with pytest.raises(InputError, match=rf"pruning\.{key} .*{said}.*, got None; add it"):
        check(compose_config(*tiny_overrides, f"~pruning.{key}"))
