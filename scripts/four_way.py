"""What pretraining on speech and on text buys, for two routes to transcripts: the four-way table of docs/results.md.

Two routes, CTC and speech-language model, each with and without pretraining on audio, with and without pretraining on
prose; test WER on asterisk-en and queen-en, greedy. Pretraining runs once, what follows it with every seed. It takes
hours: stop it at any time; the same command goes on from there, and with what is finished it prints the table anew.
"""

import argparse
import os
import statistics
import sys
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # what TensorFlow says as it is imported
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")  # unused here, and it announces itself

from rich.console import Console
from rich.table import Table

from data_pipelines.errors import DataError
from jax_speechlm import configs
from jax_speechlm.evaluation.recognition import evaluate_run
from jax_speechlm.evaluation.report import Report
from jax_speechlm.experiment import Experiment, Start
from jax_speechlm.parallel.hardware import cache_compilations
from jax_speechlm.training.checkpoints import CheckpointError
from jax_speechlm.training.loop import TrainingStopped, train

ARMS = {"neither": (), "speech": ("speech",), "text": ("text",), "both": ("speech", "text")}
ROUTES = {"ctc": "CTC", "speech_lm": "speech LM"}
TEST_SETS = ("asterisk-en", "queen-en")


class FourWay:
    """The runs of the table, each of which trains what it starts from first."""

    def __init__(self, runs: Path, data_dir: Path):
        self.runs, self.data_dir = runs, data_dir

    def pretrain(self, arm: str) -> Path:
        whole = configs.load("four_way_pretrain")
        streams = {stream.name: stream for stream in whole.data.streams}
        half = whole.num_steps // len(streams)
        if arm == "speech":  # a joint model needs text; without any it is BEST-RQ's
            alone = whole.replace(data=streams[arm].data, objective=whole.objective.speech, num_steps=half)
            return self._finish("pretrain-speech", alone)
        if arm == "text":
            whole = whole.replace(data=whole.data.replace(streams=(streams[arm],)), num_steps=half)
        return self._finish(f"pretrain-{arm}", whole, tokenizer=str(self.ctc("neither", 0)))

    def text_lm(self) -> Path:
        return self._finish("text-lm", configs.load("demo_lm"), tokenizer=str(self.ctc("neither", 0)))

    def ctc(self, arm: str, seed: int) -> Path:
        start = (Start(checkpoint=str(self.pretrain(arm))),) if ARMS[arm] else ()
        return self._finish(f"ctc-{arm}-{seed}", configs.load("four_way_ctc").replace(seed=seed, start=start))

    def speech_lm(self, arm: str, seed: int) -> Path:
        recognizer = self.ctc("speech" if "speech" in ARMS[arm] else "neither", seed)
        start = [Start(checkpoint=str(recognizer))]
        if "text" in ARMS[arm]:
            start.append(Start(checkpoint=str(self.text_lm())))
        chosen = configs.load("four_way_speech_lm").replace(seed=seed, start=tuple(start))
        return self._finish(f"speech_lm-{arm}-{seed}", chosen, tokenizer=str(recognizer))

    def wer(self, run: Path, test_set: str) -> float:
        """Per cent; measured once."""
        out = run / "eval" / f"{test_set}-test"
        if (out / "report.json").exists():
            return 100 * Report.load(out / "report.json").wer.rate
        return 100 * evaluate_run(run, (test_set,), data_dir=self.data_dir, out=out).wer.rate

    def _finish(self, name: str, experiment: Experiment, **data: str) -> Path:
        """The run's folder, once it is trained to its end."""
        folder = self.runs / name
        if (folder / "finished").exists():
            return folder
        print(f"--- {name}", flush=True)
        experiment = experiment.replace(data=experiment.data.replace(data_dir=str(self.data_dir), **data))
        if train(experiment, folder).step < experiment.num_steps:
            sys.exit("Stopped. The same command goes on from there.")
        (folder / "finished").touch()
        return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, default=Path("data"), help="prepared data (default: %(default)s)")
    parser.add_argument("--run-dir", type=Path, default=Path("runs/four_way"), help="runs (default: %(default)s)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="default: 0 1 2")
    parser.add_argument("--routes", nargs="+", choices=ROUTES, default=list(ROUTES), help="default: both")
    args = parser.parse_args()
    cache_compilations()

    runs = FourWay(args.run_dir, args.data_dir)
    rates: dict[tuple[str, str, str], list[float]] = {}
    for seed in args.seeds:
        for route in args.routes:
            for arm in ARMS:
                run = getattr(runs, route)(arm, seed)
                for test_set in TEST_SETS:
                    rates.setdefault((route, arm, test_set), []).append(runs.wer(run, test_set))
        Console(width=100).print(_table(rates, args.seeds[: args.seeds.index(seed) + 1]))


def _table(rates: dict[tuple[str, str, str], list[float]], seeds: list[int]) -> Table:
    """Means over seeds, and each seed's figure."""
    table = Table(title=f"Test WER, per cent, greedy; seeds {', '.join(map(str, seeds))}", title_justify="left")
    for column in ("route", "pretrained on", *TEST_SETS):
        table.add_column(column, justify="left" if column in ("route", "pretrained on") else "right")
    for route, arm in dict.fromkeys((route, arm) for route, arm, _ in rates):
        cells = []
        for test_set in TEST_SETS:
            each = rates[route, arm, test_set]
            cells.append(f"{statistics.mean(each):.1f}  ({', '.join(f'{rate:.1f}' for rate in each)})")
        table.add_row(ROUTES[route], arm, *cells)
    return table


if __name__ == "__main__":
    try:
        main()
    except (DataError, CheckpointError, TrainingStopped) as error:
        sys.exit(f"error: {error}")
