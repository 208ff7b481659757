"""TFDS builder of tuxpaint: names of things in eleven languages with English glosses, and the sounds of these
things.
"""

import tensorflow_datasets as tfds

from data_pipelines.datasets.base import SpeechBuilder
from data_pipelines.sources.tuxpaint import LANGUAGES


class Builder(SpeechBuilder):
    DESCRIPTION = (
        "Descriptions of the stamps of the drawing program Tux Paint, read by volunteers, with English glosses."
    )
    HOMEPAGE = "https://tuxpaint.org"
    BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=name) for name in (*LANGUAGES, "sounds")]  # noqa: RUF012
