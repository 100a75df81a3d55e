"""Find the files of a source: tars or Parquet files in a folder, by braces or wildcards, on a disk or behind a URL."""

from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING

from featstore.errors import SourceError, shorten
from featstore.sources.base import suffix_of
from featstore.sources.patterns import expand, is_glob
from featstore.sources.source_files import remote_refusals

if TYPE_CHECKING:
    from featstore.places.base import Place

COMPRESSED_SUFFIXES = (
    ".tar.gz",
    ".tgz",
    ".tar.zst",
    ".tzst",
    ".tar.bz2",
    ".tbz2",
    ".tar.xz",
    ".txz",
)


def find_files(pattern: str, suffix: str) -> tuple["Place | None", list[tuple[str, str]]]:
    """Return the place of files behind a URL, and (name, file) of each file in the order of their names.

    The name is the path below the fixed folder of the pattern, without the suffix.

    Args:
        suffix: ".tar" or ".parquet".

    Raises:
        SourceError: none there, or the server refuses.
        ConfigError: no such scheme.
    """
    if "://" not in pattern:
        found = find_local_files(pattern, suffix)
        return None, [(name, str(path.absolute())) for name, path in found]
    place, files = _remote_files(pattern, suffix)
    return place, sorted((_without(suffix, file), file) for file in files)


def find_local_files(pattern: str, suffix: str = ".tar") -> list[tuple[str, Path]]:
    """Return (name, path) of the files that a pattern names, in the order of their names.

    The name is the path below the folder named by the pattern, without the suffix.

    Raises:
        SourceError: none there, or some file of a brace pattern is missing.
    """
    paths, base = _local_files(pattern, suffix)
    return sorted((_without(suffix, path.relative_to(base).as_posix()), path) for path in paths)


def unreadable(file: Path | str, error: OSError) -> SourceError:
    """Return the error for a file that the disk does not give."""
    return SourceError(
        f"{file}: cannot be read: {error.strerror or error}. Fetch it again or leave it out."
    )


def _remote_files(pattern: str, suffix: str) -> tuple["Place", list[str]]:
    """Find the files that a pattern of URLs names.

    Args:
        pattern: the URL of a file, of a folder, or one with braces or wildcards after the last folder without any.

    Returns:
        The place of the fixed folder, and names below it in order.
    """
    from featstore.places.open_place import open_place

    scheme, _, rest = pattern.partition("://")
    parts = rest.split("/")  # the first one is the bucket or host
    fixed = next((i for i, part in enumerate(parts) if is_glob(part) or "{" in part), len(parts))
    if fixed == len(parts) and rest.endswith(suffix):
        fixed -= 1
    base, tail = f"{scheme}://{'/'.join(parts[:fixed])}", "/".join(parts[fixed:])
    place = open_place(base.rstrip("/"))
    with remote_refusals(base):
        if tail and not is_glob(tail):
            return place, expand(tail)
        if not place.lists:
            raise SourceError(
                f"{pattern}: this server has no listing; name its files with braces, such as "
                f"{base}/{{000..099}}{suffix}."
            )
        there = place.sizes()
    names = expand(tail) if tail else [f"*{suffix}"]
    found = sorted({name for name in there for one in names if fnmatchcase(name, one)})
    if not tail and suffix == ".tar":
        found = [name for name in found if "/" not in name]
    if not found:
        raise SourceError(
            f"{pattern}: no {suffix} file matches; {base} holds {shorten(sorted(there)) or 'nothing'}. Correct the "
            "pattern (--source.path)."
        )
    return place, found


def _without(suffix: str, name: str) -> str:
    return name[: -len(suffix)] if suffix_of(name) == suffix else name


def _local_files(pattern: str, suffix: str) -> tuple[list[Path], Path]:
    """Return the files that a folder, file, glob or brace pattern names, and their common folder."""
    path = Path(pattern)
    if path.is_dir():
        return _files_in(path, suffix), path
    if path.exists():
        return [path], path.parent
    if "://" in pattern or pattern.startswith("pipe:"):
        raise SourceError(
            f"{pattern}: these tars are read from a local or mounted disk here. Copy them to one."
        )
    if "{" not in pattern and not is_glob(pattern):
        raise SourceError(
            f"{pattern}: no such file or folder. Set --source.path to a folder of *{suffix}, one such file, "
            f"a glob, or a brace pattern like shard-{{000000..000099}}{suffix}."
        )
    base = _fixed_part(path)
    found: list[Path] = []
    missing: list[Path] = []
    for name in expand(pattern):
        if is_glob(name) and not Path(name).exists():
            found += _glob(name)
        else:
            (found if Path(name).is_file() else missing).append(Path(name))
    if missing and found:
        names = shorten([str(name) for name in missing])
        raise SourceError(
            f"{pattern}: {len(missing)} of {len(missing) + len(found)} files do not exist: {names}. "
            "Fetch them, or narrow the pattern."
        )
    if not found:
        raise SourceError(
            f"{pattern}: no {suffix} file matches; {_contents(base)}. Correct the pattern (--source.path)."
        )
    return found, base


def _files_in(folder: Path, suffix: str) -> list[Path]:
    """Files of a folder; Parquet files in subfolders too, where data sets of the Hugging Face hub have them."""
    entries = folder.iterdir() if suffix == ".tar" else folder.rglob("*")
    found = [path for path in entries if suffix_of(path.name) == suffix and _is_shown(path)]
    if not found:
        deeper = f"; for files in subfolders give a glob like 'DIR/**/*{suffix}'"
        raise SourceError(
            f"{folder}: no *{suffix} in this folder; {_contents(folder)}. Expected plain (not compressed) "
            f"files directly in it{deeper if suffix == '.tar' else ''}."
        )
    return found


def compressed_beside(pattern: str) -> list[str]:
    """Return a note on compressed tars in a folder of plain ones."""
    if not Path(pattern).is_dir():
        return []
    names = sorted(path.name for path in Path(pattern).iterdir() if _is_shown(path))
    found = [name for name in names if name.lower().endswith(COMPRESSED_SUFFIXES)]
    if not found:
        return []
    return [
        f"{pattern}: {len(found)} compressed tars were left out: {shorten(found)}. Images are read by position, which "
        "needs plain tars; unpack them once (gunzip, zstd -d)."
    ]


def _fixed_part(path: Path) -> Path:
    """Return the folders before the first wildcard or brace, which do not depend on the matches."""
    for parent in path.parents:
        if not is_glob(str(parent)) and "{" not in str(parent):
            return parent
    return Path()


def _glob(pattern: str) -> list[Path]:
    base = _fixed_part(Path(pattern))
    rest = str(Path(pattern).relative_to(base))
    return [path for path in base.glob(rest) if path.is_file() and _is_shown(path)]


def _is_shown(path: Path) -> bool:
    return not path.name.startswith(".")


def _contents(folder: Path) -> str:
    """Describe the content of a folder for a message."""
    if not folder.is_dir():
        return f"the folder {folder} does not exist"
    names = sorted(path.name for path in folder.iterdir())
    return f"{folder} holds {shorten(names)}" if names else f"{folder} is empty"
