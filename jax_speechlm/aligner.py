"""Times of words in audio whose transcript is known: what `jax-speechlm align` runs."""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from tyro.conf import Positional

from data_pipelines import audio
from data_pipelines.errors import DataError
from jax_speechlm.decoder import Posteriors
from jax_speechlm.decoding.alignment import (
    AlignedUtterance,
    Format,
    force_align,
    frames_needed,
    to_ctm,
    to_json,
    to_textgrid,
    words_of,
)
from jax_speechlm.evaluation.recognition import PreparedSpeech
from jax_speechlm.recognizer import Recognizer

_ROWS = 16  # aligned in lockstep


def align_run(
    checkpoint: Positional[Path],
    files: Positional[tuple[Path, ...]] = (),
    sets: tuple[str, ...] = (),
    split: str = "test",
    format: Format = "ctm",
    out: Path | None = None,
    data_dir: Path = Path("data"),
    seconds_per_batch: float = 120.0,
) -> None:
    """Finds when each word of known transcripts is said, by the likeliest CTC alignment.

    An utterance that is too short for its transcript, or has none, is left out, named and counted.

    Args:
      checkpoint: a finetuned run's directory, or one of its checkpoints/<step> folders.
      files: audio files; the transcript of speech.wav is read from speech.txt beside it.
      sets: names of prepared data sets to align instead; "name:split" takes another split than --split.
      split: "test", "dev" or "train".
      format: "ctm" writes words.ctm, "json" words.jsonl, "textgrid" a Praat TextGrid for each utterance.
      out: folder to write to; by default <checkpoint>/alignments.
      data_dir: folder of the prepared data sets.
      seconds_per_batch: padded audio at a time: memory and speed, never the result.
    """
    recognizer = Recognizer.load(checkpoint)
    utterances: list[tuple[str, str, float, Posteriors]] = []
    if sets:
        speech = PreparedSpeech(recognizer, sets, split, data_dir, seconds_per_batch)
        heard = recognizer.posteriors(speech.batches())
        utterances += [
            (each.id, each.reference, each.duration, heard[row])
            for row, each in enumerate(speech.utterances(dict.fromkeys(heard, "")))
        ]
    utterances += _read(recognizer, files)
    if not utterances:
        raise DataError("there is nothing to align: name audio files, or prepared sets with --sets")
    aligned, skipped = align_utterances(recognizer, utterances)
    for reason in skipped:
        print(f"left out: {reason}", file=sys.stderr)
    out = out or checkpoint / "alignments"
    out.mkdir(parents=True, exist_ok=True)
    if format == "textgrid":
        for each in aligned:
            (out / f"{each.id.replace('/', '_')}.TextGrid").write_text(to_textgrid(each), encoding="utf-8")
        print(f"{out}: {len(aligned)} TextGrid files, {len(skipped)} utterances left out")
        return
    name, text = ("words.ctm", to_ctm(aligned)) if format == "ctm" else ("words.jsonl", to_json(aligned))
    (out / name).write_text(text, encoding="utf-8")
    print(f"{out / name}: {len(aligned)} utterances, {len(skipped)} left out")


def align_utterances(
    recognizer: Recognizer, utterances: Sequence[tuple[str, str, float, Posteriors]]
) -> tuple[list[AlignedUtterance], list[str]]:
    """Aligns utterances, each (id, transcript, seconds, log probabilities), in order.

    Returns:
      Those that could be aligned, and for each of the others why not.
    """
    tokenizer, frame = recognizer.tokenizer, recognizer.experiment.frontend.mel.frame_samples / audio.SAMPLE_RATE
    tokens = [tokenizer.encode(text) for _, text, _, _ in utterances]
    order = sorted(range(len(utterances)), key=lambda row: len(utterances[row][3]))
    aligned, skipped = {}, {}
    for first in range(0, len(order), _ROWS):
        rows = order[first : first + _ROWS]
        heard = [utterances[row][3] for row in rows]
        padded = np.zeros((len(rows), max(map(len, heard)), tokenizer.vocab_size), np.float32)
        for place, log_probs in enumerate(heard):
            padded[place, : len(log_probs)] = log_probs
        lengths = np.array([len(log_probs) for log_probs in heard])
        for row, spans in zip(rows, force_align(padded, lengths, [tokens[row] for row in rows]), strict=True):
            name, _, seconds, log_probs = utterances[row]
            if spans is None:
                skipped[row] = (
                    f"{name}: {len(log_probs)} frames of {frame * 1000:g} ms cannot hold the "
                    f"{frames_needed(tokens[row])} that its transcript needs; check that text and audio belong together"
                )
            elif not spans:
                skipped[row] = f"{name}: its transcript is empty, or has no character that the recognizer knows"
            else:
                aligned[row] = AlignedUtterance(name, seconds, words_of(spans, tokenizer.pieces, frame))
    return [aligned[row] for row in sorted(aligned)], [skipped[row] for row in sorted(skipped)]


def _read(recognizer: Recognizer, files: Sequence[Path]) -> Iterator[tuple[str, str, float, Posteriors]]:
    for file in files:
        transcript = file.with_suffix(".txt")
        if not transcript.is_file():
            raise DataError(f"{transcript} does not exist: write what is said in {file.name} into it")
        samples = audio.decode(file)
        (log_probs,) = recognizer.posteriors(recognizer.batches([samples])).values()
        text = " ".join(transcript.read_text(encoding="utf-8").split())
        yield file.stem, text, len(samples) / audio.SAMPLE_RATE, log_probs
