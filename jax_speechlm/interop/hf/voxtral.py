"""Conversion of speech-language models to and from Hugging Face's Voxtral (see `mapping`).

A `VoxtralForConditionalGeneration` consists of a tower, a projector and a language model, and its config may name any
class for the tower and the language model: here a Wav2Vec2-BERT, or Whisper's encoder as in Mistral's models, and a
Qwen3 or Llama. The projector concatenates vectors of the tower until they are as wide as the tower's feed-forward
layers, and applies two linear maps without biases, the second of them square. A `Stacking` adapter of that form is the
same function.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from jax_speechlm.core.config import Config
from jax_speechlm.frontend.frontend import AnyMel
from jax_speechlm.interop.folders import ExportError
from jax_speechlm.interop.hf import feature_extractor, mapping, transformer, wav2vec2_bert, whisper
from jax_speechlm.interop.hf.class_settings import completed
from jax_speechlm.interop.hf.mapping import StateDict, linear
from jax_speechlm.models.adapter import Stacking
from jax_speechlm.models.conformer import ConformerConfig
from jax_speechlm.models.speech_lm import SpeechLMConfig
from jax_speechlm.models.whisper import WhisperEncoderConfig
from jax_speechlm.nn.functional import Params

ARCHITECTURE = "VoxtralForConditionalGeneration"
PROMPT = "speech_prompt.json"
"""The file that says what the model was trained to do (`task`), and with what text before and behind the speech."""

_FIXED = {"model_type": "voxtral"}
_ACTIVATION = "projector_hidden_act"
_PARTS = "audio_config", "text_config"
_TOWER, _LANGUAGE_MODEL = "audio_tower.", "language_model."
_PROJECTOR = [
    *linear("adapter.expand", "multi_modal_projector.linear_1", bias=None),
    *linear("adapter.contract", "multi_modal_projector.linear_2", bias=None),
]


def config_to_hugging_face(model: SpeechLMConfig, text: Mapping[str, Any], audio_token: int) -> dict[str, Any]:
    """Returns the settings of a Voxtral `config.json`; an `ExportError` names the settings that Voxtral has.

    `text` are the settings of the language model. `audio_token`, an id that occurs in no text, marks the positions of
    speech, once for each vector.
    """
    encoder, activation = model.encoder, getattr(model.adapter, "activation", "relu")
    if isinstance(encoder, ConformerConfig):
        tower = wav2vec2_bert.config_to_hugging_face(encoder)
    elif isinstance(encoder, WhisperEncoderConfig):
        tower = whisper.tower_to_hugging_face(encoder)
    else:
        raise ExportError(
            f"of a {encoder.kind} no {ARCHITECTURE} is made here: export the runs that it was started from, the "
            "encoder's and the language model's, or train with a conformer or Whisper's encoder"
        )
    form = _adapter(encoder, model.transformer.dim, activation)
    if model.adapter != form:
        raise ExportError(
            f"{ARCHITECTURE} has the adapter {form!r} for these parts (as many frames as the encoder's feed-forward is "
            f"wider than its stream, hidden_dim as wide as the transformer, no biases); this model has "
            f"{model.adapter!r}. Train with the former to export it; encoder and language model can be kept (--from, "
            "--init-from.0.groups)"
        )
    parts = tower, dict(text)
    for part in parts:
        part.pop("architectures", None)
    # The file holds the vocabulary map in any case: the class does not tie it.
    settings = {"architectures": [ARCHITECTURE], "audio_token_id": audio_token, "tie_word_embeddings": False}
    return _FIXED | settings | {_ACTIVATION: activation} | dict(zip(_PARTS, parts, strict=True))


def front_end_to_hugging_face(mel: AnyMel, encoder: Config) -> dict[str, Any]:
    """Returns the settings of the tower's feature extractor; an `ExportError` names a setting that it does not have."""
    if not isinstance(encoder, WhisperEncoderConfig):
        return feature_extractor.front_end_to_hugging_face(mel)
    values = whisper.features_to_hugging_face(mel)
    if encoder.num_frames(mel.num_frames(1)) != encoder.max_frames:
        raise ExportError(
            f"Voxtral's encoder takes windows of all its {encoder.max_frames} frames, and frontend.mel.window_seconds "
            f"is {mel.window_seconds}: train with windows of that length"
        )
    return values


def config_from_hugging_face(values: Mapping[str, Any]) -> SpeechLMConfig:
    """Converts a Voxtral `config.json`; raises ValueError for other parts."""
    values = completed(values)
    mapping.require_fixed(values, _FIXED)
    if not all(isinstance(values[name], dict) and "model_type" in values[name] for name in _PARTS):
        raise ValueError(f"config.json: {' and '.join(_PARTS)} must each be the settings of a model, with a model_type")
    tower, text = (values[name] for name in _PARTS)
    if (converted := _TOWERS.get(tower["model_type"])) is None:
        raise ValueError(
            f"config.json: audio_config has model_type={tower['model_type']!r}, which has no counterpart here; only "
            f"{' and '.join(map(repr, _TOWERS))} have"
        )
    if values[_ACTIVATION] not in ("relu", "gelu"):
        raise ValueError(f"config.json: {_ACTIVATION}={values[_ACTIVATION]!r} has no counterpart; relu and gelu have")
    encoder, reader = converted(tower), transformer.config_from_hugging_face(text)
    adapter = _adapter(encoder, reader.dim, values[_ACTIVATION])
    return SpeechLMConfig(encoder=encoder, adapter=adapter, transformer=reader)


def to_hugging_face(params: Params, model: SpeechLMConfig) -> dict[str, np.ndarray]:
    """Returns the float32 state dict of a model whose LoRA has been merged."""
    is_whisper = isinstance(model.encoder, WhisperEncoderConfig)
    tower = (whisper.tower_arrays if is_whisper else wav2vec2_bert.to_hugging_face)(params, model.encoder)
    text = transformer.to_hugging_face(params["transformer"], model.transformer)
    arrays = {_TOWER + name: value for name, value in tower.items()}
    arrays |= {_LANGUAGE_MODEL + name: value for name, value in text.items()}
    return arrays | mapping.write(params, _PROJECTOR, model.transformer)


def sources(state_dict: StateDict, config: SpeechLMConfig) -> Params:
    """Finds the places of our `SpeechTransformer`'s parameters: `encoder`, `adapter` and `transformer`.

    Raises:
      ValueError: an array is missing, left over, or of another shape than `config` implies.
    """

    def part(prefix: str) -> StateDict:
        return {name.removeprefix(prefix): value for name, value in state_dict.items() if name.startswith(prefix)}

    rest = {name: value for name, value in state_dict.items() if not name.startswith((_TOWER, _LANGUAGE_MODEL))}
    is_whisper = isinstance(config.encoder, WhisperEncoderConfig)
    return {
        **(whisper.tower_sources if is_whisper else wav2vec2_bert.sources)(part(_TOWER), config.encoder),
        **mapping.sources(rest, _PROJECTOR, config.transformer, "Voxtral projector"),
        "transformer": transformer.sources(part(_LANGUAGE_MODEL), config.transformer),
    }


_TOWERS = {
    "wav2vec2-bert": wav2vec2_bert.config_from_hugging_face,
    "voxtral_encoder": whisper.tower_from_hugging_face,
}


def _adapter(encoder: ConformerConfig | WhisperEncoderConfig, width: int, activation: str) -> Stacking:
    is_whisper = isinstance(encoder, WhisperEncoderConfig)
    frames = encoder.ffn_dim / encoder.dim if is_whisper else encoder.ffn_multiple
    if frames % 1:
        raise ExportError(
            f"{ARCHITECTURE} joins as many frames as the encoder's feed-forward is wider than its stream, here "
            f"{frames:.6g}: the encoder's intermediate_size must be a multiple of its hidden_size"
        )
    if is_whisper and encoder.max_frames % frames:
        raise ExportError(
            f"{ARCHITECTURE} joins {int(frames)} frames each, which do not divide the encoder's {encoder.max_frames} "
            "(max_source_positions)"
        )
    return Stacking(frames=int(frames), hidden_dim=width, bias=False, activation=activation)
