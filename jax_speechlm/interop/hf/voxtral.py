"""Conversion of speech-language models to and from Hugging Face's Voxtral (see `mapping`).

A `VoxtralForConditionalGeneration` consists of a tower, a projector and a language model, and its config may name any
class for the tower and the language model: here a Wav2Vec2-BERT and a Qwen3 or Llama. The projector concatenates
vectors of the tower until they are as wide as the tower's feed-forward layers, and applies two linear maps without
biases, the second of them square. A `Stacking` adapter of that form is the same function.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from jax_speechlm.interop.folders import ExportError
from jax_speechlm.interop.hf import mapping, transformer, wav2vec2_bert
from jax_speechlm.interop.hf.class_settings import completed
from jax_speechlm.interop.hf.mapping import StateDict, linear
from jax_speechlm.models.adapter import Stacking
from jax_speechlm.models.conformer import ConformerConfig
from jax_speechlm.models.speech_lm import SpeechLMConfig
from jax_speechlm.nn.functional import Params

ARCHITECTURE = "VoxtralForConditionalGeneration"
PROMPT = "speech_prompt.json"
"""The file that says what the model was trained to do (`task`), and with what text before and behind the speech."""

_FIXED = {"model_type": "voxtral", "projector_hidden_act": "relu"}
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
    encoder = model.encoder
    if not isinstance(encoder, ConformerConfig):
        raise ExportError(
            f"of a {encoder.kind} no {ARCHITECTURE} is made here: export the runs that it was started from, the "
            "encoder's and the language model's, or train with a conformer"
        )
    form = _adapter(encoder.ffn_multiple, model.transformer.dim)
    if model.adapter != form:
        raise ExportError(
            f"{ARCHITECTURE} has the adapter {form!r} for these parts (as many frames as model.encoder.ffn_multiple, "
            f"hidden_dim as wide as the transformer, no biases); this model has {model.adapter!r}. Train with the "
            "former to export it; encoder and language model can be kept (--from, --init-from.0.groups)"
        )
    parts = wav2vec2_bert.config_to_hugging_face(encoder), dict(text)
    for part in parts:
        del part["architectures"]
    # The file holds the vocabulary map in any case: the class does not tie it.
    settings = {"architectures": [ARCHITECTURE], "audio_token_id": audio_token, "tie_word_embeddings": False}
    return _FIXED | settings | dict(zip(_PARTS, parts, strict=True))


def config_from_hugging_face(values: Mapping[str, Any]) -> SpeechLMConfig:
    """Converts a Voxtral `config.json`; raises ValueError for other parts, such as the Whisper tower of Mistral's."""
    values = completed(values)
    mapping.require_fixed(values, _FIXED)
    if not all(isinstance(values[name], dict) and "model_type" in values[name] for name in _PARTS):
        raise ValueError(f"config.json: {' and '.join(_PARTS)} must each be the settings of a model, with a model_type")
    tower, text = (values[name] for name in _PARTS)
    if tower["model_type"] != "wav2vec2-bert":
        raise ValueError(
            f"config.json: audio_config has model_type={tower['model_type']!r}, which has no counterpart here; only "
            "'wav2vec2-bert' has"
        )
    encoder, reader = wav2vec2_bert.config_from_hugging_face(tower), transformer.config_from_hugging_face(text)
    return SpeechLMConfig(encoder=encoder, adapter=_adapter(encoder.ffn_multiple, reader.dim), transformer=reader)


def to_hugging_face(params: Params, model: SpeechLMConfig) -> dict[str, np.ndarray]:
    """Returns the float32 state dict of a model whose LoRA has been merged."""
    tower = wav2vec2_bert.to_hugging_face(params, model.encoder)
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
    return {
        **wav2vec2_bert.sources(part(_TOWER), config.encoder),
        **mapping.sources(rest, _PROJECTOR, config.transformer, "Voxtral projector"),
        "transformer": transformer.sources(part(_LANGUAGE_MODEL), config.transformer),
    }


def _adapter(frames: int | float, width: int) -> Stacking:
    if frames % 1:
        raise ExportError(
            f"{ARCHITECTURE} joins as many frames as the encoder's feed-forward is wider than its stream, here "
            f"{frames:.6g}: the encoder's intermediate_size must be a multiple of its hidden_size"
        )
    return Stacking(frames=int(frames), hidden_dim=width, bias=False)
