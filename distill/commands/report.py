"""Draw the pages of finished runs again, from their own files."""

from pathlib import Path

from distill.commands.config import ReportConfig
from featstore.errors import ConfigError


def run(config: ReportConfig) -> list[Path]:
    """Draw report.html of every finished run below a folder, and the page that compares them. Returns their paths.

    Raises:
        FeatstoreError: The folder holds no finished run, or one cannot be read.
    """
    from distill.reports import report
    from distill.training.run_folder import lock

    out = Path(config.out)
    if not out.is_dir():
        raise ConfigError(f"--out {out.absolute()}: no such folder. Expected the folder of runs.")
    with lock(out / ".report.lock", str(out.absolute())):
        found = report.rebuild(out)
    for page in found:
        print(page)
    print(f"\n{len(found) - 1} runs; compared in {found[-1]}")
    return found
