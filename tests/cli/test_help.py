"""The list of commands."""

import os
import subprocess
import sys

from jax_speechlm.cli import main
from jax_speechlm.cli.commands import COMMANDS, GROUPS


def test_every_command_is_listed_once_under_its_heading(capsys):
    assert main(["--help"]) == 0
    heading, listed = "", {}
    for line in capsys.readouterr().out.splitlines():
        if line.rstrip(":") in GROUPS.values():
            heading = line.rstrip(":")
        elif line.startswith("`jax-speechlm COMMAND"):  # the end of the list
            heading = ""
        elif line[:2] == "  " and line[2:3].strip() and heading:
            assert listed.setdefault(line.split()[0], heading) == heading
    assert listed == {name: GROUPS[command.group] for name, command in COMMANDS.items()}


def test_a_reader_that_leaves_is_no_error():
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as closed:
        run = subprocess.run(
            [sys.executable, "-m", "jax_speechlm.cli", "--help"], stdout=closed, stderr=subprocess.PIPE, check=False
        )
    assert (run.returncode, run.stderr) == (0, b"")
