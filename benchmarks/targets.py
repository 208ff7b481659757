"""A recognizer in all formats of `jax-speechlm export`: size, speed, and differences of the output.

    python benchmarks/targets.py runs/finetune --sets asterisk-en

Exports the run to every target that is installed (`--exports` keeps the folders, and reuses existing ones), then
recognises the same clips with all of them, one clip at a time on one core, audio to tokens. The original and the
formats of any shape get clips padded to whole seconds, which bounds the number of compilations; LiteRT pads to the
next of its own lengths. Programs run alternately, after a run of every shape.
"""

import argparse
import importlib
import tempfile
from pathlib import Path

import numpy as np
from interleave import load, medians, pin

TARGETS = ("stablehlo", "saved_model", "litert", "onnx")
RATE = 16_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a finetuned run's directory, or one of its checkpoints/<step> folders")
    parser.add_argument("--sets", nargs="+", default=["asterisk-en"])
    parser.add_argument("--split", default="test")
    parser.add_argument("--data-dir", type=Path, default=Path("data"))
    parser.add_argument("--targets", nargs="+", choices=TARGETS, default=TARGETS)
    parser.add_argument("--exports", type=Path, help="folder to keep the exports in")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    pin(1)  # before anything makes its threads

    from jax_speechlm.evaluation import report
    from jax_speechlm.evaluation.recognition import EvaluationSpeech
    from jax_speechlm.inference.asr.ctc import Recognizer
    from jax_speechlm.interop.folders import ExportError
    from jax_speechlm.interop.runtimes.program import Program
    from jax_speechlm.training.runs import LoadedRun

    recognizer = Recognizer.load(args.run)
    speech = EvaluationSpeech(recognizer, tuple(args.sets), args.split, args.data_dir, 60.0)
    clips = {}
    for batch in speech.batches():
        for row, audio, length in zip(batch["example_id"], batch["audio"], batch["audio_length"], strict=True):
            if row >= 0:
                clips[int(row)] = np.pad(audio[:length], (0, -length % RATE))[None], np.array([length], np.int32)
    seconds = sum(int(length[0]) for _, length in clips.values()) / RATE

    with tempfile.TemporaryDirectory() as folder:
        runs, sizes, absent = {}, {}, {}
        for target in args.targets:
            module = importlib.import_module(f"jax_speechlm.interop.runtimes.{target}")
            out = (args.exports or Path(folder)) / target
            try:
                if not out.exists():
                    module.export_run(args.run, out)
                runs[target] = module.read(out)
            except ExportError as error:
                absent[target] = str(error).splitlines()[0]
                continue
            sizes[target] = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())

        program = Program.of(LoadedRun.read(args.run))
        original = recognizer.posteriors(speech.batches())
        texts = {"original": recognizer.recognize(speech.batches())}
        worst = {}
        for target, run in runs.items():
            given = {row: run(*clip) for row, clip in clips.items()}
            texts[target] = {row: program.text(each["tokens"][0]) for row, each in given.items()}
            worst[target] = max(
                np.abs(each["log_probs"][0, : len(original[row])] - original[row]).max(initial=0)
                for row, each in given.items()
            )

        def recognise_with_original():
            for row, (audio, length) in clips.items():
                ids = np.array([row], np.int32)
                recognizer.recognize([{"audio": audio, "audio_length": length, "example_id": ids}])

        programs = {"original": recognise_with_original}
        programs |= {target: lambda run=run: [run(*clip) for clip in clips.values()] for target, run in runs.items()}
        times = medians(programs, args.rounds)

    print(f"{'':12} {'MB on disk':>10} {'real-time factor':>17} {'WER':>8} {'log-probabilities, nats':>24}")
    for target in programs:
        score = report.evaluate(speech.utterances(texts[target]), "basic").wer.rate
        size = f"{sizes[target] / 1e6:10.1f}" if target in sizes else f"{'':10}"
        apart = f"{worst[target]:24.1e}" if target in worst else ""
        print(f"{target:12} {size} {times[target] / seconds:17.4f} {score:8.2%} {apart}")
    for target, reason in absent.items():
        print(f"{target:12} not run: {reason}")
    print(
        f"{args.run} on {len(clips)} clips, {seconds:.0f} s, of {', '.join(args.sets)} {args.split}; one core, one "
        f"clip at a time, medians of {args.rounds} interleaved rounds; {load()}"
    )


if __name__ == "__main__":
    main()
