"""A job's record, its options, and the script that a dry run prints."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from jax_speechlm import cli
from jax_speechlm.cli import launch
from jax_speechlm.core.exit_status import USER_ERROR
from jax_speechlm.launching import cloud_tpu, gke, job, skypilot
from jax_speechlm.launching.job import Job, Run, Write

TPU = Job(
    command=("pretrain", "--config", "my own.py"),
    topology="2xv5e-16",
    run_dir="gs://my-bucket/runs/x",
    image="us-docker.pkg.dev/my-project/jax/speech:1",
    project="my-project",
    zone="us-west4-a",
)
GPU = TPU.replace(topology="h100-64", run_dir="/shared/runs/x")


@pytest.mark.parametrize(
    ("topology", "hosts", "devices"),
    [
        *(("v5e-1", 1, 1), ("v5e-4", 1, 4), ("v5e-8", 2, 4), ("v5e-256", 64, 4), ("v6e-16", 4, 4)),
        *(("v5p-8", 1, 4), ("v5p-512", 64, 4), ("2xv5p-512", 64, 4), ("v4-4096", 512, 4)),
        *(("h100-64", 8, 8), ("h100-4", 1, 4), ("b200-8", 1, 8)),
    ],
)
def test_hosts_and_their_devices(topology, hosts, devices):
    """TPU rows agree with xpk 1.16.0, core/system_characteristics.py, where it has them."""
    found = Job(topology=topology)
    assert (found.hosts_per_slice, found.devices_per_host) == (hosts, devices)


def test_the_run_directory_of_a_bucket_is_where_it_is_mounted():
    assert TPU.words == ("jax-speechlm", "pretrain", "--config", "my own.py", "--run-dir=/bucket/runs/x")
    assert GPU.words[-1] == "--run-dir=/shared/runs/x"
    assert TPU.replace(run_dir="").words[-1] == "--run-dir=runs/speech"
    assert TPU.replace(command=("finetune", "--run-dir", "mine")).words == (
        "jax-speechlm",
        "finetune",
        "--run-dir",
        "mine",
    )
    assert TPU.replace(command=("configs",)).words == ("jax-speechlm", "configs")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"name": "My job"}, "at most 39 letters"),
        ({"name": "x" * 40}, "at most 39 letters"),
        ({"topology": "v5e-12"}, "slices of v5e"),
        ({"topology": "cpu-1"}, "needs TPUs or GPUs"),
        ({"env": ("A",)}, "NAME=value"),
        ({"max_restarts": -1}, "max_restarts"),
        ({"zones": "x"}, "did you mean 'zone'"),
    ],
)
def test_what_cannot_be_is_an_error_that_helps(changes, said):
    with pytest.raises(ValueError, match=said):
        Job.model_validate(changes)


@pytest.mark.parametrize(
    ("target", "described", "said"),
    [
        ("gke", GPU, "TPUs only"),
        ("gke", TPU.replace(run_dir="runs/x"), "gs://bucket/folder"),
        ("gke", TPU.replace(run_dir="s3://b/x"), "gs://bucket/folder"),
        ("gke", TPU.replace(image=""), "needs image"),
        ("gke", TPU.replace(cluster="c", zone=""), "needs zone"),
        ("tpu-vm", GPU, "TPUs only"),
        ("tpu-vm", TPU.replace(project="", zone=""), "needs project and zone"),
        ("skypilot", TPU, "one TPU slice, not 2"),
        ("skypilot", GPU, "gs://bucket/folder or s3://bucket/folder"),
        ("slurm", TPU, "GPUs only"),
        ("slurm", GPU.replace(run_dir="gs://b/x"), "no buckets"),
        ("local", TPU, "no buckets"),
        ("local", GPU.replace(command=()), "no command"),
    ],
)
def test_a_target_says_what_it_needs(target, described, said):
    with pytest.raises(ValueError, match=said):
        launch.TARGETS[target]["start"](described)


def test_options_change_what_the_file_says(tmp_path, capsys):
    file = tmp_path / "job.json"
    file.write_text(TPU.model_dump_json())
    options = [
        "--topology",
        "v5e-16",
        "--spot",
        "--env",
        "A=1",
        "B=2 3",
        "--dry-run",
        "--",
        "finetune",
        "--config",
        "a",
    ]
    assert cli.main(["launch", "gke", "--job", str(file), *options]) == 0
    printed = capsys.readouterr().out
    described = TPU.replace(topology="v5e-16", spot=True, env=("A=1", "B=2 3"), command=("finetune", "--config", "a"))
    assert printed == job.script(gke.start(described))


@pytest.mark.parametrize("target", launch.TARGETS)
@pytest.mark.parametrize("action", launch.ACTIONS)
def test_a_dry_run_is_a_script_of_bash(target, action):
    described = {"slurm": GPU, "local": GPU, "skypilot": GPU.replace(run_dir="gs://b/x")}.get(target, TPU)
    if action not in launch.TARGETS[target]:
        assert cli.main(["launch", target, "--action", action]) == USER_ERROR
        return
    script = job.script(launch.TARGETS[target][action](described))
    done = subprocess.run(["bash", "-n"], input=script, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_script_does_what_execute_does(tmp_path, monkeypatch):
    """Both write the same file, go past what may fail, and stop at what may not."""
    text = skypilot.manifest({"a": "two\nlines 'quoted' $HOME", "b": "1"})
    steps = [
        Write(Path("folder/a file"), text),
        Run(("false",), may_fail=True),
        Run(("bash", "-c", "echo \"$1\" > 'said'", "-", "it's $HOME")),
        Run(("bash", "-c", "exit 3")),
        Run(("touch", "never")),
    ]
    statuses = []
    for number in range(2):
        folder = tmp_path / str(number)
        folder.mkdir()
        monkeypatch.chdir(folder)
        statuses.append(job.execute(steps) if number else subprocess.run(["bash", "-c", job.script(steps)]).returncode)
        assert Path("folder/a file").read_text() == text
        assert Path("said").read_text() == "it's $HOME\n"
        assert not Path("never").exists()
    assert statuses == [3, 3]


def test_a_program_that_is_missing_is_named():
    with pytest.raises(ValueError, match="no-such-program is not installed"):
        job.execute([Run(("no-such-program",))])


def test_local_runs_the_job_in_processes(tmp_path, monkeypatch, capfd):
    """The real launcher, with a stand-in for the program."""
    program = tmp_path / "jax-speechlm"
    program.write_text('#!/bin/sh\necho "$JAX_PROCESS_ID of $JAX_NUM_PROCESSES: $A: $*"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{Path(sys.executable).parent}:/usr/bin:/bin")
    options = ["--processes=2", "--env", "A=b c", "--", "pretrain", "--config", "x"]
    assert cli.main(["launch", "local", *options]) == 0
    printed = capfd.readouterr().out
    for process in range(2):
        assert f"[{process}] {process} of 2: b c: pretrain --config x --run-dir=runs/speech" in printed


@pytest.mark.parametrize("target", [cloud_tpu, gke])
def test_the_grace_period_of_a_spot_machine_is_no_longer_than_its_platform_gives(target):
    def seconds(spot):
        steps = [*target.start(TPU.replace(spot=spot)), *target.stop(TPU.replace(spot=spot))]
        names = r"(?:stop --time|--stop-timeout|[Gg]race-?[Pp]eriod-?[Ss]econds)"
        said = re.findall(rf"{names}[=:] ?(\d+)", job.script(steps))
        assert len(said) >= 2
        return {int(number) for number in said}

    assert max(seconds(spot=True)) <= {cloud_tpu: 30, gke: 15}[target]
    assert seconds(spot=False) == {job.GRACE_SECONDS}
