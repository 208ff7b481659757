"""Folders that an export writes: they appear complete or not at all, and a user's files are never lost.

`jax_speechlm.json` in a folder records its checkpoint, the checks, and the files that the export wrote. A folder is
replaced only if all of its files are of an earlier export.
"""

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from importlib.metadata import packages_distributions, version
from pathlib import Path
from typing import Any

from data_pipelines.core.errors import DataError
from data_pipelines.core.paths import AnyPath

RECORD = "jax_speechlm.json"
_LARGEST_FILE = 128 << 20  # the largest tokenizers have some 30 MB, and twice that inside a record
_LARGEST_SETTINGS = 16 << 20  # any other
_TOKENIZERS = "tokenizer.json", "vocab.json", RECORD  # a record holds the tokenizer too
_MOST_LISTS, _MOST_ITEMS = 1 << 20, 4 << 20  # in a file of JSON: lists and objects, and their items


class ExportError(ValueError):
    """Something cannot be exported; the message names the reason and the remedy."""


class FailedCheck(ExportError):
    """The written model does not compute the checkpoint's results."""


@contextlib.contextmanager
def errors_of(place: AnyPath) -> Iterator[None]:
    """Raises errors of what is read or converted as `ExportError`s that name a file, folder or checkpoint."""
    try:
        yield
    except (ValueError, DataError) as error:
        if isinstance(error, ExportError) and str(place) in str(error):
            raise
        raise ExportError(f"{place}: {error}") from error


def inside(folder: Path, name: str) -> Path:
    """Returns the path of a file of a folder; refuses one that is missing, not regular, or a link out of the folder."""
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
    """Reads a JSON file of a folder, in little more memory than the file has bytes; errors as of `read_bytes`."""
    path, content = inside(folder, name), read_bytes(folder, name)
    lists, items = content.count(b"[") + content.count(b"{"), content.count(b",")
    if lists > _MOST_LISTS or items > _MOST_ITEMS:  # empty ones take thirty times their length of memory
        raise ExportError(f"{path} has {lists:,} lists and {items:,} items, more than any such file: refused")
    try:
        return json.loads(content.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ExportError(f"{path} is not readable JSON ({error}): export it anew") from error


def read_file(folder: Path, name: str) -> Any:
    """Reads a file of a folder: the value of a .json file, the text of any other, character for character."""
    if name.endswith(".json"):
        return read_json(folder, name)
    try:
        return read_bytes(folder, name).decode("utf-8")
    except UnicodeDecodeError as error:
        raise ExportError(f"{folder / name} is not text in UTF-8 ({error}): copy it anew") from error


def read_bytes(folder: Path, name: str) -> bytes:
    """Reads a file of a folder, other than weights; refuses one that is too large, and what `inside` refuses."""
    path = inside(folder, name)
    most = _LARGEST_FILE if path.name in _TOKENIZERS else _LARGEST_SETTINGS
    if (size := path.stat().st_size) > most:
        raise ExportError(f"{path} has {size:,} bytes, more than any such file: refused")
    return path.read_bytes()


def write_json(folder: Path, name: str, value: Any) -> None:
    """Writes a JSON file of a folder; the old file stays until the new one is complete."""
    write_text(folder, name, json.dumps(value, ensure_ascii=False, indent=2) + "\n")


def write_text(folder: Path, name: str, text: str) -> None:
    """Writes a file of a folder, and the folders in `name`; the old file stays until the new one is complete.

    `name`, which may come from a run of another user, must not leave the folder.
    """
    file = folder / name
    if not file.resolve().is_relative_to(folder.resolve()):
        raise ExportError(f"{name!r} is no name of a file inside {folder}: refused")
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(f".{file.name}.part")
    part.write_bytes(text.encode("utf-8"))
    part.replace(file)


def read_record(folder: Path) -> dict[str, Any]:
    """Reads the record of a folder; raises `ExportError` if no export wrote the folder."""
    if not (folder / RECORD).is_file():
        raise ExportError(f"{folder} holds no {RECORD}: no export of jax_speechlm wrote it")
    return read_json(folder, RECORD)


def versions(modules: Iterable[str]) -> dict[str, str]:
    """Returns, by module, the installed version of its package, for a record."""
    distributions = packages_distributions()
    return {name: version(distributions.get(name, [name])[0]) for name in modules}


@contextlib.contextmanager
def written(out: Path, record: Mapping[str, Any]) -> Iterator[Path]:
    """Yields a new folder to fill, which is moved to `out` when the block ends.

    It is made in the parent of `out` and renamed. An error in the block removes it; a `FailedCheck` keeps it as
    `<out>.rejected`, for inspection. After an error `out` is unchanged.

    Args:
      record: entries of `jax_speechlm.json`, to which the names of the files are added; the block may write the file
        itself, with more entries.

    Raises:
      ExportError: `out` holds something that no export wrote.
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
    """Raises `ExportError` unless `out` is new, empty, or holds only files of an earlier export."""
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
    """Gives a file or folder the permissions of new ones, where it was made for its owner alone."""
    mask = os.umask(0)
    os.umask(mask)
    path.chmod((0o777 if path.is_dir() else 0o666) & ~mask)


def _seal(folder: Path) -> None:
    """Adds the names of the folder's files to its record."""
    files = sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())
    write_json(folder, RECORD, read_record(folder) | {"files": files})


def _take_place(folder: Path, out: Path) -> Path:
    """Renames a folder to `out`, and returns that; an earlier export there is removed afterwards."""
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
