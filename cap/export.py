"""``python -m cap.export``: make a model that can be shipped, check it, and say what it gained."""

from __future__ import annotations

from omegaconf import DictConfig

from cap.config.export import EVERY_FORMAT, ExportConfig, check_export
from cap.launch.cli import door, typed_line
from cap.launch.imports import first_import


def export(cfg: DictConfig) -> float:
    """Write an export of a finished run, compare its logits with the run's, and measure both beside each other.

    Where the logits are not the run's, the export is scored again, which takes the run's own validation rows; logits
    can be compared on any rows of the task, and a note then says so.

    Args:
        cfg: The composed configuration.

    Returns:
        The largest difference between its logits and the run's; with format=all of all formats.

    Raises:
        InputError: If something given cannot work.
        RunError: If the export does not give the run's logits.
    """
    config, folder = check_export(cfg)
    with first_import():
        from cap.formats import every_format  # takes seconds: after the verdict
        from cap.formats import export_phases as phases

    run = phases.find_run(folder)
    target = phases.free_target(config, run)
    source = phases.read_suitable(run, config)
    if config.format == EVERY_FORMAT:
        return every_format.export_every(source, config, target, command=typed_line("export"))
    result = phases.write_checked(source, config, target, command=typed_line("export"))
    phases.tell(source, result, target)
    return float(result["check"]["largest_difference"])


main = door(export, config_name="export", schema=ExportConfig)

if __name__ == "__main__":
    main()
