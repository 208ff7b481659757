"""Data sets of TFDS: speech such as librispeech, text such as lm1b, with their various names of features."""

import functools
import os
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_pipelines.audio.clips import Clip, Corpus, Dropped
from data_pipelines.audio.decode import AudioError, decode, resampled, stream
from data_pipelines.core.audio_format import DEFAULT_SAMPLE_RATE
from data_pipelines.core.errors import DataError
from data_pipelines.sources.listing import TextForm, transcript
from data_pipelines.text.documents import Document, TextSource
from data_pipelines.text.normalize import split_of, usual_split
from data_pipelines.text.numbers import UnspeakableError

_TEXT = ("text_normalized", "text", "sentence", "transcript")  # in order of preference
_SPEAKER = ("speaker_id", "client_id", "speaker")
_RATES = {"common_voice": 48_000}  # Hz, of sets that do not state it
_LANGUAGES = {"librispeech": "en", "ljspeech": "en"}  # common_voice's configs are languages


@dataclass(frozen=True)
class TfdsAudio:
    """The audio feature of one record: a whole file if the set decodes lazily, otherwise its samples.

    Attributes:
      row: number of the record in its split.
      rate: of stored samples, in Hz.
    """

    folder: Path
    split: str
    row: int
    feature: str
    rate: int
    name: str

    def decode(self, max_seconds: float, rate: int = DEFAULT_SAMPLE_RATE) -> NDArray[np.int16]:
        stored = _undecoded(self.folder, self.split, self.feature)[self.row][self.feature]
        if isinstance(stored, bytes):
            return decode(stored, name=self.name, rate=rate, max_seconds=max_seconds)
        samples = np.asarray(stored)
        if np.issubdtype(samples.dtype, np.integer):
            if samples.size and np.abs(samples).max() > 2**15:
                raise AudioError(self.name, "samples beyond 16 bits", "convert the set to 16-bit audio")
            samples = samples / 2**15
        blocks = iter([(self.rate, samples.astype(np.float32))])
        return np.concatenate(list(resampled(blocks, self.name, max_seconds, rate=rate)))

    def fingerprint(self) -> str:
        return self.name


def tfds_source(
    tfds_name: str, name: str, text_form: TextForm, tfds_data_dir: Path | None = None, scrubs: bool = False
) -> Corpus | TextSource:
    """Downloads a TFDS data set unless it is there, and describes it as a set called `name`.

    A set with audio is speech; any other is text, from its feature `text` or else its first text feature. Splits keep
    their names; a set with a single split is divided by the hash rules of `data_pipelines.text.normalize`.

    Args:
      tfds_name: its name in TFDS, with a config if it has several: `common_voice/en`.
      text_form: of transcripts, as in `manifest_source`.
      scrubs: whether what identifies persons is replaced in transcripts.
      tfds_data_dir: folder of TFDS's sets; default: `$TFDS_DATA_DIR`, or TFDS's own default.

    Returns:
      The set, whose items are read when they are needed.

    Raises:
      DataError: the set is unknown, has neither audio nor text, or was prepared in a format without random access.
    """
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder(tfds_name, data_dir=tfds_data_dir)
    except tfds.core.DatasetNotFoundError as error:
        raise DataError(f"TFDS has no data set {tfds_name!r} in this version: {error}") from error
    features = builder.info.features
    audio = next((key for key, feature in features.items() if isinstance(feature, tfds.features.Audio)), None)
    texts = [key for key, feature in features.items() if isinstance(feature, tfds.features.Text)]
    if not audio and not texts:
        raise DataError(f"{builder.info.full_name} has no audio and no text feature, only {', '.join(features)}.")
    if audio:
        _decode_files(features[audio], _rate(builder, audio))
    try:
        builder.download_and_prepare(file_format="array_record")
    except ImportError as error:
        raise DataError(
            f"TFDS makes {tfds_name} with a package that is not installed ({error}): pip install it, or "
            "'jax_speechlm[beam]' where it is apache_beam."
        ) from error
    except (OSError, ConnectionError) as error:
        raise DataError(
            f"TFDS cannot download {tfds_name}: {error}. "
            f"Prepare it where there is internet and copy it to {builder.data_dir}."
        ) from error
    licence = builder.info.as_proto.redistribution_info.license or "see the home page of the set"
    origin = {"tfds": builder.info.full_name, "homepage": builder.info.homepage or ""}
    if audio:
        return Corpus(name, "manifest", name, licence, origin, lambda: clips(builder, audio, text_form, scrubs))
    text = "text" if "text" in texts else texts[0]
    return TextSource(name, licence, origin, lambda: documents(builder, text))


def documents(builder: Any, text: str) -> Iterator[Document]:
    """Yields the documents of a prepared TFDS builder from its feature `text`; a class label is given by name."""
    features = builder.info.features
    labels = getattr(features["label"], "int2str", str) if "label" in features else str
    splits = builder.info.splits
    for split in splits:
        for row, record in enumerate(_records(builder, split)):
            yield Document(
                id=f"{split}-{row:08d}",
                text=_text(record[text]),
                language=_language(builder),
                source=builder.name,
                label=labels(record["label"]) if "label" in record else "",
                split=usual_split(split, splits) if len(splits) > 1 else "",
            )


def _records(builder: Any, split: str, **options: Any) -> Any:
    try:
        return builder.as_data_source(split, **options)
    except NotImplementedError as error:
        raise DataError(
            f"{builder.data_dir} has no random access: convert it with `tfds convert_format --out_file_format "
            "array_record`, or delete it and prepare again."
        ) from error


def _rate(builder: Any, audio: str) -> int:
    """Returns the rate of a set's stored samples in Hz."""
    rate = builder.info.features[audio].sample_rate or _RATES.get(builder.name)
    if rate is None:
        raise DataError(
            f"{builder.info.full_name} does not state its sample rate: list its audio in a manifest instead."
        )
    return rate


def _decode_files(feature: Any, rate: int) -> None:
    """Makes an audio feature decode files as this package does: TFDS itself needs pydub and the program ffmpeg."""
    if not feature._lazy_decode:  # otherwise files are stored as they are
        num_channels = feature.shape[1] if len(feature.shape) > 1 else 1
        feature.encode_example = _Decoder(rate, num_channels, feature.np_dtype)


@dataclass(frozen=True)
class _Decoder:
    """Converts a file, given by path or open, to integer samples in the form that an audio feature stores."""

    rate: int
    num_channels: int
    dtype: Any

    def __call__(self, audio: Any) -> Any:
        if isinstance(audio, np.ndarray | list):
            return audio
        is_path = isinstance(audio, str | os.PathLike)
        source, name = (Path(audio), str(audio)) if is_path else (audio.read(), getattr(audio, "name", "audio"))
        samples = np.concatenate(list(stream(source, name=str(name), rate=self.rate, mix=False)))
        if samples.shape[1] != self.num_channels:
            mono = np.rint(samples.mean(axis=1, keepdims=True))
            samples = np.repeat(mono, self.num_channels, axis=1)
        return samples.astype(self.dtype)[:, 0] if self.num_channels == 1 else samples.astype(self.dtype)


@functools.lru_cache(32)
def _undecoded(folder: Path, split: str, feature: str) -> Any:
    """Returns the records of a prepared TFDS set, with their audio as it is stored."""
    import tensorflow_datasets as tfds

    return _records(tfds.builder_from_directory(folder), split, decoders={feature: tfds.decode.SkipDecoding()})


def _language(builder: Any) -> str:
    config = builder.builder_config.name if builder.builder_config else ""
    return _LANGUAGES.get(builder.name) or (config if re.fullmatch("[a-z]{2}", config) else "")


def clips(builder: Any, audio: str, text_form: TextForm, scrubs: bool = False) -> Iterator[Clip | Dropped]:
    """Yields the clips of a prepared TFDS builder from its feature `audio`."""
    import tensorflow_datasets as tfds

    features = builder.info.features
    rate = _rate(builder, audio)
    text_key = next((key for key in _TEXT if key in features), None)
    speaker_key = next((key for key in _SPEAKER if key in features), None)
    language = _language(builder)
    splits = builder.info.splits
    for split in splits:
        for row, record in enumerate(_records(builder, split, decoders={audio: tfds.decode.SkipDecoding()})):
            clip_id = _text(record.get("id")) or f"{split}-{row:08d}"
            text = unicodedata.normalize("NFC", _text(record.get(text_key))).strip()
            try:
                text, key = transcript(text, language, text_form, scrubs)
            except UnspeakableError as error:
                yield Dropped(clip_id, "number or sign without spoken form", detail=str(error))
                continue
            yield Clip(
                id=clip_id,
                audio=TfdsAudio(
                    Path(builder.data_dir), split, row, audio, rate, f"{builder.info.full_name}:{split}:{row}"
                ),
                text=text,
                speaker=_text(record.get(speaker_key)),
                language=language,
                split=usual_split(split, builder.info.splits)
                if len(builder.info.splits) > 1
                else split_of(key or clip_id),
            )


def _text(value: Any) -> str:
    if value is None:
        return ""
    return value.decode() if isinstance(value, bytes) else str(value)
