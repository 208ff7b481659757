"""Comparisons of Whisper: features, ids, logits and greedy texts."""

import jax.numpy as jnp
import numpy as np
import torch

from jax_speechlm.frontend.whisper_mel import whisper_mel
from jax_speechlm.inference.asr.aed import AttentionRecognizer, Fallback
from jax_speechlm.inference.segmentation import in_batches
from jax_speechlm.interop.hf.verify.subject import Subject, compiled, distance, within
from jax_speechlm.interop.hf.verify.text import LONG_TEXT, compare_text
from jax_speechlm.interop.hf.verify.verdict import expect_equal

_MOST_TOKENS = 60  # of a text whose logits are compared


def front_end(subject: Subject) -> str:
    """Compares the features of clips, each filled up to a window."""
    mel, worst = subject.run.experiment.frontend.mel, 0.0
    for clip, wave in zip(subject.clips, subject.waves, strict=True):
        expected, _ = whisper_mel(jnp.asarray(clip)[None], jnp.array([len(clip)]), mel)
        worst = max(worst, distance(subject.extract(wave)["input_features"][0].T, np.asarray(expected[0])))
    return within(worst, f"{len(subject.clips)} clips")


def ids(subject: Subject) -> str:
    """Compares the ids of texts, and the ids that begin and end a text."""
    run, config = subject.run, subject.model.config
    texts = [*subject.texts, LONG_TEXT]
    for text in texts:
        text_ids = run.tokenizer.encode(text)
        row = subject.tokenizer(text, add_special_tokens=False)["input_ids"]
        expect_equal(f"the ids of {text[:60]!r}", row, subject.to_folder_ids(text_ids))
        compare_text(subject, text, text_ids, row)
    start, end = subject.to_folder_ids([run.experiment.objective.whisper.start, subject.vocabulary.boundary])
    expect_equal(
        "the ids that begin and end a text", (config.decoder_start_token_id, config.eos_token_id), (start, end)
    )
    return f"of {len(texts)} texts, which begin with {start} and end with {end}"


def logits(subject: Subject) -> str:
    """Compares the logits at every place of a prompt and a text, on the extractor's features.

    Logits of published models reach 30 and more, where float32 rounds sums of hundreds of terms by 1e-4: above 1, the
    tolerance is a share of the largest.
    """
    run = subject.run

    def row_logits(module, features, tokens):
        source = module.read_speech(features, jnp.array([features.shape[1]]))
        position = jnp.arange(tokens.shape[1])[None]
        return module.decoder.logits(module.decoder(tokens, jnp.ones_like(tokens), position, source))

    objective = run.experiment.objective
    compute = compiled(objective.make_model(run.experiment.model, run.tokenizer), run.params, row_logits)
    if objective.whisper.languages and objective.language is None:
        objective = objective.replace(language=objective.whisper.languages[0][0])
    prompt, worst, positions = objective.prompt_ids(run.tokenizer).tolist(), 0.0, 0
    most = min(_MOST_TOKENS, run.experiment.model.decoder.max_tokens - len(prompt))
    text = [id_ for each in subject.texts for id_ in run.tokenizer.encode(each)]
    row = [*prompt, *text[:most]]
    for wave in subject.waves:
        features = subject.extract(wave)["input_features"]
        expected = compute(features.swapaxes(1, 2), np.array([row], np.int32))
        inputs = torch.tensor(features), torch.tensor([subject.to_folder_ids(row)])
        computed = subject.model(input_features=inputs[0], decoder_input_ids=inputs[1]).logits.numpy()
        difference = distance(expected[..., subject.columns], computed)
        worst = max(worst, difference / max(1.0, float(np.abs(computed).max())))
        positions += len(row)
    return within(worst, f"of the largest, at {positions} positions of {len(subject.clips)} clips")


def greedy_text(subject: Subject) -> str:
    """Compares greedy texts of the clips, from samples.

    `generate` gets the special ids that a folder without a complete `generation_config.json` does not name.
    """
    objective, tokens, settings = subject.run.experiment.objective, subject.run.experiment.objective.whisper, {}
    generation = subject.model.generation_config
    (generation.no_timestamps_token_id,) = subject.to_folder_ids([tokens.no_timestamps])
    generation.is_multilingual = bool(tokens.languages)
    if tokens.languages:
        ids = subject.to_folder_ids([id_ for _, id_ in tokens.languages])
        named = zip(tokens.languages, ids, strict=True)
        generation.lang_to_id = {f"<|{code}|>": id_ for (code, _), id_ in named}
        tasks = subject.to_folder_ids([tokens.transcribe, tokens.translate])
        generation.task_to_id = dict(zip(("transcribe", "translate"), tasks, strict=True))
        settings = {"language": objective.language, "task": objective.task}
    recognizer = AttentionRecognizer(subject.run, Fallback(temperatures=(0.0,)))
    answers = recognizer.encode(in_batches(subject.clips))
    for clip, wave in enumerate(subject.waves):
        features = torch.tensor(subject.extract(wave)["input_features"])
        row = subject.model.generate(
            features, do_sample=False, num_beams=1, max_new_tokens=answers[clip].num_tokens, **settings
        )
        text = subject.tokenizer.decode(row[0], skip_special_tokens=True)
        expect_equal(f"the text of {len(subject.clips[clip])} samples", text.split(), answers[clip].text.split())
    return f"equal on {len(subject.clips)} clips"
