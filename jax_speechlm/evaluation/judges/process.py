"""Processes of judges: requests and answers as lines of JSON over pipes, with limits of time."""

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_MAX_LINE = 1 << 22  # bytes; a vector of 256 numbers takes 6,000
_READ_SIZE = 1 << 16
_MAX_QUOTED = 200  # characters of an answer or a message in a reason


class JudgeError(Exception):
    """A judge cannot be opened, or stopped judging; `reason` is a line that names the remedy where there is one."""

    def __init__(self, reason: str):
        super().__init__(reason)
        self.reason = reason


class JudgeProcess:
    """One judge in a process of its own; a context manager that ends it.

    Attributes:
      packages: versions of the judge's packages.
    """

    def __init__(self, command: Sequence[str], *, timeout: float, start_timeout: float = 300.0):
        """Starts a judge and waits until it is ready.

        Args:
          command: a program with the protocol of `worker`.
          timeout: seconds that an answer may take.
          start_timeout: seconds until the judge must be ready.

        Raises:
          JudgeError: the program does not start, or has no judge to offer.
        """
        environment = os.environ | {"PYTHONSAFEPATH": "1", "PYTHONUTF8": "1"}
        if command[0] != sys.executable:  # another interpreter has packages of its own
            environment = {name: value for name, value in environment.items() if name not in _OF_THIS_PYTHON}
        self._timeout, self._buffer, self._requests = timeout, bytearray(), 0
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  closed by `close`
        try:
            self._process = subprocess.Popen(
                list(command),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._log,
                env=environment,
                start_new_session=True,  # Ctrl-C is for the parent, and a group can be ended as a whole
            )
        except OSError as error:
            self._log.close()
            raise JudgeError(f"{command[0]} does not start: {error.strerror}") from error
        try:
            first = self._receive(start_timeout, "starting")
            if "missing" in first:
                raise JudgeError(_unavailable(first))
            if not isinstance(first.get("ready"), dict):
                raise JudgeError(f"unexpected answer at the start: {_quoted(json.dumps(first))}")
        except JudgeError:
            self.close()
            raise
        self.packages: dict[str, str] = {name: str(version) for name, version in first["ready"].items()}

    def __enter__(self) -> "JudgeProcess":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def judge(self, audio: Path, reference: Path | None = None) -> dict[str, Any]:
        """Returns the answer about a WAV file: `text`, `scores`, `vector`, or the `error` of this recording.

        Args:
          reference: the WAV file that it is compared with, by a judge that compares.

        Raises:
          JudgeError: the judge ended, took too long, or broke the protocol; it answers no more.
        """
        number, self._requests = self._requests, self._requests + 1
        files = {"audio": str(audio)} | ({} if reference is None else {"reference": str(reference)})
        request = json.dumps({"id": number, **files}).encode() + b"\n"
        try:
            self._process.stdin.write(request)
            self._process.stdin.flush()
        except OSError:
            raise JudgeError(self._death()) from None
        answer = self._receive(self._timeout, f"judging {audio.name}")
        if answer.pop("id", None) != number:
            raise JudgeError(f"an answer to another request while judging {audio.name}: {_quoted(json.dumps(answer))}")
        return answer

    def close(self) -> None:
        """Ends the process and all that it started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._log):
            with contextlib.suppress(OSError):  # what was not sent
                stream.close()

    def _receive(self, seconds: float, doing: str) -> dict[str, Any]:
        """Reads one line within a time and parses it as a JSON object."""
        deadline, output = time.monotonic() + seconds, self._process.stdout.fileno()
        while b"\n" not in self._buffer:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([output], [], [], left)[0]:
                raise JudgeError(f"no answer within {seconds:g} s while {doing}")
            block = os.read(output, _READ_SIZE)
            self._buffer += block
            if not block:
                raise JudgeError(self._death())
            if len(self._buffer) > _MAX_LINE:
                raise JudgeError(f"an answer of more than {_MAX_LINE:,} bytes while {doing}")
        line, _, rest = bytes(self._buffer).partition(b"\n")
        self._buffer = bytearray(rest)
        try:
            answer = json.loads(line)
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            raise JudgeError(
                f"an answer that is no JSON object while {doing}: {_quoted(line.decode(errors='replace'))}"
            )
        return answer

    def _death(self) -> str:
        """Describes the end of the process by its status and its last message."""
        try:
            status = self._process.wait(5.0)
        except subprocess.TimeoutExpired:
            return "closed its output"
        end = f"ended by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
        self._log.seek(0, os.SEEK_END)
        self._log.seek(max(0, self._log.tell() - 4096))
        lines = self._log.read().decode(errors="replace").split("\n")
        last = next((line.strip() for line in reversed(lines) if line.strip()), "")
        return f"{end}: {_quoted(last)}" if last else end


_OF_THIS_PYTHON = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "__PYVENV_LAUNCHER__")


def _unavailable(answer: dict[str, Any]) -> str:
    if answer.get("module"):
        return (
            f"{answer['module']} is not installed: pip install 'jax_speechlm[judges]', or name a Python that has it by "
            "--judge-python"
        )
    return _quoted(str(answer["missing"]))


def _quoted(text: str) -> str:
    return text if len(text) <= _MAX_QUOTED else f"{text[:_MAX_QUOTED]}..."
