"""Translation, classification and answers to questions by one text-to-text model: a table of docs/results.md.

Lines of a game in Czech and Dutch with their English (fillets), the language of a line, and what FOLDOC says that a
term is. An encoder-decoder learns the three tasks from random parameters and after span corruption of prose and of the
same lines, with every seed. Exact answers, BLEU and chrF on the test splits. Stop it at any time; the same command
continues. Several processes share the runs.
"""

import json
import os
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # hides TensorFlow's messages at import
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")  # unused here; it prints a message

import tyro
from over_seeds import mean_cell
from rich.console import Console
from rich.table import Table
from run_queue import RunQueue, Task, train_to_end

from data_pipelines.core.errors import DataError
from data_pipelines.prepare.job import prepare
from data_pipelines.sources import debian
from data_pipelines.sources.debian_texts import dictionary
from data_pipelines.storage import index as indexes
from data_pipelines.text.cleaning import Cleaning, split_sentences, strip_punctuation
from jax_speechlm.cli.tokenizer import train_tokenizer
from jax_speechlm.evaluation.text_to_text import TextToTextReport, evaluate_run
from jax_speechlm.parallel.platforms import cache_compilations
from jax_speechlm.recipes import registry
from jax_speechlm.recipes.experiment import Experiment, InitFrom
from jax_speechlm.training.checkpoints import CheckpointError
from jax_speechlm.training.loop import TrainingStopped

LINES = {"fillets-cs": "Czech", "fillets-nl": "Dutch"}
TASKS = ("translate-cs", "translate-nl", "which-language", "foldoc-definitions")
PROSE, STARTS = "sentences-en", ("random", "spans")
VOCABULARY, BEAM = 2048, 4
_SHOWN_WORDS = 40  # of an entry of FOLDOC
_LEAST_WORDS, _MOST_WORDS = 4, 12  # of an answer


class TextTasks:
    """The runs by name: "spans-1" starts from span corruption, with seed 1."""

    def __init__(self, runs: Path, data_dir: Path):
        self.runs, self.data_dir = runs, data_dir

    def tasks(self, seeds: tuple[int, ...]) -> dict[str, Task]:
        """Returns the runs, in order."""
        tasks = {"tokens": Task((), self._tokens), "spans": Task(("tokens",), self._spans)}
        for seed in seeds:
            for start in STARTS:
                needs = ("tokens", *(("spans",) if start == "spans" else ()))
                tasks[f"{start}-{seed}"] = Task(needs, partial(self._text_to_text, start, seed))
        return tasks

    def report(self, name: str, task: str) -> TextToTextReport:
        """Returns the evaluation of a run on the test split of a task."""
        return TextToTextReport.model_validate_json((self._folder(name, task) / "report.json").read_text())

    def _folder(self, name: str, task: str) -> Path:
        return self.runs / name / "eval" / task

    def _tokens(self, run: Path) -> None:
        sets = (PROSE, *LINES, "foldoc-definitions")
        train_tokenizer(sets, run / "tokenizer", "bpe", VOCABULARY, byte_fallback=True, data_dir=self.data_dir)

    def _spans(self, run: Path) -> None:
        train_to_end(self._ours("fillets/spans"), run)

    def _text_to_text(self, start: str, seed: int, run: Path) -> None:
        experiment = self._ours("fillets/text_to_text").replace(seed=seed)
        if start == "spans":
            experiment = experiment.replace(init_from=(InitFrom(checkpoint=str(self.runs / "spans")),))
        train_to_end(experiment, run)
        for task in TASKS:
            beam = 0 if task == "which-language" else BEAM
            evaluate_run(run, (task,), beam_size=beam, data_dir=self.data_dir, out=self._folder(run.name, task))

    def _ours(self, recipe: str) -> Experiment:
        experiment, tokenizer = registry.load(recipe), str(self.runs / "tokens" / "tokenizer")
        return experiment.replace(data=experiment.data.replace(data_dir=str(self.data_dir), tokenizer=tokenizer))


def prepare_sets(data_dir: Path) -> None:
    """Prepares the sets of the tasks as texts with targets, in the splits of the speech."""
    for name in LINES:
        prepare(name, data_dir=data_dir)
    prepare(PROSE, debian="text-en", cleaning=Cleaning(steps=("unicode", "sentences", "exact")), data_dir=data_dir)
    lines = {name: list(_lines(data_dir, name)) for name in LINES}
    for name, language in LINES.items():
        task = f"translate-{name[-2:]}"
        examples = [
            {"text": f"translate {language}: {text}", "target": english, "split": split}
            for text, english, split in lines[name]
        ]
        _write(data_dir, task, examples)
    of_a_language = [
        {"text": f"language: {each}", "target": spoken, "split": split}
        for name, language in LINES.items()
        for text, english, split in lines[name]
        for each, spoken in ((text, language), (strip_punctuation(english).lower(), "English"))
    ]
    _write(data_dir, "which-language", of_a_language)
    _write(data_dir, "foldoc-definitions", _definitions(data_dir / "packages"))


def _lines(data_dir: Path, name: str) -> Iterator[tuple[str, str, str]]:
    """Yields transcript, translation and split of the clips of a set."""
    for split in indexes.splits_of(data_dir / name):
        index = indexes.read_sets(data_dir, (name,), split)
        columns = (index.column(column).to_pylist() for column in ("text", "translation"))
        yield from ((text, english, split) for text, english in zip(*columns, strict=True) if text and english)


def _definitions(cache: Path) -> Iterator[dict[str, str]]:
    """Yields questions for what a term of FOLDOC is, each with the beginning of its entry."""
    entries = [entry.text for entry in dictionary(debian.fetch("dict-foldoc", cache).root)]
    heads = Counter(entry.partition("\n")[0].strip().lower() for entry in entries)
    for entry in entries:
        head, _, body = (part.strip() for part in entry.partition("\n"))
        sentences = split_sentences(re.sub(r"<[^>]*>|[{}]", "", body))  # labels of fields, and marks of links
        words = len(sentences[0].split()) if sentences else 0
        if heads[head.lower()] > 1 or not _LEAST_WORDS <= words <= _MOST_WORDS:
            continue
        shown = " ".join(" ".join(sentences).split()[:_SHOWN_WORDS])
        yield {"text": f"question: what is {head}? {shown}", "target": sentences[0]}


def _write(data_dir: Path, name: str, examples: Iterable[dict[str, str]]) -> None:
    path = data_dir / f"{name}.jsonl"
    path.write_text("".join(f"{json.dumps(each, ensure_ascii=False)}\n" for each in examples), encoding="utf-8")
    prepare(name, text=(str(path),), cleaning=Cleaning(steps=("unicode", "exact")), data_dir=data_dir)


def main(
    data_dir: Path = Path("data"), run_dir: Path = Path("runs/text_tasks"), seeds: tuple[int, ...] = (0, 1, 2)
) -> None:
    """Trains and measures the runs that are left, and prints the table.

    Args:
      data_dir: prepared data; receives the sets of the tasks.
      run_dir: folder of the runs.
      seeds: of the text-to-text models.
    """
    cache_compilations()
    prepare_sets(data_dir)
    study = TextTasks(run_dir, data_dir)
    for name in RunQueue(run_dir, study.tasks(seeds)).work():
        print(f"--- {name} is done", flush=True)
    table = Table("task", "start", title=f"Test, seeds {', '.join(map(str, seeds))}", title_justify="left")
    for name in ("texts", "exact, %", "BLEU", "chrF"):
        table.add_column(name, justify="right")
    for task in TASKS:
        for start in STARTS:
            reports = [study.report(f"{start}-{seed}", task) for seed in seeds]
            measures = [[100 * each.exact, each.bleu.score, each.chrf.score] for each in reports]
            cells = map(mean_cell, zip(*measures, strict=True))
            table.add_row(task, start, f"{reports[0].scored:,}", *cells, end_section=start == STARTS[-1])
    Console(width=120).print(table)


if __name__ == "__main__":
    try:
        tyro.cli(main, description=__doc__)
    except (DataError, CheckpointError, TrainingStopped) as error:
        sys.exit(f"error: {error}")
