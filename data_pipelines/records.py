"""Random access to the records behind an index, without TensorFlow."""

from collections.abc import Sequence

import tensorflow_datasets as tfds
from tensorflow_datasets.proto import tf_example_pb2

from data_pipelines.errors import DataError
from data_pipelines.index import Index, IndexMismatchError, Part


class RecordReader:
    """Reads records by the row numbers of an index; threads may share one reader."""

    def __init__(self, index: Index):
        """Opens the records of every part.

        Raises:
          DataError: where a part is text, without records.
          IndexMismatchError: where the records of a part are missing, damaged or of another number than its rows.
        """
        self._index = index
        self._sources = {part: _open(part) for part in index.parts}

    def read(self, row: int) -> tuple[bytes, str]:
        """The audio (FLAC bytes) and the text of a row; RuntimeError where the checksum of its record is wrong."""
        part, number = self._index.locate(row)
        feature = tf_example_pb2.Example.FromString(self._sources[part][number]).features.feature
        return feature["audio"].bytes_list.value[0], feature["text"].bytes_list.value[0].decode()


def _open(part: Part) -> Sequence[bytes]:
    if part.records_dir is None:
        raise DataError(f"{part} is text, without audio; name a set of speech")
    try:
        source = tfds.builder_from_directory(part.records_dir).as_data_source(
            part.split, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES
        )
    except Exception as error:  # TFDS raises many kinds for what is missing or damaged in a folder
        raise IndexMismatchError(
            f"cannot open the records of {part} in {part.records_dir}: {error}; {part.remedy}"
        ) from error
    if len(source) != part.num_rows:
        raise IndexMismatchError(
            f"{part.index_path} has {part.num_rows} rows, but {part.records_dir} has {len(source)} records; "
            f"{part.remedy}"
        )
    return source
