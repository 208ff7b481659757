r"""Does pretraining make a voice of twenty minutes intelligible? Voices of asterisk-en from four starts, over seeds.

The voice is that of `demo/voice`. It starts from random parameters, also with twice the steps; from a decoder that
restored masked spectrograms of queen-en, other voices without their texts; from a model of five voices in five
languages; or it reads the hidden states of a frozen character LM of prose. Each pretraining runs once, the voices with
every seed. Speech by Griffin and Lim's algorithm, the test split. Stop it at any time; the same command continues.
Several processes share the runs.

    jax-speechlm prepare asterisk-en asterisk-es asterisk-fr asterisk-it asterisk-ru queen-en
    jax-speechlm prepare spoken-en --debian text-en --steps unicode sentences spoken exact \
      --held-out asterisk-en queen-en
    jax-speechlm pitch asterisk-en asterisk-es asterisk-fr asterisk-it asterisk-ru
    python scripts/voice_pretraining.py --judges.whisper whisper-tiny.en --judges.judge-python judges/bin/python
"""

import os
import sys
from functools import partial
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # hides TensorFlow's messages at import
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")  # unused here; it prints a message

import tyro
from over_seeds import gain_cell, mean_cell
from rich.console import Console
from rich.table import Table
from run_queue import RunQueue, Task, train_to_end

from data_pipelines.core.errors import DataError
from jax_speechlm.evaluation.judges.catalogue import JudgeSettings
from jax_speechlm.evaluation.synthesis_report import SynthesisReport
from jax_speechlm.evaluation.synthesizers import evaluate_run
from jax_speechlm.models.tts.fastspeech2 import TextLM
from jax_speechlm.parallel.platforms import cache_compilations
from jax_speechlm.recipes import registry
from jax_speechlm.recipes.common import CHARACTER_LM
from jax_speechlm.recipes.experiment import Experiment, InitFrom
from jax_speechlm.training.checkpoints import CheckpointError
from jax_speechlm.training.loop import TrainingStopped

ARMS = {"random": None, "longer": None, "decoder": "decoder", "languages": "voices", "text_lm": "lm"}
"""The run that each kind of voice starts from; "longer" has as many steps as "languages" and its start together."""

COLUMNS = ("WER whisper", "CER whisper", "MCD", "log F0", "voicing error")


class VoicePretraining:
    """The runs by name: "languages-0" is the voice that five languages pretrained, with seed 0."""

    def __init__(self, runs: Path, data_dir: Path, judges: JudgeSettings, num_steps: int | None):
        self.runs, self.data_dir, self.judges, self.num_steps = runs, data_dir, judges, num_steps

    def tasks(self, seeds: tuple[int, ...]) -> dict[str, Task]:
        """Returns the runs, in order."""
        tasks = {name: Task((), partial(self._pretrain, name)) for name in ("decoder", "voices", "lm")}
        for seed in seeds:
            for arm, start in ARMS.items():
                tasks[f"{arm}-{seed}"] = Task((start,) if start else (), partial(self._voice, arm, seed))
        return tasks

    def report(self, name: str) -> SynthesisReport:
        return SynthesisReport.from_json((self.runs / name / "eval" / "report.json").read_bytes())

    def _pretrain(self, name: str, run: Path) -> None:
        voice = registry.load("demo/voice")
        if name == "lm":
            experiment = registry.load("demo/lm")
        elif name == "decoder":
            recipe = registry.load("asterisk_tts/decoder_queen")
            data = voice.data.replace(sets=recipe.data.sets)
            experiment = voice.replace(data=data, objective=recipe.objective)
        else:
            experiment = self._of_five(voice)
        train_to_end(self._ours(experiment), run)

    def _voice(self, arm: str, seed: int, run: Path) -> None:
        voice, start = registry.load("demo/voice"), ARMS[arm]
        groups: tuple[str, ...] | None = None
        if arm == "decoder":
            groups = ("acoustic/decoder", "acoustic/head", "acoustic/postnet")
        elif arm == "languages":
            five = self._of_five(voice)
            voice = five.replace(data=five.data.replace(sets=voice.data.sets))
            groups = ("acoustic", "aligner")
        elif arm == "text_lm":
            model = voice.model.replace(text_lm=TextLM(transformer=CHARACTER_LM))
            voice = voice.replace(model=model, optimizer=voice.optimizer.replace(frozen=("transformer",)))
        if start:
            voice = voice.replace(init_from=(InitFrom(checkpoint=str(self.runs / start), groups=groups),))
        if arm in ("languages", "text_lm"):  # their characters are those of the run before
            voice = voice.replace(data=voice.data.replace(tokenizer=str(self.runs / start)))
        voice = self._ours(voice).replace(seed=seed)
        train_to_end(voice.replace(num_steps=2 * voice.num_steps) if arm == "longer" else voice, run)
        evaluate_run(run, ("asterisk-en",), settings=self.judges, data_dir=self.data_dir, out=run / "eval")

    def _of_five(self, voice: Experiment) -> Experiment:
        recipe = registry.load("asterisk_tts/languages")
        objective = voice.objective.replace(classes=recipe.objective.classes)
        return voice.replace(data=voice.data.replace(sets=recipe.data.sets), objective=objective)

    def _ours(self, experiment: Experiment) -> Experiment:
        steps = experiment.num_steps if self.num_steps is None else self.num_steps
        data = experiment.data.replace(data_dir=str(self.data_dir))
        return experiment.replace(data=data, num_steps=steps)


def main(
    data_dir: Path = Path("data"),
    run_dir: Path = Path("runs/voice_pretraining"),
    seeds: tuple[int, ...] = (0, 1, 2),
    judges: JudgeSettings = JudgeSettings(judges=("whisper",)),  # noqa: B008  frozen
    num_steps: int | None = None,
) -> None:
    """Trains the runs that are left and prints the tables of the seeds that are complete.

    Args:
      data_dir: prepared data.
      run_dir: folder of the runs.
      seeds: of the voices.
      judges: of the speech, installed apart; without any the distances remain.
      num_steps: of every run; by default the recipes'.
    """
    cache_compilations()
    study = VoicePretraining(run_dir, data_dir, judges, num_steps)
    queue = RunQueue(run_dir, study.tasks(seeds))
    printed = None
    for _ in queue.work():
        done = [seed for seed in seeds if all(queue.finished(f"{arm}-{seed}") for arm in ARMS)]
        if done and done != printed:
            _print_tables(study, done)
            printed = done


def _print_tables(study: VoicePretraining, seeds: list[int]) -> None:
    values = {arm: [_values(study.report(f"{arm}-{seed}")) for seed in seeds] for arm in ARMS}
    names = list(values["random"][0])
    title = f"Test speech by Griffin-Lim; seeds {', '.join(map(str, seeds))}"
    table = Table("start", *names, title=title, title_justify="left")
    for arm, of_seeds in values.items():
        table.add_row(arm, *(mean_cell([each[name] for each in of_seeds], _digits(name)) for name in names))
    tables = [table]
    if len(seeds) > 1:
        tables.append(Table("start", *names, title="Differences to random, 95 % by Student's t", title_justify="left"))
        for arm in list(ARMS)[1:]:
            pairs = list(zip(values[arm], values["random"], strict=True))
            tables[1].add_row(
                arm, *(gain_cell([each[name] - base[name] for each, base in pairs], _digits(name)) for name in names)
            )
    for each in tables:
        Console(width=160).print(each)


def _values(report: SynthesisReport) -> dict[str, float]:
    """Returns the measures of the voice that were made, shares in per cent."""
    columns = {column.name: 100 if column.unit == "%" else 1 for column in report.columns if column.name in COLUMNS}
    return {name: scale * report.rows[-1].measures[name].value for name, scale in columns.items()}


def _digits(name: str) -> int:
    return {"MCD": 2, "log F0": 3}.get(name, 1)


if __name__ == "__main__":
    try:
        tyro.cli(main, description=__doc__)
    except (DataError, CheckpointError, TrainingStopped) as error:
        sys.exit(f"error: {error}")
