"""Places on this machine, taken out of what is read elsewhere."""

from __future__ import annotations

import re
import shlex
from typing import Any

# At the start of a typed value, of an item of a typed list, or of a quoted one; up to the end of that. Hydra's search
# path has it as an address.
_ABSOLUTE = re.compile(r"""(?P<before>^|[=\[,'"])(?:file://)?(?:~[^/\\,\]'"]*|[A-Za-z]:)?[/\\](?P<path>[^,\]'"]*)""")
# A path within a sentence begins behind a blank, a sign or a quote: "and/or" and an address hold none.
_IN_WORDS = re.compile(
    r"""(?P<before>^|[\s=\[({,;'"])(?:file://)?(?:~[^/\\\s]*|[A-Za-z]:)?[/\\](?P<path>[^\s,;:)}\]'"]+)"""
)
_HOMES = ("home", "Users")  # folders of home folders
_COMMAND = "command"


def without_folders(command: str) -> str:
    """Replace every absolute path in a typed command by its last part."""
    typed = [_ABSOLUTE.sub(_last_part, argument) for argument in shlex.split(command)]
    return shlex.join(typed)


def without_places(value: Any, *, key: str = "") -> Any:
    """Replace every absolute path in what JSON holds by its last part; relative ones stay as they were typed.

    Args:
        value: What a record holds, or any part of it.
        key: Its name; a ``command`` is taken apart as a shell would, so that a path with a blank is one.

    Returns:
        The same with other texts. A home folder itself becomes ``~``, since its last part is a person's name.
    """
    if isinstance(value, dict):
        return {name: without_places(item, key=name) for name, item in value.items()}
    if isinstance(value, list):
        return [without_places(item) for item in value]
    if not isinstance(value, str):
        return value
    if key == _COMMAND:
        return without_folders(value)
    # A value that is a path may have blanks in it; one within a sentence ends at the first.
    return (_ABSOLUTE if _ABSOLUTE.match(value) else _IN_WORDS).sub(_last_part, value)


def _last_part(found: re.Match[str]) -> str:
    parts = [part for part in re.split(r"[/\\]", found["path"]) if part]
    is_home = parts == ["root"] or (len(parts) == 2 and parts[0] in _HOMES)
    return f"{found['before']}{'~' if is_home else parts[-1] if parts else '/'}"


__all__ = ["without_folders", "without_places"]
