"""Rows of judged speech: natural recordings of prepared sets, folders of audio files, copies by vocoders and codecs."""

import statistics
import time
from collections.abc import Sequence
from pathlib import Path

from data_pipelines.audio import decode
from data_pipelines.core.errors import DataError
from data_pipelines.storage import index as indexes
from data_pipelines.storage.records import RecordReader
from jax_speechlm.evaluation.synthesis import SpeechRow, SpokenText
from jax_speechlm.evaluation.synthesis_report import NATURAL
from jax_speechlm.inference.codec import CodecModel
from jax_speechlm.inference.vocode import Vocoder
from jax_speechlm.units.measures import bitrate

SUFFIXES = (".wav", ".flac", ".ogg", ".opus", ".mp3")
"""Of the audio files that a folder may have for an utterance, in order of preference."""

TIMED = 20
"""Utterances that speed is measured on, one after the other, once their programs are compiled."""


def natural_speech(
    data_dir: Path, sets: tuple[str, ...], split: str, limit: int | None = None
) -> tuple[list[SpokenText], SpeechRow]:
    """Reads texts and recordings of one split of prepared sets.

    Utterances are named as in reports of recognizers: by id, and with the set before it if there are several.

    Args:
      limit: read only the first utterances, this many.
    """
    index = indexes.read_sets(data_dir, sets, split)
    reader, texts, audio = RecordReader(index), [], {}
    columns = [index.column(name).to_pylist() for name in ("id", "text", "speaker", "language")]
    for row, (name, text, speaker, language) in enumerate(zip(*columns, strict=True)):
        if limit is not None and row >= limit:
            break
        name = name if len(sets) == 1 else f"{index.locate(row)[0].set_dir.name}/{name}"
        texts.append(SpokenText(name, text, speaker, language))
        audio[name] = decode.decode(reader.read(row)[0], name=name, rate=index.sample_rate)
    return texts, SpeechRow(NATURAL, audio, index.sample_rate)


def folder_row(argument: str, texts: Sequence[SpokenText]) -> SpeechRow:
    """Finds the audio files of a row "NAME=FOLDER".

    Raises:
      DataError: the argument has another form, or there is no such folder or no audio in it.
    """
    name, is_named, folder = argument.partition("=")
    if not (name and is_named and folder):
        raise DataError(f"{argument!r} is not of the form NAME=FOLDER, such as griffin-lim=copies/griffin-lim")
    if not Path(folder).is_dir():
        raise DataError(f"{folder} is not a folder with the audio of {name}")
    audio = {}
    for text in texts:
        files = (Path(folder) / f"{text.id}{suffix}" for suffix in SUFFIXES)
        if (file := next((file for file in files if file.is_file()), None)) is not None:
            audio[text.id] = file
    if not audio:
        raise DataError(f"{folder} has no audio of these utterances, such as {texts[0].id}{SUFFIXES[0]}")
    return SpeechRow(name, audio)


def copied(vocoder: Vocoder, name: str, natural: SpeechRow, texts: Sequence[SpokenText]) -> SpeechRow:
    """Computes the row of a vocoder: the waveforms of the natural recordings' mel spectrograms.

    Speeds are of the vocoder alone, from spectrograms on, one recording at a time.

    Raises:
      DataError: the recordings have another sample rate.
    """
    _check_rate(f"{name}: the vocoder", vocoder.sample_rate, natural)
    audio = {text.id: vocoder.copy(natural.audio[text.id]) for text in texts}
    mels = [vocoder.spectrogram(natural.audio[text.id]) for text in texts[:TIMED]]
    start = time.perf_counter()
    seconds = sum(len(vocoder.vocode([mel])[0]) for mel in mels) / vocoder.sample_rate
    factor = (time.perf_counter() - start) / seconds
    waits = []
    next(vocoder.stream(mels[:1]), None)  # compiles
    for mel in mels:
        start = time.perf_counter()
        next(vocoder.stream([mel]), None)
        waits.append(1e3 * (time.perf_counter() - start))
    return SpeechRow(name, audio, vocoder.sample_rate, real_time_factor=factor, first_audio_ms=statistics.median(waits))


def coded(codec: CodecModel, name: str, natural: SpeechRow, texts: Sequence[SpokenText]) -> SpeechRow:
    """Computes the row of a codec: the waveforms of the natural recordings' codes.

    The speed is of the decoder alone, from codes on, one recording at a time.

    Raises:
      DataError: the recordings have another sample rate.
    """
    _check_rate(f"{name}: the codec", codec.sample_rate, natural)
    recordings = [natural.audio[text.id] for text in texts]
    ids = codec.encode_codes(recordings)
    audio = {
        text.id: codec.decode_codes([codes])[0][: len(samples)]
        for text, samples, codes in zip(texts, recordings, ids, strict=True)
    }
    start = time.perf_counter()
    decoded = sum(len(codec.decode_codes([codes])[0]) for codes in ids[:TIMED])
    factor = (time.perf_counter() - start) * codec.sample_rate / max(decoded, 1)
    rate = bitrate(ids, codec.config.codebook_size, sum(map(len, recordings)) / codec.sample_rate)
    return SpeechRow(name, audio, codec.sample_rate, real_time_factor=factor, bitrate=rate)


def _check_rate(system: str, sample_rate: int, natural: SpeechRow) -> None:
    if sample_rate != natural.sample_rate:
        raise DataError(
            f"{system} works at {sample_rate} Hz, and the recordings are at {natural.sample_rate} Hz: prepare the set "
            f"with --sample-rate {sample_rate}"
        )
