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
from jax_speechlm.core.tree import name_of
from jax_speechlm.frontend.frontend import FrontEnd
from jax_speechlm.inference.checkpoint import LoadedRun
from jax_speechlm.interop import folders
from jax_speechlm.interop.folders import RECORD, ExportError, FailedCheck
from jax_speechlm.interop.hf import feature_extractor, voxtral, wav2vec2_bert
from jax_speechlm.interop.hf.foreign_tokenizers import read_ctc_tokenizer, read_text_tokenizer
from jax_speechlm.interop.hf.mapping import TensorSource, place
from jax_speechlm.interop.hf.registry import TEXT_MODELS, Model, id_axis, read_model, settings
from jax_speechlm.interop.hf.transformer import CLASSIFIER
from jax_speechlm.interop.hf.verify.check import check_import
from jax_speechlm.interop.hf.verify.verdict import Verdict
from jax_speechlm.nn import functional
from jax_speechlm.nn.functional import Params
from jax_speechlm.nn.lora import LoRA
from jax_speechlm.objectives.asr.ctc import CTC
from jax_speechlm.objectives.base import ObjectiveConfig
from jax_speechlm.objectives.distillation import Distillation
from jax_speechlm.objectives.encoder_only import EncoderOnly
from jax_speechlm.objectives.heads.classification import Classification
from jax_speechlm.objectives.heads.frame_classification import FrameClassification
from jax_speechlm.objectives.heads.speaker_verification import SpeakerVerification
from jax_speechlm.objectives.lm.causal_lm import CausalLM
from jax_speechlm.objectives.lm.masked_lm import MaskedLM
from jax_speechlm.objectives.speech_text.speech_lm import SpeechLM
from jax_speechlm.parallel.mesh import MeshShape, make_mesh, param_shardings
from jax_speechlm.recipes.experiment import Experiment, Speech, Text
from jax_speechlm.training import checkpoints as ckpt
from jax_speechlm.training.source import saved_tokenizer, tokenizer_files

_PROCESSOR = "processor_config.json"  # where transformers 5 saves a front end together with a tokenizer
_SPEECH = Speech(sets=())  # its training data is not known


@dataclasses.dataclass(frozen=True)
class Imported:
    """A folder as a run, with parameters that are still in its files.

    Attributes:
      architecture: the class in transformers.
      experiment: the run's config; its data and objective are for further training, not a record of the past one.
      tokenizer: None for an encoder alone.
      units: fingerprint of the k-means whose units it was trained on, if the folder is an export that recorded it.
      sources: where each parameter is read from, with rows in the order of this project's ids.
      declaration: shapes of the model's parameters, and the names of their axes.
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

    Every command that takes a run takes it: eval, transcribe, generate, embed, probe, export, finetune --from. It
    appears once it has been checked, by transformers where torch and transformers are installed, else by exporting it
    again, which has to give the folder's arrays bit for bit; where something differs nothing appears and the exit
    status is 1. The verdict is kept in the run's jax_speechlm.json.

    Args:
      folder: a local folder with config.json, safetensors, and the files of tokenizer and front end.
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
    imported = read_folder(folder)
    experiment = imported.experiment.replace(mesh=mesh)
    params = imported.place(make_mesh(mesh), jnp.dtype(dtype))
    record = {"imported": str(folder), "architecture": imported.architecture, "dtype": dtype}
    with folders.written(out, record) as run:
        _save(run, imported, experiment, params)
        del params
        loaded = LoadedRun.read(run)
        verdict = check_import(folder, loaded, imported.sources, jnp.dtype(dtype), audio, text)
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
    """Reads a folder as a run; its arrays are not read yet.

    Returns:
      The run, with the places in the files of all parameters.

    Raises:
      ExportError: it cannot become a run; the message names the reason.
    """
    model = read_model(folder)
    try:
        exported = _as_exported(folder, model)
        experiment, tokenizer, units = exported or (*EXPERIMENTS[model.architecture](folder, model), None)
        objective = experiment.objective.build(experiment.model, experiment.frontend, tokenizer)
        declaration = functional.declare(objective.make)
    except ExportError:
        raise
    except (ValueError, DataError) as error:
        raise ExportError(f"{folder}: {error}") from error
    sources = _with_our_ids(model.sources, tokenizer, declaration.shapes)
    _require_shapes(folder, sources, declaration.shapes)
    return Imported(model.architecture, experiment, tokenizer, units, sources, declaration)


def _as_exported(folder: Path, model: Model) -> tuple[Experiment, Tokenizer | None, str | None] | None:
    """Returns the run that the folder was exported from; None if it is not an export, or was changed since."""
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
    there = {name: folders.read_file(folder, name) for name in files if (folder / name).exists()}
    if config != model.values or files != there:
        print(f"{folder / RECORD} is not of the files beside it, and left aside", file=sys.stderr)
        return None
    if isinstance(experiment.objective, Distillation):  # the student alone was exported
        experiment = experiment.replace(objective=experiment.objective.student)
    if model.architecture == voxtral.ARCHITECTURE:  # LoRA is merged into its weights
        experiment = experiment.replace(model=experiment.model.replace(lora=LoRA()))
    if "transformer" in model.sources or model.architecture in wav2vec2_bert.HEADED:
        return experiment, tokenizer, record.get("units")
    objective = CTC() if "head" in model.sources else EncoderOnly()  # the only parts that an export keeps
    if experiment.objective.kind == objective.kind:
        return experiment, tokenizer, None
    data = _SPEECH.replace(sets=experiment.data.sets, data_dir=experiment.data.data_dir)
    return experiment.replace(objective=objective, data=data), tokenizer, None


def _of_speech(folder: Path, model: Model, objective: ObjectiveConfig) -> Experiment:
    return Experiment(objective=objective, model=model.config, frontend=_front_end(folder), data=_SPEECH)


def _encoder(folder: Path, model: Model) -> tuple[Experiment, None]:
    return _of_speech(folder, model, EncoderOnly()), None


def _recognizer(folder: Path, model: Model) -> tuple[Experiment, Tokenizer]:
    tokenizer = read_ctc_tokenizer(folder, model.values, _num_rows(folder, model, model.settings, ("head", "bias")))
    return _of_speech(folder, model, CTC()), tokenizer


def _classifier(folder: Path, model: Model) -> tuple[Experiment, None]:
    return _of_speech(folder, model, Classification(classes=_class_names(folder, model))), None


def _frame_classifier(folder: Path, model: Model) -> tuple[Experiment, None]:
    return _of_speech(folder, model, FrameClassification(classes=_class_names(folder, model))), None


def _speaker_model(folder: Path, model: Model) -> tuple[Experiment, None]:
    classes, head = _class_names(folder, model), wav2vec2_bert.x_vector_config_from_hugging_face(model.settings)
    return _of_speech(folder, model, SpeakerVerification(classes=classes, head=head)), None


def _class_names(folder: Path, model: Model) -> tuple[str, ...]:
    names, sources = model.settings["id2label"], model.sources
    array, rank = (sources["head"]["bias"], 1) if "head" in sources else (sources["speaker"]["speakers"], 2)
    if len(array.shape) != rank:
        raise ExportError(f"{folder}: the array of its classes has {len(array.shape)} dimensions, and not {rank}")
    count = array.shape[-1]
    if not isinstance(names, dict) or names.keys() != {str(number) for number in range(count)}:
        raise ExportError(f"{folder / 'config.json'}: id2label does not name the {count} classes of the head")
    return tuple(names[str(number)] for number in range(count))


def _text_classifier(folder: Path, model: Model) -> tuple[Experiment, Tokenizer]:
    if (pooling := model.settings["classifier_pooling"]) != "mean":
        raise ExportError(
            f"{folder / 'config.json'}: classifier_pooling={pooling!r}: here it is the mean of all tokens"
        )
    experiment, tokenizer = _text_model(folder, model)
    return experiment.replace(objective=Classification(classes=_class_names(folder, model))), tokenizer


def _speech_language_model(folder: Path, model: Model) -> tuple[Experiment, Tokenizer]:
    text, speech = model.settings["text_config"], model.values.get("audio_token_id")
    if type(speech) is not int:
        raise ExportError(f"{folder / 'config.json'} has no audio_token_id: nothing says which id stands for speech")
    rows = _num_rows(folder, model, text, ("transformer", "embedding"))
    tokenizer = read_text_tokenizer(folder, text, rows, causal=True, mask=speech)
    return _of_speech(folder, model, _prompted(folder)), tokenizer


def _prompted(folder: Path) -> SpeechLM:
    """Reads the task of a speech-language model, and its prompt."""
    file = folder / voxtral.PROMPT
    if not file.exists():
        raise ExportError(
            f'{file} is missing: nothing says how the model is asked. Write {{"task": "transcribe", "before": "...", '
            '"behind": "..."}, the texts before and behind the speech that it was trained with'
        )
    said = folders.read_json(folder, voxtral.PROMPT)
    try:
        task, prompt = said["task"], {name: said[name] for name in ("before", "behind")}
        return SpeechLM(task=task, prompts={task: prompt})
    except (KeyError, TypeError, ValueError) as error:
        raise ExportError(f"{file} does not give a task and the texts before and behind the speech: {error}") from error


def _text_model(folder: Path, model: Model) -> tuple[Experiment, Tokenizer]:
    causal = model.config.causal
    num_rows = _num_rows(folder, model, model.settings, ("transformer", "embedding"))
    tokenizer = read_text_tokenizer(folder, model.values, num_rows, causal=causal)
    learnt = model.config.positions
    context = learnt.longest if learnt else model.settings["max_position_embeddings"]
    data = Text(sets=(), context=context, tokens_per_batch=context, packed=causal)
    return Experiment(objective=CausalLM() if causal else MaskedLM(), model=model.config, data=data), tokenizer


EXPERIMENTS: dict[str, Callable[[Path, Model], tuple[Experiment, Tokenizer | None]]] = {
    "Wav2Vec2BertModel": _encoder,
    "Wav2Vec2BertForCTC": _recognizer,
    "ParakeetForCTC": _recognizer,
    "Wav2Vec2BertForSequenceClassification": _classifier,
    "Wav2Vec2BertForAudioFrameClassification": _frame_classifier,
    "Wav2Vec2BertForXVector": _speaker_model,
    **dict.fromkeys(TEXT_MODELS, _text_model),
    CLASSIFIER: _text_classifier,
    voxtral.ARCHITECTURE: _speech_language_model,
}
"""The run that each class of transformers becomes; `registry.READERS` has the readers of the classes."""


def _front_end(folder: Path) -> FrontEnd:
    file = next(
        (name for name in (feature_extractor.FILE, _PROCESSOR) if (folder / name).exists()), feature_extractor.FILE
    )
    values = folders.read_json(folder, file)
    if file == _PROCESSOR and isinstance(values, dict) and not values.get("auto_map"):
        values = values.get("feature_extractor")
    if not isinstance(values, dict) or values.get("auto_map"):
        raise ExportError(f"{folder / file} names code of the folder's own, or no feature extractor: refused")
    try:
        return FrontEnd(mel=feature_extractor.front_end_from_hugging_face(values))
    except ValueError as error:
        raise ExportError(f"{folder / file}: {error}") from error


def _num_rows(folder: Path, model: Model, values: dict[str, Any], path: Sequence[str]) -> int:
    source = model.sources
    for name in path:
        if name not in source:
            raise ExportError(f"{folder} has no {'/'.join(path)} among its arrays: it is no whole {model.architecture}")
        source = source[name]
    found = source.shape[0] if source.shape else 0
    if (said := values.get("vocab_size")) != found:
        raise ExportError(f"{folder / 'config.json'}: vocab_size is {said}, and the model's table has {found} rows")
    return found


def _with_our_ids(sources: Params, tokenizer: Tokenizer | None, shapes: Params) -> Params:
    """Returns sources whose rows are in the order of our ids; a row without a counterpart is zeros."""
    if not isinstance(tokenizer, HuggingFaceTokenizer):
        return sources
    sizes = {name_of(path): leaf.shape for path, leaf in jax.tree.leaves_with_path(shapes)}

    def move(path: tuple, source: TensorSource) -> TensorSource:
        axis, shape = id_axis(sources, path), sizes.get(name_of(path))
        if axis is None or shape is None or len(source.shape) != len(shape):
            return source
        return dataclasses.replace(source, ids=tokenizer.places.rows(shape[axis]), id_axis=axis)

    return jax.tree.map_with_path(move, sources)


def _require_shapes(folder: Path, sources: Params, shapes: Params) -> None:
    ours = {name_of(path): leaf.shape for path, leaf in jax.tree.leaves_with_path(shapes)}
    theirs = {name_of(path): leaf.shape for path, leaf in jax.tree.leaves_with_path(sources)}
    for name in sorted(ours.keys() | theirs.keys()):
        if ours.get(name) != theirs.get(name):
            raise ExportError(
                f"{folder}: the arrays of {name} give {theirs.get(name)}, and config.json a model with "
                f"{ours.get(name)}: they are not of one model; copy both anew"
            )


def _save(run: Path, imported: Imported, experiment: Experiment, params: Params) -> None:
    meta = {"experiment": experiment.model_dump(mode="json"), "tokenizer": tokenizer_files(imported.tokenizer)}
    meta |= {"plan": None, "units": imported.units, "step": 0}
    ckpt.write(run, params, meta)
