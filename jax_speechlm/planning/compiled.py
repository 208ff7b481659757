"""What compilations came to, kept on disk: a plan that is asked for again, or was cut short, compiles nothing twice."""

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax

from data_pipelines.core.paths import cache_dir
from jax_speechlm.planning.costs import Collective, Costs


class Memory(NamedTuple):
    """Bytes of one device's main memory.

    Attributes:
      params, optimizer, batch: what the step is given; the optimizer's moments and moving average together.
      activations: what the forward pass keeps for the backward pass, layer by layer; a part of `temporary`.
      temporary: all that the step allocates while it runs.
      program: the machine code.
      total: the most that is in use at once. Where the program does not fit, what it would need, as the compiler says.
    """

    params: float
    optimizer: float
    batch: float
    activations: float
    temporary: float
    program: float
    total: float


class Compiled(NamedTuple):
    """What compiling a step says of it.

    Attributes:
      memory: of each device.
      costs: of one step, for each device; None where it did not compile for want of memory.
      seconds: how long the compiler took.
    """

    memory: Memory
    costs: Costs | None
    seconds: float


# What is done with a program to compile and count it. A change here makes what is kept worthless.
_SOURCES = ("ahead_of_time.py", "compiled.py", "costs.py", "gpu.py", "hlo.py")


def fingerprint(lowered: jax.stages.Lowered, devices: Sequence[jax.Device]) -> str:
    """Names a compilation by all that decides it: the program, the devices, the compiler, and this code."""
    first, last = devices[0], devices[-1]
    parts = [
        lowered.as_text(),
        f"{len(devices)} {first.device_kind} to {getattr(last, 'coords', last.id)} {getattr(last, 'slice_index', 0)}",
        first.client.platform_version,
        jax.__version__,
        *(Path(__file__).with_name(name).read_text() for name in _SOURCES),
    ]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def recall(name: str) -> Compiled | None:
    """A compilation that was kept, by its fingerprint, or None."""
    try:
        kept = json.loads(_file(name).read_text())
    except (OSError, ValueError):
        return None
    costs = kept["costs"]
    if costs is not None:
        flops, moved, collectives, loops, calls = costs
        costs = Costs(
            flops, moved, tuple(Collective(*each) for each in collectives), tuple(loops), tuple(map(tuple, calls))
        )
    return Compiled(Memory(*kept["memory"]), costs, kept["seconds"])


def keep(name: str, compiled: Compiled) -> None:
    """Keeps a compilation under its fingerprint, in `jax_speechlm/plans` of the user's cache directory."""
    file = _file(name)
    file.parent.mkdir(parents=True, exist_ok=True)
    half = file.with_suffix(f".{os.getpid()}")
    half.write_text(json.dumps(compiled._asdict()))
    half.rename(file)


def _file(name: str) -> Path:
    return cache_dir() / "plans" / f"{name}.json"
