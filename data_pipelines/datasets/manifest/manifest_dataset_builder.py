"""manifest: a user's own recordings, or another TFDS data set in the same form; one config a set."""

from data_pipelines.datasets.base import SpeechBuilder


class Builder(SpeechBuilder):
    DESCRIPTION = "Speech prepared from a JSONL manifest or from another TFDS data set."
