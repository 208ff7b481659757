"""Runs that need one another, shared among as many processes as are started: what the long tables are made by."""

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
      needs: names of the runs that have to be finished before it can begin.
      finish: trains it in the folder that it is given, and measures it; goes on where an earlier call was stopped.
    """

    needs: tuple[str, ...]
    finish: Callable[[Path], None]


class RunQueue:
    """Runs by name, each in its own folder, in the order of their turn."""

    def __init__(self, folder: Path, tasks: Mapping[str, Task]):
        self.folder, self.tasks = folder, tasks

    def finished(self, name: str) -> bool:
        return (self.folder / name / "finished").exists()

    def work(self) -> Iterator[str]:
        """Finishes what is not, yielding each run's name; leaves to other processes what they have in hand."""
        while waiting := [name for name in self.tasks if not self.finished(name)]:
            ready = (name for name in waiting if all(map(self.finished, self.tasks[name].needs)))
            if (name := next(filter(self._take, ready), None)) is None:
                time.sleep(10)
            else:
                yield name

    def _take(self, name: str) -> bool:
        """Finishes a run, unless another process has it or had it in the meantime."""
        run = self.folder / name
        run.mkdir(parents=True, exist_ok=True)
        with (run / ".lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # ends with the process, however that ends
            except BlockingIOError:
                return False
            if self.finished(name):
                return False
            print(f"--- {name}", flush=True)
            self.tasks[name].finish(run)
            (run / "finished").touch()
        return True


def train_to_end(experiment: Experiment, run: Path) -> None:
    """`train`, but a signal that ends the run ends the process too."""
    if train(experiment, run).step < experiment.num_steps:
        sys.exit("Stopped. The same command goes on from there.")
