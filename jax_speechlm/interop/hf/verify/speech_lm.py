"""transformers on the folder of a speech-language model, beside us: the same speech has to give the same answers.

Voxtral's tower is given no mask, so a clip is compared that fills whole windows of the adapter, one at a time.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
import transformers
from jaxtyping import Float, Int16

from data_pipelines.tokenizers.hugging_face import HuggingFaceTokenizer
from jax_speechlm.core.vocabulary import Vocabulary
from jax_speechlm.decoding.lm.generate import GREEDY
from jax_speechlm.frontend.logmel import LogMel
from jax_speechlm.inference.asr.speech_lm import SpeechLanguageModel
from jax_speechlm.inference.checkpoint import LoadedRun
from jax_speechlm.inference.segmentation import in_batches
from jax_speechlm.interop.hf.registry import GENERATION, Package, audio_token, ids_in_folder
from jax_speechlm.interop.hf.verify.torch_models import distance, outputs, within
from jax_speechlm.interop.hf.verify.verdict import Check, guarded
from jax_speechlm.models.speech_lm import SpeechTransformer
from jax_speechlm.nn import functional
from jax_speechlm.nn.lora import LoRA, merge

_MOST_TOKENS = 60  # of an answer that is read
_SCALE = np.float32(32768)


def compare_answers(
    folder: Path,
    run: LoadedRun,
    made: Package,
    model: Any,
    extract: Callable,
    clips: Sequence[Int16[np.ndarray, "..."]],
    texts: Sequence[str],
) -> Iterator[Check]:
    """The checks of a `VoxtralForConditionalGeneration` that transformers opened.

    Args:
      made: what `run` is in Hugging Face's terms.
      extract: the folder's feature extractor.
      texts: what is read as answers.
    """
    clips = [cut for clip in clips if len(cut := whole_windows(clip, run))]
    if not clips:
        yield Check("clips", "none is as long as a window of the adapter: name a longer file with --audio", False)
        return
    params, _ = merge(run.params, run.experiment.model.lora)
    experiment = run.experiment.replace(model=run.experiment.model.replace(lora=LoRA()))
    run = dataclasses.replace(run, params=params, experiment=experiment)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    yield guarded("ids", lambda: _ids(tokenizer, run, model, texts))
    yield guarded("logits", lambda: _logits(run, model, extract, clips, texts))
    settings = {name: value for name, value in made.files[GENERATION].items() if name != "max_length"}
    yield guarded("answer", lambda: _answers(tokenizer, run, model, settings, extract, clips))


def whole_windows(clip: Int16[np.ndarray, " samples"], run: LoadedRun) -> Int16[np.ndarray, " less"]:
    """The clip without its end, which fills no window of the adapter; empty where it is too short for one."""
    mel, frames = run.experiment.frontend.mel, run.experiment.model.adapter.frames
    vectors = mel.num_frames(len(clip)) // frames * frames
    return clip[: samples_of(mel, vectors) if vectors else 0]


def samples_of(mel: LogMel, vectors: int) -> int:
    """The fewest samples that give so many vectors."""
    return vectors * mel.frame_samples + mel.context_samples


def _ids(tokenizer: Any, run: LoadedRun, model: Any, texts: Sequence[str]) -> Check:
    config, prompt = model.config, run.experiment.objective.prompts.of(run.experiment.objective.task)
    for text in (prompt.before, prompt.behind, *texts):
        ids = run.tokenizer.encode(text)
        expected = ids_in_folder(run.tokenizer, ids)
        if (found := tokenizer(text, add_special_tokens=False)["input_ids"]) != expected:
            return Check("ids", f"{text!r} is {found}, not {expected}", False)
        if (back := _decoded(tokenizer, expected)) != (said := run.tokenizer.decode(ids)):
            return Check("ids", f"{expected} are {back!r}, not {said!r}", False)
    ends = config.text_config.eos_token_id
    ends = ends if isinstance(ends, list) else [] if ends is None else [ends]
    vocabulary = Vocabulary.of(run.tokenizer)
    (end,) = ids_in_folder(run.tokenizer, [vocabulary.boundary])
    before = ids_in_folder(run.tokenizer, [*vocabulary.prefix, *run.tokenizer.encode(prompt.before)])
    if (found := tokenizer(prompt.before)["input_ids"][: len(before)]) != before:
        return Check("ids", f"the prompt begins {found} there, and {before} by our reading", False)
    if config.audio_token_id != (speech := audio_token(run.tokenizer)) or (ends and end not in ends):
        return Check("ids", f"speech and eos are {config.audio_token_id}, {ends}, not {speech}, {end}", False)
    return Check("ids", f"of {len(texts)} texts; {speech} stands for speech, eos is {end}", True)


def _decoded(tokenizer: Any, ids: Sequence[int]) -> str:
    return tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def _logits(run: LoadedRun, model: Any, extract: Callable, clips: Sequence[np.ndarray], texts: Sequence[str]) -> Check:
    """Of every place of a row: prompt, speech and answer, on the extractor's features."""
    before, behind = run.experiment.objective.prompt_ids(run.tokenizer)
    size = Vocabulary.of(run.tokenizer).size
    make = lambda rngs: SpeechTransformer(run.experiment.model, size, rngs=rngs)  # noqa: E731
    graphdef = functional.declare(make).graphdef

    @jax.jit
    def logits(params: functional.Params, features: jax.Array, answer: jax.Array) -> Float[jax.Array, "1 time vocab"]:
        bound = functional.bind(graphdef, params)
        speech, count = bound.encode_speech(features, jnp.array([features.shape[1]]))
        length = jnp.array([answer.shape[1]])
        rows = bound.lay_out(before, speech, count, behind, answer, length)
        hidden, _ = bound.transformer.encode(rows.vectors, rows.segment, rows.position)
        return bound.transformer.logits(hidden).astype(jnp.float32)

    worst, places = 0.0, 0
    foreign = isinstance(run.tokenizer, HuggingFaceTokenizer)
    for number, clip in enumerate(clips):
        features = extract(clip / _SCALE, pad_to_multiple_of=1)["input_features"]
        answer = np.array([run.tokenizer.encode(texts[number % len(texts)])[:_MOST_TOKENS]], np.int32)
        ours = np.asarray(logits(run.params, features, answer))
        ours = ours[..., run.tokenizer.places.ours] if foreign else ours
        said = np.array([ids_in_folder(run.tokenizer, answer[0])], np.int64)
        row = np.concatenate([_prompt(run, features), said], axis=1)
        worst = max(worst, distance(ours, outputs(model, {"input_ids": row, "input_features": features})))
        places += ours.shape[1]
    return within("logits", worst, f"{places} positions of {len(clips)} clips")


def _prompt(run: LoadedRun, features: np.ndarray) -> np.ndarray:
    """int64 [1, length]: ids of what stands before the answer."""
    before, behind = run.experiment.objective.prompt_ids(run.tokenizer)
    count = features.shape[1] // run.experiment.model.adapter.frames
    speech = [audio_token(run.tokenizer)] * count
    return np.array([[*ids_in_folder(run.tokenizer, before), *speech, *ids_in_folder(run.tokenizer, behind)]], np.int64)


def _answers(
    tokenizer: Any,
    run: LoadedRun,
    model: Any,
    settings: dict[str, Any],
    extract: Callable,
    clips: Sequence[np.ndarray],
) -> Check:
    """By each side from samples to text, `generate` with the settings that the folder has."""
    ours = SpeechLanguageModel(run.checkpoint, run.step, run.experiment, run.tokenizer, run.params, GREEDY)
    found = {number: texts for batch in in_batches(clips) for number, texts in ours.answers(batch).items()}
    ends = settings["eos_token_id"]
    ends = ends if isinstance(ends, list) else [ends]
    model.generation_config = transformers.GenerationConfig(**settings)  # one given to `generate` is filled up by it
    for number, clip in enumerate(clips):
        (answer,) = found[number]
        features = extract(clip / _SCALE, pad_to_multiple_of=1)["input_features"]
        prompt = _prompt(run, features)
        written = model.generate(
            input_ids=torch.tensor(prompt),
            input_features=torch.tensor(features),
            max_new_tokens=answer.num_tokens,
        )[0, prompt.shape[1] :].tolist()
        ended = not set(ends).isdisjoint(written)
        if (text := _decoded(tokenizer, written)) != answer.text or ended != answer.ended:
            return Check("answer", f"to clip {number}: {text!r}, not {answer.text!r}", False)
    return Check("answer", f"to {len(clips)} clips, greedy", True)
