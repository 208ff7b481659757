"""The process that decodes audio files under limits: `python -m data_pipelines.audio.worker FD`.

FD is a connected socket. A request is a JSON line with an open file attached:

    {"do": "decode", "suffix": ".mp3", "rate": 16000, "mix": true, "max_seconds": 30.0}
    {"do": "length", "suffix": ".mp3"}

Answers have a header (`data_pipelines.audio.process.FRAME`): blocks of int16 samples, then one JSON object. Its `again`
is whether the process accepts another request; `reason` and `remedy`, or `too_long`, describe an error.
"""

import json
import math
import os
import resource
import select
import signal
import socket
import sys
from typing import Any

import av
import soundfile

from data_pipelines.audio import decode, formats
from data_pipelines.audio.process import FRAME, JSON, SAMPLES, STOP

_MEMORY = 256 * 2**20  # bytes, in addition to the use of the process before it opens a file
_CPU_SECONDS, _CPU_SHARE = 20.0, 0.1  # of processor time, and more per second of decoded audio
_REMEDY = "the file may be damaged: convert it to FLAC or WAV"


def answer_requests(connection: socket.socket) -> None:
    """Answers requests until the connection ends or memory is not released."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    at_start = _memory()
    while True:
        line, descriptors, _, _ = socket.recv_fds(connection, 2**16, 1)
        if not line:
            return
        while not line.endswith(b"\n"):
            line += connection.recv(2**16)
        if not line.strip():  # a request was stopped that had already ended
            continue
        answer = {}
        try:
            _limit(resource.RLIMIT_AS, _memory() + _MEMORY)
            _limit_cpu(resource.getrusage(resource.RUSAGE_SELF), 0.0)
            answer = _answer(json.loads(line), descriptors[0], connection)
        except MemoryError:
            answer = {"reason": "takes too much memory to decode", "remedy": _REMEDY, "again": False}
        finally:
            os.close(descriptors[0])
        answer.setdefault("again", _memory() < at_start + _MEMORY // 2)
        _send(connection, JSON, json.dumps(answer).encode())
        if not answer["again"]:
            return


def _answer(request: dict[str, Any], fd: int, connection: socket.socket) -> dict[str, Any]:
    """Executes a request. Returns the last answer."""
    try:
        if request["do"] == "length":
            return {"length": formats.length(fd, request["suffix"])}
        damage = formats.Damage()
        blocks = formats.blocks(fd, request["suffix"], damage)
        num_samples, start = 0, resource.getrusage(resource.RUSAGE_SELF)
        rate, mix = request["rate"], request["mix"]
        for block in decode.resampled(blocks, "audio", request.get("max_seconds", math.inf), rate=rate, mix=mix):
            _send(connection, SAMPLES, block.tobytes(), 0 if mix else block.shape[1])
            num_samples += len(block)
            _limit_cpu(start, num_samples / rate)
            if select.select([connection], [], [], 0)[0]:
                connection.recv(len(STOP))
                return {}
        if damage.lost > num_samples / rate / 2:
            raise ValueError(damage.first_error)
        return {"lost": damage.lost, "error": damage.first_error}
    except decode.AudioTooLongError:
        return {"too_long": True}
    except decode.AudioError as error:
        return {"reason": error.reason, "remedy": error.remedy}
    except MemoryError:
        raise
    except (soundfile.LibsndfileError, av.FFmpegError, ValueError, OSError, RuntimeError) as error:
        return {"reason": "cannot be decoded", "remedy": f"the file may be damaged: try to play it ({error})"}


def _send(connection: socket.socket, kind: bytes, content: bytes, channels: int = 0) -> None:
    connection.sendall(FRAME.pack(kind, len(content), channels))
    connection.sendall(content)


def _limit_cpu(start: resource.struct_rusage, seconds: float) -> None:
    """Limits processor time, counted from `start`, to the allowance of a file of which `seconds` are decoded."""
    limit = start.ru_utime + start.ru_stime + _CPU_SECONDS + _CPU_SHARE * seconds
    _limit(resource.RLIMIT_CPU, math.ceil(limit))


def _limit(kind: int, limit: int) -> None:
    _, hard = resource.getrlimit(kind)
    resource.setrlimit(kind, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))


def _memory() -> int:
    """Returns the size of this process's address space in bytes."""
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[0]) * resource.getpagesize()


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    with socket.socket(fileno=int(sys.argv[1])) as parent:
        try:
            answer_requests(parent)
        except ConnectionError:  # the parent does not wait for the answer any more
            sys.exit(0)
