"""TFDS builder of queen_en: acted English dialogue."""

from data_pipelines.datasets.base import SpeechBuilder


class Builder(SpeechBuilder):
    DESCRIPTION = "Dialogue of the adventure game Flight of the Amazon Queen: English, acted, about 30 characters."
    HOMEPAGE = "https://www.scummvm.org"
