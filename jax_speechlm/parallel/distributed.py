"""Runs of several processes: initialisation, joint stopping, and detection of failed processes.

A program only needs `session`. It finds the other processes from the environment:

- `JAX_COORDINATOR_ADDRESS`, `JAX_NUM_PROCESSES`, `JAX_PROCESS_ID`, as `launch/local` sets them. The two numbers may
  also come from Slurm or Open MPI, and the process id from the index of a Kubernetes job, as in a JobSet;
- the variables of Slurm (inside `srun`), Open MPI 4 and TPU pods on GKE (a JobSet);
- `JAX_SPEECHLM_DISTRIBUTED=1` without these variables if JAX can query the machine, as on Cloud TPU virtual machines.
"""

import contextlib
import faulthandler
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Mapping

import jax
import numpy as np
from jax.experimental import multihost_utils

from jax_speechlm.core import exit_status

PEER_SECONDS = 60.0
"""Seconds without a heartbeat after which a process counts as lost; `JAX_SPEECHLM_PEER_SECONDS` overrides it."""

_BEATS, _FAILURES, _HOSTS = "speechlm/beat", "speechlm/failure", "speechlm/host"


_LAUNCHERS = {"SLURM_STEP_NUM_TASKS": "SLURM_PROCID", "OMPI_COMM_WORLD_SIZE": "OMPI_COMM_WORLD_RANK"}
"""Variable of Slurm or Open MPI with the number of processes -> variable with the id of this one."""


def arguments(environment: Mapping[str, str]) -> dict[str, str | int] | None:
    """Returns the arguments of `jax.distributed.initialize`: empty if JAX finds them itself, None for one process.

    Raises:
      ValueError: some of JAX's three variables are set, and others are missing without a substitute; or Open MPI does
        not provide the address of process 0.
    """
    sizes = [name for name in _LAUNCHERS if int(environment.get(name, 1)) > 1]
    variables = (
        ("JAX_COORDINATOR_ADDRESS",),
        ("JAX_NUM_PROCESSES", *sizes),
        ("JAX_PROCESS_ID", *(_LAUNCHERS[name] for name in sizes), "JOB_COMPLETION_INDEX"),
    )
    if any(jax_name in environment for jax_name, *_ in variables):
        values = [next((environment[name] for name in names if name in environment), "") for names in variables]
        if missing := [jax_name for (jax_name, *_), value in zip(variables, values, strict=True) if not value]:
            raise ValueError(f"a run of several processes needs {', '.join(missing)} in the environment too")
        address, count, process = values
        settings = {"coordinator_address": address, "num_processes": int(count), "process_id": int(process)}
        return settings if settings["num_processes"] > 1 else None
    if "OMPI_COMM_WORLD_SIZE" in sizes and "OMPI_MCA_orte_hnp_uri" not in environment:
        raise ValueError(
            "Open MPI 5 does not provide the address of process 0: mpirun -x JAX_COORDINATOR_ADDRESS=HOST:PORT, "
            "with the host of the first process and any free port"
        )
    hosts = environment.get("TPU_PROCESS_ADDRESSES") or environment.get("TPU_WORKER_HOSTNAMES", "")
    several = "," in hosts or int(environment.get("MEGASCALE_NUM_SLICES") or 1) > 1
    return {} if sizes or several or environment.get("JAX_SPEECHLM_DISTRIBUTED") == "1" else None


@contextlib.contextmanager
def session() -> Iterator[None]:
    """Joins the other processes of the run, if any, and leaves together with them.

    If a peer fails or is silent, a process exits within `PEER_SECONDS` with a message that names the peer, because
    collective operations would wait forever. A process that fails itself exits likewise, because an orderly shutdown
    would wait for the others, which wait for it. All exit with the status of the failed process
    (`exit_status.status_of` its error), or with 1 if one was silent.
    """
    settings = arguments(os.environ)
    if settings is None:
        yield
        return
    jax.distributed.initialize(**settings)
    watch = _Watch(float(os.environ.get("JAX_SPEECHLM_PEER_SECONDS", PEER_SECONDS)))
    try:
        yield
        multihost_utils.sync_global_devices("the end of the run")
    except BaseException as error:
        watch.fail(error)
    watch.stop()
    jax.distributed.shutdown()


def stop_requested(step: int) -> bool:
    """Returns whether all processes have to stop before this step because one of them received SIGTERM.

    Every process calls it before every step; they agree on a step that none has started.
    """
    return multihost_utils.reached_preemption_sync_point(step)


def stop_announced() -> bool:
    """Returns whether one of the processes received SIGTERM. Every process calls it and gets the same result.

    Unlike `stop_requested` it needs no step, so it can be called between the batches of a validation.
    """
    if jax.process_count() == 1:
        return False
    try:  # JAX's own protocol: a process that received the signal writes this key
        jax._src.distributed.global_state.client.key_value_try_get("RECEIVED_PREEMPTION_NOTICE")
        announced = True
    except jax.errors.JaxRuntimeError:  # not found
        announced = False
    return bool(processes_where(announced))


def processes_where(flag: bool) -> list[int]:
    """Returns the ids of the processes whose flag is True. Every process calls it and gets the same result."""
    return np.flatnonzero(multihost_utils.process_allgather(np.array([flag]))).tolist()


class _Watch:
    """Sends heartbeats to the key-value store of process 0 and checks the heartbeats of the other processes.

    It uses two threads because a call to a store whose host is gone may never return. If both hang, as when JAX aborts
    a process half-way, the kernel's timer ends the process and prints the stacks of all threads. (The training loop
    uses faulthandler's own timer, of which a process has one.)
    """

    def __init__(self, limit: float):
        # JAX has no public interface to its key-value store; Orbax uses the same attribute.
        self._store = jax._src.distributed.global_state.client
        self._me, self._num_processes = jax.process_index(), jax.process_count()
        self._limit, self._pause = limit, min(2.0, limit / 8)
        self._ended = threading.Event()
        self._set(_HOSTS, socket.gethostname())
        self._set(_BEATS, "0")
        now = time.monotonic()
        self._seen: tuple[float, dict[str, dict[int, str]]] = now, {_BEATS: {}, _FAILURES: {}, _HOSTS: {}}
        self._last_beat = dict.fromkeys(range(self._num_processes), ("", now))  # last beat by process, and its time
        faulthandler.register(signal.SIGALRM, all_threads=True, chain=True)
        self._threads = [threading.Thread(target=work, daemon=True) for work in (self._exchange, self._check_peers)]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join()
        signal.setitimer(signal.ITIMER_REAL, 0)
        faulthandler.unregister(signal.SIGALRM)

    def fail(self, error: BaseException) -> None:
        """Ends this process and publishes the reason, unless a peer is the cause, which `_check_peers` then reports.

        A lost peer breaks any operation that needs it, with any message, so the heartbeats of the peers are awaited
        first.
        """
        after = time.monotonic() + 2 * self._pause  # an earlier beat may be the last one of a dead process
        while not all(since > after or peer in self._failures() for peer, (_, since) in self._last_beat.items()):
            time.sleep(0.1)  # `_check_peers` bounds this
        status, message = exit_status.status_of(error), str(error).strip() or type(error).__name__
        threading.Thread(target=self._set, args=(_FAILURES, f"{status} {message}"), daemon=True).start()
        time.sleep(1.0)  # bounded, because the store may be gone
        self._end(f"this process failed: {message}", status, error)

    def _exchange(self) -> None:
        count = 0
        with contextlib.suppress(jax.errors.JaxRuntimeError):  # `_check_peers` then gets no more beats
            while not self._ended.wait(self._pause):
                count += 1
                self._set(_BEATS, str(count))
                self._seen = time.monotonic(), {prefix: self._get(prefix) for prefix in self._seen[1]}

    def _check_peers(self) -> None:
        while not self._ended.wait(self._pause):
            signal.setitimer(signal.ITIMER_REAL, 2 * self._limit)
            when, seen = self._seen
            if time.monotonic() - when > self._limit:
                self._end(f"process 0, which coordinates the run, has not responded for {self._limit:.0f} s")
            for peer, (beat, since) in self._last_beat.items():
                now = seen[_BEATS].get(peer, beat)
                name = f"process {peer} on {seen[_HOSTS].get(peer, 'an unknown host')}"
                if peer in self._failures() and peer != self._me:
                    status, message = seen[_FAILURES][peer].split(" ", 1)
                    self._end(f"{name} failed: {message}", int(status))
                if now != beat:
                    self._last_beat[peer] = now, when
                elif when - since > self._limit:
                    self._end(f"{name} has not responded for {self._limit:.0f} s")

    def _failures(self) -> dict[int, str]:
        return self._seen[1][_FAILURES]

    def _set(self, prefix: str, value: str) -> None:
        self._store.key_value_set(f"{prefix}/{self._me}", value, allow_overwrite=True)

    def _get(self, prefix: str) -> dict[int, str]:
        return {int(key.rsplit("/", 1)[1]): value for key, value in self._store.key_value_dir_get(prefix)}

    def _end(self, why: str, status: int = exit_status.FAILED, error: BaseException | None = None) -> None:
        """Ends the process without an orderly shutdown, which would wait for peers."""
        remedy = "Start the same command again to continue from the last checkpoint."
        packages = "jax_speechlm", "data_pipelines"
        if error is not None and not type(error).__module__.startswith(packages):  # own errors need no traceback
            traceback.print_exception(error)
        print(
            f"[process {self._me} of {self._num_processes} on {socket.gethostname()}] stopped: {why}"
            + ("" if status in exit_status.FINAL else f". {remedy}"),
            file=sys.stderr,
            flush=True,
        )
        sys.stdout.flush()
        if self._me == 0:  # the others read the reason in its store; when it is gone JAX aborts them
            time.sleep(4 * self._pause)
        os._exit(status)
