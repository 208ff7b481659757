"""Word times in audio with known transcripts: `jax-speechlm align`."""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float
from tyro.conf import Positional

from data_pipelines.audio import decode
from data_pipelines.core.errors import DataError
from data_pipelines.core.paths import as_path
from data_pipelines.storage.word_times import find_word_times, write_word_times
from data_pipelines.tokenizers.base import find_unknown
from jax_speechlm.core.tree import fingerprint
from jax_speechlm.decoding.ctc import alignment
from jax_speechlm.evaluation import base
from jax_speechlm.evaluation.recognition import EvaluationSpeech
from jax_speechlm.inference.asr.align import align_utterances, has_known_character
from jax_speechlm.inference.asr.ctc import Recognizer
from jax_speechlm.inference.asr.decoder import Posteriors
from jax_speechlm.inference.segmentation import in_batches


def align_run(
    checkpoint: base.Checkpoint,
    files: Positional[tuple[Path, ...]] = (),
    sets: tuple[str, ...] = (),
    split: base.Split = "test",
    format: alignment.Format = "ctm",
    out: Path | None = None,
    data_dir: base.DataDir = Path("data"),
    seconds_per_batch: base.BatchSeconds = 120.0,
) -> None:
    """Finds the time of each word of known transcripts by the likeliest CTC alignment.

    Words are labelled as in the transcript, in scripts without spaces character by character; characters unknown to the
    recognizer are named in a warning. Utterances that are too short for their transcript, or have none, are left out,
    named and counted.

    Args:
      files: audio files; the transcript of speech.wav is read from speech.txt in the same folder.
      sets: names of prepared data sets to align instead; "name:split" takes another split than --split.
      format: "ctm" writes words.ctm, "json" words.jsonl, "textgrid" a Praat TextGrid for each utterance; "index" stores
        the times in prepared sets, where training on interleaved speech and text reads them.
      out: folder to write to; by default <checkpoint>/alignments. Not for "index".
    """
    recognizer = Recognizer.load(checkpoint)
    if format == "index":
        if files or not sets:
            raise DataError("--format index stores the times of prepared sets: name them with --sets, and no files")
        for name in sets:
            align_part(recognizer, name, split, data_dir, seconds_per_batch)
        return
    speech = EvaluationSpeech(recognizer, sets, split, data_dir, seconds_per_batch) if sets else None
    prepared = speech.utterances(dict.fromkeys(range(len(speech.index)), "")) if speech else []
    _check_names([utterance.id for utterance in prepared] + [file.stem for file in files], format)
    utterances: list[tuple[str, str, float, Posteriors]] = []
    if speech is not None:
        posteriors = recognizer.posteriors(speech.batches())
        utterances += [(each.id, each.reference, each.duration, posteriors[row]) for row, each in enumerate(prepared)]
    utterances += _read(recognizer, files)
    if not utterances:
        raise DataError("nothing to align: name audio files, or prepared sets with --sets")
    aligned, skipped = align_utterances(recognizer, utterances)
    unknown = find_unknown(recognizer.tokenizer, (text for _, text, _, _ in utterances))
    if unknown.characters:
        print(f"warning: {unknown}", file=sys.stderr)
    for reason in skipped:
        print(f"left out: {reason}", file=sys.stderr)
    out = as_path(out or checkpoint / "alignments")
    out.mkdir(parents=True, exist_ok=True)
    files = alignment.to_files(format, aligned)
    for name, text in files.items():
        (out / name).write_text(text, encoding="utf-8")
    target, kind = (out, "TextGrid files") if format == "textgrid" else (out / next(iter(files)), "utterances")
    print(f"{target}: {len(aligned)} {kind}, {len(skipped)} left out")


def align_part(recognizer: Recognizer, name: str, split: str, data_dir: Path, seconds_per_batch: float) -> Path | None:
    """Stores the word times of a prepared set next to its index, unless this recognizer's are there already.

    Utterances are left out, and counted, that cannot be aligned or have a word without any character that the
    recognizer knows. Words are separated by white space. Returns the file, or None if the times were there already.
    """
    speech = EvaluationSpeech(recognizer, (name,), split, data_dir, seconds_per_batch)
    (part,) = speech.index.parts
    aligner = _fingerprint(recognizer)
    known = find_word_times(part)
    if known is not None and known.aligner == aligner:
        print(f"{part}: already aligned by this recognizer")
        return None
    texts = list(part.texts())
    spans: list[np.ndarray | None] = [None] * len(texts)
    other_words = 0
    for row, times in times_by_row(recognizer, speech):
        if np.isnan(times).any():
            other_words += 1
        else:
            spans[row] = np.rint(times * speech.index.sample_rate).astype(np.int32)
    path = write_word_times(part, spans, aligner)
    failed = sum(span is None for span in spans)
    other = f", {other_words} of them because a word has no character that the recognizer knows" if other_words else ""
    print(f"{path}: {len(texts) - failed} utterances aligned, {failed} left out{other}")
    return path


def times_by_row(recognizer: Recognizer, speech: EvaluationSpeech) -> Iterator[tuple[int, Float[np.ndarray, "_ 2"]]]:
    """Aligns the utterances of a split; those that cannot be aligned are left out.

    Yields:
      The row, and start and end in seconds of each word between white space; NaN of a word without any character that
      the recognizer knows.
    """
    texts = speech.index.column("text").to_pylist()
    seconds = (speech.index.num_samples / speech.index.sample_rate).tolist()
    for batch in speech.batches():
        posteriors = recognizer.posteriors(iter((batch,)))
        utterances = [(str(row), texts[row], seconds[row], posteriors[row]) for row in posteriors]
        aligned, _ = align_utterances(recognizer, utterances, by_character=False)
        for utterance in aligned:
            row, words = int(utterance.id), utterance.words
            times = np.array([(word.start, word.end) for word in words]).reshape(-1, 2)
            known = [has_known_character(recognizer.tokenizer, word) for word in texts[row].split()]
            yield row, np.where(np.array(known, bool)[:, None], times, np.nan)


def _fingerprint(recognizer: Recognizer) -> str:
    """Returns a hex digest of parameters, front end and tokenizer, which decide the times."""
    frontend, tokenizer = recognizer.experiment.frontend, recognizer.tokenizer
    return fingerprint(recognizer.params, frontend.model_dump_json(), tokenizer.fingerprint)


def _check_names(names: Sequence[str], format: alignment.Format) -> None:
    """Raises `DataError` if two utterances would get the same label in the output."""
    written: dict[str, str] = {}
    for name in names:
        label = alignment.name_in(format, name)
        if label in written:
            raise DataError(
                f"{written[label]!r} and {name!r} would both be called {label!r}: rename one, or align them with an "
                "--out of their own" + (", or with --format json" if written[label] != name else "")
            )
        written[label] = name


def _read(recognizer: Recognizer, files: Sequence[Path]) -> Iterator[tuple[str, str, float, Posteriors]]:
    for file in files:
        transcript = file.with_suffix(".txt")
        if not transcript.is_file():
            raise DataError(f"{transcript} does not exist: it must contain the transcript of {file.name}")
        rate = recognizer.experiment.sample_rate
        samples = decode.decode(file, rate=rate)
        (log_probs,) = recognizer.posteriors(in_batches([samples])).values()
        text = " ".join(transcript.read_text(encoding="utf-8").split())
        yield file.stem, text, len(samples) / rate, log_probs
