"""What ``--help`` prints of a command: the choices and keys of its file of conf/, with what that says about each."""

from __future__ import annotations

import re

from omegaconf import OmegaConf

from cap.config.places import conf_dir

# A group, or a line that goes on with the comment of the one above: not _self_, the schema or what is Hydra's own.
_LINE_OF_A_GROUP = re.compile(r"  - (?=\w+: )|    (?= +#)")


def register_resolvers(opening: str) -> None:
    """Let the help of files of conf/ name ``${keys_of:NAME}``, ``${choices_of:NAME}`` and ``${opening:}``.

    Args:
        opening: What the help of this command begins with, where its file of conf/ does not say it.
    """
    OmegaConf.register_new_resolver("opening", lambda: opening, replace=True)
    OmegaConf.register_new_resolver("keys_of", keys_of, replace=True)
    OmegaConf.register_new_resolver("choices_of", choices_of, replace=True)


def keys_of(config_name: str) -> str:
    """Take from a file of conf/ the lines of its keys, with what they say about each."""
    _, keys = _parts(config_name)
    return _quoted(keys.partition("\nhydra:\n")[0].rstrip())


def choices_of(config_name: str) -> str:
    """Take from a file of conf/ the groups that it is composed of: what is chosen of each, and what else there is."""
    defaults, _ = _parts(config_name)
    lines = defaults.splitlines()
    return _quoted("\n".join(_LINE_OF_A_GROUP.sub("", line, 1) for line in lines if _LINE_OF_A_GROUP.match(line)))


def _quoted(text: str) -> str:
    """Double dollar signs: Hydra fills the help in as a template, where one of them begins a name."""
    return text.replace("$", "$$")


def _parts(config_name: str) -> tuple[str, str]:
    """Cut a file of conf/ at its first blank line, between the list of defaults and the keys."""
    text = (conf_dir() / f"{config_name}.yaml").read_text(encoding="utf-8")
    defaults, _, keys = text.partition("\n\n")
    return defaults, keys


__all__ = ["choices_of", "keys_of", "register_resolvers"]
