"""What the script for Cloud TPU asks of gcloud, and what it makes a host do, with a stand-in that runs it here."""

import os
import subprocess
import time
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "launch" / "tpu_pod.sh"
WHERE = "--project=my-project --zone=us-west4-a"
# Notes its arguments, one a line; runs what is meant for a host in this test's own home folder.
GCLOUD = """#!/bin/bash
printf '%s\\n' "$@" > "$HOME/arguments"
[[ $4 == scp ]] && cp "$5" "$HOME/${6#*:}"
for argument; do
    [[ $argument == --command=* ]] && cd "$HOME" && exec bash -c "${argument#--command=}"
done
exit 0
"""
JAX_SPEECHLM = """#!/bin/bash
trap 'echo saved; exit' TERM
printf '%s|' "$JAX_SPEECHLM_DISTRIBUTED" "$@"
while :; do sleep 0.1; done
"""


@pytest.fixture
def pod(tmp_path, monkeypatch):
    """Runs the script with gcloud's stand-in on a host that has the program's stand-in."""
    for file, text in (("bin/gcloud", GCLOUD), ("jax_speechlm/.venv/bin/jax-speechlm", JAX_SPEECHLM)):
        (tmp_path / file).parent.mkdir(parents=True)
        (tmp_path / file).write_text(text)
        (tmp_path / file).chmod(0o755)
    names = {"PROJECT": "my-project", "ZONE": "us-west4-a", "NAME": "speech", "TYPE": "v5litepod-16", "VERSION": "v2"}
    for name, value in names.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")

    def run(*words: str) -> str:
        return subprocess.run([SCRIPT, *words], check=True, capture_output=True, text=True, timeout=60).stdout

    return tmp_path, run


def test_the_slice_is_asked_for_watched_and_removed(pod, monkeypatch):
    folder, run = pod

    def asked(*words: str) -> str:
        run(*words)
        return " ".join((folder / "arguments").read_text().split())

    create = f"compute tpus queued-resources create speech {WHERE} --node-id=speech"
    create += " --accelerator-type=v5litepod-16 --runtime-version=v2"
    assert asked("create") == create
    monkeypatch.setenv("SPOT", "1")
    assert asked("create") == f"{create} --spot"
    assert asked("status") == f"compute tpus queued-resources describe speech {WHERE} --format=value(state.state)"
    assert asked("delete") == f"compute tpus queued-resources delete speech {WHERE} --force --quiet"


def test_a_run_outlives_the_call_shows_its_log_and_is_told_to_save(pod):
    _, run = pod
    run("run", "pretrain", "--config", "my own.py")
    time.sleep(0.5)
    assert run("logs").strip() == "1|pretrain|--config|my own.py|"
    run("stop")
    time.sleep(0.5)
    assert "saved" in run("logs")


@pytest.mark.parametrize("new", ["python3.12", "python3", None])
def test_the_checkout_is_installed_with_a_python_that_is_new_enough(pod, new):
    """On a host whose Pythons are stand-ins: all are too old, but the one named, or what apt-get then brings."""
    folder, run = pod
    make = 'mkdir -p .venv/bin && printf "#!/bin/sh\\necho pip \\"\\$@\\"" > .venv/bin/pip && chmod +x .venv/bin/pip'
    works = f"#!/bin/bash\n[[ $1 == -c ]] || {{ echo ${{0##*/}} $*; {make}; }}\n"
    for name in ("python3.13", "python3.12", "python3.11", "python3", "sudo"):
        (folder / "bin" / name).write_text(works if name == new else "#!/bin/bash\nexit 1\n")
        (folder / "bin" / name).chmod(0o755)
    if new is None:
        (folder / "works").write_text(works)
        (folder / "bin" / "sudo").write_text("#!/bin/bash\necho sudo $*; cat ~/works > ~/bin/python3.11\n")
    said = run("install").splitlines()
    assert said[-2:] == [f"{new or 'python3.11'} -m venv .venv", "pip install --quiet --editable .[tpu]"]
    assert said[:-2] == ([] if new else ["sudo apt-get -qq update", "sudo apt-get -qq --yes install python3.11-venv"])
    assert (folder / "jax_speechlm" / "setup.cfg").exists()


def test_dry_run_runs_nothing(pod, monkeypatch):
    folder, run = pod
    monkeypatch.setenv("DRY_RUN", "1")
    assert run("stop").startswith(f"gcloud compute tpus tpu-vm ssh speech {WHERE} --worker=all --command=kill")
    assert not (folder / "arguments").exists()


def test_help_names_every_verb(pod):
    _, run = pod
    verbs = {"create", "status", "install", "run", "logs", "stop", "delete"}
    assert verbs <= {line.split()[1] for line in run().splitlines() if "launch/tpu_pod.sh " in line}
