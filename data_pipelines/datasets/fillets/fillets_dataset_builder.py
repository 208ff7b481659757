"""TFDS builder of fillets: acted Czech and Dutch dialogue with English translations."""

import tensorflow_datasets as tfds

from data_pipelines.datasets.base import SpeechBuilder
from data_pipelines.sources.fillets import LANGUAGES


class Builder(SpeechBuilder):
    DESCRIPTION = "Dialogue of the puzzle game Fish Fillets NG, with an English translation of each line."
    HOMEPAGE = "https://fillets.sourceforge.net"
    BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=language) for language in LANGUAGES]  # noqa: RUF012
