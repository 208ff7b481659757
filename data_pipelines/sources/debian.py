"""Debian packages of speech and text, which any Debian machine can fetch by name without root: download, verify,
unpack.
"""

import os
import re
import shutil
import subprocess
import tarfile
import tempfile
from dataclasses import dataclass
from email.parser import HeaderParser
from pathlib import Path

from data_pipelines.core.errors import DataError, disk_full_as_data_error
from data_pipelines.core.files import file_sha256

_ALTERNATIVES = (
    "Without apt, prepare data from elsewhere: a TFDS data set (prepare --tfds librispeech), "
    "a JSONL manifest of your own recordings (prepare --manifest my.jsonl) or text (prepare --text 'my/*.txt')."
)


@dataclass(frozen=True)
class Package:
    """A fetched package: its files are below `root`."""

    name: str
    version: str
    root: Path


def fetch(name: str, cache: Path) -> Package:
    """Downloads a Debian package into `cache` unless it is there, verifies its SHA-256 and unpacks it.

    Only regular files are unpacked, and only inside the target folder. A killed call leaves no incomplete folder.

    Raises:
      DataError: no apt on this machine, unknown package, failed download or a wrong checksum.
    """
    _require_apt(name)
    record = _lookup(name)
    cache.mkdir(parents=True, exist_ok=True)
    root = cache / f"{name}_{record['Version'].replace(':', '%3a')}"
    if not root.is_dir():
        with tempfile.TemporaryDirectory(dir=cache, prefix=f".{name}-") as folder:
            archive = _download(name, record, Path(folder))
            files = Path(folder) / "files"
            _unpack(archive, files)
            os.replace(files, root)
    return Package(name, record["Version"], root)


def newest(name: str) -> str:
    """Returns the versioned package that an unversioned one depends on: `postgresql-doc-15` for `postgresql-doc`.

    Any other name is returned as it is.
    """
    _require_apt(name)
    versioned = re.match(rf"{re.escape(name)}-\d+\b", _lookup(name).get("Depends", ""))
    return versioned[0] if versioned else name


def _require_apt(name: str) -> None:
    if missing := [tool for tool in ("apt-get", "apt-cache", "dpkg-deb") if shutil.which(tool) is None]:
        raise DataError(f"{', '.join(missing)} not found: {name} is a Debian package. {_ALTERNATIVES}")


def _lookup(name: str) -> dict[str, str]:
    record = _show(name)
    if record is None and os.geteuid() == 0:  # a fresh machine or container has no package lists
        _run("apt-get", "-q", "update")
        record = _show(name)
    if record is None:
        raise DataError(f"apt does not know the package {name}: run `apt-get update` as root, then prepare again.")
    return record


def _show(name: str) -> dict[str, str] | None:
    shown = subprocess.run(
        ["apt-cache", "show", "--no-all-versions", name], capture_output=True, text=True, check=False
    )
    record = dict(HeaderParser().parsestr(shown.stdout))
    return record if "Version" in record else None


def _download(name: str, record: dict[str, str], folder: Path) -> Path:
    sandbox = ["-o", "APT::Sandbox::User=root"] if os.geteuid() == 0 else []  # the cache need not be open to _apt
    _run("apt-get", "-q", *sandbox, "download", f"{name}={record['Version']}", cwd=folder)
    (archive,) = folder.glob("*.deb")
    if "SHA256" in record:
        sha256 = file_sha256(archive)
        if sha256 != record["SHA256"]:
            raise DataError(f"{archive.name}: SHA-256 {sha256} is not the archive's {record['SHA256']}: prepare again.")
    return archive


def _unpack(archive: Path, target: Path) -> None:
    target.mkdir()
    try:
        with (
            disk_full_as_data_error(target.parent, lambda: 2 * archive.stat().st_size),
            subprocess.Popen(["dpkg-deb", "--fsys-tarfile", archive], stdout=subprocess.PIPE) as process,
            tarfile.open(fileobj=process.stdout, mode="r|") as tar,
        ):
            tar.extractall(target, filter=regular_files)
    except tarfile.TarError as error:
        raise DataError(f"{archive.name}: cannot be unpacked ({error}): prepare again.") from error
    if process.returncode:
        raise DataError(f"{archive.name}: dpkg-deb cannot unpack it (status {process.returncode}): prepare again.")


def regular_files(member: tarfile.TarInfo, target: str) -> tarfile.TarInfo | None:
    """Filters the members of a tar archive: only regular files and folders inside `target`, no links and no devices.

    Returns:
      The member, or None to skip it.
    """
    return tarfile.data_filter(member, target) if member.isreg() or member.isdir() else None


def _run(*command: str, cwd: Path | None = None) -> None:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    if done.returncode:
        raise DataError(f"`{' '.join(command)}` failed: {done.stderr.strip()[-500:]} {_ALTERNATIVES}")
