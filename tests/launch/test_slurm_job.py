"""What `launch slurm` tells Slurm: the argument list, and what a real Slurm makes of it."""

import sys
import time
from pathlib import Path

import pytest

from jax_speechlm import cli
from jax_speechlm.launching import slurm
from jax_speechlm.launching.job import Run
from tests.launch import test_slurm
from tests.launch.test_job import GPU
from tests.launch.test_slurm import cluster  # noqa: F401  (a fixture)

OPTIONS = ["--topology=h100-1", "--name=slurm-test", "--env", "A=b c", "--max-restarts=1"]


def test_a_process_for_each_gpu():
    (step,) = slurm.start(GPU.replace(env=("A=b c",)))
    # slurm.schedmd.com/sbatch.html
    words = ["env", "MAX_RESTARTS=20", "A=b c", "sbatch", "--job-name=speech", "--output=speech.log", "--nodes=8"]
    words += ["--ntasks-per-node=8", "--gpus-per-node=8", "--requeue", str(slurm.SCRIPTS / "slurm.sbatch")]
    assert step == Run((*words, "pretrain", "--config", "my own.py", "--run-dir=/shared/runs/x"))
    assert "--no-requeue" in slurm.start(GPU.replace(max_restarts=0))[0].words


@pytest.fixture
def gpu(tmp_path, monkeypatch):
    """Gives the cluster that is started next a GPU, which is a name only."""
    conf = test_slurm.CONFIG.replace("CPUs=4", "CPUs=4 Gres=gpu:1") + "GresTypes=gpu\n"
    monkeypatch.setattr(test_slurm, "CONFIG", conf)
    (tmp_path / "slurm").mkdir()
    (tmp_path / "slurm" / "gres.conf").write_text("Name=gpu File=/dev/null\n")


@test_slurm.pytestmark
def test_a_real_slurm_takes_the_job_runs_it_and_forgets_it(gpu, cluster, tmp_path, monkeypatch, capfd):  # noqa: F811
    """With one GPU, a name only, and a stand-in for the program, which waits until it is stopped."""
    program = tmp_path / "bin" / "jax-speechlm"
    program.parent.mkdir()
    program.write_text('#!/bin/sh\necho "$A|$SLURM_STEP_NUM_TASKS|$SLURM_GPUS_ON_NODE|$*"\nexec sleep 60\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{Path(sys.executable).parent}:/usr/bin:/bin:/usr/sbin:/sbin")
    monkeypatch.chdir(tmp_path)

    def launch(*words):
        assert cli.main(["launch", "slurm", *OPTIONS, *words]) == 0
        return capfd.readouterr().out

    def until(said, *words):
        deadline = time.monotonic() + 60
        while not said(printed := launch(*words)):
            assert time.monotonic() < deadline, printed
            time.sleep(0.5)

    assert "Submitted batch job" in launch("--", "pretrain", "--config", "x")
    until(lambda printed: " R " in printed, "--action=status")
    log = tmp_path / "slurm-test.log"
    deadline = time.monotonic() + 60
    while not (log.exists() and log.read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.5)
    assert "b c|1|1|pretrain --config x --run-dir=runs/slurm-test" in launch("--action=logs")
    launch("--action=stop")
    until(lambda printed: "slurm-tes" not in printed.split("JOBID")[-1], "--action=status")
