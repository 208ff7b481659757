"""TFDS builder of a user's own recordings, or of another TFDS data set in the same form; one config per set."""

from data_pipelines.datasets.base import SpeechBuilder


class Builder(SpeechBuilder):
    DESCRIPTION = "Speech prepared from a JSONL manifest or from another TFDS data set."
