"""``python -m cap.probe``: does the pruned encoder still generalise? Linear heads on its frozen encodings answer."""

from __future__ import annotations

import logging

from omegaconf import DictConfig, OmegaConf

from cap.base.console import print_table
from cap.config.probe import ProbeConfig, check_probe
from cap.launch.cli import door
from cap.launch.imports import first_import

log = logging.getLogger("cap.probe")


def probe(cfg: DictConfig) -> None:
    """Train linear heads on the encodings of every run, of its pre-trained model and of its dense teacher.

    Args:
        cfg: The composed configuration.

    Raises:
        InputError: If something given cannot work.
    """
    config = check_probe(cfg)
    with first_import():
        from cap.reports import probe_table  # takes seconds: after the verdict
        from cap.training import probe_phases as phases

    comparison = phases.read(config)
    folder = probe_table.free_folder(config.output_dir, comparison.key)
    result = phases.compare(comparison, resolved=OmegaConf.to_container(cfg, resolve=True))
    probe_table.write_probe(folder, result)
    print_table(probe_table.console_table(result))
    log.info("table, picture and the scores of every seed: %s", folder)


main = door(probe, config_name="probe", schema=ProbeConfig)

if __name__ == "__main__":
    main()
