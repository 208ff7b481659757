"""Live transcription by streaming steps beside transcribing the whole recording again at every chunk.

    python benchmarks/streaming.py runs/streaming_ctc --sets asterisk-en

A recording, clips of a test split one after another, arrives in chunks. The stream takes each as it comes and keeps a
state; without one, everything that was heard so far is transcribed anew whenever a chunk has arrived, in the padded
shapes of `transcribe`, so that the same text is on the screen. Both end with the text of the whole. CPU seconds with
the model of the same run on one core; the last column is what a chunk costs in the mean.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
from interleave import load, medians, pin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a run that was trained to stream")
    parser.add_argument("--sets", nargs="+", default=["asterisk-en"])
    parser.add_argument("--data-dir", type=Path, default=Path("data"))
    parser.add_argument("--seconds", type=float, nargs="+", default=[5, 15, 30], help="lengths of the recording")
    parser.add_argument("--chunk-ms", type=int, default=320)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    pin(1)

    import jax_speechlm
    from jax_speechlm.evaluation.speech_rows import natural_speech

    model = jax_speechlm.load(args.run)
    texts, natural = natural_speech(args.data_dir, tuple(args.sets), "test", None)
    audio = np.concatenate([natural.audio[text.id] for text in texts])
    rate = natural.sample_rate
    size = rate * args.chunk_ms // 1000

    def streamed(samples: np.ndarray) -> Callable[[], str]:
        def run() -> str:
            stream = model.stream(chunk_ms=args.chunk_ms)
            for start in range(0, len(samples), size):
                stream.accept(samples[start : start + size])
            return stream.finalize().text

        return run

    def again(samples: np.ndarray) -> Callable[[], str]:
        def run() -> str:
            for end in range(size, len(samples) + size, size):
                (transcript,) = model.transcribe([samples[:end]])
            return transcript.text

        return run

    print(f"{'recording s':>11} {'stream s':>9} {'again s':>9} {'ratio':>6} {'ms a chunk':>22}")
    for seconds in args.seconds:
        samples = audio[: round(seconds * rate)]
        programs = {"stream": streamed(samples), "again": again(samples)}
        spent = medians(programs, args.rounds, cpu_time=True)
        chunks = -(-len(samples) // size)
        each = " and ".join(f"{1000 * spent[name] / chunks:.1f}" for name in programs)
        ratio = spent["again"] / spent["stream"]
        print(f"{seconds:11g} {spent['stream']:9.2f} {spent['again']:9.2f} {ratio:6.1f} {each:>22}", flush=True)
    print(f"chunks of {args.chunk_ms} ms, one core, medians of {args.rounds} interleaved rounds; {load()}")


if __name__ == "__main__":
    main()
