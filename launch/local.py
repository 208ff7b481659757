#!/usr/bin/env python3
"""Runs a command in several processes on this machine, as one JAX program.

    launch/local.py --processes 2 -- jax-speechlm pretrain --config demo/pretrain --run-dir runs/pretrain

The processes find each other by the variables that `jax_speechlm.parallel.distributed` reads. Each line of output
begins with the number of its process. SIGTERM and SIGINT go to all processes, which then save a checkpoint and exit. If
one fails, the others get `--grace` seconds to exit by themselves; then they are killed. With `--restarts` all start
again after that, which continues the run from its last checkpoint; except after a status of an error that the user has
to correct (2, 3 and 64, see `jax-speechlm --help`). A second SIGINT kills all processes at once.

Exit status: 0 if all processes exited with 0; else the status of a user error, or of the first process that failed, in
the shell's convention (128 + signal).
"""

import os
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass

import tyro

FINAL = (2, 3, 64)
"""Statuses after which the same command would fail again: `jax_speechlm.core.exit_status.FINAL`."""


@dataclass(frozen=True)
class Options:
    """Options of the launcher.

    Attributes:
      processes: how many.
      cpu_devices: run on the CPU, as this number of devices per process.
      restarts: most restarts after failures.
      grace: seconds from a failure to the kill.
      dry_run: print the commands without running them.
    """

    processes: int
    cpu_devices: int | None = None
    restarts: int = 0
    grace: float = 90.0
    dry_run: bool = False


def main() -> int:
    end = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    options, command = tyro.cli(Options, description=__doc__, args=sys.argv[1:end]), sys.argv[end + 1 :]
    if not command or options.processes < 1:
        print("give the number of processes, at least 1, and after `--` a command", file=sys.stderr)
        return 2
    if options.dry_run:
        for process in range(options.processes):
            added = _environment(options, process, "PORT")
            print(shlex.join(("env", *(f"{name}={value}" for name, value in added.items()), *command)))
        return 0
    stopping = threading.Event()
    for attempt in range(options.restarts + 1):
        status = _run(command, options, stopping)
        if status == 0 or status in FINAL or stopping.is_set() or attempt == options.restarts:
            break
        print(f"[local] status {status}; restarting, {options.restarts - attempt} restarts left", flush=True)
    return status


def _environment(options: Options, process: int, port: int | str) -> dict[str, str]:
    """Returns the variables that make a process one of several."""
    added = {
        "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
        "JAX_NUM_PROCESSES": str(options.processes),
        "JAX_PROCESS_ID": str(process),
    }
    if options.cpu_devices:
        flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={options.cpu_devices}"
        added |= {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags.strip()}
    return added


def _run(command: Sequence[str], options: Options, stopping: threading.Event) -> int:
    """Runs all processes once, to the end.

    Returns:
      The exit status.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    children, readers = [], []
    for process in range(options.processes):
        environment = os.environ | _environment(options, process, port) | {"PYTHONUNBUFFERED": "1"}
        child = subprocess.Popen(
            command,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            process_group=0,  # else a terminal's Ctrl-C would reach it in addition to the signal from `forward`
        )
        children.append(child)
        readers.append(threading.Thread(target=_copy, args=(child, f"[{process}] ".encode())))
        readers[-1].start()

    interrupts = []

    def forward(number, frame):
        del frame
        stopping.set()
        interrupts.extend([number] * (number == signal.SIGINT))
        for child in children:
            child.send_signal(signal.SIGKILL if len(interrupts) > 1 else signal.SIGTERM)

    before = {number: signal.signal(number, forward) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
    status, deadline = 0, None
    try:
        while any([child.poll() is None for child in children]):  # a list: polls every child
            failed = [child.returncode for child in children if child.returncode]
            if failed and deadline is None:
                status, deadline = failed[0], time.monotonic() + options.grace
            if deadline is not None and time.monotonic() > deadline:
                for child in children:
                    child.kill()
            time.sleep(0.1)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for child in children:
            child.kill()
        for reader in readers:
            reader.join()
    ended = [child.returncode for child in children if child.returncode]
    status = next((code for code in ended if code in FINAL), status or next(iter(ended), 0))
    return status if status >= 0 else 128 - status


def _copy(child: subprocess.Popen, prefix: bytes) -> None:
    for line in child.stdout:
        sys.stdout.buffer.write(prefix + line)
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    sys.exit(main())
