"""``python -m cap.push``: put a finished run's model, or an export of it, on the Hugging Face Hub."""

from __future__ import annotations

import tempfile
from pathlib import Path

from omegaconf import DictConfig

from cap.config.push import PushConfig, check_push
from cap.launch.cli import door
from cap.launch.imports import first_import


def push(cfg: DictConfig) -> None:
    """Write the folder that the repository is made of, and upload it as one commit.

    Args:
        cfg: The composed configuration.

    Raises:
        InputError: If something given cannot work: no such run, no token, no network, no right to write.
        RunError: If the Hub ends an upload.
    """
    config, asked = check_push(cfg)
    with first_import():
        from cap.formats import hub_repository as hub
        from cap.formats import push_phases as phases

    pushed = phases.read_pushed(asked)
    if config.dry_run:
        return phases.show(pushed, config, phases.free_target(config, asked))
    owner = hub.owner_of_token()
    repository = asked.repository if "/" in asked.repository else f"{owner}/{asked.repository}"
    with tempfile.TemporaryDirectory() as folder:
        phases.write_folder(pushed, config, Path(folder), repository=repository)
        hub.upload(Path(folder), repository, private=config.private, message=pushed.message)
    return None


main = door(push, config_name="push", schema=PushConfig)

if __name__ == "__main__":
    main()
