"""Which tests pytest-xdist gives to the same worker."""

from __future__ import annotations

from pathlib import Path

from xdist.scheduler import LoadScopeScheduling

ROOT = Path(__file__).parent.parent


class TogetherScheduling(LoadScopeScheduling):
    """Give all tests of a module with a fixture of its own scope to one worker, and all cases of any other test.

    Two workers would otherwise make that fixture twice; some start processes for it, or trace graphs. The mark
    ``xdist_group`` says as much, but pytest-xdist 3.8 does not see it with pytest 9.2.
    """

    def _split_scope(self, nodeid: str) -> str:
        module, _, test = nodeid.partition("::")
        return module if _shares(module) else f"{module}::{test.partition('[')[0]}"


_known: dict[str, bool] = {}


def _shares(module: str) -> bool:
    if module not in _known:
        _known[module] = 'scope="module"' in (ROOT / module).read_text(encoding="utf-8")
    return _known[module]
