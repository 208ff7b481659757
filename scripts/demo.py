"""The main job from raw speech to a WER table, on real speech: what `make demo` runs.

Fetches asterisk-en (24 minutes of studio prompts) and queen-en (4.3 hours of acted dialogue), pretrains a small conformer
on the audio of both, finetunes it on the transcripts of asterisk-en, does the same finetuning without pretraining, and
measures both on the test split, which nothing else has looked at.
"""

import argparse
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from data_pipelines.index import read_index
from data_pipelines.prepare import prepare
from jax_speechlm import configs
from jax_speechlm.evaluation.recognition import evaluate_run
from jax_speechlm.experiment import Experiment, Start
from jax_speechlm.recognizer import Recognizer
from jax_speechlm.training.loop import train

SETS = ("asterisk-en", "queen-en")
TEST_SET = "asterisk-en"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, default=Path("data"), help="prepared data (default: %(default)s)")
    parser.add_argument("--run-dir", type=Path, default=Path("runs/demo"), help="checkpoints, logs (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of every run (default: %(default)s)")
    args = parser.parse_args()

    console = Console(highlight=False)
    table = Table(title="jax_speechlm demo", title_justify="left")
    for column in ("stage", "minutes", "audio hours", "dev loss", "test WER [95 %]", "test CER"):
        table.add_column(column, justify="left" if column == "stage" else "right")

    began = time.perf_counter()
    hours = sum(_prepare(name, args.data_dir) for name in SETS)
    table.add_row("prepare", _minutes(began), f"{hours:.2f}", "", "", "")

    def experiment(name: str, **changes) -> Experiment:
        loaded = configs.load(name)
        return loaded.replace(data=loaded.data.replace(data_dir=str(args.data_dir)), seed=args.seed, **changes)

    pretrained = args.run_dir / "pretrain"
    console.rule("pretrain on audio alone (BEST-RQ)")
    result = train(experiment("demo_pretrain"), pretrained)
    table.add_row("pretrain", f"{result.minutes:.1f}", f"{result.audio_hours:.2f}", f"{result.dev['loss']:.3f}", "", "")

    start = Start(checkpoint=str(pretrained))
    for run, title, start in (("finetune", "finetune", start), ("scratch", "the same, not pretrained", None)):
        console.rule(title)
        result = train(experiment("demo_finetune", start=start), args.run_dir / run)
        report = evaluate_run(args.run_dir / run, (TEST_SET,), data_dir=args.data_dir)
        figures = f"{result.minutes:.1f}", f"{result.audio_hours:.2f}", f"{result.dev['loss']:.3f}"
        table.add_row(title, *figures, str(report.wer), str(report.cer))

    console.rule("transcribe one clip")
    clip = _one_clip(args.data_dir, args.run_dir)
    for transcript in Recognizer.load(args.run_dir / "finetune").transcribe([clip]):
        console.print(f"{clip}: {transcript.text}")

    console.print(table)
    console.print(f"total: {_minutes(began)} minutes. WER is measured on the untouched test split of {TEST_SET}.")
    for run in ("pretrain", "finetune", "scratch"):
        console.print(f"{run:<9} checkpoints {args.run_dir / run / 'checkpoints'}   TensorBoard logs {args.run_dir / run}")


def _minutes(began: float) -> str:
    return f"{(time.perf_counter() - began) / 60:.1f}"
