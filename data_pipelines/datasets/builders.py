"""TFDS builders: they store clips that `data_pipelines.prepare.job` has converted to FLAC.

TFDS names a builder after its class: `queen_en` is `QueenEn`.
"""

from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from data_pipelines.core.errors import DataError
from data_pipelines.prepare.speech_store import SCHEMA, Records
from data_pipelines.sources import asterisk, fillets, tuxpaint


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
        columns = {field.name: tfds.features.Text() for field in SCHEMA}
        # FLAC, mono 16-bit. As a list of integers it would be five times larger.
        audio = tfds.features.Tensor(shape=(), dtype=np.object_)
        columns |= {"num_samples": tfds.features.Scalar(dtype=np.int64), "audio": audio}
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.DESCRIPTION,
            homepage=self.HOMEPAGE,
            license=self._licence,
            disable_shuffling=True,  # row i of the index describes record i
            features=tfds.features.FeaturesDict(columns),
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        if self._records is None:
            raise DataError(f"{self.name} stores clips converted beforehand: run `jax-speechlm prepare` instead.")
        return {split: self._generate_examples(split) for split in self._records.splits}

    def _generate_examples(self, split: str) -> Any:
        return self._records.examples(split)


def _configs(*names: str) -> list[tfds.core.BuilderConfig]:
    return [tfds.core.BuilderConfig(name=name) for name in names]


class Asterisk(SpeechBuilder):
    DESCRIPTION = "Telephone prompts of the Asterisk PBX, read by one professional voice a language, with transcripts."
    HOMEPAGE = "https://www.asterisk.org"
    BUILDER_CONFIGS = _configs(*asterisk.LICENCES)


class Fillets(SpeechBuilder):
    DESCRIPTION = "Dialogue of the puzzle game Fish Fillets NG, with an English translation of each line."
    HOMEPAGE = "https://fillets.sourceforge.net"
    BUILDER_CONFIGS = _configs(*fillets.LANGUAGES)


class Manifest(SpeechBuilder):
    DESCRIPTION = "Speech prepared from a JSONL manifest or from another TFDS data set."


class QueenEn(SpeechBuilder):
    DESCRIPTION = "Dialogue of the adventure game Flight of the Amazon Queen: English, acted, about 30 characters."
    HOMEPAGE = "https://www.scummvm.org"


class Tuxpaint(SpeechBuilder):
    DESCRIPTION = (
        "Descriptions of the stamps of the drawing program Tux Paint, read by volunteers, with English glosses."
    )
    HOMEPAGE = "https://tuxpaint.org"
    BUILDER_CONFIGS = _configs(*tuxpaint.LANGUAGES, "sounds")


BUILDERS = {builder.name: builder for builder in (Asterisk, Fillets, Manifest, QueenEn, Tuxpaint)}
