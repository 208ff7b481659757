"""A run's logs. They grow, which files in buckets cannot: they are written to the local disk and copied."""

import json
import logging
import os
import tempfile
import threading
from pathlib import Path
from types import TracebackType

from data_pipelines.core.paths import AnyPath, copy, is_url

log = logging.getLogger(__name__)

METRICS = "metrics.jsonl"
_EVERY_SECONDS = 30.0
_PARTIAL = ".partial"


def drop_later(file: Path, step: int) -> None:
    """Removes lines of steps after `step`, which will be repeated, and an incomplete last line from a log."""
    if not file.exists():
        return
    kept = [line for line in file.read_text(errors="replace").splitlines() if _step_of(line) <= step]
    text = "".join(f"{line}\n" for line in kept)
    if text.encode() == file.read_bytes():
        return
    partial = file.with_name(f"{file.name}{_PARTIAL}")
    partial.write_text(text)
    os.replace(partial, file)


def _step_of(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, TypeError, KeyError):
        return float("inf")


def _version(file: Path) -> tuple[int, int]:
    stat = file.stat()
    return stat.st_size, stat.st_mtime_ns


class LogFolder:
    """A local folder for `metrics.jsonl` and `tensorboard/`: the run's directory, unless that is in a bucket.

    For a bucket, a thread copies changed files every 30 s, and the rest when the run ends, so that steps do not wait
    for the bucket; a killed run loses the lines of the last 30 s.
    """

    def __init__(self, run_dir: AnyPath, is_writer: bool = True):
        """Fetches the metrics of earlier starts. Only the process with `is_writer` copies files to a bucket."""
        self._remote = run_dir if is_url(run_dir) else None
        if self._remote is None:
            self.folder = Path(run_dir)
            return
        self._temporary = tempfile.TemporaryDirectory(prefix="jax-speechlm-logs-")
        self.folder = Path(self._temporary.name)
        self._copied: dict[Path, tuple[int, int]] = {}  # size and modification time when copied
        if (self._remote / METRICS).exists():
            copy(self._remote / METRICS, self.folder / METRICS)
            self._copied[self.folder / METRICS] = _version(self.folder / METRICS)
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._copy_now_and_then, daemon=True)
        self._is_writer = is_writer
        if is_writer:
            self._thread.start()

    def __enter__(self) -> "LogFolder":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        if self._remote is None:
            return
        if self._is_writer:
            self._done.set()
            self._thread.join()
            self._copy()
        self._temporary.cleanup()

    def _copy_now_and_then(self) -> None:
        while not self._done.wait(_EVERY_SECONDS):
            self._copy()

    def _copy(self) -> None:
        for file in sorted(self.folder.rglob("*")):
            if file.is_dir() or file.suffix == _PARTIAL:
                continue
            try:
                version = _version(file)
                if self._copied.get(file) == version:
                    continue
                target = self._remote / file.relative_to(self.folder)
                target.parent.mkdir(parents=True, exist_ok=True)
                copy(file, target)
                self._copied[file] = version
            except Exception as error:  # types differ between buckets; a lost log must not end the run
                log.warning("%s: cannot be copied to %s (%s); tried again later", file.name, self._remote, error)
