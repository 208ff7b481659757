"""Fetching packages: verified, unpacked without leaving the target, and clear where there is no apt."""

import contextlib
import errno
import hashlib
import io
import shutil
import subprocess
import tarfile

import pytest

from data_pipelines.core.errors import DataError
from data_pipelines.sources import debian

needs_dpkg = pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="dpkg-deb makes the package")


@pytest.fixture
def package(tmp_path):
    """A package `tiny` 1.0 with one file and one link out of the tree."""
    tree = tmp_path / "tree"
    (tree / "DEBIAN").mkdir(parents=True)
    (tree / "DEBIAN/control").write_text(
        "Package: tiny\nVersion: 1.0\nArchitecture: all\nMaintainer: A <a@example.org>\nDescription: tiny\n"
    )
    (tree / "usr").mkdir()
    (tree / "usr/sound").write_text("beep")
    (tree / "usr/passwd").symlink_to("/etc/passwd")
    subprocess.run(["dpkg-deb", "--build", tree, tmp_path / "tiny_1.0_all.deb"], check=True, capture_output=True)
    return tmp_path / "tiny_1.0_all.deb"


@pytest.fixture
def apt(monkeypatch, package):
    """A stand-in for apt that knows this package; returns what apt-cache tells of it."""
    record = {"Version": "1.0", "SHA256": hashlib.sha256(package.read_bytes()).hexdigest()}
    downloads = []

    def run(*command, cwd=None):
        assert command[-2:] == ("download", "tiny=1.0")
        downloads.append(shutil.copy(package, cwd))

    monkeypatch.setattr(debian, "_show", lambda name: record if name == "tiny" else None)
    monkeypatch.setattr(debian, "_run", run)
    monkeypatch.setattr(shutil, "which", lambda tool: f"/usr/bin/{tool}")
    record["downloads"] = downloads
    return record


@needs_dpkg
def test_fetch_unpacks_once(apt, tmp_path):
    fetched = debian.fetch("tiny", tmp_path / "cache")
    assert (fetched.version, (fetched.root / "usr/sound").read_text()) == ("1.0", "beep")
    assert not (fetched.root / "usr/passwd").is_symlink()
    assert debian.fetch("tiny", tmp_path / "cache") == fetched
    assert len(apt["downloads"]) == 1
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["tiny_1.0"]  # nothing half-done is left


@needs_dpkg
def test_wrong_checksum_is_refused_and_leaves_nothing(apt, tmp_path):
    apt["SHA256"] = "0" * 64
    with pytest.raises(DataError, match=r"tiny_1\.0_all\.deb: SHA-256 .* prepare again"):
        debian.fetch("tiny", tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


@needs_dpkg
def test_damaged_package_is_refused(apt, package, tmp_path):
    package.write_bytes(package.read_bytes()[:200])
    apt["SHA256"] = hashlib.sha256(package.read_bytes()).hexdigest()
    with pytest.raises(DataError, match=r"tiny_1\.0_all\.deb: .*unpack"):
        debian.fetch("tiny", tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


@needs_dpkg
def test_full_disk_while_unpacking(apt, tmp_path, monkeypatch):
    def full(*arguments, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tarfile.TarFile, "extractall", full)
    with pytest.raises(DataError, match="the disk is full"):
        debian.fetch("tiny", tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_without_apt_the_alternatives_are_named(monkeypatch, tmp_path):
    monkeypatch.setattr(shutil, "which", lambda tool: None)
    with pytest.raises(DataError, match=r"apt-get.* not found.*--tfds librispeech.*--manifest my\.jsonl"):
        debian.fetch("tiny", tmp_path)


def test_unknown_package(monkeypatch, tmp_path):
    monkeypatch.setattr(shutil, "which", lambda tool: tool)
    monkeypatch.setattr(debian, "_show", lambda name: None)
    monkeypatch.setattr(debian, "_run", lambda *command, cwd=None: None)
    with pytest.raises(DataError, match="apt does not know the package tiny: run `apt-get update`"):
        debian.fetch("tiny", tmp_path)


@pytest.mark.parametrize("name", ["../escaped", "{outside}/escaped", "folder/../../escaped"])
def test_archives_cannot_leave_their_folder(tmp_path, name):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        member = tarfile.TarInfo(name.format(outside=tmp_path))  # where the last line would see it
        member.size = 4
        tar.addfile(member, io.BytesIO(b"evil"))
    buffer.seek(0)
    target = tmp_path / "deep" / "target"
    target.mkdir(parents=True)
    with tarfile.open(fileobj=buffer) as tar, contextlib.suppress(tarfile.FilterError):
        tar.extractall(target, filter=debian.regular_files)
    assert not any(path.is_file() for path in tmp_path.rglob("*") if target not in path.parents)
