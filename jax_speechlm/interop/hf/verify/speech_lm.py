"""Comparisons of speech-language models: ids of the prompt, logits and answers.

Voxtral's tower gets no mask, so each clip is cut to whole windows of the adapter, and compared by itself. Whisper's
encoder takes one window, which a clip is filled up to.
"""

from collections.abc import Iterator

import jax.numpy as jnp
import numpy as np
import torch
import transformers

from jax_speechlm.decoding.lm.generate import GREEDY
from jax_speechlm.frontend.logmel import LogMel
from jax_speechlm.frontend.whisper_mel import WhisperMel
from jax_speechlm.inference.asr.speech_lm import SpeechLanguageModel
from jax_speechlm.inference.segmentation import in_batches
from jax_speechlm.interop.hf.registry import GENERATION, audio_token
from jax_speechlm.interop.hf.verify import speech, whisper
from jax_speechlm.interop.hf.verify.subject import Clip, Subject, compiled, distance, outputs, within
from jax_speechlm.interop.hf.verify.text import compare_text, decode
from jax_speechlm.interop.hf.verify.verdict import Differs, expect_equal
from jax_speechlm.models.speech_lm import SpeechTransformer

_MOST_TOKENS = 60  # of an answer whose logits are compared


def samples_of(mel: LogMel, vectors: int) -> int:
    """Returns the fewest samples that give this number of vectors."""
    return vectors * mel.frame_samples + mel.context_samples


def front_end(subject: Subject) -> str:
    """Compares the features of clips."""
    is_whisper = isinstance(subject.run.experiment.frontend.mel, WhisperMel)
    return (whisper.front_end if is_whisper else speech.front_end)(subject)


def _whole_windows(subject: Subject) -> list[Clip]:
    """Returns the clips without their ends that fill no window of the adapter; short clips are left out."""
    mel, frames = subject.run.experiment.frontend.mel, subject.run.experiment.model.adapter.frames
    if isinstance(mel, WhisperMel):
        return subject.clips
    counts = [(clip, mel.num_frames(len(clip)) // frames * frames) for clip in subject.clips]
    clips = [clip[: samples_of(mel, vectors)] for clip, vectors in counts if vectors]
    if not clips:
        raise Differs("no clip is as long as a window of the adapter: name a longer file with --audio")
    return clips


def ids(subject: Subject) -> str:
    """Compares the ids of texts and of the prompt, the id that marks speech, and the id that ends an answer."""
    config, tokenizer, vocabulary = subject.model.config, subject.run.tokenizer, subject.vocabulary
    prompt = subject.run.experiment.objective.prompts.of(subject.run.experiment.objective.task)
    for text in (prompt.before, prompt.behind, *subject.texts):
        text_ids = tokenizer.encode(text)
        compare_text(subject, text, text_ids, subject.to_folder_ids(text_ids))
    before = subject.to_folder_ids([*vocabulary.prefix, *tokenizer.encode(prompt.before)])
    expect_equal("the begin of the prompt", subject.tokenizer(prompt.before)["input_ids"][: len(before)], before)
    speech = audio_token(tokenizer)
    expect_equal("the id that stands for speech", config.audio_token_id, speech)
    (end,) = subject.to_folder_ids([vocabulary.boundary])
    ends = config.text_config.eos_token_id
    if ends is not None and end not in (ends if isinstance(ends, list) else [ends]):
        expect_equal("eos", ends, end)
    return f"of {len(subject.texts)} texts; {speech} stands for speech, eos is {end}"


def _inputs(subject: Subject) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields per clip the folder's features float32 [1, time, bins] and its prompt int64 [1, length]."""
    experiment, tokenizer = subject.run.experiment, subject.run.tokenizer
    before, behind = map(subject.to_folder_ids, experiment.objective.prompt_ids(tokenizer))
    for clip in _whole_windows(subject):
        if isinstance(experiment.frontend.mel, WhisperMel):
            features = subject.extract(clip / np.float32(32768))["input_features"].swapaxes(1, 2)
        else:
            features = subject.whole(clip)["input_features"]
        model = experiment.model
        num_vectors = int(model.adapter.num_outputs(model.encoder.num_frames(features.shape[1])))
        speech = [audio_token(tokenizer)] * num_vectors
        yield features, np.array([[*before, *speech, *behind]], np.int64)


def _of_folder(subject: Subject, features: np.ndarray) -> np.ndarray:
    """Returns features as the folder's tower takes them: Whisper's has time last."""
    is_whisper = isinstance(subject.run.experiment.frontend.mel, WhisperMel)
    return np.ascontiguousarray(features.swapaxes(1, 2)) if is_whisper else features


def logits(subject: Subject) -> str:
    """Compares the logits at every place of a row, of prompt, speech and answer, on the extractor's features."""
    run, config, size = subject.run, subject.run.experiment.model, subject.vocabulary.size
    before, behind = run.experiment.objective.prompt_ids(run.tokenizer)

    def row_logits(module, features, answer):
        speech, count = module.encode_speech(features, jnp.array([features.shape[1]]))
        num_text = len(before) + len(behind) + answer.shape[1]
        answers = answer[:, None], jnp.array([[answer.shape[1]]])
        rows = module.lay_out(before, speech, count, behind, *answers, num_text=num_text)
        hidden, _ = module.transformer.encode(rows.vectors, rows.segment, rows.position)
        return module.transformer.logits(hidden).astype(jnp.float32)

    compute = compiled(lambda rngs: SpeechTransformer(config, size, rngs=rngs), run.params, row_logits)
    worst, clips, positions = 0.0, 0, 0
    for features, prompt in _inputs(subject):
        answer = run.tokenizer.encode(subject.texts[clips % len(subject.texts)])[:_MOST_TOKENS]
        expected = compute(features, np.array([answer], np.int32))
        row = np.concatenate([prompt, np.array([subject.to_folder_ids(answer)], np.int64)], axis=1)
        (computed,) = outputs(subject.model, {"input_ids": row, "input_features": _of_folder(subject, features)})
        worst = max(worst, distance(expected[..., subject.columns], computed))
        clips, positions = clips + 1, positions + expected.shape[1]
    return within(worst, f"{positions} positions of {clips} clips")


def answers(subject: Subject) -> str:
    """Compares greedy answers from samples; `generate` of transformers gets the settings that the folder has."""
    run, clips = subject.run, _whole_windows(subject)
    predictor = SpeechLanguageModel(run, GREEDY)
    answer_of = {clip: texts for batch in in_batches(clips) for clip, texts in predictor.answers(batch).items()}
    settings = {name: value for name, value in subject.made.files[GENERATION].items() if name != "max_length"}
    ends = settings["eos_token_id"] if isinstance(settings["eos_token_id"], list) else [settings["eos_token_id"]]
    # one given to `generate` would be filled up by the folder's
    subject.model.generation_config = transformers.GenerationConfig(**settings)
    for clip, (features, prompt) in enumerate(_inputs(subject)):
        (answer,) = answer_of[clip]
        features = torch.tensor(_of_folder(subject, features))
        inputs = {"input_ids": torch.tensor(prompt), "input_features": features}
        row = subject.model.generate(**inputs, max_new_tokens=answer.num_tokens)[0, prompt.shape[1] :].tolist()
        generated = decode(subject, row), not set(ends).isdisjoint(row)
        expect_equal(f"the answer to clip {clip}, and whether it ends,", generated, (answer.text, answer.ended))
    return f"to {len(clips)} clips, greedy"
