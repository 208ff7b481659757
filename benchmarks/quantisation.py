"""Effect of quantising a recognizer's weights: WER, size and time of each kind, and of float32.

    python benchmarks/quantisation.py runs/finetune --sets asterisk-en

Every kind is written by `jax-speechlm quantize` into a temporary folder, read back, and used to transcribe the whole
split; the first pass compiles, the time is the fastest of the later passes. The size on disk is a checkpoint's without
optimizer state, float32 included; the parameters' size is in memory.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

import jax
from rich.console import Console
from rich.table import Table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, help="directory of a run that was trained by ctc")
    parser.add_argument("--sets", nargs="+", required=True, help="prepared data sets")
    parser.add_argument("--split", default="test", help="(default: %(default)s)")
    parser.add_argument("--data-dir", type=Path, default=Path("data"), help="(default: %(default)s)")
    parser.add_argument("--passes", type=int, default=3, help="timed passes (default: %(default)s)")
    args = parser.parse_args()

    from data_pipelines.core.files import folder_bytes
    from jax_speechlm.compression.quantize import quantize_run
    from jax_speechlm.evaluation import comparison
    from jax_speechlm.evaluation import report as reports
    from jax_speechlm.evaluation.recognition import EvaluationSpeech
    from jax_speechlm.inference.asr.ctc import Recognizer
    from jax_speechlm.training import checkpoints as ckpt
    from jax_speechlm.training.runs import LoadedRun

    console = Console(highlight=False, width=None if sys.stdout.isatty() else 140)
    table = Table(title=f"{args.checkpoint} on {', '.join(args.sets)} {args.split}", title_justify="left")
    for column in ("weights", "WER [95 %]", "against float32", "on disk, MB", "parameters, MB", "seconds"):
        table.add_column(column, justify="left" if column == "weights" else "right")
    plain = None
    with tempfile.TemporaryDirectory() as folder:
        for kind in ("float32", "int8", "int8_dynamic", "int4"):
            out = Path(folder) / kind
            if kind == "float32":
                run = LoadedRun.read(args.checkpoint, on_host=True)
                ckpt.write(out, run.params, run.meta)
            else:
                quantize_run(args.checkpoint, out, kind)
            recognizer = Recognizer.load(out)
            speech = EvaluationSpeech(recognizer, tuple(args.sets), args.split, args.data_dir, 60.0)
            batches = list(speech.batches())
            texts, seconds = recognizer.recognize(iter(batches)), []
            for _ in range(args.passes):
                began = time.perf_counter()
                recognizer.recognize(iter(batches))
                seconds.append(time.perf_counter() - began)
            report = reports.evaluate(speech.utterances(texts))
            plain = plain or report
            change = "" if report is plain else str(comparison.compare(plain, report)[0]).partition(": ")[2]
            sizes = folder_bytes(out), sum(leaf.nbytes for leaf in jax.tree.leaves(recognizer.params))
            table.add_row(
                kind, str(report.wer), change, *(f"{each / 1e6:.2f}" for each in sizes), f"{min(seconds):.2f}"
            )
    console.print(table)


if __name__ == "__main__":
    main()
