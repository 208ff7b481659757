"""Four real processes: what they train, what each reads, how a hung data worker is seen, what losses are survived."""

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from jax_speechlm.training import checkpoints as ckpt
from tests.launch.test_local import FLAGS, LAUNCHER, figures, options, wait_for_step  # noqa: F401  (a fixture)

pytestmark = pytest.mark.slow

SILENCE = 30  # seconds after which a process counts as gone: four share two cores

# `finetune`, which notes every row that it reads. In process HANG_IN one reading takes long, once.
PROGRAM = """
import os, sys, time
from data_pipelines.storage.records import RecordReader
from jax_speechlm import cli

process = os.environ["JAX_PROCESS_ID"]
read, count = RecordReader.read, 0

def stuck_worker():
    time.sleep(25)

def noting(self, row):
    global count
    count += 1
    if count == 40 and process == os.environ.get("HANG_IN"):
        stuck_worker()
    with open(f"{os.environ['NOTES']}/{process}", "a") as notes:
        print(self._index.parts[0].split, row, file=notes)
    return read(self, row)

RecordReader.read = noting
sys.exit(cli.main())
"""


def launch(run_dir: Path, options: list[str], processes: int, **environment: str) -> subprocess.Popen:  # noqa: F811
    """Starts a run on so many processes of one device; parameters are spread over them."""
    notes = run_dir.with_suffix(".notes")
    notes.mkdir(parents=True, exist_ok=True)
    launcher = [sys.executable, LAUNCHER, f"--processes={processes}", "--cpu-devices=1", f"--grace={6 * SILENCE}"]
    program = [sys.executable, "-c", PROGRAM, "finetune", f"--run-dir={run_dir}", f"--mesh.fsdp={processes}"]
    command = [*launcher, "--", *program, *options]
    added = {"JAX_SPEECHLM_PEER_SECONDS": str(SILENCE), "XLA_FLAGS": FLAGS, "NOTES": str(notes)} | environment
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, env=os.environ | added, **pipes)


def finish(launcher: subprocess.Popen, status: int = 0) -> str:
    """What all processes wrote, once they have ended."""
    output, _ = launcher.communicate(timeout=900)
    assert launcher.returncode == status, output[-5000:]
    return output


def reads(run_dir: Path, process: int) -> Counter:
    return Counter((run_dir.with_suffix(".notes") / str(process)).read_text().splitlines())


def losses(run_dir: Path, part: str = "train") -> dict[int, tuple[float, float]]:
    return {step: (line["loss"], line.get("grad_norm", 0.0)) for step, line in figures(run_dir, part).items()}


def assert_close(found: dict, expected: dict) -> None:
    """Sums over four devices are taken in another order than over one."""
    assert found.keys() == expected.keys()
    for step, values in found.items():
        np.testing.assert_allclose(values, expected[step], rtol=1e-3, err_msg=f"step {step}")


@pytest.fixture(scope="module")
def alone(options, tmp_path_factory):  # noqa: F811
    """A run of one process."""
    run_dir = tmp_path_factory.mktemp("alone") / "run"
    finish(launch(run_dir, options, 1))
    return run_dir


@pytest.fixture(scope="module")
def four(options, tmp_path_factory):  # noqa: F811
    """(run's directory, output) of an uninterrupted run of four processes, one of whose data workers hangs a while."""
    run_dir = tmp_path_factory.mktemp("four") / "run"
    return run_dir, finish(launch(run_dir, [*options, "--loop.hung-after-seconds=10"], 4, HANG_IN="1"))


def test_four_processes_train_what_one_trains(alone, four):
    run_dir, _ = four
    for part in ("train", "dev"):
        assert_close(losses(run_dir, part), losses(alone, part))


def test_each_process_reads_its_share_and_nothing_else(alone, four):
    run_dir, _ = four
    shares = [reads(run_dir, process) for process in range(4)]
    everything = reads(alone, 0)
    assert sum(shares, Counter()) == everything
    full = figures(alone, "train").keys()
    # Batches have eight rows, fillers included, and are read once: two rows of each step are a process's.
    for share in shares:
        train = sum(count for row, count in share.items() if row.startswith("train"))
        assert train <= 2 * len(full)
        assert train >= 0.2 * sum(count for row, count in everything.items() if row.startswith("train"))


def test_a_data_worker_that_hangs_is_shown_by_its_stack(four):
    _, output = four
    stacks = [line for line in output.splitlines() if line.startswith("[1]") and "in stuck_worker" in line]
    assert stacks, output[-5000:]


def send(launcher: subprocess.Popen, process: int, number: signal.Signals) -> None:
    children = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()
    os.kill(int(children[process]), number)


def test_processes_are_lost_told_to_go_and_fewer_go_on_from_a_checkpoint_that_was_sound(alone, options, tmp_path):  # noqa: F811
    """A run of four loses one, then one is told to go, then the newest checkpoint is damaged; two and one finish it."""
    run_dir = tmp_path / "run"

    launcher = launch(run_dir, options, 4)
    wait_for_step(run_dir, 12, launcher)
    killed = time.monotonic()
    send(launcher, 2, signal.SIGKILL)
    output = finish(launcher, 128 + signal.SIGKILL)
    assert time.monotonic() - killed < 4 * SILENCE
    assert "stopped: process 2 on " in output, output
    assert int(ckpt.find(run_dir).name) == 10

    launcher = launch(run_dir, options, 4)
    wait_for_step(run_dir, 16, launcher)
    send(launcher, 3, signal.SIGTERM)
    output = finish(launcher)
    stopped = int(ckpt.find(run_dir).name)
    assert stopped >= 16
    assert output.count(f"SIGTERM received: saved step {stopped}") == 1

    for file in (run_dir / "checkpoints" / str(stopped)).rglob("*"):
        if file.is_file() and file.stat().st_size > 1000:
            file.write_bytes(file.read_bytes()[:-100])
    launcher = launch(run_dir, options, 2)
    wait_for_step(run_dir, stopped + 3, launcher)
    launcher.send_signal(signal.SIGTERM)
    output = finish(launcher)
    assert "Trying the checkpoint before it" in output, output
    assert "resuming at step 10" in output, output

    assert "resuming at step " in finish(launch(run_dir, options, 1))
    for part in ("train", "dev"):
        assert_close(losses(run_dir, part), losses(alone, part))
