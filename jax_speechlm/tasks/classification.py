"""Classification of utterances or texts."""

from jax_speechlm.models.cnn import CNNConfig
from jax_speechlm.models.conformer import ConformerConfig
from jax_speechlm.models.fast_conformer import FastConformerConfig
from jax_speechlm.models.rnn import RNNConfig
from jax_speechlm.models.transformer_config import TransformerConfig
from jax_speechlm.models.wav2vec2 import Wav2Vec2EncoderConfig
from jax_speechlm.models.whisper import WhisperEncoderConfig
from jax_speechlm.objectives.heads.classification import Classification
from jax_speechlm.tasks.base import Task
from jax_speechlm.tasks.inputs import AUDIO, PACKED_TEXT, ROW_CLASS

TASK = Task(
    name="classification",
    objective=Classification,
    models=(
        ConformerConfig,
        FastConformerConfig,
        WhisperEncoderConfig,
        Wav2Vec2EncoderConfig,
        CNNConfig,
        RNNConfig,
        TransformerConfig,
    ),
    inputs={"speech": (AUDIO, ROW_CLASS), "text": (PACKED_TEXT, ROW_CLASS)},
    predictor="jax_speechlm.inference.classify:Classifier",
    abilities=("classify", "embed"),
    evaluator="jax_speechlm.evaluation.classification:evaluate_run",
    hugging_face="jax_speechlm.interop.hf.registry:CLASSIFIER_FORM",
)
