"""Errors that the user has to correct have an exit status of their own, after which no launcher starts a job again."""

import os
import re
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from data_pipelines.core.errors import DataError
from jax_speechlm import cli
from jax_speechlm.core import exit_status
from jax_speechlm.core.exit_status import FINAL, STOPPED, USER_ERROR, status_of
from jax_speechlm.launching import cloud_tpu, gke, job, skypilot
from jax_speechlm.training.checkpoints import CheckpointError
from tests.launch.test_job import GPU, TPU

LAUNCH = Path(__file__).parents[2] / "launch"
RESTARTED = (1, STOPPED, 134, 137)


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("demo_pretrian", None, "Did you mean 'demo/pretrain'"),
        ("missing.py", None, "missing.py"),
        ("missing.json", None, "missing.json"),
        ("folder.json", "", "folder.json"),
        ("a.py", "def config(:\n", "a.py, line 1"),
        ("a.py", "import jax_speechlm\nconfig = lambda: jax_speechlm.nothing\n", "a.py, line 2: AttributeError"),
        ("a.py", "from jax_speechlm import nowhere\n", "a.py, line 1: ImportError"),
        ("a.py", "x = 1\n", "no attribute 'config'"),
        ("a.json", '{"nmu_steps": 1}', "did you mean 'num_steps'"),
        ("a.json", "{", "a.json: Expecting"),
    ],
)
def test_a_typo_has_the_status_of_user_errors(file, text, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    if text:
        Path(file).write_text(text)
    elif text == "":
        Path(file).mkdir()
    assert cli.main(["pretrain", "--config", file]) == USER_ERROR
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in re.sub(r"\(a.py, line (\d+)\)", r"a.py, line \1", error)


def test_a_wrong_command_line_has_a_final_status(capsys):
    for words in (["pretrain", "--nmu-steps=1"], ["launch", "gek"], ["transcribe"], ["recipes", "--what"]):
        with pytest.raises(SystemExit) as stopped:
            cli.main(words)
        assert stopped.value.code == exit_status.WRONG_COMMAND_LINE
    assert cli.main(["pretain"]) == exit_status.WRONG_COMMAND_LINE
    capsys.readouterr()


def test_errors_of_the_machine_and_of_the_program_are_not_user_errors():
    def caused(error: Exception, cause: BaseException) -> Exception:
        error.__cause__ = cause
        return error

    assert {status_of(error) for error in (DataError("x"), ValueError("x"), PermissionError(13, "x"))} == {USER_ERROR}
    assert status_of(caused(ValueError("port taken"), OSError(98, "in use"))) == USER_ERROR
    for cause in (
        OSError(28, "No space left on device"),
        ConnectionResetError(),
        TimeoutError(),
        OSError(116, "stale"),
    ):
        assert status_of(caused(CheckpointError("cannot be saved"), cause)) == 1
    assert {status_of(error) for error in (RuntimeError("x"), KeyError("x"), OSError(5, "x"))} == {1}
    assert 1 not in FINAL
    assert STOPPED not in FINAL


def test_scripts_and_help_hold_the_same_statuses(capsys):
    assert runpy.run_path(str(LAUNCH / "local.py"))["FINAL"] == FINAL
    assert f"FINAL=' {' '.join(map(str, FINAL))} '" in (LAUNCH / "slurm.sbatch").read_text()
    cli.main(["--help"])
    described = capsys.readouterr().out.split("exit status:")[1]
    assert all(re.search(rf"^ +{status} ", described, re.MULTILINE) for status in (0, 1, *FINAL))


def stand_in(folder: Path, name: str, script: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/bash\n{script}\n")
    (folder / name).chmod(0o755)


@pytest.fixture
def batch_script(tmp_path):
    """Runs the batch script with stand-ins for Slurm's programs; returns its result and what scontrol was asked."""
    programs = tmp_path / "bin"
    stand_in(programs, "scontrol", f'echo "$@" >> {tmp_path}/asked')
    stand_in(programs, "scancel", "exit 0")

    def run(status: int, **variables: str) -> tuple[subprocess.CompletedProcess, str]:
        stand_in(programs, "srun", f"exit {status}")
        environment = {"PATH": f"{programs}:/usr/bin:/bin", "SLURM_JOB_ID": "7"} | variables
        command = ["bash", LAUNCH / "slurm.sbatch", "pretrain"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
        asked = (tmp_path / "asked").read_text() if (tmp_path / "asked").exists() else ""
        (tmp_path / "asked").unlink(missing_ok=True)
        return done, asked

    return run


@pytest.mark.parametrize("status", [0, *FINAL, *RESTARTED])
def test_slurm_requeues_no_user_error(batch_script, status):
    done, asked = batch_script(status)
    assert done.returncode == status
    assert asked == ("requeue 7\n" if status in RESTARTED else "")


def test_slurm_evaluates_no_text_as_arithmetic(batch_script, tmp_path):
    done, asked = batch_script(1, MAX_RESTARTS=f"a[$(touch {tmp_path}/ran)]")
    assert (done.returncode, asked) == (USER_ERROR, "")
    assert not (tmp_path / "ran").exists()
    assert batch_script(1, MAX_RESTARTS="08", SLURM_RESTART_COUNT="7")[1] == "requeue 7\n"
    assert batch_script(1, MAX_RESTARTS="08", SLURM_RESTART_COUNT="8")[1] == ""


@pytest.mark.parametrize(("statuses", "expected", "times"), [((64, 64), 64, 1), ((1, 1), 1, 3), ((1, 2), 2, 1)])
def test_local_begins_again_after_no_user_error(statuses, expected, times, tmp_path):
    script = f"echo >> {tmp_path}/$JAX_PROCESS_ID; case $JAX_PROCESS_ID in 0) exit {statuses[0]};; esac; exit "
    command = ["--processes=2", "--restarts=2", "--grace=5", "--", "bash", "-c", f"{script}{statuses[1]}"]
    done = subprocess.run([sys.executable, LAUNCH / "local.py", *command], capture_output=True, timeout=60)
    assert done.returncode == expected
    assert [len((tmp_path / number).read_text()) for number in "01"] == [times, times]


def test_a_jobset_fails_for_good_after_a_user_error():
    """By Kubernetes' rules: the job fails with reason PodFailurePolicy, and for it the set is not begun again."""
    spec = gke.jobset(TPU)["spec"]
    (rule,) = spec["failurePolicy"]["rules"]
    assert (rule["action"], rule["onJobFailureReasons"]) == ("FailJobSet", ["PodFailurePolicy"])
    slices = spec["replicatedJobs"][0]["template"]["spec"]
    (pods,) = slices["podFailurePolicy"]["rules"]
    (container,) = slices["template"]["spec"]["containers"]
    codes = {"containerName": container["name"], "operator": "In", "values": list(FINAL)}
    assert pods == {"action": "FailJob", "onExitCodes": codes}
    assert slices["template"]["spec"]["restartPolicy"] == "Never"  # such rules need it
    # xpk starts again after the named statuses and, by itself, after 42 and those from 127 on.
    (codes,) = (word for word in gke.xpk(TPU).split() if word.startswith("--restart-on-exit-codes="))
    assert codes == f"--restart-on-exit-codes=1,{STOPPED}"


def docker_run(described: job.Job) -> list[str]:
    """The command that Docker runs in the container, by a stand-in for it under the host's own script."""
    script = 'sudo() { [[ "$1 $2" != "docker run" ]] || printf "%s\\0" "$@"; }; mountpoint() { :; }\n'
    done = subprocess.run(["bash", "-c", script + cloud_tpu._container(described)], capture_output=True, text=True)
    words = done.stdout.split("\0")[:-1]
    assert "--restart=on-failure:20" in words
    return words[words.index(described.image) + 1 :]


@pytest.mark.parametrize("status", [0, *FINAL, *RESTARTED])
@pytest.mark.parametrize("target", ["docker", "skypilot"])
def test_docker_and_skypilot_see_no_failure_in_a_user_error(target, status, tmp_path):
    """Both start again whatever fails."""
    stand_in(tmp_path, "jax-speechlm", f'echo "$@"; exit {status}')
    command = ["bash", "-c", skypilot.task(GPU.replace(run_dir="gs://b/x"))["run"]]
    if target == "docker":
        command = docker_run(TPU)
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "SKYPILOT_NODE_IPS": "a"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == (0 if status in FINAL else status)
    assert done.stdout.startswith("pretrain --config my own.py --run-dir=/bucket/")
    assert ("start again" in done.stdout) == (status in FINAL)


def test_a_container_passes_sigterm_on_and_waits(tmp_path):
    stand_in(
        tmp_path, "jax-speechlm", 'trap "sleep 0.3; echo saved; exit 75" TERM; echo ready; while :; do sleep 0.1; done'
    )
    environment = os.environ | {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    process = subprocess.Popen(docker_run(TPU), env=environment, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    began = time.monotonic()
    assert process.communicate(timeout=30)[0] == "saved\n"
    assert process.returncode == 75
    assert time.monotonic() - began < 20
