"""Several processes as one run: finding each other, stopping together, and not waiting for one that is gone.

`session` is all that a program needs. It finds the other processes from the environment:

- `JAX_COORDINATOR_ADDRESS`, `JAX_NUM_PROCESSES`, `JAX_PROCESS_ID`, as `launch/local` sets them. The numbers may also be
  those of Slurm or Open MPI, and a pod's own that of its indexed Kubernetes job, as the jobs of a JobSet are;
- Slurm (inside `srun`), Open MPI 4 and TPU pods on GKE (a JobSet), by the variables that these set themselves;
- `JAX_SPEECHLM_DISTRIBUTED=1` where nothing is set but JAX can ask the machine, as on Cloud TPU virtual machines.
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
"""How long a process may be silent before the others give up; `JAX_SPEECHLM_PEER_SECONDS` overrides it."""

_BEATS, _FAILURES, _HOSTS = "speechlm/beat", "speechlm/failure", "speechlm/host"


_LAUNCHERS = {"SLURM_STEP_NUM_TASKS": "SLURM_PROCID", "OMPI_COMM_WORLD_SIZE": "OMPI_COMM_WORLD_RANK"}
"""How many processes Slurm's and Open MPI's variables say there are -> which of them this is."""


def arguments(environment: Mapping[str, str]) -> dict[str, str | int] | None:
    """What to pass to `jax.distributed.initialize`, or None where this process is alone.

    Raises:
      ValueError: some of JAX's three variables are set, but neither all nor what stands for them; or Open MPI does not
        tell where process 0 is.
    """
    sizes = [name for name in _LAUNCHERS if int(environment.get(name, 1)) > 1]
    names = {
        "coordinator_address": ("JAX_COORDINATOR_ADDRESS",),
        "num_processes": ("JAX_NUM_PROCESSES", *sizes),
        "process_id": ("JAX_PROCESS_ID", *(_LAUNCHERS[name] for name in sizes), "JOB_COMPLETION_INDEX"),
    }
    if any(ours in environment for ours, *_ in names.values()):
        found = {
            argument: [environment[name] for name in each if name in environment] for argument, each in names.items()
        }
        if missing := [names[argument][0] for argument, values in found.items() if not values]:
            raise ValueError(f"a run of several processes needs {', '.join(missing)} in the environment too")
        address, number, process = (values[0] for values in found.values())
        given = {"coordinator_address": address, "num_processes": int(number), "process_id": int(process)}
        return given if given["num_processes"] > 1 else None
    if "OMPI_COMM_WORLD_SIZE" in sizes and "OMPI_MCA_orte_hnp_uri" not in environment:
        raise ValueError(
            "Open MPI 5 does not tell its processes where process 0 is: mpirun -x JAX_COORDINATOR_ADDRESS=HOST:PORT, "
            "with the host of the first process and any free port"
        )
    hosts = environment.get("TPU_PROCESS_ADDRESSES") or environment.get("TPU_WORKER_HOSTNAMES", "")
    several = "," in hosts or int(environment.get("MEGASCALE_NUM_SLICES") or 1) > 1
    return {} if sizes or several or environment.get("JAX_SPEECHLM_DISTRIBUTED") == "1" else None


@contextlib.contextmanager
def session() -> Iterator[None]:
    """Joins the run's other processes, where there are any, and leaves with them at the end.

    A process whose peer fails or falls silent ends within `PEER_SECONDS` with a message that names the peer: collective
    operations would wait for it for ever. So does a process that fails itself: leaving in good order would mean waiting
    for the others, which wait for it. All end with the status of the failed one (`exit_status.status_of` its error), or
    with 1 where one fell silent.
    """
    found = arguments(os.environ)
    if found is None:
        yield
        return
    jax.distributed.initialize(**found)
    watch = _Watch(float(os.environ.get("JAX_SPEECHLM_PEER_SECONDS", PEER_SECONDS)))
    try:
        yield
        multihost_utils.sync_global_devices("the end of the run")
    except BaseException as error:
        watch.fail(error)
    watch.stop()
    jax.distributed.shutdown()


def stop_requested(step: int) -> bool:
    """Whether all processes stop before this step, since one of them was sent SIGTERM.

    To be called by each process before each step; they agree on a step that none has begun.
    """
    return multihost_utils.reached_preemption_sync_point(step)


def stop_announced() -> bool:
    """Whether one of the processes was sent SIGTERM. To be called by each process; all learn the same.

    Unlike `stop_requested` it names no step to stop before, so it serves between batches of one step's validation.
    """
    if jax.process_count() == 1:
        return False
    try:  # where JAX's own agreement on a step begins: a process that received the signal writes this for all
        jax._src.distributed.global_state.client.key_value_try_get("RECEIVED_PREEMPTION_NOTICE")
        announced = True
    except jax.errors.JaxRuntimeError:  # not found
        announced = False
    return bool(processes_where(announced))


def processes_where(flag: bool) -> list[int]:
    """The numbers of the processes that say yes. To be called by each process; all learn the same."""
    return np.flatnonzero(multihost_utils.process_allgather(np.array([flag]))).tolist()


class _Watch:
    """Says that this process lives, in the store that process 0 keeps for all, and looks whether the others do.

    Two threads, for a call to a store whose host is gone may never return. Should both be held up, as when JAX aborts
    a process half-way, the kernel's timer ends it, with every thread's stack. (faulthandler's own timer, of which a
    process has one, is the training loop's.)
    """

    def __init__(self, limit: float):
        # JAX offers its store of keys and values to libraries in this place only; Orbax takes it from here too.
        self._store = jax._src.distributed.global_state.client
        self._me, self._num_processes = jax.process_index(), jax.process_count()
        self._limit, self._pause = limit, min(2.0, limit / 8)
        self._ended = threading.Event()
        self._set(_HOSTS, socket.gethostname())
        self._set(_BEATS, "0")
        now = time.monotonic()
        self._seen: tuple[float, dict[str, dict[int, str]]] = now, {_BEATS: {}, _FAILURES: {}, _HOSTS: {}}
        self._heard = dict.fromkeys(range(self._num_processes), ("", now))  # last beat of each process, and since when
        faulthandler.register(signal.SIGALRM, all_threads=True, chain=True)
        self._threads = [threading.Thread(target=work, daemon=True) for work in (self._exchange, self._judge)]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join()
        signal.setitimer(signal.ITIMER_REAL, 0)
        faulthandler.unregister(signal.SIGALRM)

    def fail(self, error: BaseException) -> None:
        """Ends this process and tells the others why; unless one of them is the cause, which `_judge` then says.

        A peer that is gone breaks whatever operation needs it, with any message. So the others are listened for first.
        """
        after = time.monotonic() + 2 * self._pause  # a beat that arrives sooner may be the last of a process now dead
        while not all(since > after or peer in self._failures() for peer, (_, since) in self._heard.items()):
            time.sleep(0.1)  # `_judge` bounds this
        status, message = exit_status.status_of(error), str(error).strip() or type(error).__name__
        threading.Thread(target=self._set, args=(_FAILURES, f"{status} {message}"), daemon=True).start()
        time.sleep(1.0)  # not for ever, should the store be gone
        self._end(f"this process failed: {message}", status, error)

    def _exchange(self) -> None:
        count = 0
        with contextlib.suppress(jax.errors.JaxRuntimeError):  # then `_judge` hears nothing any more
            while not self._ended.wait(self._pause):
                count += 1
                self._set(_BEATS, str(count))
                self._seen = time.monotonic(), {prefix: self._get(prefix) for prefix in self._seen[1]}

    def _judge(self) -> None:
        while not self._ended.wait(self._pause):
            signal.setitimer(signal.ITIMER_REAL, 2 * self._limit)
            when, seen = self._seen
            if time.monotonic() - when > self._limit:
                self._end(f"process 0, where all processes meet, has not been heard of for {self._limit:.0f} s")
            for peer, (beat, since) in self._heard.items():
                now = seen[_BEATS].get(peer, beat)
                name = f"process {peer} on {seen[_HOSTS].get(peer, 'an unknown host')}"
                if peer in self._failures() and peer != self._me:
                    status, message = seen[_FAILURES][peer].split(" ", 1)
                    self._end(f"{name} failed: {message}", int(status))
                if now != beat:
                    self._heard[peer] = now, when
                elif when - since > self._limit:
                    self._end(f"{name} has not been heard of for {self._limit:.0f} s")

    def _failures(self) -> dict[int, str]:
        return self._seen[1][_FAILURES]

    def _set(self, prefix: str, value: str) -> None:
        self._store.key_value_set(f"{prefix}/{self._me}", value, allow_overwrite=True)

    def _get(self, prefix: str) -> dict[int, str]:
        return {int(key.rsplit("/", 1)[1]): value for key, value in self._store.key_value_dir_get(prefix)}

    def _end(self, why: str, status: int = exit_status.FAILED, error: BaseException | None = None) -> None:
        """Ends the process without leaving in good order, which would wait for peers."""
        again = "Start the same command again: it goes on from the last checkpoint."
        ours = "jax_speechlm", "data_pipelines"
        if error is not None and not type(error).__module__.startswith(ours):  # our own errors say all in their message
            traceback.print_exception(error)
        print(
            f"[process {self._me} of {self._num_processes} on {socket.gethostname()}] stopped: {why}"
            + ("" if status in exit_status.FINAL else f". {again}"),
            file=sys.stderr,
            flush=True,
        )
        sys.stdout.flush()
        if self._me == 0:  # the others read in its store what is wrong; without it JAX aborts them
            time.sleep(4 * self._pause)
        os._exit(status)
