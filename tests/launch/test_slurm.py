"""The batch script under a real Slurm, started for this test on this machine: signalled, requeued, finished exactly."""

import contextlib
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.launch.test_local import FLAGS, figures, launch, options  # noqa: F401  (a fixture)

SCRIPT = Path(__file__).parents[2] / "launch" / "slurm.sbatch"
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch")
CONFIG = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SlurmdParameters=config_overrides
NodeName={host} NodeAddr=127.0.0.1 CPUs=4
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""

pytestmark = pytest.mark.skipif(
    os.getuid() != 0 or not all(shutil.which(program) for program in PROGRAMS),
    reason="needs root and Slurm: apt-get install slurm-wlm munge",
)


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    """A Slurm of one node; `sbatch` and its kin find it."""
    folder = tmp_path / "slurm"
    for part in ("state", "spool"):
        (folder / part).mkdir(parents=True)
    key = folder / "munge.key"
    key.write_bytes(secrets.token_bytes(1024))
    key.chmod(0o400)
    folder.chmod(0o755)
    host = socket.gethostname()
    (folder / "slurm.conf").write_text(CONFIG.format(host=host, folder=folder, ports=free_ports(2)))
    monkeypatch.setenv("SLURM_CONF", str(folder / "slurm.conf"))
    files = {"key-file": key} | {f"{name}-file": folder / f"munge.{name}" for name in ("pid", "log", "seed")}
    munged = ["munged", "--foreground", "--force", f"--socket={folder / 'munge.socket'}"]
    with contextlib.ExitStack() as stack:  # whatever goes wrong, no daemon stays
        for command in (
            [*munged, *(f"--{name}={file}" for name, file in files.items())],
            ["slurmctld", "-D", "-i"],
            ["slurmd", "-D"],
        ):
            with (folder / f"{command[0]}.out").open("w") as output:
                stack.callback(end, subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT))
            time.sleep(1)
        deadline = time.monotonic() + 60
        while "idle" not in subprocess.run(["sinfo", "-h"], capture_output=True, text=True).stdout:
            assert time.monotonic() < deadline, [file.read_text()[-1000:] for file in folder.glob("*.out")]
            time.sleep(0.5)
        stack.callback(subprocess.run, ["scancel", "--state=RUNNING"], check=False)
        yield folder


def end(daemon: subprocess.Popen) -> None:
    daemon.terminate()
    try:
        daemon.wait(timeout=30)
    except subprocess.TimeoutExpired:
        daemon.kill()
        daemon.wait()


def state(job: str) -> str:
    return subprocess.run(["squeue", "-h", "-j", job, "-o", "%T"], capture_output=True, text=True).stdout.strip()


def until(condition, seconds: float, log: Path) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, log.read_text() if log.exists() else "the job has written nothing"
        time.sleep(0.2)


def test_a_job_that_is_told_to_go_saves_and_finishes_after_its_requeue(cluster, options, tmp_path, monkeypatch):  # noqa: F811
    launcher = launch(tmp_path / "local", options, processes=1)
    output, _ = launcher.communicate(timeout=300)
    assert launcher.returncode == 0, output

    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.setenv("XLA_FLAGS", FLAGS)
    run_dir, log = tmp_path / "run", tmp_path / "job.log"
    command = ["sbatch", "--parsable", "--ntasks=2", f"--output={log}", SCRIPT, "finetune", f"--run-dir={run_dir}"]
    job = subprocess.run([*command, *options], check=True, capture_output=True, text=True).stdout.strip()
    until(lambda: max(figures(run_dir, "train"), default=0) >= 3, 900, log)
    subprocess.run(["scancel", "--batch", "--signal=TERM", job], check=True)
    until(lambda: state(job) == "PENDING", 300, log)
    assert "SIGTERM received: saved step" in log.read_text()

    subprocess.run(["scontrol", "update", f"JobId={job}", "StartTime=now"], check=True)  # Slurm would wait two minutes
    until(lambda: state(job) in ("", "COMPLETED", "FAILED"), 900, log)
    assert "resuming at step" in log.read_text()
    logged, expected = figures(run_dir, "train"), figures(tmp_path / "local", "train")
    assert logged.keys() == expected.keys()
    losses = {step: line["loss"] for step, line in expected.items()}
    assert json.dumps({step: line["loss"] for step, line in sorted(logged.items())}) == json.dumps(losses)
