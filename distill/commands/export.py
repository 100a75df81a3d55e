"""Export a finished run: files, measurements and model card."""

from pathlib import Path

from distill.export.config import ExportConfig
from featstore.errors import ConfigError, command


def run(config: ExportConfig) -> dict[str, object]:
    """Export one run and measure every file on its test images. Returns what is also written to export.json.

    Raises:
        FeatstoreError: something the user can mend.
    """
    from distill.export.edge import export_run
    from distill.export.manifest import formats_table
    from featstore.extraction.accelerator import start_accelerator

    accelerator = start_accelerator()
    if accelerator.num_processes > 1:
        raise ConfigError(
            f"an export is the work of one process, {accelerator.num_processes} were started: "
            f"{command('export')}"
        )
    # Nothing is trained, unless int8 loses too much: then the student, for a few epochs.
    manifest = export_run(config, say=accelerator.print)
    folder = Path(config.out or Path(config.model) / "export")
    print(f"\n{formats_table(manifest)}\n")
    for note in manifest["notes"]:
        print(f"note: {note}")
    print(f"written to {folder}; contents and how to load it: {folder / 'README.md'}")
    return manifest
