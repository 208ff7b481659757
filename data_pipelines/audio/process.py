"""Processes that decode audio files, and the pool of idle ones.

A file from an unknown source may crash a decoder, or make it take all memory or time. Here that costs only a process
with no other state. Processes are kept between files, since starting one takes some tenths of a second; they exit with
this process. A request is one JSON line and an open file; answers are JSON objects and blocks of samples.
"""

import contextlib
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Header of an answer: its kind, its number of bytes, its number of channels (0: samples without that axis).
FRAME = struct.Struct("<cIH")
STOP = b"\n"  # ends a request early; has no effect without a request
JSON, SAMPLES = b"j", b"s"
_MAX_FRAME = 2**26  # bytes; blocks of samples are smaller
_MAX_SILENCE = 120.0  # seconds without an answer
_CHECK = 0.2  # seconds between checks whether the answer is still wanted
_MAX_STOP = 2.0  # seconds from `STOP` to the last answer
_MAX_IDLE = max(8, os.cpu_count() or 1)


class ProcessError(Exception):
    """A decoding process ended or was killed; `reason` is short enough to count by."""

    def __init__(self, reason: str):
        super().__init__(reason)
        self.reason = reason


class _Process:
    """A decoding process and the socket to it."""

    def __init__(self):
        self._socket, worker_socket = socket.socketpair()
        # -P and this process's path: both import the same modules, whatever is in the working directory.
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OPENBLAS_NUM_THREADS": "1"}
        with worker_socket:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "data_pipelines.audio.worker", str(worker_socket.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[worker_socket.fileno()],
                env=environment,
                start_new_session=True,  # Ctrl-C is for the parent
            )

    def ask(self, request: dict[str, Any], fd: int) -> None:
        """Sends a request. Raises `OSError` if the process has ended."""
        line = json.dumps(request).encode() + b"\n"
        self._socket.settimeout(_MAX_SILENCE)
        sent = socket.send_fds(self._socket, [line], [fd])
        self._socket.sendall(line[sent:])

    def answers(self, check: Callable[[], None] | None) -> Iterator[NDArray[np.int16] | dict[str, Any]]:
        """Yields the answers to a request; the last is a JSON object with the key `again`.

        Raises:
          ProcessError: the process ended, or did not answer in time.
        """
        self._socket.settimeout(_CHECK)
        while True:
            kind, size, channels = FRAME.unpack(self._receive(FRAME.size, check))
            if size > _MAX_FRAME:
                raise ProcessError("cannot be decoded")
            content = self._receive(size, check)
            if check is not None:
                check()
            if kind == SAMPLES:
                samples = np.frombuffer(content, np.int16)
                yield samples.reshape(-1, channels) if channels else samples
                continue
            answer = json.loads(content)
            yield answer
            if "again" in answer:
                return

    def _receive(self, size: int, check: Callable[[], None] | None) -> bytearray:
        content = bytearray(size)
        view, received, deadline = memoryview(content), 0, time.monotonic() + _MAX_SILENCE
        while received < size:
            try:
                count = self._socket.recv_into(view[received:])
            except TimeoutError:
                if check is not None:
                    check()
                if time.monotonic() > deadline:
                    raise ProcessError("takes too long to decode") from None
                continue
            except ConnectionError:
                count = 0
            if count == 0:
                raise ProcessError(self._death())
            received += count
        return content

    def stop(self) -> bool:
        """Ends a request whose remaining answers are not needed. Returns whether the process accepts another one."""
        deadline = time.monotonic() + _MAX_STOP

        def check() -> None:
            if time.monotonic() > deadline:
                raise ProcessError("does not stop")

        try:
            self._socket.sendall(STOP)
            return [answer["again"] for answer in self.answers(check) if isinstance(answer, dict)][-1]
        except (OSError, ProcessError):
            return False

    def _death(self) -> str:
        try:
            status = self._process.wait(1.0)
        except subprocess.TimeoutExpired:
            status = 0
        if status == -signal.SIGXCPU:
            return "takes too much processor time to decode"
        return "crashes the decoder"

    def end(self) -> None:
        """Kills the process and waits for it."""
        self._socket.close()
        self._process.kill()
        self._process.wait()


class _Pool:
    """Decoding processes without a current request."""

    def __init__(self):
        self.clear()

    def clear(self) -> None:
        """Forgets all processes: after a fork they belong to the parent."""
        self._idle: list[_Process] = []
        self._lock = threading.Lock()

    def ask(self, request: dict[str, Any], fd: int) -> _Process:
        """Sends a request to an idle or new process, and returns that process."""
        while True:
            with self._lock:
                process = self._idle.pop() if self._idle else None
            fresh = process is None
            process = process or _Process()
            try:
                process.ask(request, fd)
                return process
            except OSError as error:  # it has ended in the meantime
                process.end()
                if fresh:
                    raise ProcessError("cannot be decoded: the decoding process does not start") from error

    def give_back(self, process: _Process) -> None:
        with self._lock:
            if len(self._idle) < _MAX_IDLE:
                self._idle.append(process)
                return
        process.end()


_pool = _Pool()
os.register_at_fork(after_in_child=_pool.clear)


def run(
    request: dict[str, Any], fd: int, check: Callable[[], None] | None = None
) -> Iterator[NDArray[np.int16] | dict[str, Any]]:
    """Yields the answers of a decoding process to a request about an open file; see `data_pipelines.audio.worker`.

    Args:
      check: called several times a second while waiting; an exception that it raises ends the process.

    Raises:
      ProcessError: the process crashed, exceeded a limit, or did not answer in time.
    """
    process = _pool.ask(request, fd)
    again = False
    try:
        for answer in process.answers(check):
            if isinstance(answer, dict):
                again = answer.get("again", False)
            yield answer
    except GeneratorExit:
        again = again or process.stop()
        raise
    finally:
        if again:
            _pool.give_back(process)
        else:
            with contextlib.suppress(OSError):
                process.end()
