"""Folders that an export writes: they appear whole or not at all, and none of a user's files is lost.

`jax_speechlm.json` in a folder says which checkpoint it is from, what was checked, and which files the export wrote;
only a folder whose files are all of an earlier export is replaced.
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

RECORD = "jax_speechlm.json"
_LARGEST_FILE = 128 << 20  # the largest tokenizers have some 30 MB, and twice that inside a record
_LARGEST_SETTINGS = 16 << 20  # any other
_TOKENIZERS = "tokenizer.json", "vocab.json", RECORD  # a record holds the tokenizer too
_MOST_LISTS, _MOST_ITEMS = 1 << 20, 4 << 20  # in a file of JSON: lists and objects, and what is in them


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
    """A JSON file of a folder, which takes little more memory than the file has bytes.

    Raises:
      ExportError: it is missing, is not JSON, or is not a file of the folder's own of a sensible size.
    """
    path, content = inside(folder, name), read_bytes(folder, name)
    lists, items = content.count(b"[") + content.count(b"{"), content.count(b",")
    if lists > _MOST_LISTS or items > _MOST_ITEMS:  # empty ones take thirty times their length of memory
        raise ExportError(f"{path} has {lists:,} lists and {items:,} items, more than any such file: refused")
    try:
        return json.loads(content.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ExportError(f"{path} is not readable JSON ({error}): export it anew") from error


def read_file(folder: Path, name: str) -> Any:
    """A file of a folder: the value of a .json, of any other the text, character for character.

    Raises:
      ExportError: as of `read_json`, or the text is not UTF-8.
    """
    if name.endswith(".json"):
        return read_json(folder, name)
    try:
        return read_bytes(folder, name).decode("utf-8")
    except UnicodeDecodeError as error:
        raise ExportError(f"{folder / name} is not text in UTF-8 ({error}): copy it anew") from error


def read_bytes(folder: Path, name: str) -> bytes:
    """A file of a folder, but for weights.

    Raises:
      ExportError: it is missing, or is not a file of the folder's own of a sensible size.
    """
    path = inside(folder, name)
    most = _LARGEST_FILE if path.name in _TOKENIZERS else _LARGEST_SETTINGS
    if (size := path.stat().st_size) > most:
        raise ExportError(f"{path} has {size:,} bytes, more than any such file: refused")
    return path.read_bytes()


def write_json(folder: Path, name: str, value: Any) -> None:
    """Writes a JSON file of a folder; the old one is there until the new one is whole."""
    write_text(folder, name, json.dumps(value, ensure_ascii=False, indent=2) + "\n")


def write_text(folder: Path, name: str, text: str) -> None:
    """Writes a file of a folder, and the folders in `name`; the old one is there until the new one is whole.

    Raises:
      ExportError: `name`, which may come from a run of somebody else's, leaves the folder.
    """
    file = folder / name
    if not file.resolve().is_relative_to(folder.resolve()):
        raise ExportError(f"{name!r} is no name of a file inside {folder}: refused")
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(f".{file.name}.part")
    part.write_bytes(text.encode("utf-8"))
    part.replace(file)


def read_record(folder: Path) -> dict[str, Any]:
    """What an export said of a folder that it wrote.

    Raises:
      ExportError: no export wrote the folder.
    """
    if not (folder / RECORD).is_file():
        raise ExportError(f"{folder} holds no {RECORD}: no export of jax_speechlm wrote it")
    return read_json(folder, RECORD)


def versions(modules: Iterable[str]) -> dict[str, str]:
    """The installed version of each of these modules, as a record names what read a folder."""
    distributions = packages_distributions()
    return {name: version(distributions.get(name, [name])[0]) for name in modules}


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
