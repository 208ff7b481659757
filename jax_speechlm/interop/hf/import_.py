"""`jax-speechlm import FOLDER --out RUN`: converts a Hugging Face folder to a run with one checkpoint.

Only JSON and safetensors are read, and no code of the folder is run. Arrays are copied from the files to their devices
shard by shard. The import of a folder that `jax-speechlm export` wrote gives the run that was exported.
"""

import dataclasses
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
from tyro.conf import Positional

from data_pipelines.core.errors import DataError
from data_pipelines.core.tokenizer import Tokenizer
from data_pipelines.tokenizers.hugging_face import HuggingFaceTokenizer
from jax_speechlm.core.tree import at, name_of
from jax_speechlm.frontend.frontend import FrontEnd
from jax_speechlm.interop import folders
from jax_speechlm.interop.folders import RECORD, ExportError, FailedCheck, errors_of
from jax_speechlm.interop.hf import (
    fastspeech2,
    feature_extractor,
    hifigan,
    nemotron,
    sentence_transformers,
    text_heads,
    voxtral,
    wav2vec2,
    wav2vec2_bert,
    wav_tokenizer,
    whisper,
)
from jax_speechlm.interop.hf import text_families as families
from jax_speechlm.interop.hf.ctranslate2 import as_hugging_face
from jax_speechlm.interop.hf.foreign_tokenizers import (
    read_ctc_tokenizer,
    read_text_tokenizer,
    read_whisper_tokenizer,
)
from jax_speechlm.interop.hf.mapping import TensorSource, place
from jax_speechlm.interop.hf.registry import TEXT_MODELS, Model, id_axis, read_model, settings
from jax_speechlm.interop.hf.speech_forms import GENERATION
from jax_speechlm.interop.hf.speech_heads import WHOLE, Head, x_vector_config_from_hugging_face
from jax_speechlm.interop.hf.verify.check import check_import
from jax_speechlm.interop.hf.verify.verdict import Verdict
from jax_speechlm.nn import functional
from jax_speechlm.nn.functional import Params
from jax_speechlm.nn.lora import LoRA
from jax_speechlm.objectives.asr.aed import AED
from jax_speechlm.objectives.asr.ctc import CTC
from jax_speechlm.objectives.asr.transducer import Transducer
from jax_speechlm.objectives.base import ObjectiveConfig
from jax_speechlm.objectives.distillation import Distillation
from jax_speechlm.objectives.encoder_only import EncoderOnly
from jax_speechlm.objectives.heads.base import HeadConfig
from jax_speechlm.objectives.heads.classification import Classification
from jax_speechlm.objectives.heads.frame_classification import FrameClassification
from jax_speechlm.objectives.heads.speaker_verification import SpeakerVerification
from jax_speechlm.objectives.heads.text_tokens import QuestionAnswering, TokenClassification
from jax_speechlm.objectives.lm.causal_lm import CausalLM
from jax_speechlm.objectives.lm.masked_lm import MaskedLM
from jax_speechlm.objectives.speech_text.speech_lm import SpeechLM
from jax_speechlm.objectives.tts.codec import CODEBOOK, Codec
from jax_speechlm.objectives.tts.vocoder import Vocoding
from jax_speechlm.optim.optimizers import Group, Optimizer
from jax_speechlm.parallel.mesh import MeshShape, make_mesh, param_shardings
from jax_speechlm.recipes.experiment import Experiment, Speech, Text
from jax_speechlm.training import checkpoints as ckpt
from jax_speechlm.training.runs import LoadedRun, saved_tokenizer, tokenizer_files

_HEADS = wav2vec2_bert.ARCHITECTURES | wav2vec2.ARCHITECTURES
_PROCESSOR = "processor_config.json"  # where transformers 5 saves a front end together with a tokenizer
_SPEECH = Speech(sets=())  # its training data is not known


@dataclasses.dataclass(frozen=True)
class Imported:
    """A folder as a run, with parameters that are still in its files.

    Attributes:
      experiment: the run's config; its data and objective are for further training, not a record of the past one.
      tokenizer: None for an encoder alone.
      units: fingerprint of the k-means whose units it was trained on, if the folder is an export that recorded it.
      sources: where each parameter is read from, with rows in the order of this project's ids.
    """

    architecture: str
    experiment: Experiment
    tokenizer: Tokenizer | None
    units: str | None
    sources: Params
    declaration: functional.Declaration

    def place(self, mesh: jax.sharding.Mesh, dtype: Any = jnp.float32) -> Params:
        """Returns the parameters on a mesh; a host reads only the shards of its own devices."""
        return place(self.sources, param_shardings(mesh, self.declaration.axes, self.declaration.shapes), dtype)


def import_run(
    folder: Positional[Path],
    out: Path,
    dtype: Literal["float32", "bfloat16"] = "float32",
    mesh: MeshShape = MeshShape(),  # noqa: B008  frozen
    audio: tuple[Path, ...] = (),
    text: tuple[str, ...] = (),
) -> Verdict:
    """Makes a run with one checkpoint of a folder that transformers' save_pretrained, or our export, wrote.

    A folder of CTranslate2's with a Whisper, such as faster-whisper's, is read too.
    Every command that takes a run takes it: eval, transcribe, generate, embed, probe, export, finetune --from. It
    appears once it has been checked, by transformers where torch and transformers are installed, else by exporting it
    again, which has to give the folder's arrays bit for bit; where something differs nothing appears and the exit
    status is 1. The verdict is kept in the run's jax_speechlm.json.

    Args:
      folder: a local folder with config.json, safetensors, and the files of tokenizer and front end; or with
        CTranslate2's model.bin, config.json and tokenizer.json.
      out: the run's folder; an earlier import there is replaced.
      dtype: of the stored parameters; bfloat16 takes half the memory and rounds values of other types.
      mesh: how to spread the parameters over this machine's devices while they are read.
      audio: files to compare on, in addition to synthetic clips.
      text: texts to compare on, in addition to built-in ones.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # else tokenizers warns after every fork
    folders.require_free(out)
    if not folder.is_dir():
        raise ExportError(f"{folder} is no folder: give one with config.json and safetensors in it, on this machine")
    with as_hugging_face(folder) as source:
        imported = read_folder(source)
        experiment = imported.experiment.replace(mesh=mesh)
        params = imported.place(make_mesh(mesh), jnp.dtype(dtype))
        record = {"imported": str(folder), "architecture": imported.architecture, "dtype": dtype}
        meta = {"experiment": experiment.model_dump(mode="json"), "tokenizer": tokenizer_files(imported.tokenizer)}
        with folders.written(out, record) as run:
            ckpt.write(run, params, meta | {"plan": None, "units": imported.units, "step": 0})
            del params
            loaded = LoadedRun.read(run)
            verdict = check_import(source, loaded, imported.sources, jnp.dtype(dtype), audio, text)
            folders.write_json(run, RECORD, record | {"check": verdict.to_json()})
            if verdict.failed:
                raise FailedCheck(f"{folder}: {verdict.line}")
    print(f"{out}: a run of kind {experiment.objective.kind}; {verdict.line}")
    if not verdict.is_full:
        print(
            "It was not compared with transformers: torch and transformers are not installed here (pip install "
            "'jax_speechlm[parity]'). Where they are, import it again to have that done"
        )
    return verdict


def read_folder(folder: Path) -> Imported:
    """Reads a folder as a run, or raises an `ExportError` with the reason; the parameters are not read yet."""
    model = read_model(folder)
    with errors_of(folder):
        exported = _as_exported(model)
        experiment, tokenizer, units = exported or (*EXPERIMENTS[model.architecture](model), None)
        objective = experiment.objective.build(experiment.model, experiment.frontend, tokenizer)
        declaration = _of_trained_model(functional.declare(objective.make), objective.training_only)
    sources = _with_local_ids(model.sources, tokenizer, declaration.shapes)
    _require_shapes(folder, sources, declaration.shapes)
    return Imported(model.architecture, experiment, tokenizer, units, sources, declaration)


def _of_trained_model(declaration: functional.Declaration, training_only: Sequence[str]) -> functional.Declaration:
    """Leaves out groups of parameters that only training needs, such as discriminators and aligners."""
    parts = (declaration.shapes, declaration.axes, declaration.decays)
    kept = [{name: part for name, part in each.items() if name not in training_only} for each in parts]
    return functional.Declaration(declaration.graphdef, *kept)


def _as_exported(model: Model) -> tuple[Experiment, Tokenizer | None, str | None] | None:
    """Returns the run that the folder was exported from; None if it is not an export, or was changed since."""
    folder = model.folder
    if not (folder / RECORD).is_file():
        return None
    record = folders.read_json(folder, RECORD)
    if not isinstance(record, dict) or record.get("target") != "hf" or "tokenizer" not in record:
        return None
    try:
        experiment = Experiment.model_validate(record["experiment"]).replace(init_from=())
        tokenizer = saved_tokenizer(record)
        config, files = settings(experiment, tokenizer)
    except (KeyError, TypeError, AttributeError, ValueError, DataError, ckpt.CheckpointError, OSError) as error:
        raise ExportError(f"{folder / RECORD} is damaged ({error}): remove it, or export the model anew") from error
    present = {name: folders.read_file(folder, name) for name in files if (folder / name).exists()}
    if config != model.values or files != present:
        print(f"{folder / RECORD} is not of the files beside it, and left aside", file=sys.stderr)
        return None
    if isinstance(experiment.objective, Distillation):  # the student alone was exported
        experiment = experiment.replace(objective=experiment.objective.student)
    if model.architecture == voxtral.ARCHITECTURE:  # LoRA is merged into its weights
        experiment = experiment.replace(model=experiment.model.replace(lora=LoRA()))
    if model.architecture == whisper.ARCHITECTURE:  # LoRA is merged into its weights, and the CTC head left out
        parts = {"model": experiment.model.replace(lora=LoRA())}
        return experiment.replace(**parts, objective=experiment.objective.replace(ctc_weight=0.0)), tokenizer, None
    if {"transformer", "generator", "acoustic"} & model.sources.keys() or _HEADS.get(model.architecture) in WHOLE:
        return experiment, tokenizer, record.get("units")
    if model.architecture == wav_tokenizer.MODEL:  # without the discriminators
        groups = tuple(group for group in experiment.optimizer.groups if group.prefix != "discriminators")
        optimizer = experiment.optimizer.replace(groups=groups)
        objective = experiment.objective.replace(adversarial=None)
        return experiment.replace(objective=objective, optimizer=optimizer), None, None
    if model.architecture == nemotron.ARCHITECTURE:  # without the CTC head
        return experiment.replace(objective=experiment.objective.replace(ctc_weight=0.0)), tokenizer, None
    objective = CTC() if "head" in model.sources else EncoderOnly()  # the only parts that an export keeps
    if experiment.objective.kind == objective.kind:
        return experiment, tokenizer, None
    data = _SPEECH.replace(sets=experiment.data.sets, data_dir=experiment.data.data_dir)
    return experiment.replace(objective=objective, data=data), tokenizer, None


def _of_speech(
    model: Model, objective: ObjectiveConfig, tokenizer: Tokenizer | None = None
) -> tuple[Experiment, Tokenizer | None]:
    front_end = _front_end(model.folder)
    return Experiment(objective=objective, model=model.config, frontend=front_end, data=_SPEECH), tokenizer


def _vocoder(model: Model) -> tuple[Experiment, Tokenizer | None]:
    if (model.folder / feature_extractor.FILE).exists():
        return _of_speech(model, Vocoding())
    with errors_of(model.file):
        front_end = FrontEnd(mel=hifigan.default_features(model.values, model.config))
    return Experiment(objective=Vocoding(), model=model.config, frontend=front_end, data=_SPEECH), None


def _voice(model: Model) -> tuple[Experiment, None]:
    raise ExportError(
        f"{model.folder} does not say which spectrograms its voice was trained on and what its tokens are: of "
        f"{model.architecture}, folders that `jax-speechlm export` wrote are read, with their unchanged {RECORD}"
    )


def _codec(model: Model) -> tuple[Experiment, None]:
    rate = model.settings["sampling_rate"]
    experiment = Experiment(
        objective=Codec(crop_frames=-(-rate // model.config.hop)),  # of a second
        model=model.config,
        frontend=FrontEnd(mel=wav_tokenizer.spectrogram(model.config, rate)),
        optimizer=Optimizer(groups=(Group.assigned(CODEBOOK),)),
        data=_SPEECH,
    )
    return experiment, None


def _recognizer(model: Model) -> tuple[Experiment, Tokenizer | None]:
    tokenizer = read_ctc_tokenizer(model.folder, model.values, _num_rows(model, model.settings, ("head", "bias")))
    return _of_speech(model, CTC(), tokenizer)


def _transducer(model: Model) -> tuple[Experiment, Tokenizer | None]:
    num_rows = _num_rows(model, model.settings, ("joint", "bias"))
    tokenizer = read_ctc_tokenizer(model.folder, model.values, num_rows, "blank")
    network = nemotron.network_from_hugging_face(model.values)
    objective = Transducer(network=network, ctc_weight=0.0)
    experiment, _ = _of_speech(model, objective)
    processor = {}
    if (model.folder / nemotron.PROCESSOR).exists():
        processor = folders.read_json(model.folder, nemotron.PROCESSOR)
    with errors_of(model.folder / nemotron.PROCESSOR):
        chunk_lengths = nemotron.chunk_lengths_of(processor)
        return experiment.replace(model=experiment.model.replace(chunk_lengths=chunk_lengths)), tokenizer


def _speaker_model(model: Model) -> tuple[Experiment, Tokenizer | None]:
    return _headed(model, SpeakerVerification, head=x_vector_config_from_hugging_face(model.settings))


def _headed(model: Model, kind: type[HeadConfig], **settings: Any) -> tuple[Experiment, Tokenizer | None]:
    weighted = bool(model.settings["use_weighted_layer_sum"])
    return _of_speech(model, kind(classes=_class_names(model), weighted_layers=weighted, **settings))


def _class_names(model: Model) -> tuple[str, ...]:
    names, sources = model.settings["id2label"], model.sources
    array, rank = (sources["head"]["bias"], 1) if "head" in sources else (sources["speaker"]["speakers"], 2)
    if len(array.shape) != rank:
        raise ExportError(f"{model.folder}: the array of its classes has {len(array.shape)} dimensions, and not {rank}")
    labels = [str(label) for label in range(array.shape[-1])]
    if not isinstance(names, dict) or names.keys() != set(labels):
        raise ExportError(f"{model.file}: id2label does not name the {len(labels)} classes of the head")
    return tuple(names[label] for label in labels)


def _text_encoder(model: Model) -> tuple[Experiment, Tokenizer]:
    experiment, tokenizer = _text_model(model)
    objective, length = sentence_transformers.read_modules(model.folder)
    context = min(experiment.data.context, length or experiment.data.context)
    return experiment.replace(
        objective=objective.replace(pooler="pooler" in model.sources),
        data=experiment.data.replace(context=context, tokens_per_batch=context),
    ), tokenizer


def _text_classifier(model: Model) -> tuple[Experiment, Tokenizer]:
    if (kind := model.settings.get("problem_type")) not in (None, "single_label_classification"):
        raise ExportError(f"{model.file}: problem_type={kind!r} has no counterpart here: of its classes one is right")
    experiment, tokenizer = _text_model(model)
    with errors_of(model.file):
        objective = text_heads.classification_of(model.settings, model.config, _class_names(model))
    return experiment.replace(objective=objective), tokenizer


def _tagger(model: Model) -> tuple[Experiment, Tokenizer]:
    experiment, tokenizer = _text_model(model)
    return experiment.replace(objective=TokenClassification(classes=_class_names(model))), tokenizer


def _reader_of_spans(model: Model) -> tuple[Experiment, Tokenizer]:
    experiment, tokenizer = _text_model(model)
    return experiment.replace(objective=QuestionAnswering()), tokenizer


def _whisper(model: Model) -> tuple[Experiment, Tokenizer | None]:
    num_rows = _num_rows(model, model.settings, ("decoder", "embedding"))
    tokenizer, tokens = read_whisper_tokenizer(model.folder, model.values, num_rows)
    experiment, _ = _of_speech(model, AED(label_smoothing=0.0, whisper=tokens))
    if (model.folder / GENERATION).is_file():
        heads = folders.read_json(model.folder, GENERATION).get("alignment_heads") or ()
        decoder = experiment.model.decoder.replace(alignment_heads=tuple(map(tuple, heads)))
        experiment = experiment.replace(model=experiment.model.replace(decoder=decoder))
    return _in_rows_of_one(experiment), tokenizer


def _in_rows_of_one(experiment: Experiment) -> Experiment:
    """Returns the experiment without packed rows if each utterance of such would become a window of its own."""
    if getattr(experiment.frontend.mel, "window_seconds", None) is None:
        return experiment
    return experiment.replace(data=experiment.data.replace(packed=False))


def _speech_language_model(model: Model) -> tuple[Experiment, Tokenizer | None]:
    text, speech_id = model.settings["text_config"], model.values.get("audio_token_id")
    if type(speech_id) is not int:
        raise ExportError(f"{model.file} has no audio_token_id: nothing says which id stands for speech")
    num_rows = _num_rows(model, text, ("transformer", "embedding"))
    tokenizer = read_text_tokenizer(model.folder, text, num_rows, causal=True, mask=speech_id)
    experiment, tokenizer = _of_speech(model, _prompted(model.folder), tokenizer)
    return _in_rows_of_one(experiment), tokenizer


def _prompted(folder: Path) -> SpeechLM:
    """Reads the task of a speech-language model, and its prompt."""
    file = folder / voxtral.PROMPT
    if not file.exists():
        raise ExportError(
            f'{file} is missing: nothing says how the model is asked. Write {{"task": "transcribe", "before": "...", '
            '"behind": "..."}, the texts before and behind the speech that it was trained with'
        )
    values = folders.read_json(folder, voxtral.PROMPT)
    try:
        prompt = {name: values[name] for name in ("before", "behind")}
        return SpeechLM(task=values["task"], prompts={values["task"]: prompt})
    except (KeyError, TypeError, ValueError) as error:
        raise ExportError(f"{file} does not give a task and the texts before and behind the speech: {error}") from error


def _text_model(model: Model) -> tuple[Experiment, Tokenizer]:
    causal, learnt = model.config.causal, model.config.positions
    num_rows = _num_rows(model, model.settings, ("transformer", "embedding"))
    tokenizer = read_text_tokenizer(model.folder, model.values, num_rows, causal=causal)
    context = learnt.longest if learnt else model.settings["max_position_embeddings"]
    data = Text(sets=(), context=context, tokens_per_batch=context, packed=causal)
    return Experiment(objective=CausalLM() if causal else MaskedLM(), model=model.config, data=data), tokenizer


_OF_HEADS: dict[Head, Callable[[Model], tuple[Experiment, Tokenizer | None]]] = {
    "Model": lambda model: _of_speech(model, EncoderOnly()),
    "ForPreTraining": lambda model: _of_speech(model, wav2vec2.contrast_from_hugging_face(model.values)),
    "ForCTC": _recognizer,
    "ForSequenceClassification": lambda model: _headed(model, Classification),
    "ForAudioFrameClassification": lambda model: _headed(model, FrameClassification),
    "ForXVector": _speaker_model,
}
EXPERIMENTS: dict[str, Callable[[Model], tuple[Experiment, Tokenizer | None]]] = {
    **{name: _OF_HEADS[head] for name, head in _HEADS.items()},
    "ParakeetForCTC": _recognizer,
    nemotron.ARCHITECTURE: _transducer,
    **dict.fromkeys(TEXT_MODELS, _text_model),
    **dict.fromkeys(families.ENCODERS.values(), _text_encoder),
    **dict.fromkeys(families.CLASSIFIERS.values(), _text_classifier),
    **dict.fromkeys(families.TAGGERS.values(), _tagger),
    **dict.fromkeys(families.READERS_OF_SPANS.values(), _reader_of_spans),
    **dict.fromkeys(hifigan.ARCHITECTURES, _vocoder),
    voxtral.ARCHITECTURE: _speech_language_model,
    whisper.ARCHITECTURE: _whisper,
    fastspeech2.MODEL: _voice,
    wav_tokenizer.MODEL: _codec,
}
"""The run that each class of transformers becomes; `registry.READERS` has the readers of the classes."""


def _front_end(folder: Path) -> FrontEnd:
    in_processor = not (folder / feature_extractor.FILE).exists() and (folder / _PROCESSOR).exists()
    file = _PROCESSOR if in_processor else feature_extractor.FILE
    values = folders.read_json(folder, file)
    if in_processor and isinstance(values, dict) and not values.get("auto_map"):
        values = values.get("feature_extractor")
    if not isinstance(values, dict) or values.get("auto_map"):
        raise ExportError(f"{folder / file} names code of the folder's own, or no feature extractor: refused")
    with errors_of(folder / file):
        return FrontEnd(mel=feature_extractor.front_end_from_hugging_face(values))


def _num_rows(model: Model, values: dict[str, Any], path: Sequence[str]) -> int:
    """Returns the rows of the table of ids at a path of the parameters, which have to be as many as `values` says."""
    if (source := at(model.sources, path)) is None:
        raise ExportError(
            f"{model.folder} has no {'/'.join(path)} among its arrays: it is no whole {model.architecture}"
        )
    num_rows = source.shape[0] if source.shape else 0
    if (expected := values.get("vocab_size")) != num_rows:
        raise ExportError(f"{model.file}: vocab_size is {expected}, and the model's table has {num_rows} rows")
    return num_rows


def _with_local_ids(sources: Params, tokenizer: Tokenizer | None, shapes: Params) -> Params:
    """Returns sources whose rows are in the order of our ids; a row without a counterpart is zeros."""
    if not isinstance(tokenizer, HuggingFaceTokenizer):
        return sources
    sizes = _shapes(shapes)

    def move(path: tuple, source: TensorSource) -> TensorSource:
        axis, shape = id_axis(sources, path), sizes.get(name_of(path))
        if axis is None or shape is None or len(source.shape) != len(shape):
            return source
        return dataclasses.replace(source, ids=tokenizer.places.rows(shape[axis]), id_axis=axis)

    return jax.tree.map_with_path(move, sources)


def _require_shapes(folder: Path, sources: Params, shapes: Params) -> None:
    in_files, declared = _shapes(sources), _shapes(shapes)
    for name in sorted(declared.keys() | in_files.keys()):
        if declared.get(name) != in_files.get(name):
            raise ExportError(
                f"{folder}: the arrays of {name} give {in_files.get(name)}, and config.json a model with "
                f"{declared.get(name)}: they are not of one model; copy both anew"
            )


def _shapes(tree: Params) -> dict[str, tuple[int, ...]]:
    return {name_of(path): leaf.shape for path, leaf in jax.tree.leaves_with_path(tree)}
