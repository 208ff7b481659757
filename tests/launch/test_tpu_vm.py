"""Queued resources: what a stand-in for gcloud is asked in each state of the queue; gcloud's own parser."""

import json
import os
import re
import shlex
import shutil
import subprocess

import pytest

from jax_speechlm.launching import cloud_tpu, job
from tests.launch.test_job import TPU

WHERE = ["--project=my-project", "--zone=us-west4-a"]
# Notes its arguments, one JSON list a line; `describe` gives the next of the states. Runs what is meant
# for a host here.
GCLOUD = """#!/usr/bin/env python3
import json, os, subprocess, sys
arguments = sys.argv[1:]
with open("asked", "a") as file:
    file.write(json.dumps(arguments) + "\\n")
if "describe" in arguments:
    states = open("states").read().split("\\n")
    open("states", "w").write("\\n".join(states[1:] or states))
    print(states[0])
for argument in arguments:
    if argument.startswith("--command="):
        sys.exit(subprocess.run(["bash", "-c", argument.removeprefix("--command=")]).returncode)
"""
HOST = """#!/bin/bash
[[ $(basename "$0") == mountpoint ]] && exit 1
printf '%s|' "$(basename "$0")" "$@" >> host && echo >> host
"""


@pytest.fixture
def cloud(tmp_path, monkeypatch):
    """Does steps with stand-ins; gives the exit status, what gcloud was asked, and what a host ran."""
    for name in ("gcloud", "sudo", "gcsfuse", "mountpoint", "sleep"):
        (tmp_path / name).write_text(GCLOUD if name == "gcloud" else HOST)
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.chdir(tmp_path)

    def do(steps, *states):
        (tmp_path / "states").write_text("\n".join(states))
        status = job.execute(steps)
        asked = [json.loads(line) for line in (tmp_path / "asked").read_text().splitlines()]
        host = (tmp_path / "host").read_text().splitlines() if (tmp_path / "host").exists() else []
        return status, asked, host

    return do


def verbs(asked) -> list[str]:
    return [arguments[3] for arguments in asked if arguments[3] != "describe"]


def test_slices_are_asked_for_and_every_host_starts_a_container(cloud):
    status, asked, host = cloud(
        cloud_tpu.start(TPU.replace(env=("A=b c",))), "", "", "WAITING_FOR_RESOURCES", "", "ACTIVE"
    )
    assert status == 0
    assert verbs(asked) == ["create", "ssh"]
    # cloud.google.com/tpu/docs/multislice-introduction and cloud.google.com/tpu/docs/queued-resources
    create = [
        "compute",
        "tpus",
        "queued-resources",
        "create",
        "speech",
        *WHERE,
        "--node-count=2",
        "--node-prefix=speech",
    ]
    create += ["--accelerator-type=v5litepod-16", "--runtime-version=v2-alpha-tpuv5-lite"]
    assert [arguments for arguments in asked if "create" in arguments] == [create]
    ssh = ["compute", "tpus", "queued-resources", "ssh", "speech", *WHERE, "--node=all", "--worker=all"]
    assert asked[-1][:-1] == ssh
    run = "sudo|docker|run|--detach|--name=speech|--restart=on-failure:20|--stop-timeout=180|--privileged|"
    run += "--network=host|"
    run += "--volume=/bucket:/bucket|--env=JAX_SPEECHLM_DISTRIBUTED=1|--env=A=b c|"
    final = job.until_final('"$@"')
    run += f"us-docker.pkg.dev/my-project/jax/speech:1|sh|-c|{final}|run|"
    run += "jax-speechlm|pretrain|--config|my own.py|--run-dir=/bucket/runs/x|"
    assert [line for line in host if line.startswith("sudo|")] == [
        "sudo|mkdir|-p|/bucket|",
        "sudo|gcsfuse|-o|allow_other|--implicit-dirs|my-bucket|/bucket|",
        "sudo|gcloud|auth|configure-docker|us-docker.pkg.dev|--quiet|",
        "sudo|docker|stop|--time=180|speech|",
        "sudo|docker|rm|speech|",
        run,
    ]


def test_one_spot_slice_is_a_node_by_its_name(cloud):
    _, asked, _ = cloud(cloud_tpu.start(TPU.replace(topology="v5p-512", spot=True)), "", "", "ACTIVE")
    # cloud.google.com/tpu/docs/spot
    create = ["compute", "tpus", "queued-resources", "create", "speech", *WHERE, "--node-id=speech"]
    create += ["--accelerator-type=v5p-512", "--runtime-version=v2-alpha-tpuv5", "--spot"]
    assert [arguments for arguments in asked if "create" in arguments] == [create]


def test_slices_that_are_there_are_used_again(cloud):
    _, asked, _ = cloud(cloud_tpu.start(TPU), "ACTIVE")
    assert verbs(asked) == ["ssh"]


def test_a_preempted_place_is_given_up_for_a_new_one(cloud):
    _, asked, _ = cloud(cloud_tpu.start(TPU), "SUSPENDED", "", "ACTIVE")
    assert verbs(asked) == ["delete", "create", "ssh"]


def test_a_queue_that_gives_nothing_ends_the_waiting(cloud):
    status, asked, _ = cloud(cloud_tpu.start(TPU), "", "", "WAITING_FOR_RESOURCES", "FAILED")
    assert status == 1
    assert verbs(asked) == ["create"]


def test_stop_saves_before_it_removes(cloud):
    _, asked, host = cloud(cloud_tpu.stop(TPU), "ACTIVE")
    assert host == ["sudo|docker|stop|--time=180|speech|"]
    delete = ["compute", "tpus", "queued-resources", "delete", "speech", *WHERE, "--force", "--quiet"]
    assert asked[-1] == delete


@pytest.mark.skipif(not shutil.which("gcloud"), reason="needs gcloud")
def test_gcloud_knows_every_command_and_option(tmp_path, monkeypatch):
    """By gcloud's own parser, which needs no account; it refuses an option that does not exist."""
    monkeypatch.setenv("CLOUDSDK_CONFIG", str(tmp_path))
    monkeypatch.setenv("CLOUDSDK_CORE_DISABLE_PROMPTS", "1")
    commands = {f"gcloud compute tpus queued-resources describe speech {' '.join(WHERE)} --bogus": False}
    for described in (TPU, TPU.replace(topology="v5p-512", spot=True)):
        for do in (cloud_tpu.start, cloud_tpu.status, cloud_tpu.logs, cloud_tpu.stop):
            for step in do(described):
                if step.words[0] == "gcloud":
                    plain = [re.sub(r"^--command=.*", "--command=true", word, flags=re.DOTALL) for word in step.words]
                    commands[shlex.join(plain)] = True
                else:
                    commands |= dict.fromkeys(re.findall(r"gcloud compute .*?(?=;| 2>)", step.words[2]), True)
    assert {command.split()[4] for command in commands} == {"create", "describe", "ssh", "delete"}
    file = tmp_path / "commands.json"
    file.write_text(json.dumps([{"command_string": command} for command in commands]))
    lint = ["gcloud", "meta", "lint-gcloud-commands", f"--commands-file={file}"]
    done = subprocess.run(lint, capture_output=True, text=True, timeout=120)
    found = {each["command_string"]: each for each in json.loads(done.stdout)}
    assert {command: found[command]["success"] for command in commands} == commands, found
