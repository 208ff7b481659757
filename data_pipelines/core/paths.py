"""Paths on disks and in buckets: a user may name a folder or a URL, gs://bucket/x or s3://bucket/x.

A folder, on a disk, NFS or a mounted bucket, is a `pathlib.Path`. A URL is an `etils.epath.Path`, which has the same
methods and reaches buckets through fsspec: gcsfs for gs://, s3fs for s3://, each with its own ways to find credentials.
"""

import importlib.util
import os
import re
import tempfile
from collections.abc import Iterable
from pathlib import Path

os.environ.setdefault("EPATH_USE_TF", "false")  # where TensorFlow is installed, epath would import it for its gfile
import fsspec
from etils import epath

from data_pipelines.core.errors import DataError

AnyPath = Path | epath.Path

_FILE_SYSTEMS = {"gs": "gcsfs", "s3": "s3fs"}
_URL = re.compile(r"(\w+):/(/?)(\S+)")


def as_path(path: str | os.PathLike) -> AnyPath:
    """Converts a folder to `Path` and a URL to `epath.Path`, also a URL that lost a slash in a `Path`.

    Raises:
      DataError: the kind of bucket is unknown, or its fsspec package is not installed.
    """
    text = os.fspath(path)
    url = _URL.fullmatch(text)
    if not url or (not url[2] and url[1] not in _FILE_SYSTEMS):
        return Path(path)
    scheme, rest = url[1], url[3]
    if scheme not in _FILE_SYSTEMS:
        raise DataError(f"{text}: {scheme}:// is not supported; name a folder, gs://bucket/... or s3://bucket/...")
    package = _FILE_SYSTEMS[scheme]
    if importlib.util.find_spec(package) is None:
        raise DataError(f"{text}: {scheme}:// needs {package}: pip install 'jax_speechlm[{scheme}]'")
    # Listings are not cached: other processes of a run write to the same folders.
    fsspec.config.conf.setdefault(scheme, {}).setdefault("use_listings_cache", False)
    return epath.Path(f"{scheme}://{rest}")


def reach(path: str | os.PathLike) -> AnyPath:
    """Returns `as_path(path)` after a first request to the bucket of a URL.

    Raises:
      DataError: as `as_path`, or the bucket cannot be reached; the message includes the client's error.
    """
    path = as_path(path)
    if is_url(path):
        try:
            path.exists()
        except Exception as error:  # each client raises its own
            raise DataError(
                f"{path}: the bucket cannot be reached ({type(error).__name__}: {str(error)[:200]}); check its name, "
                "the credentials in this environment, and the network"
            ) from error
    return path


def is_url(path: AnyPath) -> bool:
    """Returns whether a path is in a bucket, where a file is written completely or not at all and cannot be appended
    to.
    """
    return isinstance(path, epath.Path)


def absolute(path: str | os.PathLike) -> AnyPath:
    """Returns `as_path(path)`, with folders made absolute."""
    path = as_path(path)
    return path if is_url(path) else path.absolute()


def cache_dir() -> Path:
    """Returns the folder for files that can be made or fetched again.

    It is `$JAX_SPEECHLM_CACHE`, or `jax_speechlm` in the user's cache directory.
    """
    if folder := os.environ.get("JAX_SPEECHLM_CACHE"):
        return Path(folder)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "jax_speechlm"


def fetch(files: Iterable[epath.Path], folder: Path) -> None:
    """Copies files of a bucket into a local folder, except files that are there in the same size.

    Several processes may fetch into one folder: a complete file is renamed into place.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for file in files:
        target = folder / file.name
        if target.exists() and target.stat().st_size == file.stat().length:
            continue
        with tempfile.NamedTemporaryFile(dir=folder, prefix=f"{file.name}.", suffix=".partial") as partial:
            copy(file, Path(partial.name))
            os.link(partial.name, f"{partial.name}.whole")
        os.replace(f"{partial.name}.whole", target)


def num_bytes(file: AnyPath) -> int:
    """Returns the size of a file in bytes."""
    return file.stat().length if is_url(file) else file.stat().st_size


def copy(source: AnyPath, target: AnyPath) -> None:
    """Copies a file between disks and buckets."""
    with source.open("rb") as reader, target.open("wb") as writer:
        while block := reader.read(2**24):
            writer.write(block)


def move_folder(folder: AnyPath, target: AnyPath) -> None:
    """Renames a folder.

    A bucket copies the files itself, then removes the old ones: after a kill both may exist.
    """
    if not is_url(folder):
        folder.rename(target)
        return
    files, source = fsspec.core.url_to_fs(str(folder))
    for file in files.find(source):  # files alone: an S3 client that copies a whole folder takes folders for files
        files.cp_file(file, f"{files._strip_protocol(str(target))}{file.removeprefix(source)}")
    files.rm(source, recursive=True)
