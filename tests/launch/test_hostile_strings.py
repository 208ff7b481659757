"""What strangers put into a job's settings reaches every program as it is, or is refused; no shell ever runs it."""

import os
import subprocess
from pathlib import Path

import pydantic
import pytest
import yaml
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from jax_speechlm.cli import launch
from jax_speechlm.launching import cloud_tpu, gke, job, skypilot
from jax_speechlm.launching.job import Job, Run, Write
from tests.launch.test_job import GPU, TPU
from tests.launch.test_tpu_pod import SCRIPT, pod  # noqa: F401  (a fixture)

JOBS = {"tpu-vm": TPU, "gke": TPU.replace(cluster="c"), "skypilot": GPU.replace(run_dir="gs://b/x"), "slurm": GPU}
FIELDS = ("command", "env", "run_dir", "image", "project", "zone", "cluster", "name")
HOSTILE = [
    *(
        "a;touch ran",
        "$(touch ran)",
        "`touch ran`",
        "a'; touch ran; '",
        'a"; touch ran; "',
        "a\\",
        "${IFS}",
        "a&touch ran",
    ),
    *(
        "a\ntouch ran",
        "a\rtouch ran",
        "END-OF-FILE\ntouch ran",
        "a\u2028b: c",
        "a\u0085b: c",
        "\0",
        "\x1b[2J",
        "\udc80",
    ),
    *("--flag", "-v/:/host", "# a", "a: b", "- a", "{{a}}", "%TAG", "!!python/object:os.system", "&a", "*a", "| a"),
    *("$(JAX_SPEECHLM_STOPPED_STATUS)", "$$(A)", "~", "no", "1e3", "0o7", "=", "é 漢 😀", "", " ", "\t"),
]
RECORDER = """#!/bin/bash
printf '%s\\0' "${0##*/}" "$@" $'\\1' >> "$RECORDED"
[[ " $* " != *" describe "* ]] || echo ACTIVE
"""
PROGRAMS = ("kubectl", "gcloud", "sky", "sbatch", "docker", "gcsfuse")
HOST = 'sudo() { "$@"; }; mountpoint() { false; }; mkdir() { :; }\n'


def changed(described: Job, field: str, text: str) -> Job | None:
    """A job with a text in one of its settings, or None where it is refused with an error that names the setting."""
    change = {
        "command": ("pretrain", "--config", text),
        "env": (f"A={text}", f"B{text}=x") if text.isalpha() and text.isascii() else (f"A={text}",),
        "run_dir": described.run_dir + text,
    }.get(field, text)
    try:
        return described.replace(**{field: change})
    except pydantic.ValidationError as error:
        refused = [each["loc"][0] for each in error.errors()]
    assert refused == [field]
    return None


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """Runs a script of bash whose programs only record; returns their argument lists."""
    folder = tmp_path_factory.mktemp("recorded")
    for name in PROGRAMS:
        (folder / name).write_text(RECORDER)
        (folder / name).chmod(0o755)
    (folder / "work").mkdir()

    def run(script: str) -> list[list[str]]:
        (folder / "record").write_text("")
        environment = {"PATH": f"{folder}:/usr/bin:/bin", "RECORDED": str(folder / "record"), "LC_ALL": "C.UTF-8"}
        arguments = {"cwd": folder / "work", "env": environment, "capture_output": True, "timeout": 60}
        (folder / "script").write_text(script)
        checked = subprocess.run(["bash", "-n", folder / "script"], **arguments)
        assert (checked.returncode, checked.stderr) == (0, b"")
        done = subprocess.run(["bash", folder / "script"], **arguments)
        assert done.returncode == 0, done.stderr
        assert {path.name for path in (folder / "work").iterdir()} <= {"runs"}
        return [words.split("\0")[:-1] for words in (folder / "record").read_text().split("\1\0")[:-1]]

    run.folder = folder / "work"
    return run


def check(recorded, target: str, described: Job) -> None:
    """A dry run's script writes what is to be written, and gives every program the words that it is to have."""
    if target in ("tpu-vm", "gke") and not all((described.image, described.project, described.zone)):
        if described.cluster or target == "tpu-vm" or not described.image:
            with pytest.raises(ValueError, match="needs"):
                launch.TARGETS[target]["start"](described)
        return
    steps = launch.TARGETS[target]["start"](described)
    asked = recorded(job.script(steps))
    for step in steps:
        if isinstance(step, Write):
            text = (recorded.folder / step.path).read_bytes().decode()
            assert text == step.text
            document = yaml.safe_load(text)
            assert document == (gke.jobset(described) if target == "gke" else skypilot.task(described))
            comment = text.split("apiVersion:" if target == "gke" else "name:")[0]
            assert {line[0] for line in comment.splitlines()} <= {"#"}
    for step in steps:
        if isinstance(step, Run) and step.words[0] in PROGRAMS:
            assert list(step.words) in asked
    if target == "slurm":
        assert asked[-1][-len(described.words) :] == [str(launch.slurm.SCRIPTS / "slurm.sbatch"), *described.words[1:]]
    if target == "tpu-vm":
        (ssh,) = (words for words in asked if "ssh" in words)
        asked = recorded(HOST + ssh[-1].removeprefix("--command="))
        assert ["gcsfuse", "-o", "allow_other", "--implicit-dirs", described.bucket[5:], "/bucket"] in asked
        (docker,) = (words for words in asked if words[:2] == ["docker", "run"])
        assert docker[-len(described.words) :] == list(described.words)
        assert {f"--env={setting}" for setting in described.env} <= set(docker)


@pytest.mark.parametrize("target", JOBS)
def test_hostile_settings_never_reach_a_shell(recorded, target):
    accepted = [changed(JOBS[target], field, text) for field in FIELDS for text in HOSTILE]
    accepted = [each for each in accepted if each]
    # Some at a time: a text that breaks out of its place does so whatever the other settings are.
    words = tuple(word for each in accepted for word in each.command[2:])
    last = {f"V{number}": each.env[0][2:] for number, each in enumerate(accepted) if each.env}
    together = JOBS[target].replace(
        command=("pretrain", *words), env=tuple(f"{name}={value}" for name, value in last.items())
    )
    check(recorded, target, together)
    for field in set(FIELDS) - {"command", "env"}:
        for text in HOSTILE:
            if each := changed(JOBS[target], field, text):
                check(recorded, target, each)


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    target=st.sampled_from(sorted(JOBS)),
    field=st.sampled_from(FIELDS),
    text=st.text(st.sampled_from("ab;$(){}`'\"\\\n\r \t#&|<>*?!:-=./~%\u2028é") | st.characters(), max_size=12),
)
def test_random_settings_never_reach_a_shell(recorded, target, field, text):
    described = changed(JOBS[target], field, text)
    assume(described is not None)
    check(recorded, target, described)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("run_dir", "gs://b;touch${IFS}X;:/x"),
        ("run_dir", "gs://b$(x)/x"),
        ("run_dir", "gs://B/x"),
        ("run_dir", "gs:///x"),
        ("run_dir", "gs://b/../../etc"),
        ("run_dir", "gs://-b/x"),
        ("run_dir", "http://b/x"),
        ("env", ("A=b\nc",)),
        ("env", ("é=b",)),
        ("env", ("A\n=b",)),
        ("command", ("pretrain", "a\nEND-OF-FILE\ntouch ran")),
        ("command", ("a\0b",)),
        ("image", "--privileged"),
        ("image", "a b"),
        ("project", "a;b"),
        ("zone", "--help"),
        ("zone", "us-west4-a\n"),
        ("cluster", "-c"),
        ("name", "a\n"),
        ("max_restarts", 2**40),
    ],
)
def test_settings_that_no_launcher_can_take_are_refused_by_name(field, value):
    with pytest.raises(pydantic.ValidationError) as refused:
        TPU.replace(**{field: value})
    assert refused.value.errors()[0]["loc"][0] == field


def test_a_line_like_the_end_of_a_file_does_not_end_it(tmp_path):
    text = "a\nEND-OF-FILE\ntouch ran\nEND-OF-FILE-\n"
    script = job.script([Write(Path("file"), text)])
    subprocess.run(["bash", "-c", script], cwd=tmp_path, check=True)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_text() == text


def test_the_old_jobset_stays_until_kubectl_has_read_the_new_one(tmp_path, monkeypatch):
    (tmp_path / "kubectl").write_text('#!/bin/bash\necho "$@" >> asked\n[[ $* != *--dry-run* ]]\n')
    (tmp_path / "kubectl").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.chdir(tmp_path)
    assert job.execute(gke.start(TPU)) == 1
    assert (tmp_path / "asked").read_text() == "create --filename=runs/speech.jobset.yaml --dry-run=client\n"


def test_yaml_that_says_something_else_is_an_error(monkeypatch):
    monkeypatch.setattr(job.yaml, "dump", lambda document, **_: "a: b\n")
    with pytest.raises(ValueError, match="YAML cannot hold"):
        gke.start(TPU)


def test_kubernetes_replaces_nothing_in_words():
    """kubernetes.io/docs/reference/kubernetes-api: $(NAME) is replaced in commands and values, $$ is one dollar."""
    document = gke.jobset(TPU.replace(command=("a", "$(HOME) $$ $x"), env=("A=$(HOME)",)))
    container = document["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]["containers"][0]
    assert container["command"][2] == "$$(HOME) $$$$ $$x"
    assert {"name": "A", "value": "$$(HOME)"} in container["env"]


@pytest.mark.parametrize("name", ["PROJECT", "ZONE", "NAME", "TYPE", "VERSION"])
def test_the_script_for_a_slice_refuses_what_is_no_name(pod, name, monkeypatch):  # noqa: F811
    folder, _ = pod
    for text in ("--quiet", "a b", "a;touch ran", "a\nb", "$(touch ran)", "a:"):
        monkeypatch.setenv(name, text)
        done = subprocess.run([SCRIPT, "create"], capture_output=True, text=True, timeout=60)
        assert (done.returncode, name in done.stderr) == (64, True), text
    assert not (folder / "arguments").exists()


def test_cloud_commands_are_one_line_of_words():
    """Nothing but the quoted setting changes where a setting changes."""
    hostile = "it's $(here); `now` \\"
    plain, odd = (cloud_tpu.start(TPU.replace(env=(f"A={value}",)))[-1].words[-1] for value in ("x", hostile))
    assert odd == plain.replace("--env=A=x", "'--env=A=" + hostile.replace("'", "'\"'\"'") + "'")
