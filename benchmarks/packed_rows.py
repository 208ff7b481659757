"""Padding of training batches: packed rows of one and of two lengths beside buckets, and the sizes of packed arrays.
With `--added-tokens` rows are those of a speech-language model, whose text is bounded: the padding of text too.

    python benchmarks/packed_rows.py --data-dir data

asterisk-en and queen-en are read from `--data-dir` if prepared there. LibriSpeech's 281,241 training utterances are
drawn from percentiles of the durations of each part, those of lhotse's `describe` in icefall's recipe (speeds 0.9, 1.0
and 1.1 together; egs/librispeech/ASR/local/display_manifest_statistics.py), with 15 characters a second.
"""

import argparse
from pathlib import Path

import numpy as np

from data_pipelines.batching.plan import SpeechPlan, make_plan
from data_pipelines.batching.rows import RowPlan, make_row_plan
from data_pipelines.core.audio_format import DEFAULT_SAMPLE_RATE as SAMPLE_RATE
from data_pipelines.storage.index import read_sets

PERCENT = (0, 0.1, 0.5, 1, 5, 10, 25, 50, 75, 90, 95, 99, 99.5, 99.9, 100)
LIBRISPEECH = {  # utterances, and seconds at each percentage of `PERCENT`
    "train-clean-100": (28_539, (1.3, 1.9, 2.2, 2.5, 4.2, 6.4, 11.4, 13.8, 15.3, 16.7, 17.3, 18.1, 18.4, 18.8, 27.2)),
    "train-clean-360": (104_014, (1.0, 1.8, 2.2, 2.5, 4.2, 6.2, 11.2, 13.7, 15.3, 16.6, 17.3, 18.1, 18.4, 18.8, 33.0)),
    "train-other-500": (148_688, (0.8, 1.7, 2.1, 2.3, 3.5, 5.0, 9.8, 13.4, 15.1, 16.5, 17.2, 18.1, 18.4, 18.9, 31.0)),
}
SMALL = {"seconds_per_batch": 48, "batch_multiple": 1, "min_seconds": 0.3}  # as `recipes.common.small_batches`
LARGE = {"seconds_per_batch": 6400, "batch_multiple": 16, "min_seconds": 1.0}  # as librispeech/ctc_960_v5e16
CASES = {  # sets: (options of their plans, longest utterance in seconds, numbers of buckets, two lengths of rows)
    ("asterisk-en",): (SMALL, 24.0, (4, 8), (12, 24)),
    ("queen-en",): (SMALL, 24.0, (4, 8), (6, 12)),
    ("asterisk-en", "queen-en"): (SMALL, 8.0, (3, 8), (4, 8)),
    ("librispeech",): (LARGE, 24.0, (8, 12), (14, 28.5)),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, default=Path("data"))
    parser.add_argument("--added-tokens", type=int, help="tokens of a prompt, in rows that hold transcripts too")
    parser.add_argument("--frame-ms", type=int, default=40, help="unit of the starts of utterances")
    args = parser.parse_args()
    text = "" if args.added_tokens is None else f" {'text':>12} {'padding':>8}"
    print(f"{'':<26} {'rows':<24} {'padding':>8} {'utterances':>11} {'tokens':>7} {'in a row':>9}{text}")
    for sets, (options, max_seconds, num_buckets, row_seconds) in CASES.items():
        if sets[0] == "librispeech":
            num_samples, tokens = librispeech()
        elif all((args.data_dir / name).is_dir() for name in sets):
            num_samples, tokens = prepared(args.data_dir, sets)
        else:
            print(f"{' + '.join(sets):<26} not prepared in {args.data_dir}")
            continue
        options = options | {"max_seconds": max_seconds, "seed": 0}
        plans = [make_plan(num_samples, tokens, num_buckets=count, **options) for count in num_buckets]
        options |= {"added_tokens": args.added_tokens, "frame_samples": SAMPLE_RATE * args.frame_ms // 1000}
        plans += [make_row_plan(num_samples, tokens, row_seconds=lengths, **options) for lengths in ((), row_seconds)]
        for plan in plans:
            report(f"{' + '.join(sets)}, {max_seconds:g} s", plan, tokens, args.added_tokens)


def librispeech() -> tuple[np.ndarray, np.ndarray]:
    """Returns lengths of audio, in samples, and of transcripts."""
    parts = [np.interp((np.arange(count) + 0.5) / count * 100, PERCENT, at) for count, at in LIBRISPEECH.values()]
    seconds = np.concatenate(parts)
    return (seconds * SAMPLE_RATE).astype(np.int64), (seconds * 15).astype(np.int64)


def prepared(data_dir: Path, sets: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Returns lengths of audio, in samples, and of transcripts, in characters."""
    index = read_sets(str(data_dir), sets, "train")
    return index.num_samples, np.array([len(text) for text in index.column("text").to_pylist()])


def report(name: str, plan: SpeechPlan, tokens: np.ndarray, added: int | None) -> None:
    """Prints the padding of a plan and, of packed rows, the largest number of utterances and of tokens in a row."""
    if not isinstance(plan, RowPlan):
        text = ""
        if added is not None:
            places = sum(
                bucket.num_batches * bucket.batch_size * (bucket.num_tokens + added) for bucket in plan.buckets
            )
            text = f" {'':29} {'':12} {1 - (tokens[plan.items] + added).sum() / places:8.2%}"
        print(f"{name:<26} {f'{len(plan.buckets)} buckets':<24} {plan.padding_share:8.2%}{text}")
        return
    most_tokens = 0
    for step in range(min(3 * plan.steps_per_epoch, 2000)):
        rows = plan.batch(step).rows
        most_tokens = max(most_tokens, int(np.where(rows >= 0, tokens[rows], 0).sum(axis=1).max()))
    lengths = " and ".join(f"{bucket.num_samples / SAMPLE_RATE:.2f}" for bucket in plan.buckets) + " s, packed"
    utterances = " and ".join(str(bucket.num_utterances) for bucket in plan.buckets)
    padded = max(bucket.num_tokens for bucket in plan.buckets)
    text = ""
    if plan.added_tokens is not None:
        places = " and ".join(str(bucket.num_text) for bucket in plan.buckets)
        text = f" {places:>12} {plan.text_padding_share:8.2%}"
    print(f"{name:<26} {lengths:<24} {plan.padding_share:8.2%} {utterances:>11} {padded:7d} {most_tokens:9d}{text}")


if __name__ == "__main__":
    main()
