"""Speech encoders in transformers, alone and with a head: settings and arrays, by the form of the encoder."""

from collections.abc import Callable
from typing import Any, NamedTuple

from data_pipelines.core.tokenizer import Tokenizer
from data_pipelines.tokenizers.hugging_face import HuggingFaceTokenizer
from jax_speechlm.core.config import Config
from jax_speechlm.core.vocabulary import PADDING
from jax_speechlm.interop.folders import ExportError
from jax_speechlm.interop.hf import feature_extractor, nemotron, parakeet, wav2vec2, wav2vec2_bert
from jax_speechlm.interop.hf.mapping import StateDict
from jax_speechlm.interop.hf.speech_heads import Head
from jax_speechlm.interop.hf.tokenizer_files import PAD, Files, ctc_files
from jax_speechlm.models.conformer import ConformerConfig
from jax_speechlm.models.fast_conformer import FastConformerConfig
from jax_speechlm.models.wav2vec2 import Wav2Vec2EncoderConfig
from jax_speechlm.nn.functional import Params
from jax_speechlm.recipes.experiment import Experiment

GENERATION = "generation_config.json"

Settings = tuple[dict[str, Any], Files]
"""`config.json`, and every other JSON file."""


class _SpeechForm(NamedTuple):
    """A family of speech encoders: the module that converts it, its features, and the name of its processor."""

    module: Any
    features: Callable[[Any, Any], dict[str, Any]]
    processor: str


_SPEECH_FORMS = {
    ConformerConfig: _SpeechForm(
        wav2vec2_bert, lambda mel, model: feature_extractor.front_end_to_hugging_face(mel), "Wav2Vec2BertProcessor"
    ),
    FastConformerConfig: _SpeechForm(
        parakeet, lambda mel, model: parakeet.features_to_hugging_face(mel), "ParakeetProcessor"
    ),
    Wav2Vec2EncoderConfig: _SpeechForm(wav2vec2, wav2vec2.features_to_hugging_face, "Wav2Vec2Processor"),
}


def _speech_form(model: Config) -> _SpeechForm:
    if type(model) not in _SPEECH_FORMS:
        raise ExportError(f"transformers has no class for this task on an encoder of model.kind {model.kind}")
    return _SPEECH_FORMS[type(model)]


def _features(experiment: Experiment) -> Files:
    form = _speech_form(experiment.model)
    return {feature_extractor.FILE: form.features(experiment.frontend.mel, experiment.model)}


def encoder_settings(experiment: Experiment, tokenizer: Tokenizer | None) -> Settings:
    """Returns the settings of an encoder alone."""
    del tokenizer
    return _speech_form(experiment.model).module.config_to_hugging_face(experiment.model), _features(experiment)


def pretraining_settings(experiment: Experiment, tokenizer: Tokenizer | None) -> Settings:
    """Returns the settings of an encoder of samples with the modules of the contrastive task."""
    del tokenizer
    config = wav2vec2.pretraining_config_to_hugging_face(experiment.model, experiment.objective)
    return config, _features(experiment)


def recognizer_settings(experiment: Experiment, tokenizer: Tokenizer) -> Settings:
    """Returns the settings of an encoder with a CTC head, and the tokenizer's files."""
    form, features = _speech_form(experiment.model), _features(experiment)
    processor, to_config = {"processor_class": form.processor}, form.module.config_to_hugging_face
    files = {name: value | processor for name, value in features.items()}
    # for further training: a row too short for its transcript has no loss here either
    rest = {"pad_token_id": PADDING, "ctc_loss_reduction": "mean", "ctc_zero_infinity": True}
    rest |= {"bos_token_id": None, "eos_token_id": None}
    if isinstance(tokenizer, HuggingFaceTokenizer):
        config = to_config(experiment.model, tokenizer.places.num_rows)
        return config | rest | tokenizer.special, files | tokenizer.files
    for name, value in ctc_files(tokenizer).items():
        files[name] = value | processor if name == "tokenizer_config.json" else value
    return to_config(experiment.model, tokenizer.vocab_size) | rest, files


def headed_settings(head: Head, experiment: Experiment, tokenizer: Tokenizer | None) -> Settings:
    """Returns the settings of an encoder with a head for classes, frames or speakers."""
    del tokenizer
    model, objective = experiment.model, experiment.objective
    if isinstance(model, FastConformerConfig):
        raise ExportError(
            f"its head for {objective.kind} is on a FastConformer's hidden states, which no class of transformers does"
        )
    return _speech_form(model).module.headed_config_to_hugging_face(model, head, objective), _features(experiment)


def speech_arrays(params: Params, model: Config, *head: Head) -> StateDict:
    """Returns the state dict of an encoder, by default with a CTC head if there is a `head`."""
    return _speech_form(model).module.to_hugging_face(params, model, *head)


def transducer_settings(experiment: Experiment, tokenizer: Tokenizer) -> Settings:
    """Converts a transducer on a causal FastConformer."""
    model, objective = experiment.model, experiment.objective.of_model
    if objective.durations or not (isinstance(model, FastConformerConfig) and model.causal):
        raise ExportError(
            "of transducers transformers has RNN-T on a causal FastConformer: one of model.kind fast_conformer with "
            "model.causal, and without objective.durations, can be exported"
        )
    if isinstance(tokenizer, HuggingFaceTokenizer):
        num_rows, special, files = tokenizer.places.num_rows, tokenizer.special, tokenizer.files
        name = tokenizer.padding_name or PAD
    else:
        num_rows, special, name = tokenizer.vocab_size, {"pad_token_id": PADDING}, PAD
        special |= {"bos_token_id": None, "eos_token_id": None}
        files = ctc_files(tokenizer) | {GENERATION: {"decoder_start_token_id": PADDING, "pad_token_id": PADDING}}
    processor = nemotron.processor_to_hugging_face(model, name)
    features = nemotron.features_to_hugging_face(experiment.frontend.mel)
    config = nemotron.transducer_to_hugging_face(model, objective.network, num_rows)
    return config | special, files | {feature_extractor.FILE: features, nemotron.PROCESSOR: processor}
