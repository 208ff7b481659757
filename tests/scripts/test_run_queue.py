import sys
import threading
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

import run_queue
from run_queue import RunQueue, Task


@pytest.fixture(autouse=True)
def short_naps(monkeypatch):
    nap = time.sleep
    monkeypatch.setattr(run_queue.time, "sleep", lambda seconds: nap(0.01))


def test_every_run_is_made_once_after_those_it_needs(tmp_path):
    """By three workers at a time; the first in turn is the first taken."""
    made, lock = [], threading.Lock()

    def finish(run):
        time.sleep(0.01)
        with lock:
            made.append(run.name)

    needs = {"b": ("a",), "a": (), "d": ("b", "c"), "c": ("a",), "e": ()}
    tasks = {name: Task(each, finish) for name, each in needs.items()}
    yielded = []
    workers = [threading.Thread(target=lambda: yielded.extend(RunQueue(tmp_path, tasks).work())) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(timeout=30)
    assert sorted(made) == sorted(yielded) == sorted(needs)
    assert all(made.index(need) < made.index(name) for name, each in needs.items() for need in each)


def test_a_run_that_was_cut_short_is_taken_again(tmp_path):
    def cut_short(run):
        raise KeyboardInterrupt

    queue = RunQueue(tmp_path, {"a": Task((), cut_short)})
    with pytest.raises(KeyboardInterrupt):
        list(queue.work())
    assert not queue.finished("a")
    assert list(RunQueue(tmp_path, {"a": Task((), lambda run: None)}).work()) == ["a"]
    assert list(queue.work()) == []  # finished now, by whomever
