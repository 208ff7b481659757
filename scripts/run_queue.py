"""A queue of runs that depend on one another, shared by any number of processes; used by the scripts of studies."""

import fcntl
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from jax_speechlm.recipes.experiment import Experiment
from jax_speechlm.training.loop import train


class Task(NamedTuple):
    """One run.

    Attributes:
      needs: names of the runs that have to be finished first.
      finish: trains and evaluates it in the given folder; continues an interrupted call.
    """

    needs: tuple[str, ...]
    finish: Callable[[Path], None]


class RunQueue:
    """Runs by name, each in its own folder, processed in order."""

    def __init__(self, folder: Path, tasks: Mapping[str, Task]):
        self.folder, self.tasks = folder, tasks

    def finished(self, name: str) -> bool:
        return (self.folder / name / "finished").exists()

    def work(self) -> Iterator[str]:
        """Finishes the remaining runs, except those in progress in other processes.

        Yields:
          The name of each run that it finished.
        """
        while waiting := [name for name in self.tasks if not self.finished(name)]:
            ready = (name for name in waiting if all(map(self.finished, self.tasks[name].needs)))
            if (name := next(filter(self._take, ready), None)) is None:
                time.sleep(10)
            else:
                yield name

    def _take(self, name: str) -> bool:
        """Finishes a run; returns False if another process works on it or has finished it."""
        run = self.folder / name
        run.mkdir(parents=True, exist_ok=True)
        with (run / ".lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # released when the process ends, however it ends
            except BlockingIOError:
                return False
            if self.finished(name):
                return False
            print(f"--- {name}", flush=True)
            self.tasks[name].finish(run)
            (run / "finished").touch()
        return True


def train_to_end(experiment: Experiment, run: Path) -> None:
    """Trains a run to its end; exits if a signal stopped it."""
    if train(experiment, run).step < experiment.num_steps:
        sys.exit("Stopped. The same command goes on from there.")
