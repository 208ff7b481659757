"""Czech and Dutch speech to English text, by one model and by a cascade: the translation table of docs/results.md.

A CTC recognizer of fillets-cs and fillets-nl (2.26 hours); a character LM trained on English prose and on lines of the
form "transcript in English: translation"; and a speech-language model made of the two. In the cascade the LM continues
the recognizer's transcript; the same from the true transcript isolates the errors of recognition. BLEU and chrF on the
test split. Takes an hour on one core; the same command continues after an interruption.
"""

import json
import os
import sys
from functools import partial
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # hides TensorFlow's messages at import
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")  # unused here; it prints a message

import tyro
from rich.console import Console
from rich.table import Table
from run_queue import RunQueue, Task, train_to_end

from data_pipelines.core.errors import DataError
from data_pipelines.prepare.job import prepare
from data_pipelines.storage import index as indexes
from data_pipelines.text.cleaning import Cleaning
from jax_speechlm.decoding.lm.generate import Beam
from jax_speechlm.evaluation import translation
from jax_speechlm.evaluation.recognition import EvaluationSpeech, evaluate_run
from jax_speechlm.evaluation.report import Utterance
from jax_speechlm.inference.asr.ctc import Recognizer
from jax_speechlm.inference.lm.causal import LanguageModel
from jax_speechlm.objectives.speech_text.speech_lm import Prompts
from jax_speechlm.parallel.platforms import cache_compilations
from jax_speechlm.recipes import registry
from jax_speechlm.recipes.experiment import InitFrom
from jax_speechlm.training.checkpoints import CheckpointError
from jax_speechlm.training.loop import TrainingStopped

SETS = ("fillets-cs", "fillets-nl")
PAIRS, PROSE = "fillets-pairs", "sentences-en"
BETWEEN = Prompts().translate.behind  # between transcript and translation of a line
LONGEST = 160  # characters of a translation


class Translation:
    """The runs of the table, by name."""

    def __init__(self, runs: Path, data_dir: Path):
        self.runs, self.data_dir = runs, data_dir

    def tasks(self) -> dict[str, Task]:
        return {
            "ctc": Task((), self._recognizer),
            "lm": Task((), self._language_model),
            "speech_lm": Task(("ctc", "lm"), self._speech_lm),
            "cascade": Task(("ctc", "lm"), partial(self._cascade, True)),
            "cascade-from-true-transcripts": Task(("lm",), partial(self._cascade, False)),
        }

    def _recognizer(self, run: Path) -> None:
        experiment = registry.load("fillets/ctc")
        train_to_end(experiment.replace(data=experiment.data.replace(data_dir=str(self.data_dir))), run)
        for name in SETS:
            evaluate_run(run, (name,), data_dir=self.data_dir)

    def _language_model(self, run: Path) -> None:
        experiment = registry.load("demo/lm")
        data = experiment.data.replace(
            sets=(PROSE, PAIRS),
            weights=(0.5, 0.5),
            dev_sets=(PAIRS,),
            context=384,
            tokens_per_batch=384 * 10,
            data_dir=str(self.data_dir),
        )
        train_to_end(experiment.replace(data=data, num_steps=1000), run)

    def _speech_lm(self, run: Path) -> None:
        experiment = registry.load("fillets/translation")
        data = experiment.data.replace(data_dir=str(self.data_dir), tokenizer=str(self.runs / "lm"))
        start = tuple(InitFrom(checkpoint=str(self.runs / name)) for name in ("ctc", "lm"))
        train_to_end(experiment.replace(data=data, init_from=start), run)
        for name in SETS:
            evaluate_run(run, (name,), data_dir=self.data_dir, out=self.report(run.name, name))

    def _cascade(self, recognizes: bool, run: Path) -> None:
        recognizer, lm = Recognizer.load(self.runs / "ctc"), LanguageModel.load(self.runs / "lm")
        for name in SETS:
            speech = EvaluationSpeech(recognizer, (name,), "test", self.data_dir, 60.0)
            if recognizes:
                by_row = recognizer.recognize(speech.batches())
                transcripts = [by_row[row] for row in range(len(speech.index))]
            else:
                transcripts = speech.index.column("text").to_pylist()
            prompts = [f"{text}{BETWEEN}" for text in transcripts]
            translations = [
                candidates[0].text
                for start in range(0, len(prompts), 32)
                for candidates in lm.generate(prompts[start : start + 32], Beam(size=4), max_tokens=LONGEST)
            ]
            ids, references = (speech.index.column(column).to_pylist() for column in ("id", "translation"))
            utterances = [
                Utterance(id=row_id, reference=reference, hypothesis=text)
                for row_id, reference, text in zip(ids, references, translations, strict=True)
            ]
            translation.evaluate(utterances, decoder="beam 4").save(self.report(run.name, name))

    def report(self, run: str, name: str) -> Path:
        return self.runs / run / "eval" / f"{name}-test"

    def table(self) -> Table:
        table = Table(title="Test, from fillets", title_justify="left")
        for column in ("", "from", "BLEU [95 %]", "chrF [95 %]"):
            table.add_column(column, justify="right" if "95" in column else "left")
        for run in list(self.tasks())[2:]:
            for name in SETS:
                path = self.report(run, name) / "report.json"
                report = translation.TranslationReport.model_validate_json(path.read_text())
                table.add_row(run, name.removeprefix("fillets-"), str(report.bleu), str(report.chrf))
        return table


def prepare_pairs(data_dir: Path) -> None:
    """Lines of transcript and translation as a set of text, in the splits of the speech."""
    lines = []
    for name in SETS:
        for split in indexes.splits_of(data_dir / name):
            index = indexes.read_sets(data_dir, (name,), split)
            texts, translations = (index.column(column).to_pylist() for column in ("text", "translation"))
            for text, translated in zip(texts, translations, strict=True):
                if text and translated:
                    lines.append({"text": f"{text}{BETWEEN}{translated}", "split": split})
    path = data_dir / f"{PAIRS}.jsonl"
    path.write_text("".join(f"{json.dumps(line, ensure_ascii=False)}\n" for line in lines), encoding="utf-8")
    prepare(PAIRS, text=(str(path),), cleaning=Cleaning(steps=("unicode",)), data_dir=data_dir)


def main(data_dir: Path = Path("data"), run_dir: Path = Path("runs/translation")) -> None:
    """Trains and measures the runs that are left, and prints the table.

    Args:
      data_dir: prepared data.
      run_dir: folder of the runs.
    """
    cache_compilations()
    for name in SETS:
        prepare(name, data_dir=data_dir)
    prepare(PROSE, debian="text-en", cleaning=Cleaning(steps=("unicode", "sentences", "exact")), data_dir=data_dir)
    prepare_pairs(data_dir)
    experiment = Translation(run_dir, data_dir)
    for name in RunQueue(run_dir, experiment.tasks()).work():
        print(f"--- {name} is done", flush=True)
    Console(width=100).print(experiment.table())


if __name__ == "__main__":
    try:
        tyro.cli(main, description=__doc__)
    except (DataError, CheckpointError, TrainingStopped) as error:
        sys.exit(f"error: {error}")
