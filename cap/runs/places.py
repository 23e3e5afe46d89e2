"""Places on this machine, taken out of what is read elsewhere."""

from __future__ import annotations

import re
import shlex

# At the start of a typed value, of an item of a typed list, or of a quoted one; up to the end of that.
_ABSOLUTE = re.compile(r"""(?P<before>^|[=\[,'"])(?:~[^/\\,\]'"]*|[A-Za-z]:)?[/\\](?P<path>[^,\]'"]*)""")


def without_folders(command: str) -> str:
    """Replace every absolute path in a typed command by its last part."""
    typed = [_ABSOLUTE.sub(_last_part, argument) for argument in shlex.split(command)]
    return shlex.join(typed)


def _last_part(found: re.Match[str]) -> str:
    parts = [part for part in re.split(r"[/\\]", found["path"]) if part]
    return f"{found['before']}{parts[-1] if parts else '/'}"


__all__ = ["without_folders"]
