"""TFDS builder of asterisk: telephone prompts in five languages."""

import tensorflow_datasets as tfds

from data_pipelines.datasets.base import SpeechBuilder
from data_pipelines.sources.asterisk import LICENCES


class Builder(SpeechBuilder):
    DESCRIPTION = "Telephone prompts of the Asterisk PBX, read by one professional voice a language, with transcripts."
    HOMEPAGE = "https://www.asterisk.org"
    BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=language) for language in LICENCES]  # noqa: RUF012
