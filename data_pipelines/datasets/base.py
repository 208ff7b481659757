"""Base of all TFDS builders: they store clips that `data_pipelines.prepare.job` has converted to FLAC."""

from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from data_pipelines.core.errors import DataError
from data_pipelines.prepare.speech_store import Records


class SpeechBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Stores converted clips in the order in which they are listed.

    Subclasses set `DESCRIPTION`, `HOMEPAGE` and, if they have several, `BUILDER_CONFIGS`.
    """

    VERSION = tfds.core.Version("1.0.0")
    DESCRIPTION = ""
    HOMEPAGE = ""

    def __init__(self, *, records: Records | None = None, licence: str = "", **kwargs: Any):
        self._records = records
        self._licence = licence
        super().__init__(**kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        text = tfds.features.Text
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.DESCRIPTION,
            homepage=self.HOMEPAGE,
            license=self._licence,
            disable_shuffling=True,  # row i of the index describes record i
            features=tfds.features.FeaturesDict(
                {
                    "id": text(),
                    # FLAC, mono 16-bit. As a list of integers it would be five times larger.
                    "audio": tfds.features.Tensor(shape=(), dtype=np.object_),
                    "text": text(),
                    "speaker": text(),
                    "language": text(),
                    "num_samples": tfds.features.Scalar(dtype=np.int64),
                    "translation": text(),
                }
            ),
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        if self._records is None:
            raise DataError(f"{self.name} stores clips converted beforehand: run `jax-speechlm prepare` instead.")
        return {split: self._generate_examples(split) for split in self._records.splits}

    def _generate_examples(self, split: str) -> Any:
        return self._records.examples(split)
