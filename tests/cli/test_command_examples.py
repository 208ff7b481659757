"""The examples of the commands' help and of pages: each parses, and those of the help that cost little run."""

import functools
import glob
import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
import soundfile
import tyro

from jax_speechlm import cli
from jax_speechlm.apps.tutoring import run as tutoring
from jax_speechlm.cli import by_task, units, words
from jax_speechlm.cli.commands import COMMANDS
from jax_speechlm.recipes import registry
from jax_speechlm.tasks import TASKS, task_of
from tests import pages
from tests.trained_tones import speak, trained_run

DOCS = Path(__file__).parents[2] / "docs"
LAUNCHING = DOCS / "launching.md"
PAGES = ["../README.md", *sorted(page.name for page in DOCS.glob("*.md") if page.name != "extending.md")]
"""All but the one whose test runs its commands on a recipe of its own."""
TASK_OF_RUN = {
    **{"runs/finetune": "ctc", "runs/pretrain": "best_rq", "runs/voice": "tts", "runs/minilm": "masked_lm"},
    **{"runs/lm": "causal_lm", "runs/units": "unit_lm", "runs/digits": "classification"},
    **{"runs/debian_unit_lm": "unit_lm", "runs/codec_lm": "unit_lm", "runs/codec": "codec", "runs/unit_voice": "tts"},
    **{"runs/qwen3": "causal_lm", "runs/vocos": "vocoder"},
    **{"runs/debian_speech_lm": "speech_lm", "runs/sources": "classification", "runs/squad": "question_answering"},
}
"""What the examples call the runs of tasks."""
EXAMPLES = [line for command in COMMANDS.values() for line in command.example.splitlines()]
RUN = (
    *("prepare --manifest", "train-tokenizer", "index-text notes", "recipes", "transcribe", "enhance in.wav", "eval"),
    "launch",
)
"""Beginnings of the examples that run here."""


class Parsed(Exception):
    """Raised in place of a command."""


def parse_only(function):
    """A function of the same arguments that raises `Parsed`."""
    if isinstance(function, functools.partial):
        return functools.partial(parse_only(function.func), *function.args, **function.keywords)

    @functools.wraps(function)
    def parsed(*_, **__):
        raise Parsed

    return parsed


@pytest.fixture
def parsing(monkeypatch, tmp_path):
    """Command lines are parsed, but no command runs."""

    def parse(function, **options):
        own = function if options.get("return_unknown_args") else parse_only(function)  # a part of a command line
        return whole(own, **options)

    def parse_action(actions, **options):
        return of_actions({name: parse_only(function) for name, function in actions.items()}, **options)

    whole, of_actions = tyro.cli, tyro.extras.subcommand_cli_from_dict
    monkeypatch.setattr(tyro, "cli", parse)
    for module in (units, words, tutoring):
        monkeypatch.setattr(module, "subcommand_cli_from_dict", parse_action)
    monkeypatch.setattr(by_task, "task_of_run", lambda run: TASKS[TASK_OF_RUN.get(run, "ctc")])
    monkeypatch.chdir(tmp_path)
    Path("job.json").write_text("{}")


@pytest.mark.parametrize("example", EXAMPLES)
def test_an_example_parses(example, parsing):
    program, *argv = shlex.split(example, comments=True)
    assert program == "jax-speechlm"
    with pytest.raises(Parsed):
        cli.main(argv)


@pytest.mark.parametrize("page", PAGES)
def test_the_commands_of_a_page_parse(page, parsing, monkeypatch):
    text = re.sub(r"\"\$\(od .*?\)\"|\$\{?seed\}?", "1", pages.read(page))  # what a shell computes
    tasks = dict(TASK_OF_RUN)
    monkeypatch.setattr(by_task, "task_of_run", lambda run: TASKS[tasks.get(run, "ctc")])
    for argv in pages.commands(text):
        config = option(argv, "--config")
        if "/config.json" in config:  # of a run
            Path(config).parent.mkdir(parents=True, exist_ok=True)
            Path(config).write_text(registry.load("four_way/ctc").model_dump_json())
        elif config == "mine.py":
            Path(config).write_text("from jax_speechlm.recipes.demo.finetune import config")
        elif config:
            run = option(argv, "--run-dir") or f"runs/{config.replace('/', '_')}"
            tasks[run] = task_of(registry.load(config).objective).name
        with pytest.raises(Parsed):
            cli.main(argv)


def option(argv: list[str], name: str) -> str:
    """The value of an option, "" if it is not there."""
    return argv[argv.index(name) + 1] if name in argv else ""


@pytest.mark.parametrize("name", COMMANDS)
def test_an_example_is_of_its_command(name):
    assert {line.split()[1] for line in COMMANDS[name].example.splitlines()} == {name}


def test_help_ends_with_the_example(capsys):
    with pytest.raises(SystemExit):
        cli.main(["units", "fit", "--help"])
    assert capsys.readouterr().out.endswith(f"example:\n  {COMMANDS['units'].example}\n")


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    folder = tmp_path_factory.mktemp("examples")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name in ("notes", "runs"):
            Path(name).mkdir()
        shutil.copytree(trained_run(), "runs/finetune")
        rows = []
        for number in range(12):
            text = "abc ca bab cac"[: 3 + number]
            soundfile.write(f"{number}.wav", speak(text)[0], 16_000)
            split = {0: "test", 1: "dev"}.get(number % 4, "train")
            rows.append({"audio": f"{number}.wav", "text": text.strip(), "split": split})
        Path("my.jsonl").write_text("\n".join(map(json.dumps, rows)))
        for name in ("asterisk-en", "queen-en"):
            assert cli.main(["prepare", "--manifest", "my.jsonl", "--name", name]) == 0
        soundfile.write("in.wav", speak("abc ca", 1)[0], 16_000)
        soundfile.write("interview.mp3", speak("abc ca", 1)[0], 16_000)
        Path("notes/worm.txt").write_text("A worm is a program that spreads.\n")
        Path("job.json").write_text(re.search(r"```json\n(.*?)```", LAUNCHING.read_text(), re.DOTALL)[1])
    return folder


@pytest.mark.parametrize(
    "example", [line for line in EXAMPLES if line.startswith(tuple(f"jax-speechlm {x}" for x in RUN))]
)
def test_an_example_runs(example, workplace, monkeypatch):
    monkeypatch.chdir(workplace)
    monkeypatch.setenv("COLUMNS", "80")
    words = shlex.split(example, comments=True)[1:]
    assert cli.main([name for word in words for name in (glob.glob(word) if "*" in word else [word])]) == 0
