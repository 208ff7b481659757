"""Trained checkpoints as folders that plain transformers opens, and such folders read back.

What a run becomes follows from its objective (`_KINDS`). A folder is written beside its place and moved there once it
has been checked (`checking`), against transformers where that is installed, else against our own reading of it.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jax_speechlm.config import Config
from jax_speechlm.interop import folders, front_ends, transformer, wav2vec2_bert, weights
from jax_speechlm.interop.folders import ExportError
from jax_speechlm.interop.tokenizer_files import Files, ctc_files, text_files
from jax_speechlm.models.conformer import ConformerConfig
from jax_speechlm.models.functional import Params
from jax_speechlm.models.transformer import TransformerConfig
from jax_speechlm.trained import Trained
from jax_speechlm.vocabulary import PADDING, Vocabulary

_ENCODERS = ("best_rq", "hubert", "wav2vec2", "w2v_bert")
_TEXT_MODELS = ("LlamaForCausalLM", "Qwen3ForCausalLM", "ModernBertForMaskedLM")


class Package(NamedTuple):
    """What a run is in Hugging Face's terms.

    Attributes:
      config: `config.json`.
      params: our parameters, grouped as `Model` has them.
      arrays: the state dict.
      files: every other JSON file.
    """

    config: dict[str, Any]
    params: Params
    arrays: dict[str, np.ndarray]
    files: Files

    @property
    def architecture(self) -> str:
        """The class in transformers."""
        return self.config["architectures"][0]


class Model(NamedTuple):
    """A model that was read from a folder.

    Attributes:
      architecture: the class in transformers.
      config: the model's shape.
      params: `encoder`, and `head` where there is one; or `transformer`.
    """

    architecture: str
    config: ConformerConfig | TransformerConfig
    params: Params


def package(run: Trained) -> Package:
    """A run in Hugging Face's terms.

    Raises:
      ExportError: no class of transformers is the same as what was trained; says what stands in the way.
    """
    kind = run.experiment.objective.kind
    if kind not in _KINDS:
        raise ExportError(
            f"{run.checkpoint}: was trained by {kind}, and transformers has no class that is that model without code "
            "of its own. Export the runs that it was started from, the encoder's and the language model's"
        )
    try:
        made = _KINDS[kind](run)
    except ExportError as error:
        raise ExportError(f"{run.checkpoint}: {error}") from error
    return made._replace(config=made.config | {"dtype": "float32"})


def vocabulary_of(run: Trained) -> Vocabulary:
    """The ids of a run's language model."""
    objective = run.experiment.objective
    sentinels, units = (getattr(objective, name, 0) for name in ("sentinels", "num_units"))
    return Vocabulary.of(run.tokenizer, sentinels, units)


def write_model(folder: Path, made: Package) -> None:
    """Writes weights and JSON files into an existing folder."""
    weights.write_weights(folder, made.arrays)
    for name, value in ({"config.json": made.config} | made.files).items():
        folders.write_json(folder, name, value)


def read_model(folder: Path) -> Model:
    """The model in a folder, from `config.json` and safetensors; no code of the folder's is run.

    Raises:
      ExportError: it is of a class that has no counterpart here, or lacks a file.
      ValueError: its settings or arrays have a form that ours has not.
    """
    values = folders.read_json(folder, "config.json")
    architecture = (values.get("architectures") or ["a model without architectures"])[0]
    readers = {name: _read_text_model for name in _TEXT_MODELS} | {
        "Wav2Vec2BertModel": _read_encoder,
        "Wav2Vec2BertForCTC": _read_encoder,
        "Wav2Vec2BertForSequenceClassification": _read_classifier,
    }
    if architecture not in readers:
        raise ExportError(
            f"{folder / 'config.json'}: {architecture} has no counterpart here; {', '.join(readers)} have"
        )
    config, params = readers[architecture](values, weights.read_weights(folder))
    return Model(architecture, config, params)


def _encoder(run: Trained) -> Package:
    model = _conformer(run)
    files = {front_ends.FILE: front_ends.front_end_to_hugging_face(run.experiment.frontend.mel)}
    params = _groups(run, "encoder")
    arrays = wav2vec2_bert.to_hugging_face(params["encoder"], model)
    return Package(wav2vec2_bert.config_to_hugging_face(model), params, arrays, files)


def _recognizer(run: Trained) -> Package:
    encoder, model = _encoder(run), _conformer(run)
    config = wav2vec2_bert.config_to_hugging_face(model, run.tokenizer.vocab_size)
    # for whoever trains on: a row too short for its transcript has no loss here either
    config |= {"pad_token_id": PADDING, "ctc_loss_reduction": "mean", "ctc_zero_infinity": True}
    config |= {"bos_token_id": None, "eos_token_id": None}
    params = _groups(run, "encoder", "head")
    arrays = wav2vec2_bert.to_hugging_face(params["encoder"], model, params["head"])
    processor = {"processor_class": "Wav2Vec2BertProcessor"}
    files = {name: value | processor for name, value in encoder.files.items()}
    for name, value in ctc_files(run.tokenizer).items():
        files[name] = value | processor if name == "tokenizer_config.json" else value
    return Package(config, params, arrays, files)


def _classifier(run: Trained) -> Package:
    if not isinstance(run.experiment.model, ConformerConfig):
        raise ExportError(
            "it classifies texts by the mean of a transformer's hidden states: Qwen3ForSequenceClassification and "
            "LlamaForSequenceClassification take the last token's, and ModernBertForSequenceClassification is not "
            "written here yet. Export the language model that it was started from"
        )
    encoder, model = _encoder(run), _conformer(run)
    config = wav2vec2_bert.classifier_config_to_hugging_face(model, run.experiment.objective.classes)
    params = _groups(run, "encoder", "head")
    arrays = wav2vec2_bert.classifier_to_hugging_face(params["encoder"], model, params["head"])
    return Package(config, params, arrays, encoder.files)


def _conformer(run: Trained) -> ConformerConfig:
    return run.experiment.model


def _groups(run: Trained, *names: str) -> Params:
    """Some groups of a run's parameters, on the host."""
    return jax.device_get({name: run.params[name] for name in names})


def _text_model(run: Trained) -> Package:
    model, vocabulary, context = run.experiment.model, vocabulary_of(run), run.experiment.data.context
    ends = dict.fromkeys(("bos_token_id", "eos_token_id"), vocabulary.boundary) | {"pad_token_id": PADDING}
    try:
        config = transformer.config_to_hugging_face(model, vocabulary.size)
        params = _groups(run, "transformer")
        arrays = transformer.to_hugging_face(params["transformer"], model)
    except ValueError as error:
        raise ExportError(str(error)) from error
    config |= ends | {"max_position_embeddings": context}
    files = text_files(run.tokenizer, vocabulary, context, causal=model.causal)
    if model.causal:
        never = np.flatnonzero(~vocabulary.may_follow())
        files["generation_config.json"] = ends | {
            "do_sample": False,
            "max_length": context,
            "suppress_tokens": never.tolist(),
        }
    else:
        config |= dict.fromkeys(("cls_token_id", "sep_token_id"), vocabulary.boundary)
    if model.tied:  # the head is the embedding, which the file holds once
        arrays = {name: value for name, value in arrays.items() if name not in ("lm_head.weight", "decoder.weight")}
    return Package(config, params, arrays, files)


_KINDS: dict[str, Callable[[Trained], Package]] = {
    **dict.fromkeys(_ENCODERS, _encoder),
    **dict.fromkeys(("ctc", "joint"), _recognizer),
    **dict.fromkeys(("causal_lm", "masked_lm", "span_corruption", "unit_lm"), _text_model),
    "classification": _classifier,
}


def _read_encoder(values: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> tuple[Config, Params]:
    config = wav2vec2_bert.config_from_hugging_face(values)
    encoder, head = wav2vec2_bert.from_hugging_face(arrays, config)
    return config, {"encoder": encoder} | ({} if head is None else {"head": head})


def _read_classifier(values: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> tuple[Config, Params]:
    config = wav2vec2_bert.config_from_hugging_face(values)
    encoder, head = wav2vec2_bert.classifier_from_hugging_face(arrays, config)
    return config, {"encoder": encoder, "head": head}


def _read_text_model(values: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> tuple[Config, Params]:
    config = transformer.config_from_hugging_face(values)
    return config, {"transformer": transformer.from_hugging_face(arrays, config)}
