"""One parser reads every command line: wrong ones end with status 2, and the message has the nearest option."""

import ast
from pathlib import Path

import pytest

from jax_speechlm import cli
from jax_speechlm.core.exit_status import WRONG_COMMAND_LINE

ROOT = Path(__file__).parents[2]
FOLDERS = ("jax_speechlm", "data_pipelines", "scripts", "launch")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ("finetune --form runs/a", "--from"),
        ("pretrain --numsteps 3", "--num-steps"),
        ("plan --longest-onyl", "--longest-only"),
        ("finetune --config", "--config"),
        ("launch", "tpu-vm"),
        ("launch gke --zones x", "--zone"),
        ("launch local --action begin", "start"),
        ("export runs/a --to onxx", "onnx"),
        ("units fti", "fit"),
        ("recipes --all", "--all"),
    ],
)
def test_a_wrong_command_line_is_explained(argv, message, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(argv.split())
    assert ended.value.code == WRONG_COMMAND_LINE
    printed = capsys.readouterr()
    assert message in printed.out + printed.err


@pytest.mark.parametrize(
    ("command", "options"),
    [
        ("finetune", ("--config", "--run-dir", "--from", "--force", "--num-steps", "--optimizer.schedule.peak")),
        ("plan", ("--config", "--topology", "--slices", "--fit", "--price", "--model.remat")),
        ("launch", ("--job", "--action", "--dry-run", "--topology", "skypilot")),
        ("export", ("--to", "saved_model", "--out")),
    ],
)
def test_help_has_the_options_of_the_command_and_of_the_experiment_or_job(command, options, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main([command, "--help"])
    assert ended.value.code == 0
    printed = capsys.readouterr().out
    assert [option for option in options if option not in printed] == []


def test_there_is_no_second_parser():
    imports = {
        (file.relative_to(ROOT).as_posix(), name)
        for folder in FOLDERS
        for file in (ROOT / folder).rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        for name in ([alias.name for alias in node.names] if isinstance(node, ast.Import) else [])
        if name in ("argparse", "optparse", "getopt", "click")
    }
    assert imports == set()
