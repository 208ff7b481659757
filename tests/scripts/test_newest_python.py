"""Which Python the newest tests run on, with interpreters made up of shell scripts."""

import os
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "newest_python.sh"


def interpreter(file: Path, status: int = 0) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f"#!/bin/sh\necho {file}\nexit {status}\n")
    file.chmod(0o755)
    return file


def run(tmp_path: Path) -> subprocess.CompletedProcess:
    (tmp_path / "bin").mkdir(exist_ok=True)
    for name in ("bash", "env"):
        if not (tmp_path / "bin" / name).exists():
            (tmp_path / "bin" / name).symlink_to(Path("/usr/bin") / name)
    env = {"PATH": str(tmp_path / "bin"), "PYENV_ROOT": str(tmp_path / "pyenv"), "HOME": str(tmp_path)}
    command = ["/usr/bin/env", "bash", SCRIPT, "bash", "-c", 'echo "runs on $PYTHON in $VENV"']
    return subprocess.run(command, env=env, capture_output=True, text=True, check=False)


def test_newest_python_that_is_not_there_is_said_and_nothing_runs(tmp_path):
    done = run(tmp_path)
    assert done.returncode == 0
    assert "NOT RUN" in done.stdout
    assert "needs Python 3.12 or 3.13" in done.stdout
    assert not any(line.startswith("runs on") for line in done.stdout.splitlines())


@pytest.mark.parametrize(
    ("there", "found", "venv"),
    [
        (["bin/python3.12"], "bin/python3.12", ".venv-3.12"),
        (["bin/python3.12", "bin/python3.13"], "bin/python3.13", ".venv-3.13"),
        (["bin/python3.12", "pyenv/versions/3.13.0/bin/python"], "pyenv/versions/3.13.0/bin/python", ".venv-3.13"),
        (["pyenv/versions/3.12.1/bin/python"], "pyenv/versions/3.12.1/bin/python", ".venv-3.12"),
    ],
)
def test_newest_python_is_found_on_path_and_in_pyenv(tmp_path, there, found, venv):
    for name in there:
        interpreter(tmp_path / name)
    done = run(tmp_path)
    assert done.returncode == 0
    assert f"runs on {tmp_path / found} in {venv}" in done.stdout


def test_newest_python_is_none_of_pyenvs_shims_that_are_not_chosen(tmp_path):
    interpreter(tmp_path / "bin" / "python3.13", status=127)
    interpreter(tmp_path / "bin" / "python3.12")
    assert f"runs on {tmp_path / 'bin/python3.12'}" in run(tmp_path).stdout


def test_newest_python_that_fails_the_command_fails(tmp_path):
    interpreter(tmp_path / "bin" / "python3.13")
    env = {"PATH": os.environ["PATH"], "PYENV_ROOT": str(tmp_path), "HOME": str(tmp_path)}
    env["PATH"] = f"{tmp_path / 'bin'}:{env['PATH']}"
    assert subprocess.run([SCRIPT, "false"], env=env, capture_output=True, check=False).returncode == 1
