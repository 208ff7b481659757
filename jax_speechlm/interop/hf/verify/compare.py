"""transformers on an exported folder, beside us: the same audio or texts have to give the same numbers and words.

Everything is opened by the Auto classes from the folder alone, and computed in float32 on the CPU.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
import transformers
from jaxtyping import Int16

from data_pipelines.audio import decode as audio_files
from data_pipelines.core.audio_format import SAMPLE_RATE
from data_pipelines.tokenizers.hugging_face import HuggingFaceTokenizer
from jax_speechlm.core.batch import frame_mask
from jax_speechlm.core.vocabulary import PADDING
from jax_speechlm.decoding.ctc.greedy import best_path, collapse
from jax_speechlm.decoding.lm.generate import GREEDY
from jax_speechlm.frontend.logmel import log_mel
from jax_speechlm.inference.checkpoint import LoadedRun
from jax_speechlm.inference.lm.causal import LanguageModel
from jax_speechlm.inference.segmentation import in_batches
from jax_speechlm.interop.hf import voxtral
from jax_speechlm.interop.hf.feature_extractor import ending
from jax_speechlm.interop.hf.registry import Package, vocabulary_of
from jax_speechlm.interop.hf.tokenizer_files import SPEECH, TEXT
from jax_speechlm.interop.hf.transformer import CLASSIFIER
from jax_speechlm.interop.hf.verify import ids as foreign_ids
from jax_speechlm.interop.hf.verify import speech_lm, text_classes, x_vectors
from jax_speechlm.interop.hf.verify.our_logits import text_logits
from jax_speechlm.interop.hf.verify.torch_models import distance, open_model, outputs, within, words
from jax_speechlm.interop.hf.verify.verdict import Check, guarded
from jax_speechlm.models.encoders import make_encoder
from jax_speechlm.models.speech_lm import SpeechLMConfig
from jax_speechlm.nn import functional

Clip = Int16[np.ndarray, "..."]

_MOST_SECONDS = 30  # of a clip; transcription cuts longer ones too
_MOST_TOKENS, _NEW_TOKENS = 200, 20  # of a row of logits, and of a continuation
_TEXTS = (
    "In the beginning was the word",
    "  two  spaces, and one behind ",
    "Ünïcödé: ﬁve naïve façades, ½ of №1, 日本",
    "a line\n\n and another\n",
    "",
)


def compare(
    folder: Path,
    run: LoadedRun,
    made: Package,
    audio: Sequence[Path],
    texts: Sequence[str],
    rounded_to: str = "float32",
) -> Iterator[Check]:
    """Opens a folder with transformers and compares.

    Args:
      made: what `run` is in Hugging Face's terms.
      audio, texts: what to compare on, besides inputs of our own.
      rounded_to: the type that the run's parameters were rounded to on import; those of transformers are, too.

    Raises:
      AudioError: a file of `audio` cannot be read.
    """
    clips = [*synthetic_clips(), *(audio_files.decode(file)[: _MOST_SECONDS * SAMPLE_RATE] for file in audio)]
    run = in_float32(run)
    with _quiet(), torch.no_grad():
        try:
            model = open_model(folder, made.architecture, rounded_to)
        except Exception as error:  # settings that no class has end in errors of every kind
            yield Check("opens", f"{type(error).__name__}: {error}", False)
            return
        yield Check("opens", f"{type(model).__name__}, every array in its place", True)
        if made.architecture.startswith(("Wav2Vec2Bert", "Parakeet")):
            yield from _compare_speech(folder, run, made, model, clips)
        elif made.architecture == voxtral.ARCHITECTURE:
            extract, waves = _extractor(folder), _waves(clips)
            yield guarded("front end", lambda: _front_end(run.experiment.frontend.mel, extract, clips, waves))
            yield from speech_lm.compare_answers(folder, run, made, model, extract, clips, [*_TEXTS, *texts])
        elif made.architecture == CLASSIFIER:
            yield from text_classes.compare_classes(folder, run, model, [*_TEXTS, *texts])
        elif isinstance(run.tokenizer, HuggingFaceTokenizer):
            yield from foreign_ids.compare_text(folder, run, model, [*_TEXTS, *texts])
        else:
            yield from _compare_text(folder, run, model, [*_TEXTS, *texts])


def in_float32(run: LoadedRun) -> LoadedRun:
    """The run computing in float32, whatever it was trained in, with attention that every machine has."""

    def plain(model: Any) -> Any:
        if isinstance(model, SpeechLMConfig):
            return model.replace(encoder=plain(model.encoder), transformer=plain(model.transformer))
        model = model.replace(dtype="float32")
        return model.replace(attention="auto") if hasattr(model, "attention") else model

    return dataclasses.replace(run, experiment=run.experiment.replace(model=plain(run.experiment.model)))


def synthetic_clips() -> list[Clip]:
    """A gliding tone in noise: every number of windows modulo 4, odd and even numbers of samples, one vector alone."""
    rng, clips = np.random.default_rng(0), []
    for windows, more in ((96, 0), (97, 1), (98, 77), (99, 159), (61, 3), (42, 80), (4, 11)):
        seconds = np.arange(400 + 160 * (windows - 1) + more) / SAMPLE_RATE
        tone = np.sin(2 * np.pi * (150 + 900 * seconds) * seconds) * (1 + np.sin(20 * seconds))
        clips.append((5000 * tone + 400 * rng.standard_normal(len(seconds))).astype(np.int16))
    return clips


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' advice and progress bars."""
    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers.logging.set_verbosity(verbosity)
        transformers.logging.enable_progress_bar()


def _compare_speech(folder: Path, run: LoadedRun, made: Package, model: Any, clips: Sequence[Clip]) -> Iterator[Check]:
    mel, num_frames = run.experiment.frontend.mel, run.experiment.model.num_frames
    extract, waves = _extractor(folder), _waves(clips)
    yield guarded("front end", lambda: _front_end(mel, extract, clips, waves))
    if made.architecture == "Wav2Vec2BertForXVector":
        yield from x_vectors.compare_vectors(run, made, model, extract, waves)
        return
    what = "hidden states" if made.architecture == "Wav2Vec2BertModel" else "logits"
    batches = [*(extract(wave) for wave in waves), extract(waves)]
    yield guarded(what, lambda: _outputs(what, model, _ours(run, made), batches, num_frames))
    if made.architecture.endswith("ForCTC"):
        spelled = partial(_spelled, folder, model, extract, waves, num_frames)
        texts = _greedy_texts(run, clips)
        if isinstance(run.tokenizer, HuggingFaceTokenizer):
            yield guarded("ids", lambda: foreign_ids.ctc_ids(folder, model, run))
            yield guarded("greedy text", lambda: spelled(texts, foreign_ids.without_special))
            return
        yield guarded("ids", lambda: _ctc_ids(folder, model, run))
        yield guarded("greedy text", lambda: spelled(texts))
        vectors = [mel.num_frames(len(clip)) for clip in clips]  # one more may still be in the last frame
        certain = [
            ending(mel, len(clip)) == "same" or num_frames(num) == num_frames(num + 1)
            for clip, num in zip(clips, vectors, strict=True)
        ]
        yield guarded("pipeline", lambda: _pipeline(folder, waves, texts, certain))
    elif made.architecture == "Wav2Vec2BertForSequenceClassification":
        yield guarded("class", lambda: _named(model, extract, waves, _classes(run, clips)))
    elif made.architecture == "Wav2Vec2BertForAudioFrameClassification":
        yield guarded("classes", lambda: _frame_classes(run, model, extract, clips, waves))


def _extractor(folder: Path) -> Callable:
    extractor = transformers.AutoFeatureExtractor.from_pretrained(folder)
    return partial(extractor, sampling_rate=SAMPLE_RATE, return_tensors="np")


def _waves(clips: Sequence[Clip]) -> list[np.ndarray]:
    return [clip.astype(np.float32) / 32768 for clip in clips]


def _front_end(mel: Any, extract: Callable, clips: Sequence[Clip], waves: Sequence[np.ndarray]) -> Check:
    """Each clip by itself and all in a batch: the vectors that both have; and that theirs end as `ending` says."""
    worst = 0.0
    lengths = np.array([len(clip) for clip in clips], np.int32)
    ours, frames = jax.device_get(log_mel(jnp.asarray(_padded(clips)), jnp.asarray(lengths), mel))
    batch = extract(waves)
    for row, (clip, wave, num) in enumerate(zip(clips, waves, frames.tolist(), strict=True)):
        alone = extract(wave)
        for theirs, at in ((alone, 0), (batch, row)):
            worst = max(worst, distance(theirs["input_features"][at, :num], ours[row, :num]))
        expected = {"same": (num, num), "masked": (num + 1, num), "kept": (num + 1, num + 1)}[ending(mel, len(clip))]
        found = alone["input_features"].shape[1], int(alone["attention_mask"].sum())
        if found != expected:
            return Check("front end", f"{len(clip)} samples give {found} vectors, not {expected}", False)
    return within("front end", worst, f"{len(clips)} clips, alone and as a batch")


def _ours(run: LoadedRun, made: Package) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """`(features [B, T, F], lengths) -> hidden states or logits [B, T, ...]`, or logits [B, classes]."""
    config = run.experiment.model
    graphdef = functional.declare(lambda rngs: make_encoder(config, rngs=rngs)).graphdef

    @jax.jit
    def outputs(params: functional.Params, x_BxTxF: jax.Array, length_B: jax.Array) -> jax.Array:
        hidden_BxTxD, _ = functional.bind(graphdef, params["encoder"])(x_BxTxF, length_B)
        if run.experiment.objective.kind == "classification":
            inside = frame_mask(length_B, hidden_BxTxD.shape[1])[..., None]
            hidden_BxTxD = jnp.where(inside, hidden_BxTxD, 0).sum(1) / length_B[:, None]
        return hidden_BxTxD @ params["head"]["kernel"] + params["head"]["bias"] if "head" in params else hidden_BxTxD

    return lambda x, length: np.asarray(outputs(made.params, jnp.asarray(x), jnp.asarray(length)))


def _outputs(name: str, model: Any, ours: Callable, batches: Sequence[Any], num_frames: Callable) -> Check:
    """On the same features: those of the extractor. Ours are filled up to one length, so that few programs do."""
    worst, longest = 0.0, max(batch["input_features"].shape[1] for batch in batches)
    for batch in batches:
        theirs, lengths = outputs(model, batch), batch["attention_mask"].sum(-1).astype(np.int32)
        filler = longest - batch["input_features"].shape[1]
        found = ours(np.pad(batch["input_features"], ((0, 0), (0, filler), (0, 0))), lengths)
        for row, length in enumerate(lengths):
            real = slice(None, num_frames(int(length))) if theirs.ndim == 3 else slice(None)
            worst = max(worst, distance(theirs[row, real], found[row, real]))
    return within(name, worst, f"{len(batches) - 1} clips alone, and a batch")


def _ctc_ids(folder: Path, model: Any, run: LoadedRun) -> Check:
    ours, tokenizer = run.tokenizer, transformers.AutoTokenizer.from_pretrained(folder)
    blanks = {tokenizer.pad_token_id, model.config.pad_token_id, PADDING}
    sizes = {len(tokenizer), model.config.vocab_size, ours.vocab_size}
    if len(blanks) > 1 or len(sizes) > 1:
        return Check("ids", f"blanks {blanks}, vocabularies {sizes}", False)
    for number in range(ours.vocab_size):
        if words(tokenizer.decode([number])) != words(ours.decode([number])):
            return Check("ids", f"{number} is {tokenizer.decode([number])!r}, not {ours.decode([number])!r}", False)
    return Check("ids", f"{ours.vocab_size}, the blank is 0", True)


def _greedy_texts(run: LoadedRun, clips: Sequence[Clip]) -> list[str]:
    experiment, texts = run.experiment, {}
    objective = experiment.objective.build(experiment.model, experiment.frontend, run.tokenizer)
    greedy = jax.jit(lambda params, batch: best_path(*objective.logits(params, batch)))
    for batch in in_batches(clips):
        for example, ids in zip(batch["example_id"], collapse(np.asarray(greedy(run.params, batch))), strict=True):
            texts[int(example)] = run.tokenizer.decode(ids)
    return [texts[number] for number in range(len(clips))]


def _spelled(
    folder: Path,
    model: Any,
    extract: Callable,
    waves: Sequence[np.ndarray],
    num_frames: Callable,
    texts: Sequence[str],
    clean: Callable[[Any, str], str] = lambda tokenizer, text: text,
) -> Check:
    """Front end, model and tokenizer of theirs one after the other, each clip by itself and without filling it up."""
    tokenizer, found = transformers.AutoTokenizer.from_pretrained(folder), []
    for wave in waves:
        inputs = extract(wave, pad_to_multiple_of=1)
        real = num_frames(int(inputs["attention_mask"].sum()))
        found.append(clean(tokenizer, tokenizer.decode(outputs(model, inputs)[0, :real].argmax(-1))))
    return _same_words("greedy text", texts, found)


def _pipeline(folder: Path, waves: Sequence[np.ndarray], texts: Sequence[str], certain: Sequence[bool]) -> Check:
    recognize = transformers.pipeline("automatic-speech-recognition", model=str(folder), device="cpu")
    heard = [recognize({"raw": wave, "sampling_rate": SAMPLE_RATE})["text"] for wave in waves]
    return _same_words("pipeline", texts, heard, certain)


def _classes(run: LoadedRun, clips: Sequence[Clip]) -> list[str]:
    experiment, found = run.experiment, {}
    _, logits, _ = experiment.objective.classifier(experiment.model, experiment.frontend, run.tokenizer)
    classify = jax.jit(lambda params, batch: logits(params, batch, None).argmax(-1))
    for batch in in_batches(clips):
        for example, number in zip(batch["example_id"], np.asarray(classify(run.params, batch)), strict=True):
            found[int(example)] = experiment.objective.classes[int(number)]
    return [found[number] for number in range(len(clips))]


def _named(model: Any, extract: Callable, waves: Sequence[np.ndarray], classes: Sequence[str]) -> Check:
    numbers = [int(outputs(model, extract(wave, pad_to_multiple_of=1))[0].argmax()) for wave in waves]
    return _same_words("class", classes, [model.config.id2label[number] for number in numbers])


def _frame_classes(
    run: LoadedRun, model: Any, extract: Callable, clips: Sequence[Clip], waves: Sequence[np.ndarray]
) -> Check:
    """The likeliest class of every frame, by name, from samples: each clip by itself and without filling it up."""
    experiment, count = run.experiment, 0
    classes = np.array(experiment.objective.classes)
    _, logits = experiment.objective.classifier(experiment.model, experiment.frontend)
    classify = jax.jit(lambda params, batch: logits(params, batch, None))
    for batch in in_batches(clips):
        each = zip(batch["example_id"].tolist(), *jax.device_get(classify(run.params, batch)), strict=True)
        for number, logits_TxC, frames in each:
            if number < 0:
                continue
            found = outputs(model, extract(waves[number], pad_to_multiple_of=1))[0, :frames].argmax(-1)
            named = np.array([model.config.id2label[int(each)] for each in found])
            if not np.array_equal(named, classes[logits_TxC[:frames].argmax(-1)]):
                return Check("classes", f"of {len(waves[number])} samples other frames are {classes[-1]}", False)
            count += frames
    return Check("classes", f"equal in {count} frames of {len(clips)} clips", True)


def _same_words(name: str, ours: Sequence[str], theirs: Sequence[str], certain: Sequence[bool] | None = None) -> Check:
    """Whether texts are equal, white space at their ends aside.

    Args:
      certain: where they have to be; None for everywhere. Of the others it is counted.
    """
    certain = certain or [True] * len(ours)
    equal = [words(one) == words(other) for one, other in zip(ours, theirs, strict=True)]
    for one, other, is_equal, is_certain in zip(ours, theirs, equal, certain, strict=True):
        if is_certain and not is_equal:
            return Check(name, f"{other!r}, not {one!r}", False)
    rest = [is_equal for is_equal, is_certain in zip(equal, certain, strict=True) if not is_certain]
    others = f"; of {len(rest)} whose last vector is not full, on {sum(rest)}" if rest else ""
    return Check(name, f"equal on {sum(certain)} clips{others}", True)


def _compare_text(folder: Path, run: LoadedRun, model: Any, texts: Sequence[str]) -> Iterator[Check]:
    vocabulary = vocabulary_of(run)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    causal = run.experiment.model.causal
    rows = [[vocabulary.boundary, *run.tokenizer.encode(text)] + [vocabulary.boundary] * (not causal) for text in texts]
    if vocabulary.num_units:
        count = vocabulary.num_units
        mixed = texts[0] + SPEECH + "".join(f"<unit_{number}>" for number in range(count)) + TEXT + texts[0]
        units = [vocabulary.speech, *range(vocabulary.first_unit, vocabulary.first_unit + count), vocabulary.text]
        texts, rows = [*texts, mixed], [*rows, [*rows[0], *units, *rows[0][1:]]]
    yield guarded("ids", lambda: _text_ids(tokenizer, model, run, vocabulary, texts, rows))
    yield guarded("logits", lambda: _text_logits(model, run, vocabulary, [row[:_MOST_TOKENS] for row in rows]))
    if causal and not vocabulary.num_sentinels:
        yield guarded("continuation", lambda: _continuations(tokenizer, model, run, vocabulary, rows))


def _text_ids(tokenizer: Any, model: Any, run: LoadedRun, vocabulary: Any, texts: Sequence[str], rows: list) -> Check:
    for text, ids in zip(texts, rows, strict=True):
        if (found := tokenizer(text)["input_ids"]) != ids:
            return Check("ids", f"{text!r} is {found}, not {ids}", False)
        only_text = [number for number in ids if number < vocabulary.boundary]
        if not vocabulary.is_unit(np.array(ids)).any() and (
            (back := tokenizer.decode(ids, skip_special_tokens=True)) != (said := run.tokenizer.decode(only_text))
        ):
            return Check("ids", f"{ids} are {back!r}, not {said!r}", False)
    ends = {"bos": vocabulary.boundary, "eos": vocabulary.boundary, "pad": PADDING}
    for name, number in ends.items():
        found = {getattr(each, f"{name}_token_id") for each in (tokenizer, model.config)}
        if found != {number}:
            return Check("ids", f"{name} is {found}, not {number}", False)
    if tokenizer.mask_token_id != vocabulary.mask or model.config.vocab_size != vocabulary.size:
        return Check("ids", f"mask {tokenizer.mask_token_id}, vocabulary {model.config.vocab_size}", False)
    return Check("ids", f"of {len(texts)} texts; bos and eos {vocabulary.boundary}, pad {PADDING}", True)


def _text_logits(model: Any, run: LoadedRun, vocabulary: Any, rows: list[list[int]]) -> Check:
    tokens, inside, ours = text_logits(run, vocabulary, rows)
    theirs = outputs(model, {"input_ids": tokens.astype(np.int64), "attention_mask": inside.astype(np.int64)})
    return within("logits", distance(ours[inside], theirs[inside]), f"{inside.sum()} positions")


def _continuations(tokenizer: Any, model: Any, run: LoadedRun, vocabulary: Any, rows: list[list[int]]) -> Check:
    """Greedy continuations of half of each row, in one batch filled up on the left."""
    context = run.experiment.data.context
    most = max(1, min(_MOST_TOKENS, context - _NEW_TOKENS))
    prompts = [row[: max(1, min(most, len(row) // 2))] for row in rows]
    new = min(_NEW_TOKENS, context - max(map(len, prompts)))
    lm = LanguageModel(run.experiment.model, run.tokenizer, run.params, context, run.checkpoint, vocabulary.num_units)
    ours = lm.continue_ids(prompts, GREEDY, max_tokens=new)
    batch = tokenizer.pad({"input_ids": prompts}, return_tensors="pt")
    theirs = model.generate(**batch, max_new_tokens=new)[:, batch["input_ids"].shape[1] :].tolist()
    for prompt, found, expected in zip(prompts, theirs, ours, strict=True):
        (ids,), (length,) = expected.tokens.tolist(), expected.length.tolist()
        if found[:length] != ids[:length] or set(found[length:]) - {PADDING}:
            return Check("continuation", f"of {prompt}: {found}, not {ids[:length]}", False)
    return Check("continuation", f"{len(prompts)} prompts, up to {new} tokens each, greedy", True)


def _padded(clips: Sequence[Clip]) -> np.ndarray:
    padded = np.zeros((len(clips), max(map(len, clips))), np.int16)
    for row, clip in enumerate(clips):
        padded[row, : len(clip)] = clip
    return padded
