"""A cache on disk of compiled programs as text, so that repeated and interrupted plans compile nothing twice."""

import hashlib
import json
import os
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from data_pipelines.core.paths import cache_dir


class Memory(NamedTuple):
    """Bytes of one device's main memory.

    Attributes:
      params, optimizer, batch: arguments of the step; moments and moving average count as optimizer.
      activations: saved by the forward pass for the backward pass, layer by layer; a part of `temporary`.
      temporary: all that the step allocates while it runs.
      program: the machine code.
      total: the peak. If the program does not fit, the compiler's estimate of its needs.
    """

    params: float
    optimizer: float
    batch: float
    activations: float
    temporary: float
    program: float
    total: float


class Compiled(NamedTuple):
    """The result of compiling a step.

    Attributes:
      memory: per device.
      text: the program's instructions; None if compilation ran out of memory.
      seconds: duration of the compilation.
    """

    memory: Memory
    text: str | None
    seconds: float


def fingerprint(lowered: jax.stages.Lowered, devices: Sequence[jax.Device], options: Mapping[str, Any]) -> str:
    """Returns a digest of all that decides a compilation: program, devices, compiler, and the code that calls it."""
    first = devices[0]
    parts = [
        lowered.as_text(),
        json.dumps(dict(options), sort_keys=True),
        f"{first.device_kind} {[device.id for device in devices]}",
        first.client.platform_version,
        jax.__version__,
        *(Path(__file__).with_name(name).read_text() for name in ("ahead_of_time.py", "compiled.py", "gpu.py")),
    ]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def recall(name: str) -> Compiled | None:
    """Reads the result with a fingerprint; None if absent."""
    try:
        head, _, text = _file(name).read_bytes().partition(b"\n")
        memory, seconds = json.loads(head)
        return Compiled(Memory(*memory), zlib.decompress(text).decode() if text else None, seconds)
    except (OSError, ValueError, zlib.error):
        return None


def keep(name: str, compiled: Compiled) -> None:
    """Writes a result under its fingerprint, in `jax_speechlm/plans` of the user's cache directory."""
    file = _file(name)
    file.parent.mkdir(parents=True, exist_ok=True)
    half = file.with_suffix(f".{os.getpid()}")
    head = json.dumps([compiled.memory, compiled.seconds]).encode()
    half.write_bytes(head + b"\n" + (b"" if compiled.text is None else zlib.compress(compiled.text.encode())))
    half.rename(file)


def _file(name: str) -> Path:
    return cache_dir() / "plans" / f"{name}.program"
