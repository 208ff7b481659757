"""A run that is killed twenty times, at any moment, ends with the parameters of one that was left alone."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from jax_speechlm.training import checkpoints as ckpt
from tests import quick_xla

KILLS = 20
STEPS = 120
# Steps are slowed down to some tens of milliseconds, so that kills fall into all parts of a run.
RUN = f"""
import os, sys, time
os.environ["JAX_PLATFORMS"] = "cpu"
from tests.training import tiny
from jax_speechlm.recipes.experiment import LoopConfig
from jax_speechlm.parallel.platforms import cache_compilations
from jax_speechlm.parallel.mesh import MeshShape
from jax_speechlm.training.loop import train
cache_compilations()
loop = LoopConfig(log_every=1, eval_every=50, checkpoint_every=3)
experiment = tiny.experiment("best_rq", num_steps={STEPS}, mesh=MeshShape(), loop=loop)
source = tiny.MemorySource.make(experiment)
make = source.batch
source.batch = lambda plan, step: time.sleep(float(sys.argv[2])) or make(plan, step)
train(experiment, sys.argv[1], source)
"""


def start(run_dir: Path, pause: float) -> subprocess.Popen:
    environment = os.environ | {"XLA_FLAGS": quick_xla.on_devices(1)}
    environment["PYTHONPATH"] = str(Path(__file__).parents[2])
    log = (run_dir.parent / f"{run_dir.name}.log").open("ab")
    return subprocess.Popen([sys.executable, "-c", RUN, run_dir, str(pause)], env=environment, stdout=log, stderr=log)


def parameters(run_dir: Path):
    params, meta = ckpt.read_params(ckpt.find(run_dir))
    assert meta["step"] == STEPS
    return params


@pytest.mark.slow
def test_twenty_kills_leave_no_trace(tmp_path):
    assert start(tmp_path / "alone", 0.0).wait(timeout=600) == 0
    rng = random.Random(0)
    run_dir, kills = tmp_path / "killed", 0
    while True:
        process = start(run_dir, 0.02)
        enough = _log_lines(run_dir) + rng.randint(1, 30)  # two lines a step
        deadline = time.monotonic() + 300
        while process.poll() is None and kills < KILLS:
            assert time.monotonic() < deadline, "a start does not get going"
            if _log_lines(run_dir) >= enough:
                time.sleep(rng.uniform(0, 0.05))  # now at any moment of a step or a save
                process.send_signal(signal.SIGKILL)
                break
            time.sleep(0.005)
        status = process.wait(timeout=600)
        if status == 0:
            break
        assert status == -signal.SIGKILL, (tmp_path / "killed.log").read_text()[-3000:]
        kills += 1
    assert kills >= KILLS / 2, "too few kills fell into the run to mean anything"
    jax.tree.map(np.testing.assert_array_equal, parameters(run_dir), parameters(tmp_path / "alone"))
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines() if line.endswith("}")]
    account = [line for line in lines if line["part"] == "goodput"][-1]
    assert account["lost_seconds"] > 0
    assert 0 < account["goodput"] < 1


def _log_lines(run_dir: Path) -> int:
    log = run_dir / "metrics.jsonl"
    return log.read_bytes().count(b"\n") if log.exists() else 0
