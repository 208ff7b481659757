"""The batch schema: every array that a batch may hold.

Loaders allocate from it, the planner's abstract batches and the table in docs/architecture.md are made from it, and
tests check batches against it.
"""

import dataclasses
from collections.abc import Iterable, Mapping

import numpy as np


@dataclasses.dataclass(frozen=True)
class Field:
    """One array of a batch.

    Attributes:
      shape: a symbol for each dimension: "rows"; "samples" or "context" of a padded row; "utterances" of a packed row;
        "tokens" of a padded transcript; "labels" of a row that has several; "frames" that the front end computes from
        "samples"; "text" of a packed row.
      unit: meaning of an element.
      filler: value after a row's end, in filler rows and for unreadable records.
    """

    name: str
    dtype: type[np.generic]
    shape: tuple[str, ...]
    unit: str
    filler: int = 0

    def packed(self) -> "Field":
        """Returns the field of packed rows: with an entry for each utterance, unless it is along the row's time."""
        if {"samples", "frames", "utterances", "text"} & set(self.shape):
            return self
        return dataclasses.replace(self, shape=("rows", "utterances", *self.shape[1:]))


EXAMPLE_ID = Field("example_id", np.int32, ("rows",), "row of the data set", -1)
WEIGHT = Field("weight", np.float32, ("rows",), "1, or 0 in a row that has no data")
ROW = (EXAMPLE_ID, WEIGHT)
"""Every batch has these."""

SAMPLES = Field("audio", np.int16, ("rows", "samples"), "PCM sample")
NUM_SAMPLES = Field("audio_length", np.int32, ("rows",), "samples before the padding")
AUDIO = (SAMPLES, NUM_SAMPLES)
START = Field("audio_start", np.int32, ("rows", "utterances"), "first sample of the utterance; whole output frames")
"""Of packed rows only. Utterances are in ascending order from 0 on; entries without one follow the last."""

TRANSCRIPT_TOKENS = Field("tokens", np.int32, ("rows", "tokens"), "token id; none without a tokenizer")
NUM_TOKENS = Field("token_length", np.int32, ("rows",), "tokens before the padding")
TRANSCRIPT = (TRANSCRIPT_TOKENS, NUM_TOKENS)
TEXT_SEGMENT = Field("text_segment", np.int32, ("rows", "text"), "utterance whose token it is, from 1; 0 is padding")
"""Of packed rows only, whose transcripts an objective puts into one row of text, each with as many tokens of its own as
the plan allows for. The size is a bound for all rows."""

NOISE = Field("noise", np.int16, ("rows", "samples"), "PCM sample of a noise set, which augmentation may add")
ROW_LABEL = Field("label", np.int32, ("rows",), "class of the row; -1 of an unknown class")
DOMAIN = Field("domain", np.int32, ("rows",), "domain of the row, such as its speaker; -1 of an unknown one")
ROW_LABELS = Field(
    "labels", np.int32, ("rows", "labels"), "classes of the row, one for each label; -1 of an unknown class"
)
FRAME_LABELS = Field("frame_labels", np.int32, ("rows", "frames"), "speech unit, or class, of the frame", -1)
PITCH = Field("pitch", np.float32, ("rows", "frames"), "fundamental frequency of the frame in Hz; 0 unvoiced")

TEXT_TOKENS = Field("tokens", np.int32, ("rows", "context"), "token id")
SEGMENT = Field("segment", np.int32, ("rows", "context"), "document within the row, from 1; 0 is padding")
POSITION = Field("position", np.int32, ("rows", "context"), "position within the segment, from 0")
PACKED_TEXT = (TEXT_TOKENS, SEGMENT, POSITION)

CONTEXT_TOKENS = Field("context_tokens", np.int32, ("rows", "context"), "token id of a word near that of `tokens`")
COUNT = Field("count", np.float32, ("rows", "context"), "how often the two words co-occur, by inverse distance")
WORD_PAIRS = (*PACKED_TEXT, CONTEXT_TOKENS, COUNT)
"""Pairs of words in place of packed text; a row is one segment."""

DURATION = Field("samples", np.int32, ("rows", "context"), "samples that a speech unit stands for; 0 of other tokens")


@dataclasses.dataclass(frozen=True)
class BatchSpec:
    """The arrays of one kind of batch.

    Attributes:
      fields: the arrays in the order of the loader.
    """

    fields: tuple[Field, ...]

    @classmethod
    def speech(
        cls,
        *,
        packed: bool = False,
        noise: bool = False,
        row_label: bool = False,
        domain: bool = False,
        row_labels: bool = False,
        frame_labels: bool = False,
        pitch: bool = False,
        text: bool = False,
    ) -> "BatchSpec":
        """Returns the schema of batches of utterances: of one a row, or of several in packed rows, which may be rows of
        `text` too."""
        optional = {NOISE: noise, ROW_LABEL: row_label, ROW_LABELS: row_labels, DOMAIN: domain}
        optional |= {FRAME_LABELS: frame_labels, PITCH: pitch, TEXT_SEGMENT: text}
        fields = (*AUDIO, *TRANSCRIPT, *ROW, *(field for field, wanted in optional.items() if wanted))
        if packed:
            fields = tuple(field.packed() for field in (SAMPLES, START, *fields[1:]))
        return cls(fields)

    @classmethod
    def text(cls, *, row_label: bool = False, duration: bool = False, word_pairs: bool = False) -> "BatchSpec":
        """Returns the schema of batches of packed documents, or of rows of `word_pairs`."""
        optional = {ROW_LABEL: row_label, DURATION: duration, CONTEXT_TOKENS: word_pairs, COUNT: word_pairs}
        return cls((*PACKED_TEXT, *ROW, *(field for field, wanted in optional.items() if wanted)))

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(field.name for field in self.fields)

    @property
    def dtypes(self) -> tuple[np.dtype, ...]:
        return tuple(np.dtype(field.dtype) for field in self.fields)

    def __contains__(self, field: Field) -> bool:
        return field in self.fields

    def shapes(self, sizes: Mapping[str, int]) -> dict[str, tuple[int, ...]]:
        """Returns the shape of each array.

        Args:
          sizes: size for each symbol that the fields use.
        """
        return {field.name: tuple(sizes[symbol] for symbol in field.shape) for field in self.fields}

    def empty(self, sizes: Mapping[str, int]) -> dict[str, np.ndarray]:
        """Allocates a batch of filler values."""
        shapes = self.shapes(sizes)
        return {field.name: np.full(shapes[field.name], field.filler, field.dtype) for field in self.fields}

    def check(self, batch: Mapping[str, np.ndarray]) -> dict[str, int]:
        """Checks names, dtypes and shapes of a batch.

        Returns:
          The size of each symbol.

        Raises:
          ValueError: an array is missing, unknown, or of another dtype or shape.
        """
        if differing := set(self.names) ^ set(batch):
            raise ValueError(f"the batch has {sorted(batch)} and should have {sorted(self.names)}: {sorted(differing)}")
        sizes: dict[str, int] = {}
        for field in self.fields:
            array = batch[field.name]
            if array.dtype != field.dtype:
                raise ValueError(f"{field.name} is {array.dtype}, not {np.dtype(field.dtype)}")
            if array.ndim != len(field.shape):
                raise ValueError(f"{field.name} has shape {array.shape}, not [{', '.join(field.shape)}]")
            for symbol, size in zip(field.shape, array.shape, strict=True):
                if sizes.setdefault(symbol, size) != size:
                    raise ValueError(f"{field.name} has {size} {symbol}, other arrays {sizes[symbol]}")
        return sizes


def table(fields: Iterable[Field]) -> str:
    """Returns a table of fields in Markdown."""
    lines = ["| array | dtype | shape | element | filler |", "|---|---|---|---|---:|"]
    lines += [
        f"| `{field.name}` | {np.dtype(field.dtype)} | [{', '.join(field.shape)}] | {field.unit} | {field.filler} |"
        for field in fields
    ]
    return "\n".join(lines)


def every_field() -> tuple[Field, ...]:
    """Returns all fields that a batch of other than packed utterances may hold."""
    optional = dict.fromkeys(("noise", "row_label", "row_labels", "domain", "frame_labels", "pitch"), True)
    every = BatchSpec.speech(**optional).fields
    return tuple(dict.fromkeys((*every, *BatchSpec.text(duration=True, word_pairs=True).fields)))


def every_packed_field() -> tuple[Field, ...]:
    """Returns all fields that a batch of packed utterances may hold."""
    optional = ("noise", "row_label", "row_labels", "domain", "frame_labels", "pitch", "text")
    return BatchSpec.speech(packed=True, **dict.fromkeys(optional, True)).fields


def text_segment(weight: np.ndarray, token_length: np.ndarray, added: int, num_text: int) -> np.ndarray:
    """Returns `TEXT_SEGMENT` of packed rows.

    Args:
      weight, token_length: arrays [rows, utterances] of the batch.
      added: tokens of each utterance besides its transcript.
      num_text: size of a row of text.
    """
    ends = np.cumsum((weight > 0) * (token_length + added), axis=1)
    if ends.size and ends[:, -1].max() > num_text:
        raise ValueError(f"a row has {ends[:, -1].max()} tokens, more than the {num_text} of its plan")
    place = np.arange(num_text)
    segment = 1 + np.sum(place >= ends[:, :, None], axis=1, dtype=np.int32)
    return np.where(place < ends[:, -1:], segment, 0).astype(np.int32)
