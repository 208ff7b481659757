"""Random access to the records that an index describes, without TensorFlow."""

import shutil
from collections.abc import Sequence
from pathlib import Path

import tensorflow_datasets as tfds
from tensorflow_datasets.proto import tf_example_pb2

from data_pipelines.core.errors import DataError
from data_pipelines.core.paths import fetch, is_url
from data_pipelines.storage.index import Index, IndexMismatchError, Part


class RecordReader:
    """Reads records by the row numbers of an index; threads may share one reader."""

    def __init__(self, index: Index):
        """Opens the records of every part.

        Raises:
          DataError: a part is text, without records.
          IndexMismatchError: the records of a part are missing, damaged, or not as many as its rows.
        """
        self._index = index
        self._sources = {part: _open(part) for part in index.parts}

    def read(self, row: int) -> tuple[bytes, str]:
        """Reads the record of a row.

        Returns:
          The audio (FLAC bytes) and the text.

        Raises:
          RuntimeError: the checksum of the record is wrong.
        """
        part, number = self._index.locate(row)
        feature = tf_example_pb2.Example.FromString(self._sources[part][number]).features.feature
        return feature["audio"].bytes_list.value[0], feature["text"].bytes_list.value[0].decode()


def _open(part: Part) -> Sequence[bytes]:
    if part.records_dir is None:
        raise DataError(f"{part} is text, without audio; name a set of speech")
    records_dir = part.records_dir
    if is_url(records_dir) and not str(records_dir).startswith("gs://"):  # which ArrayRecord reads in place
        records_dir = _fetched(part)
    try:
        source = tfds.builder_from_directory(records_dir).as_data_source(
            part.split, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES
        )
    except Exception as error:  # TFDS raises many kinds for missing or damaged files
        raise IndexMismatchError(
            f"cannot open the records of {part} in {part.records_dir}: {error}; {part.remedy}"
        ) from error
    if len(source) != part.num_rows:
        raise IndexMismatchError(
            f"{part.index_path} has {part.num_rows} rows, but {part.records_dir} has {len(source)} records; "
            f"{part.remedy}"
        )
    return source


def _fetched(part: Part) -> Path:
    """Returns a local copy of a part's records in a bucket; made once on each host."""
    wanted = {"dataset_info.json", "features.json"}
    files = [file for file in part.records_dir.iterdir() if file.name in wanted or f"-{part.split}." in file.name]
    folder = part.set_dir / "records"
    local_sizes = {file.name: file.stat().st_size for file in folder.glob("*")}
    sizes = {file.name: file.stat().length for file in files}
    missing = sum(size for name, size in sizes.items() if local_sizes.get(name) != size)
    part.set_dir.mkdir(parents=True, exist_ok=True)
    if missing > (free := shutil.disk_usage(part.set_dir).free):
        raise DataError(
            f"{part.records_dir}: ArrayRecord cannot read it in place, and a copy needs {missing / 1e9:,.1f} GB in "
            f"{folder}, where {free / 1e9:,.1f} GB are free. Mount the bucket (Mountpoint for S3) and name the mount "
            "--data-dir, or point JAX_SPEECHLM_CACHE at a larger disk."
        )
    fetch(files, folder)
    return folder
