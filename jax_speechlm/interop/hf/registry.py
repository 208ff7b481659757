"""Conversion of checkpoints to folders that plain transformers opens, and of such folders to models.

The class that a run becomes follows from its task (`HuggingFaceForm`). A folder is written next to its destination and
moved there after `verify` has checked it, with transformers if that is installed, else by reading it back.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Int

from data_pipelines.core.tokenizer import Tokenizer
from data_pipelines.tokenizers.hugging_face import HuggingFaceTokenizer
from jax_speechlm.core.config import Config
from jax_speechlm.core.tree import name_of
from jax_speechlm.core.vocabulary import PADDING, Vocabulary
from jax_speechlm.interop import folders
from jax_speechlm.interop.folders import ExportError, errors_of
from jax_speechlm.interop.hf import (
    fastspeech2,
    feature_extractor,
    hifigan,
    nemotron,
    parakeet,
    sentence_transformers,
    text_heads,
    transformer,
    voxtral,
    wav2vec2,
    wav2vec2_bert,
    wav_tokenizer,
    weights,
    whisper,
)
from jax_speechlm.interop.hf import text_families as families
from jax_speechlm.interop.hf.class_settings import completed
from jax_speechlm.interop.hf.config_limits import checked_settings
from jax_speechlm.interop.hf.mapping import StateDict, class_names, read
from jax_speechlm.interop.hf.speech_forms import (
    GENERATION,
    Settings,
    encoder_settings,
    headed_settings,
    pretraining_settings,
    recognizer_settings,
    speech_arrays,
    transducer_settings,
)
from jax_speechlm.interop.hf.speech_heads import Head
from jax_speechlm.interop.hf.text_settings import config_from_hugging_face, family_of
from jax_speechlm.interop.hf.tokenizer_files import Files, text_files, voice_files
from jax_speechlm.models.encoder_decoder import EncoderDecoderConfig
from jax_speechlm.models.speech_lm import SpeechLMConfig
from jax_speechlm.models.transformer_config import TransformerConfig
from jax_speechlm.models.tts.fastspeech2 import FastSpeech2Config
from jax_speechlm.models.tts.text import boundary_id, num_ids
from jax_speechlm.models.vocoders.hifigan import HifiGanConfig
from jax_speechlm.models.wav2vec2 import Wav2Vec2EncoderConfig
from jax_speechlm.nn.functional import Params
from jax_speechlm.nn.lora import merge
from jax_speechlm.recipes.experiment import Experiment
from jax_speechlm.tasks import resolve, task_of
from jax_speechlm.training.runs import LoadedRun
from jax_speechlm.training.warm_start import PER_TOKEN

_MOST_VECTORS = 4096  # of a speech-language model's rows: rotary positions have no end, but transformers wants one


class Package(NamedTuple):
    """A run in Hugging Face's terms: `config.json`, further files by name, and the state dict.

    `params` are our parameters, in the groups of `Model`, with rows in the order of the folder's ids.
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
    """A model in a folder, of which only the settings have been read.

    Attributes:
      values, config: `config.json`, and the model's shape.
      sources: where our parameters are read from (`mapping.TensorSource`): `encoder`, and `head`, `speaker`, `decoder`
        or the parts of a transducer where there are any; or `transformer`; or `encoder`, `adapter` and `transformer`;
        or `acoustic`, `generator` or `autoencoder` alone.
    """

    architecture: str
    folder: Path
    values: dict[str, Any]
    config: Config
    sources: Params

    @property
    def file(self) -> Path:
        """The file that the settings are from."""
        return self.folder / "config.json"

    @property
    def settings(self) -> dict[str, Any]:
        """`config.json` with the defaults of its class."""
        return completed(self.values)

    @property
    def params(self) -> Params:
        """Our parameters, as arrays of the files' types."""
        return read(self.sources)


def package(run: LoadedRun) -> Package:
    """Converts a run to Hugging Face's terms; an `ExportError` says why no class of transformers computes the same."""
    model, params = run.experiment.model, run.params
    with errors_of(run.checkpoint):
        config, files = settings(run.experiment, run.tokenizer)
        if isinstance(model, SpeechLMConfig | EncoderDecoderConfig):
            params, _ = merge(params, model.lora)
        form = _form(run.experiment)
        params = jax.device_get({name: params[name] for name in form.groups if name in params})
        params = with_folder_ids(params, run.tokenizer)
        if any(config["architectures"][0] in classes.values() for classes in TEXT_HEADS.values()):
            params["transformer"] = text_heads.without_vocabulary_map(params["transformer"])
        return Package(config, params, form.arrays(params, model), files)


def settings(experiment: Experiment, tokenizer: Tokenizer | None) -> Settings:
    """Converts a run's config to `config.json` and further files by name; no parameter is needed."""
    config, files = _form(experiment).settings(experiment, tokenizer)
    if (model_type := config.get("model_type")) in families.SAME_FAMILY:  # as an imported tokenizer may say
        tables = (families.ENCODERS, families.LANGUAGE_MODELS, *TEXT_HEADS.values())
        family, (name,) = families.SAME_FAMILY[model_type], config["architectures"]
        config["architectures"] = [next((t[model_type] for t in tables if t.get(family) == name), name)]
    return config | {"dtype": "float32"}, files


def write_model(folder: Path, made: Package) -> None:
    """Writes weights and all other files into an existing folder."""
    weights.write_weights(folder, made.arrays)
    for name, value in ({"config.json": made.config} | made.files).items():
        if isinstance(value, str):
            folders.write_text(folder, name, value)
        else:
            folders.write_json(folder, name, value)


def read_model(folder: Path) -> Model:
    """Reads the settings of a model in a folder, and finds its parameters in the files; runs no code of the folder.

    Raises:
      ExportError: its class, settings or arrays have no counterpart here, or a file is missing.
    """
    if (folder / "adapter_config.json").exists():
        raise ExportError(
            f"{folder} is an adapter: import the model that it was trained on, and use that run with --adapter {folder}"
        )
    values = checked_settings(folder / "config.json", folders.read_json(folder, "config.json"))
    (architecture,) = values["architectures"]
    if architecture not in READERS:
        raise ExportError(
            f"{folder / 'config.json'}: {architecture} has no counterpart here; {', '.join(READERS)} have"
        )
    reader = READERS[architecture]
    with errors_of(folder):
        config = reader.config(values)
        return Model(architecture, folder, values, config, reader.sources(weights.read_weights(folder), config))


def vocabulary_of(experiment: Experiment, tokenizer: Tokenizer | None) -> Vocabulary:
    """Returns the vocabulary of a run's language model."""
    sentinels, units = (getattr(experiment.objective, name, 0) for name in ("sentinels", "num_units"))
    return Vocabulary.of(tokenizer, sentinels, units)


def _vocoder_settings(experiment: Experiment, tokenizer: Tokenizer | None) -> Settings:
    del tokenizer
    model, mel = experiment.model, experiment.frontend.mel
    if not isinstance(model, HifiGanConfig):
        raise ExportError(
            f"no class of transformers is a {model.kind}; of the vocoders, model.kind hifigan can be exported"
        )
    files = {feature_extractor.FILE: hifigan.features_to_hugging_face(mel)}
    return hifigan.config_to_hugging_face(model, mel.sample_rate), files


def _voice_settings(experiment: Experiment, tokenizer: Tokenizer) -> Settings:
    objective = experiment.objective
    config = fastspeech2.config_to_hugging_face(experiment.model, num_ids(tokenizer), objective.num_speakers)
    if objective.num_speakers > 1:
        config |= {key: value for key, value in class_names(objective.classes).items() if key != "problem_type"}
    return config, voice_files(tokenizer, boundary_id(tokenizer))


def _classifier_settings(experiment: Experiment, tokenizer: Tokenizer | None) -> Settings:
    if not isinstance(experiment.model, TransformerConfig):
        return headed_settings("ForSequenceClassification", experiment, tokenizer)
    form = text_heads.classifier_settings(experiment.model, experiment.objective)
    config, files = _text_settings(experiment, tokenizer)
    return config | form | class_names(experiment.objective.classes), files


def _token_head_settings(classes: Mapping[str, str], experiment: Experiment, tokenizer: Tokenizer | None) -> Settings:
    config, files = _text_settings(experiment, tokenizer)
    names = getattr(experiment.objective, "classes", ("LABEL_0", "LABEL_1"))  # which those of an answer's ends are
    named = {key: value for key, value in class_names(names).items() if key != "problem_type"}
    return config | {"architectures": [text_heads.class_of(classes, experiment.model)]} | named, files


def _token_head_arrays(classes: Mapping[str, str], params: Params, model: TransformerConfig) -> StateDict:
    return text_heads.head_arrays(params, model, text_heads.class_of(classes, model))


def _token_head(classes: Mapping[str, str]) -> "HuggingFaceForm":
    parts = partial(_token_head_settings, classes), partial(_token_head_arrays, classes)
    return HuggingFaceForm(*parts, ("transformer", "head"))


def _text_settings(experiment: Experiment, tokenizer: Tokenizer) -> Settings:
    if not isinstance(experiment.model, TransformerConfig):
        raise ExportError(f"transformers has no class for a {experiment.model.kind}")
    vocabulary = vocabulary_of(experiment, tokenizer)
    return _transformer_settings(experiment.model, vocabulary, experiment.data.context, tokenizer)


def _text_encoder_settings(experiment: Experiment, tokenizer: Tokenizer) -> Settings:
    config, files = _text_settings(experiment, tokenizer)
    context = experiment.data.context
    modules = sentence_transformers.module_files(experiment.objective, experiment.model.dim, context)
    return config, files | modules


def _speech_lm_settings(experiment: Experiment, tokenizer: Tokenizer) -> Settings:
    model, vocabulary = experiment.model, vocabulary_of(experiment, tokenizer)
    text, files = _transformer_settings(model.transformer, vocabulary, _MOST_VECTORS, tokenizer)
    config = voxtral.config_to_hugging_face(model, text, audio_token(tokenizer))
    front_end = voxtral.front_end_to_hugging_face(experiment.frontend.mel, model.encoder)
    objective = experiment.objective
    prompt = {"task": objective.task} | objective.prompts.of(objective.task).model_dump(mode="json")
    never = ids_in_folder(tokenizer, np.flatnonzero(~vocabulary.may_follow()))
    end, *others = ids_in_folder(tokenizer, vocabulary.ends)
    # Our settings, not those of an imported language model.
    generation = {
        "do_sample": False,
        "max_length": _MOST_VECTORS,
        "eos_token_id": [end, *others] if others else end,
        "pad_token_id": end,
        "suppress_tokens": [id_ for id_ in never if id_ >= 0],
    }
    return config, files | {feature_extractor.FILE: front_end, voxtral.PROMPT: prompt, GENERATION: generation}


def ids_in_folder(tokenizer: Tokenizer, ids: Sequence[int] | Int[np.ndarray, " count"]) -> list[int]:
    """Maps ids of a language model to the ids of its folder; -1 for an id that the folder does not have."""
    if not isinstance(tokenizer, HuggingFaceTokenizer):
        return [int(id_) for id_ in ids]
    imported = tokenizer.places.theirs
    return [int(imported[id_]) if id_ < len(imported) else -1 for id_ in ids]


def audio_token(tokenizer: Tokenizer) -> int:
    """Returns the folder's id at the positions of speech, in a speech-language model: the mask, which is in no text."""
    (mask,) = ids_in_folder(tokenizer, [Vocabulary.of(tokenizer).mask])
    if mask < 0:
        raise ExportError(
            "its language model's table has no free row for the positions of speech: widen it in transformers by two "
            "(model.resize_token_embeddings), import that, and train the adapter with it"
        )
    return mask


def _transformer_settings(
    model: TransformerConfig, vocabulary: Vocabulary, context: int, tokenizer: Tokenizer
) -> Settings:
    positions = {} if model.positions else {"max_position_embeddings": context}  # learnt ones are as many as their rows
    if isinstance(tokenizer, HuggingFaceTokenizer):
        if vocabulary.num_sentinels or vocabulary.num_units:
            raise ExportError("it has sentinels or units in addition to the ids of the model that it was started from")
        config = positions | transformer.config_to_hugging_face(model, tokenizer.places.num_rows)
        return config | tokenizer.special, tokenizer.files
    if model.causal and model.qkv_bias:
        raise ExportError(
            "transformers splits the texts of a Qwen2 as Qwen's own tokenizer does, whatever a folder says: with a "
            "tokenizer of your own train in Llama's or Qwen3's form (model.qkv_bias False)"
        )
    ends = dict.fromkeys(("bos_token_id", "eos_token_id"), vocabulary.boundary) | {"pad_token_id": PADDING}
    config = positions | transformer.config_to_hugging_face(model, vocabulary.size)
    if config["pad_token_id"] != PADDING:
        raise ExportError(
            f"its positions begin as in a model with padding id {config['pad_token_id']}; here it is {PADDING}"
        )
    config |= ends
    files = text_files(tokenizer, vocabulary, context, causal=model.causal)
    if not model.causal:
        return config | dict.fromkeys(("cls_token_id", "sep_token_id"), vocabulary.boundary), files
    never = np.flatnonzero(~vocabulary.may_follow())
    generation = {"do_sample": False, "max_length": context, "suppress_tokens": never.tolist()}
    return config, files | {GENERATION: ends | generation}


def _whisper_settings(experiment: Experiment, tokenizer: Tokenizer) -> Settings:
    if not isinstance(tokenizer, HuggingFaceTokenizer) or experiment.objective.whisper is None:
        raise ExportError(
            "Whisper's prompts are made of its own special ids, which this run has not: runs that were started from an "
            "imported Whisper, with its tokenizer (--data.tokenizer) and objective.whisper, can be exported"
        )
    config = whisper.config_to_hugging_face(experiment.model, tokenizer.places.num_rows)
    files = {feature_extractor.FILE: whisper.features_to_hugging_face(experiment.frontend.mel)}
    return config | tokenizer.special, tokenizer.files | files


def _codec_settings(experiment: Experiment, tokenizer: Tokenizer | None) -> Settings:
    del tokenizer
    model, rate = experiment.model, experiment.sample_rate
    files = {feature_extractor.FILE: wav_tokenizer.extractor_to_hugging_face(model, rate)}
    return wav_tokenizer.config_to_hugging_face(model, rate), files


def _voice_arrays(params: Params, model: FastSpeech2Config) -> StateDict:
    return fastspeech2.to_hugging_face(params["acoustic"], model)


def _classifier_arrays(params: Params, model: Config) -> StateDict:
    if isinstance(model, TransformerConfig):
        return text_heads.head_arrays(params, model, families.CLASSIFIERS[family_of(model)])
    return speech_arrays(params, model, "ForSequenceClassification")


def _text_arrays(params: Params, model: TransformerConfig) -> StateDict:
    arrays, twice = transformer.to_hugging_face(params["transformer"], model), transformer.tied_names(model)
    return {name: value for name, value in arrays.items() if name not in twice}


def with_folder_ids(params: Params, tokenizer: Tokenizer | None) -> Params:
    """Returns the parameters with rows in the order of the folder's ids."""
    if not isinstance(tokenizer, HuggingFaceTokenizer):
        return params

    def move(path: tuple, array: np.ndarray) -> np.ndarray:
        axis = id_axis(params, path)
        return array if axis is None else np.take(array, tokenizer.places.ours, axis)

    return jax.tree.map_with_path(move, params)


def id_axis(params: Params, path: tuple) -> int | None:
    """Returns the axis of a parameter that is indexed by ids, or None. A transformer's head is indexed by classes."""
    name = name_of(path)
    heads = {} if "transformer" in params else {"head/kernel": 1, "head/bias": 0}
    if "joint" in params:
        heads = {"embedding": 0, "joint/kernel": 1, "joint/bias": 0}
    return (dict.fromkeys(PER_TOKEN, 0) | heads).get(name)


class HuggingFaceForm(NamedTuple):
    """Conversion of runs of a task to a class of transformers; tasks name theirs (`Task.hugging_face`).

    `settings` gives `config.json` and other files, and `arrays` the state dict of parameters of the named `groups`, as
    far as the run has them.
    """

    settings: Callable[[Experiment, Tokenizer | None], Settings]
    arrays: Callable[[Params, Any], StateDict]
    groups: tuple[str, ...] = ("encoder", "head")


def _headed(head: Head, *groups: str) -> HuggingFaceForm:
    return HuggingFaceForm(
        partial(headed_settings, head), lambda params, model: speech_arrays(params, model, head), groups
    )


ENCODER = HuggingFaceForm(encoder_settings, speech_arrays, ("encoder",))
PRETRAINING = HuggingFaceForm(
    pretraining_settings,
    lambda params, model: speech_arrays(params, model, "ForPreTraining"),
    ("encoder", "contrast"),
)
TRANSDUCER = HuggingFaceForm(
    transducer_settings,
    nemotron.to_hugging_face,
    ("encoder", "encoder_projection", "embedding", "predictor", "predictor_projection", "joint"),
)
RECOGNIZER = HuggingFaceForm(recognizer_settings, speech_arrays)
TEXT = HuggingFaceForm(_text_settings, _text_arrays, ("transformer",))
TEXT_ENCODER = HuggingFaceForm(_text_encoder_settings, text_heads.bare_arrays, ("transformer", "pooler"))
TAGGER = _token_head(families.TAGGERS)
READER_OF_SPANS = _token_head(families.READERS_OF_SPANS)
_CLASSIFIER_GROUPS = ("encoder", "mix", "transformer", "pooler", "head")
CLASSIFIER_FORM = HuggingFaceForm(_classifier_settings, _classifier_arrays, _CLASSIFIER_GROUPS)
FRAMES = _headed("ForAudioFrameClassification", "encoder", "mix", "head")
SPEAKERS = _headed("ForXVector", "encoder", "mix", "speaker")
VOCODER = HuggingFaceForm(_vocoder_settings, hifigan.to_hugging_face, ("generator",))
VOICE = HuggingFaceForm(_voice_settings, _voice_arrays, ("acoustic",))
WHISPER = HuggingFaceForm(_whisper_settings, whisper.to_hugging_face, ("encoder", "decoder"))
CODEC = HuggingFaceForm(_codec_settings, wav_tokenizer.to_hugging_face, ("autoencoder",))
SPEECH_LM = HuggingFaceForm(_speech_lm_settings, voxtral.to_hugging_face, ("encoder", "adapter", "transformer"))


def _form(experiment: Experiment) -> HuggingFaceForm:
    task = task_of(experiment.objective)
    if task.hugging_face is None:
        raise ExportError(f"{task.name} has no form in transformers")
    form = resolve(task.hugging_face)
    # Pretraining of other encoders has no class.
    return ENCODER if form is PRETRAINING and not isinstance(experiment.model, Wav2Vec2EncoderConfig) else form


class Reader(NamedTuple):
    """Conversion of a class of transformers; a new one has an entry in `READERS`, and one in `import_.EXPERIMENTS`.

    `auto_class` of transformers opens it, the class itself where no other does; `config` converts `config.json` to the
    model's shape, and `sources` finds our parameters in its arrays, given that shape. Both raise ValueError for a form
    that ours does not have.
    """

    auto_class: str
    config: Callable[[Mapping[str, Any]], Config]
    sources: Callable[[StateDict, Any], Params]


_AUTO_CLASSES: dict[Head, str] = {
    "Model": "AutoModel",
    "ForPreTraining": "AutoModelForPreTraining",
    "ForCTC": "AutoModelForCTC",
    "ForSequenceClassification": "AutoModelForAudioClassification",
    "ForAudioFrameClassification": "AutoModelForAudioFrameClassification",
    "ForXVector": "AutoModelForAudioXVector",
}


def _speech_readers(module: Any) -> dict[str, Reader]:
    """Returns the readers of the classes of a family of speech encoders, or of several with one form."""
    return {
        name: Reader(
            _AUTO_CLASSES[head],
            module.config_from_hugging_face,
            partial(module.sources, architecture=name),
        )
        for name, head in module.ARCHITECTURES.items()
    }


def _text_sources(arrays: StateDict, config: TransformerConfig) -> Params:
    return {"transformer": transformer.sources(arrays, config)}


def _voice_sources(arrays: StateDict, config: FastSpeech2Config) -> Params:
    return {"acoustic": fastspeech2.sources(arrays, config)}


def _text_reader(auto_class: str, sources: Callable[[StateDict, Any], Params] = _text_sources) -> Reader:
    return Reader(auto_class, config_from_hugging_face, sources)


def _text_head_reader(auto_class: str, architecture: str) -> Reader:
    return _text_reader(auto_class, partial(text_heads.head_sources, architecture=architecture))


def _text_task(architecture: str) -> str:
    return "MaskedLM" if architecture.endswith("MaskedLM") else "CausalLM"


TEXT_MODELS = tuple(families.LANGUAGE_MODELS.values())
TEXT_HEADS = {
    "AutoModelForSequenceClassification": families.CLASSIFIERS,
    "AutoModelForTokenClassification": families.TAGGERS,
    "AutoModelForQuestionAnswering": families.READERS_OF_SPANS,
}
"""Classes with a head on a text encoder by `model_type`, by the class that opens them."""

READERS = {
    **_speech_readers(wav2vec2_bert),
    **_speech_readers(wav2vec2),
    "ParakeetForCTC": Reader("AutoModelForCTC", parakeet.config_from_hugging_face, parakeet.sources),
    nemotron.ARCHITECTURE: Reader("AutoModelForRNNT", nemotron.config_from_hugging_face, nemotron.sources),
    **{name: Reader(name, hifigan.config_from_hugging_face, hifigan.sources) for name in hifigan.ARCHITECTURES},
    fastspeech2.MODEL: Reader("AutoModelForTextToSpectrogram", fastspeech2.config_from_hugging_face, _voice_sources),
    wav_tokenizer.MODEL: Reader("AutoModel", wav_tokenizer.config_from_hugging_face, wav_tokenizer.sources),
    whisper.ARCHITECTURE: Reader("AutoModelForSpeechSeq2Seq", whisper.config_from_hugging_face, whisper.sources),
    voxtral.ARCHITECTURE: Reader("AutoModelForSpeechSeq2Seq", voxtral.config_from_hugging_face, voxtral.sources),
    **{name: _text_reader(f"AutoModelFor{_text_task(name)}") for name in TEXT_MODELS},
    **{name: _text_reader("AutoModel", text_heads.bare_sources) for name in families.ENCODERS.values()},
    **{
        name: _text_head_reader(auto_class, name)
        for auto_class, classes in TEXT_HEADS.items()
        for name in classes.values()
    },
}
"""The classes that are read."""
