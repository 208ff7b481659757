"""Sound files in a binary column of a parquet file, as Hugging Face's data sets embed them."""

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from data_pipelines.audio.clips import file_stamp
from data_pipelines.audio.decode import AudioError, decode
from data_pipelines.core.audio_format import DEFAULT_SAMPLE_RATE

_BATCH = 8  # rows in memory


@dataclass(frozen=True, slots=True)
class ParquetAudio:
    """A sound file in a row of a parquet file.

    Attributes:
      row_group, row: numbers of the group, and of the row within it.
      column: of the bytes; a dot leads into a struct, as in `audio.bytes`.
    """

    path: str
    row_group: int
    row: int
    column: str

    def __str__(self) -> str:
        return f"{self.path}:{self.row_group}:{self.row}"

    @property
    def container(self) -> Hashable:
        return self.path, self.row_group, self.column

    def decode(self, max_seconds: float, rate: int = DEFAULT_SAMPLE_RATE) -> NDArray[np.int16]:
        ((_, outcome),) = self.decode_together([self], max_seconds, rate)
        if isinstance(outcome, AudioError):
            raise outcome
        return outcome

    @staticmethod
    def decode_together(
        audio: Sequence["ParquetAudio"], max_seconds: float, rate: int
    ) -> Iterator[tuple[int, NDArray[np.int16] | AudioError]]:
        """Decodes rows of one group in one pass, with some rows in memory at a time."""
        order = sorted(range(len(audio)), key=lambda index: audio[index].row)
        position = first = 0
        try:
            with pq.ParquetFile(audio[0].path) as file:
                for batch in file.iter_batches(_BATCH, row_groups=[audio[0].row_group], columns=[audio[0].column]):
                    while position < len(order) and (row := audio[order[position]].row) < first + len(batch):
                        index = order[position]
                        yield index, _decoded(audio[index], batch.slice(row - first, 1), max_seconds, rate)
                        position += 1
                    first += len(batch)
                    if position == len(order):
                        return
            problem = "the file has fewer rows now"
        except (OSError, pa.ArrowException) as error:
            problem = str(error)
        for index in order[position:]:
            yield index, AudioError(str(audio[index]), "unreadable parquet file", f"copy it again ({problem})")

    def fingerprint(self) -> str:
        return f"{file_stamp(self.path)} {self.row_group} {self.row} {self.column}"


def _decoded(audio: ParquetAudio, row: pa.RecordBatch, max_seconds: float, rate: int) -> NDArray[np.int16] | AudioError:
    value = row.to_pylist()[0]
    for key in audio.column.split("."):
        value = value and value[key]
    if not value:
        return AudioError(str(audio), "no audio in the row", "embed the sound file in the row, or remove the row")
    try:
        return decode(value, name=str(audio), rate=rate, max_seconds=max_seconds)
    except AudioError as error:
        return error
