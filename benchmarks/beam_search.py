"""CTC prefix beam search with an n-gram: this project's against pyctcdecode.

    python benchmarks/beam_search.py --peer-python /path/to/python
    python benchmarks/beam_search.py --checkpoint runs/finetune --set asterisk-en --lm data/en.arpa --peer-python ...

Without a checkpoint, posteriors are flat, the hardest case for a search: 200 frames over 1,000 pieces with independent
normal logits, and a word trigram over made-up words. With one, they are computed from a data set, so that word error
rates can be compared as well: each side's weights come from one grid on the dev split, and the table is of the test
split.

Both have the same beam, the same ARPA file through the kenlm package, the same floor for tokens, one process and one
thread. Runs are interleaved; the time is that of a whole call over all utterances, divided by their number; models are
loaded before. `--peer-python` is an interpreter that has pyctcdecode and kenlm; without it the table has our rows
alone.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

GRID = [(alpha, beta) for alpha in (0.3, 0.5, 0.8, 1.2) for beta in (0.0, 1.0, 2.0)]
ROWS = {"ours, one at a time": ("ours", 1), "ours, 32 in lockstep": ("ours", 32), "pyctcdecode": ("peer", 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, help="a finetuned run")
    parser.add_argument("--set", default="asterisk-en")
    parser.add_argument("--data-dir", type=Path, default=Path("data"))
    parser.add_argument("--lm", type=Path, help="a word ARPA file, for use with a checkpoint")
    parser.add_argument("--beam", type=int, default=16)
    parser.add_argument("--utterances", type=int, default=64, help="of the flat case")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--peer-python", help="interpreter with pyctcdecode and kenlm")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        job = json.loads(args.worker)
        print(json.dumps({"ours": run_ours, "peer": run_peer}[job.pop("who")](**job)))
        return
    rows = {name: row for name, row in ROWS.items() if row[0] == "ours" or args.peer_python}
    with tempfile.TemporaryDirectory() as folder:
        splits = real(args, Path(folder)) if args.checkpoint else flat(args.utterances, Path(folder))
        weights = dict.fromkeys(rows, (0.5, 1.0))
        if "dev" in splits:
            for name, (who, rows_at_once) in rows.items():
                costs = {
                    pair: errors(splits["dev"], run(args, who, rows_at_once, folder, "dev", pair)) for pair in GRID
                }
                weights[name] = min(costs, key=costs.get)
        results = {name: [] for name in rows}
        for _ in range(args.runs):
            for name, (who, rows_at_once) in rows.items():
                results[name].append(run(args, who, rows_at_once, folder, "test", weights[name]))
        print_table(results, weights, splits["test"])


def flat(utterances: int, folder: Path) -> dict[str, list[str]]:
    """Writes flat posteriors over 1,000 pieces and a trigram of words made of these pieces; no references."""
    from jax_speechlm.decoding.lm.kneser_ney import estimate, write_arpa

    rng = np.random.default_rng(0)
    letters = np.array(list("etaoinshrdlucmfwypvbgk"))
    spellings = dict.fromkeys("".join(rng.choice(letters, rng.integers(1, 4))) for _ in range(20_000))
    spellings = list(spellings)[:500]
    pieces = ["", *(f"▁{spelling}" for spelling in spellings), *spellings[:499]]
    words = ["".join(rng.choice(spellings, rng.integers(1, 4))) for _ in range(20_000)]
    ranks = np.minimum(rng.zipf(1.2, (20_000, 12)) - 1, len(words) - 1)
    write_arpa(estimate(([words[rank] for rank in row] for row in ranks.tolist()), 3), folder / "lm.arpa")
    logits = rng.standard_normal((utterances, 200, len(pieces)))
    save(folder, "test", pieces, list(logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)))
    return {"test": []}


def real(args: argparse.Namespace, folder: Path) -> dict[str, list[str]]:
    """Writes a checkpoint's posteriors on the dev and test splits; returns the references."""
    from jax_speechlm.evaluation.recognition import EvaluationSpeech
    from jax_speechlm.inference.asr.ctc import Recognizer

    if args.lm is None:
        raise SystemExit("--checkpoint needs --lm: make one with jax-speechlm train-ngram")
    (folder / "lm.arpa").symlink_to(args.lm.resolve())
    recognizer, references = Recognizer.load(args.checkpoint), {}
    for split in ("dev", "test"):
        speech = EvaluationSpeech(recognizer, (args.set,), split, args.data_dir, 120.0)
        heard = recognizer.posteriors(speech.batches())
        save(folder, split, recognizer.tokenizer.pieces, list(heard.values()))
        texts = speech.index.column("text").to_pylist()
        references[split] = [texts[row] for row in heard]
    return references


def save(folder: Path, split: str, pieces: list[str], posteriors: list[np.ndarray]) -> None:
    (folder / "pieces.json").write_text(json.dumps(list(pieces)))
    np.savez(folder / f"{split}.npz", *(each.astype(np.float32) for each in posteriors))


def run(args: argparse.Namespace, who: str, rows_at_once: int, folder: str, split: str, weights) -> dict:
    """One run in a fresh single-threaded process: seconds an utterance, and the texts."""
    job = {"who": who, "rows_at_once": rows_at_once, "folder": folder, "split": split, "beam": args.beam}
    job |= dict(zip(("alpha", "beta"), weights, strict=True))
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    root = os.pathsep.join([str(Path(__file__).resolve().parents[1]), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable if who == "ours" else args.peer_python, __file__, "--worker", json.dumps(job)],
        env={**os.environ, **threads, "PYTHONPATH": root if who == "ours" else ""},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"the worker {who} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def timed(decode: Callable[[list[np.ndarray]], list[str]], folder: str, split: str) -> dict:
    with np.load(Path(folder) / f"{split}.npz") as arrays:
        posteriors = [arrays[name] for name in arrays.files]
    decode(posteriors[:1])
    start = time.perf_counter()
    texts = decode(posteriors)
    return {"seconds": (time.perf_counter() - start) / len(posteriors), "texts": texts}


def run_ours(rows_at_once: int, folder: str, split: str, beam: int, alpha: float, beta: float) -> dict:
    from jax_speechlm.decoding.ctc.prefix_beam import BeamSettings, prefix_beam_search
    from jax_speechlm.decoding.lm.ngram import NGram
    from jax_speechlm.decoding.lm.ngram_fusion import WordNGram

    pieces = tuple(json.loads((Path(folder) / "pieces.json").read_text()))
    scorer = WordNGram(NGram(Path(folder) / "lm.arpa"), pieces)
    scorer.alpha, scorer.beta = alpha, beta

    def batches(posteriors: list[np.ndarray]) -> Iterator[tuple[list[int], np.ndarray]]:
        order = sorted(range(len(posteriors)), key=lambda row: len(posteriors[row]))
        for first in range(0, len(order), rows_at_once):
            rows = order[first : first + rows_at_once]
            padded = np.zeros((len(rows), len(posteriors[rows[-1]]), len(pieces)), np.float32)
            for place, row in enumerate(rows):
                padded[place, : len(posteriors[row])] = posteriors[row]
            yield rows, padded

    def decode(posteriors: list[np.ndarray]) -> list[str]:
        texts = [""] * len(posteriors)
        for rows, padded in batches(posteriors):
            lengths = np.array([len(posteriors[row]) for row in rows])
            for row, (best,) in zip(
                rows, prefix_beam_search(padded, lengths, (scorer,), BeamSettings(beam)), strict=True
            ):
                texts[row] = "".join(pieces[token] for token in best.tokens).replace("▁", " ").strip()
        return texts

    return timed(decode, folder, split)


def run_peer(rows_at_once: int, folder: str, split: str, beam: int, alpha: float, beta: float) -> dict:
    from pyctcdecode import build_ctcdecoder

    del rows_at_once  # it takes one utterance at a time
    labels = json.loads((Path(folder) / "pieces.json").read_text())
    if "▁" in labels and not any(label.startswith("▁") and len(label) > 1 for label in labels):
        labels = [label.replace("▁", " ") for label in labels]  # characters
    words = arpa_words(Path(folder) / "lm.arpa")
    decoder = build_ctcdecoder(labels, str(Path(folder) / "lm.arpa"), words, alpha=alpha, beta=beta)

    def decode(posteriors: list[np.ndarray]) -> list[str]:
        return [decoder.decode(each, beam_width=beam) for each in posteriors]

    return timed(decode, folder, split)


def arpa_words(path: Path) -> list[str]:
    section = path.read_text().split("\\1-grams:\n")[1].split("\n\n")[0]
    return [line.split("\t")[1] for line in section.splitlines()]


def errors(references: list[str], result: dict) -> int:
    import jiwer

    measures = jiwer.process_words(references, result["texts"])
    return measures.substitutions + measures.deletions + measures.insertions


def print_table(results: dict[str, list[dict]], weights: dict, references: list[str]) -> None:
    print(f"{'':24} {'ms an utterance':>16} {'(low to high)':>16} {'alpha, beta':>12} {'WER':>7}")
    words = sum(len(text.split()) for text in references)
    for name, runs in results.items():
        times = [1000 * run["seconds"] for run in runs]
        span = f"{min(times):.1f} to {max(times):.1f}"
        wer = f"{errors(references, runs[0]) / words:7.1%}" if references else f"{'-':>7}"
        pair = "{:g}, {:g}".format(*weights[name])
        print(f"{name:24} {statistics.median(times):16.1f} {span:>16} {pair:>12} {wer}")
    print(f"load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")


if __name__ == "__main__":
    main()
