"""Times of words in audio whose transcript is known: what `jax-speechlm align` runs."""

import hashlib
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax
import numpy as np
from tyro.conf import Positional

from data_pipelines import audio
from data_pipelines.errors import DataError
from data_pipelines.paths import as_path
from data_pipelines.word_times import find_word_times, write_word_times
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
from jax_speechlm.windows import in_batches

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
      format: "ctm" writes words.ctm, "json" words.jsonl, "textgrid" a Praat TextGrid for each utterance; "index" keeps
        the times of prepared sets beside their index, where training on interleaved speech and text reads them.
      out: folder to write to; by default <checkpoint>/alignments. Not for "index".
      data_dir: folder of the prepared data sets.
      seconds_per_batch: padded audio at a time: memory and speed, never the result.
    """
    recognizer = Recognizer.load(checkpoint)
    if format == "index":
        if files or not sets:
            raise DataError("--format index keeps the times of prepared sets: name them with --sets, and no files")
        for name in sets:
            align_part(recognizer, name, split, data_dir, seconds_per_batch)
        return
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
    out = as_path(out or checkpoint / "alignments")
    out.mkdir(parents=True, exist_ok=True)
    if format == "textgrid":
        for each in aligned:
            (out / f"{each.id.replace('/', '_')}.TextGrid").write_text(to_textgrid(each), encoding="utf-8")
        print(f"{out}: {len(aligned)} TextGrid files, {len(skipped)} utterances left out")
        return
    name, text = ("words.ctm", to_ctm(aligned)) if format == "ctm" else ("words.jsonl", to_json(aligned))
    (out / name).write_text(text, encoding="utf-8")
    print(f"{out / name}: {len(aligned)} utterances, {len(skipped)} left out")


def align_part(recognizer: Recognizer, name: str, split: str, data_dir: Path, seconds_per_batch: float) -> Path | None:
    """Keeps the times of a set's words beside its index, unless this recogniser's lie there already.

    An utterance is left out, and counted, that cannot be aligned or in which the recogniser does not find the words of
    the transcript as white space parts them.

    Returns:
      The file, or None where there was nothing to do.
    """
    speech = PreparedSpeech(recognizer, (name,), split, data_dir, seconds_per_batch)
    (part,) = speech.index.parts
    aligner = _fingerprint(recognizer)
    known = find_word_times(part)
    if known is not None and known.aligner == aligner:
        print(f"{part}: aligned by this recogniser already")
        return None
    texts = list(part.texts())
    spans: list[np.ndarray | None] = [None] * len(texts)
    other_words = 0
    for batch in speech.batches():
        heard = recognizer.posteriors([batch])
        seconds = speech.index.num_samples / audio.SAMPLE_RATE
        found, _ = align_utterances(
            recognizer, [(str(row), texts[row], float(seconds[row]), heard[row]) for row in heard]
        )
        for each in found:
            times = [(word.start, word.end) for word in each.words]
            if len(times) != len(texts[int(each.id)].split()):
                other_words += 1
                continue
            spans[int(each.id)] = np.rint(np.array(times) * audio.SAMPLE_RATE).astype(np.int32)
    path = write_word_times(part, spans, aligner)
    failed = sum(each is None for each in spans)
    other = f", {other_words} of them because a word has no character that the recogniser knows" if other_words else ""
    print(f"{path}: {len(texts) - failed} utterances aligned, {failed} left out{other}")
    return path


def _fingerprint(recognizer: Recognizer) -> str:
    """Hex digest of all that decides the times: parameters, front end, tokenizer."""
    digest = hashlib.sha256(recognizer.experiment.frontend.model_dump_json().encode())
    digest.update(recognizer.tokenizer.fingerprint.encode())
    for leaf in jax.tree.leaves(jax.device_get(recognizer.params)):
        digest.update(np.ascontiguousarray(leaf))
    return digest.hexdigest()[:16]


def align_utterances(
    recognizer: Recognizer, utterances: Sequence[tuple[str, str, float, Posteriors]]
) -> tuple[list[AlignedUtterance], list[str]]:
    """Aligns utterances, each (id, transcript, seconds, log probabilities), in order.

    Returns:
      Those that could be aligned, and for each of the others why not.
    """
    tokenizer, frame = recognizer.tokenizer, recognizer.experiment.frame_samples / audio.SAMPLE_RATE
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
        (log_probs,) = recognizer.posteriors(in_batches([samples])).values()
        text = " ".join(transcript.read_text(encoding="utf-8").split())
        yield file.stem, text, len(samples) / audio.SAMPLE_RATE, log_probs
