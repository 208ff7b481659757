"""Folders that an export writes: they appear whole or not at all, and none of a user's files is lost.

`jax_speechlm.json` in a folder says which checkpoint it is from, what was checked, and which files the export wrote;
only a folder whose files are all of an earlier export is replaced.
"""

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

RECORD = "jax_speechlm.json"
_LARGEST_JSON = 256 << 20  # the largest tokenizers have some 30 MB


class ExportError(ValueError):
    """Something cannot be exported; the message says what stands in the way and what to do."""


class FailedCheck(ExportError):
    """What was written does not compute what the checkpoint does."""


def inside(folder: Path, name: str) -> Path:
    """A file of a folder, made sure to be one.

    Raises:
      ExportError: it is missing, is no regular file, or is a link to somewhere else.
    """
    path = folder / name
    if not path.exists():
        raise ExportError(f"{path} is missing: {folder} is not a whole exported folder")
    if not path.is_file():
        raise ExportError(f"{path} is not a regular file: refused")
    if not path.resolve().is_relative_to(folder.resolve()):
        raise ExportError(
            f"{path} is a link that leaves the folder: refused. A copy without links (cp -rL) of a folder that you "
            "trust, such as the hub's cache, can be read"
        )
    return path


def read_json(folder: Path, name: str) -> Any:
    """A JSON file of a folder.

    Raises:
      ExportError: it is missing, is not JSON, or is not a file of the folder's own of a sensible size.
    """
    path = inside(folder, name)
    if (size := path.stat().st_size) > _LARGEST_JSON:
        raise ExportError(f"{path} has {size:,} bytes, more than any such file: refused")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ExportError(f"{path} is not readable JSON ({error}): export it anew") from error


def write_json(folder: Path, name: str, value: Any) -> None:
    """Writes a JSON file of a folder; the old one is there until the new one is whole."""
    part = folder / f".{name}.part"
    part.write_text(json.dumps(value, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    part.replace(folder / name)


def read_record(folder: Path) -> dict[str, Any]:
    """What an export said of a folder that it wrote.

    Raises:
      ExportError: no export wrote the folder.
    """
    if not (folder / RECORD).is_file():
        raise ExportError(f"{folder} holds no {RECORD}: no export of jax_speechlm wrote it")
    return read_json(folder, RECORD)


@contextlib.contextmanager
def written(out: Path, record: Mapping[str, Any]) -> Iterator[Path]:
    """A new folder to fill, which takes its place at `out` when the block ends.

    It is made beside `out` and renamed. An error in the block removes it; a `FailedCheck` keeps it as
    `<out>.rejected`, for a look at what went wrong. Either way what stood at `out` is still there.

    Args:
      record: what goes into `jax_speechlm.json`, beside the names of the files; the block may write the file itself,
        with more than that.

    Raises:
      ExportError: at `out` is something that no export wrote.
    """
    require_free(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    readable(folder)
    try:
        write_json(folder, RECORD, dict(record))
        yield folder
        _seal(folder)
        _take_place(folder, out)
    except FailedCheck as error:
        _seal(folder)
        with contextlib.suppress(ExportError):  # a user's own folder of that name: the new one stays where it is
            folder = _take_place(folder, out.with_name(f"{out.name}.rejected"))
        raise FailedCheck(
            f"{error}\nDo not use what was written: it lies at {folder}, and {out} was not touched."
        ) from error
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def require_free(out: Path) -> None:
    """Raises `ExportError` unless `out` is new, empty, or an earlier export with nothing beside it."""
    if not out.exists() and not out.is_symlink():
        return
    if not out.is_dir():
        raise ExportError(f"{out} is a file: name a folder with --out")
    names = {str(file.relative_to(out)) for file in out.rglob("*") if not file.is_dir()}
    if not names:
        return
    if RECORD not in names:
        raise ExportError(
            f"{out} holds files that no export wrote, such as {min(names)}: name another folder with --out"
        )
    if others := names - {RECORD, *read_record(out).get("files", ())}:
        raise ExportError(f"{out} holds {min(others)} beside an earlier export: move it away, or name another folder")


def readable(path: Path) -> None:
    """Gives a file or folder the permissions that new ones have, where it was made for its owner alone."""
    mask = os.umask(0)
    os.umask(mask)
    path.chmod((0o777 if path.is_dir() else 0o666) & ~mask)


def _seal(folder: Path) -> None:
    """Puts the names of the folder's files into its record."""
    files = sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())
    write_json(folder, RECORD, read_record(folder) | {"files": files})


def _take_place(folder: Path, out: Path) -> Path:
    """Renames a folder to `out`, and returns that; an earlier export there goes once the new one stands."""
    require_free(out)
    if not out.exists():
        return folder.rename(out)
    old = Path(tempfile.mkdtemp(prefix=f".{out.name}-old-", dir=out.parent))
    out.rename(old)  # onto an empty folder
    try:
        folder.rename(out)
    except OSError:
        old.rename(out)
        raise
    shutil.rmtree(old)
    return out
