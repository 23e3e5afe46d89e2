"""``python -m cap.probe``: does the pruned encoder still generalise? Linear heads on its frozen encodings answer."""

from __future__ import annotations

from omegaconf import DictConfig, OmegaConf

from cap.config.probe import ProbeConfig, check_probe
from cap.launch.cli import door
from cap.launch.imports import first_import


def probe(cfg: DictConfig) -> None:
    """Train linear heads on the encodings of every run, of its pre-trained model and of its dense teacher.

    Args:
        cfg: The composed configuration.

    Raises:
        InputError: If something given cannot work.
    """
    config = check_probe(cfg)
    with first_import():
        from cap.training import probe_phases as phases  # takes seconds: after the verdict

    comparison = phases.read(config)
    folder = phases.free_folder(config, comparison)
    result = phases.compare(comparison, resolved=OmegaConf.to_container(cfg, resolve=True))
    phases.write(folder, result)


main = door(probe, config_name="probe", schema=ProbeConfig)

if __name__ == "__main__":
    main()
