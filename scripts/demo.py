"""The whole pipeline from raw speech and text to a WER table, on real data: `make demo`.

Fetches asterisk-en (24 minutes of studio prompts), queen-en (4.4 hours of acted dialogue) and text-en (14 MB of prose),
pretrains a small conformer on the audio of both sets, finetunes it on the transcripts of asterisk-en, repeats the
finetuning without pretraining, continues with one encoder for audio, prose and transcripts jointly, and trains a
character language model and an n-gram. Everything is evaluated on the test split, which nothing else uses: greedy, and
decoding with either language model, whose weights are tuned on dev. At last the recognizer is exported for Hugging
Face's transformers, and the export is checked.
"""

import importlib.util
import os
import sys
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # hides TensorFlow's messages at import
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")  # unused here; it prints a message

import tyro
from rich.console import Console
from rich.table import Table

from data_pipelines.core.audio_format import DEFAULT_SAMPLE_RATE as SAMPLE_RATE
from data_pipelines.core.errors import DataError
from data_pipelines.prepare.job import prepare
from data_pipelines.storage.index import read_index
from data_pipelines.storage.records import RecordReader
from data_pipelines.text.cleaning import Cleaning
from jax_speechlm.decoding.lm.train_ngram import train_ngram
from jax_speechlm.evaluation.recognition import evaluate_run
from jax_speechlm.inference.asr.ctc import Recognizer
from jax_speechlm.inference.asr.decoder import Decoding
from jax_speechlm.interop.folders import ExportError
from jax_speechlm.interop.hf.export import write_checked
from jax_speechlm.parallel.platforms import cache_compilations
from jax_speechlm.recipes import registry
from jax_speechlm.recipes.experiment import Experiment, InitFrom
from jax_speechlm.training.checkpoints import CheckpointError
from jax_speechlm.training.loop import Result, TrainingStopped, train
from jax_speechlm.training.runs import LoadedRun

SETS = ("asterisk-en", "queen-en")
TEXT_SET = "spoken-en"
TEST_SET = "asterisk-en"
# Prose in spoken form, a sentence a document, without sentences of the speech sets' dev and test splits.
SPOKEN = Cleaning(steps=("unicode", "sentences", "spoken", "exact"), held_out=SETS)


def main(data_dir: Path = Path("data"), run_dir: Path = Path("runs/demo"), seed: int = 0) -> None:
    """Runs all stages.

    Args:
      data_dir: prepared data.
      run_dir: folder of the runs.
      seed: of every run.
    """
    cache_compilations()

    console = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 140)
    table = Table(title="jax_speechlm demo", title_justify="left")
    for column in ("stage", "minutes", "seen", "dev loss", "test WER [95 %]", "test CER [95 %]"):
        table.add_column(column, justify="left" if column == "stage" else "right")

    def experiment(name: str, start: tuple[InitFrom, ...] = (), **data_changes: str) -> Experiment:
        loaded = registry.load(name)
        data = loaded.data.replace(data_dir=str(data_dir), **data_changes)
        return loaded.replace(data=data, seed=seed, init_from=start)

    began = time.perf_counter()
    console.rule("prepare")
    reports = [prepare(name, data_dir=data_dir) for name in SETS]
    reports.append(prepare(TEXT_SET, debian="text-en", cleaning=SPOKEN, data_dir=data_dir))
    for report in reports:
        report.print(console)
    hours = sum(report.hours for report in reports[:-1])
    table.add_row("prepare", _minutes(began), f"{hours:.2f} h", "", "", "")

    console.rule("pretrain on audio alone (BEST-RQ)")
    result = finish(experiment("demo/pretrain"), run_dir / "pretrain")
    table.add_row("pretrain", f"{result.minutes:.1f}", result.seen, f"{result.dev['loss']:.3f}", "", "")

    finetuned, pretrained = run_dir / "finetune", (InitFrom(checkpoint=str(run_dir / "pretrain")),)
    both = (
        InitFrom(checkpoint=str(run_dir / "pretrain"), groups=("quantizer", "codes=head")),
        InitFrom(checkpoint=str(finetuned), groups=("encoder", "head")),
    )
    for folder, title, chosen in (
        (run_dir / "scratch", "finetune, not pretrained", experiment("demo/finetune")),
        (finetuned, "finetune, pretrained", experiment("demo/finetune", pretrained)),
        (run_dir / "joint", "  then jointly", experiment("demo/joint", both, tokenizer=str(finetuned))),
    ):
        console.rule(title.strip())
        result = finish(chosen, folder)
        report = evaluate_run(folder, (TEST_SET,), data_dir=data_dir)
        figures = f"{result.minutes:.1f}", result.seen, f"{result.dev['loss']:.3f}"
        table.add_row(title, *figures, str(report.wer), str(report.cer))

    console.rule("train language models on text and transcripts")
    result = finish(experiment("demo/lm", tokenizer=str(finetuned)), run_dir / "lm")
    table.add_row("language model", f"{result.minutes:.1f}", result.seen, f"{result.dev['loss']:.3f}", "", "")
    lm, ngram = run_dir / "lm", run_dir / "characters-6.arpa"
    decodings = {"  + ranked by the language model": Decoding(rescore=lm)}
    if importlib.util.find_spec("kenlm"):
        ngram_began = time.perf_counter()
        train_ngram(ngram, (TEXT_SET, *SETS), order=6, unit="char", data_dir=data_dir)
        table.add_row("character 6-gram", _minutes(ngram_began), "", "", "", "")
        decodings["  + character 6-gram"] = Decoding(lm=ngram)
        decodings["  + both"] = Decoding(lm=ngram, rescore=lm)
    else:
        hint = "No n-gram: kenlm is not installed (pip install -e '.[ngram]'; it needs a C++ compiler)."
        console.print(hint, style="yellow", markup=False)

    for title, decoding in decodings.items():
        console.rule(f"decode{title}")
        decode_began = time.perf_counter()
        report = evaluate_run(finetuned, (TEST_SET,), decoding=decoding, data_dir=data_dir)
        table.add_row(title, _minutes(decode_began), "", "", str(report.wer), str(report.cer))

    console.rule("transcribe one clip of the test split")
    clip, reference = _one_clip(data_dir, run_dir)
    for transcript in Recognizer.load(finetuned, decoding.with_defaults()).transcribe([clip]):
        console.print(f"{clip}\nreference:  {reference}\ntranscript: {transcript.text}\n")

    console.rule("export the recognizer")
    export_began, exported = time.perf_counter(), run_dir / "exported"
    verdict = write_checked(LoadedRun.read(finetuned), exported, audio=(clip,))
    table.add_row("export", _minutes(export_began), "", "", "", "")

    console.print(table)
    console.print(
        f"{_minutes(began)} minutes in all. Test: {TEST_SET}, seed {seed}; greedy, but for the rows with a +."
    )
    for run in ("pretrain", "scratch", "finetune", "joint", "lm"):
        folder = run_dir / run
        console.print(f"{run:<9} checkpoints {folder / 'checkpoints'}   TensorBoard logs {folder / 'tensorboard'}")
    console.print(f"exported  {exported}   {verdict.line}", markup=False)


def finish(experiment: Experiment, run_dir: Path) -> Result:
    """Trains a run to its end; exits if a signal stopped it."""
    result = train(experiment, run_dir)
    if result.step < experiment.num_steps:
        sys.exit("Stopped. The same command goes on from there.")
    return result


def _minutes(began: float) -> str:
    return f"{(time.perf_counter() - began) / 60:.1f}"


def _one_clip(data_dir: Path, run_dir: Path) -> tuple[Path, str]:
    """Writes the first test clip of three seconds or more as a file; returns its path and its transcript."""
    index = read_index(data_dir / TEST_SET, "test")
    row = next(row for row, samples in enumerate(index.num_samples) if samples >= 3 * SAMPLE_RATE)
    flac, text = RecordReader(index).read(row)
    clip = run_dir / "clip.flac"
    clip.write_bytes(flac)
    return clip, text


if __name__ == "__main__":
    try:
        tyro.cli(main, description=__doc__)
    except (DataError, CheckpointError, ExportError, TrainingStopped) as error:
        sys.exit(f"error: {error}")
