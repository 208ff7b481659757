"""Files that are written completely or not at all, their digests and sizes."""

import contextlib
import hashlib
import json
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_pipelines.core.paths import AnyPath, num_bytes


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a temporary path in the folder of `path`, which replaces `path` on success and is removed on an error.

    The temporary name is unique to host, process and thread, so that several may write the same file.
    """
    partial = path.with_name(f"{path.name}.{socket.gethostname()}-{os.getpid()}-{threading.get_ident()}.partial")
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes) -> None:
    """Writes a file completely or not at all."""
    with replacing(path) as partial:
        partial.write_bytes(content)


def write_json(path: Path, content: Any) -> None:
    """Writes a JSON file (UTF-8, indented) completely or not at all."""
    write_bytes(path, (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode())


def file_sha256(path: AnyPath) -> str:
    """Returns the SHA-256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def short_digest(content: bytes) -> str:
    """Returns the first 16 hex digits of the SHA-256 of `content`: a name for a value, not a check of security."""
    return hashlib.sha256(content).hexdigest()[:16]


def folder_bytes(folder: AnyPath) -> int:
    """Returns the total size of all files below a folder, in bytes."""
    return sum(folder_bytes(path) if path.is_dir() else num_bytes(path) for path in folder.iterdir())
