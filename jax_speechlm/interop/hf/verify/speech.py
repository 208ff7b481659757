"""Comparisons of speech encoders with and without a head: features, outputs, transcripts, classes and x-vectors."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
import transformers

from data_pipelines.core.audio_format import DEFAULT_SAMPLE_RATE
from jax_speechlm.core.batch import frame_mask
from jax_speechlm.core.vocabulary import PADDING
from jax_speechlm.decoding.ctc.greedy import best_path, collapse
from jax_speechlm.frontend.frontend import features as compute_features
from jax_speechlm.interop.hf.feature_extractor import ending
from jax_speechlm.interop.hf.verify.subject import TOLERANCE, Subject, compiled, distance, outputs, within
from jax_speechlm.interop.hf.verify.verdict import Differs, expect_equal
from jax_speechlm.models.encoders import make_encoder
from jax_speechlm.objectives.heads.base import hidden_states
from jax_speechlm.objectives.heads.speaker_verification import SpeakerModel
from jax_speechlm.objectives.ssl.contrastive import ContrastiveModel


def front_end(subject: Subject) -> str:
    """Compares the features of clips alone and in a batch, and their number, which `ending` predicts."""
    mel, clips = subject.run.experiment.frontend.mel, subject.clips
    lengths = np.array([len(clip) for clip in clips], np.int32)
    padded = np.stack([np.pad(clip, (0, lengths.max() - len(clip))) for clip in clips])
    batch = {"audio": jnp.asarray(padded), "audio_length": jnp.asarray(lengths)}
    expected, frames = jax.device_get(compute_features(batch, subject.run.experiment.frontend, None))
    batch, worst = subject.extract(subject.waves), 0.0
    for row, (wave, num) in enumerate(zip(subject.waves, frames.tolist(), strict=True)):
        alone = subject.extract(wave)
        for features in (subject.features(alone)[0], subject.features(batch)[row]):
            worst = max(worst, distance(features[:num], expected[row, :num]))
        predicted = {"same": (num, num), "masked": (num + 1, num), "kept": (num + 1, num + 1)}[ending(mel, len(wave))]
        counts = subject.features(alone).shape[1], int(alone["attention_mask"].sum())
        expect_equal(f"the number of vectors, and of those in the mask, of {len(wave)} samples", counts, predicted)
    return within(worst, f"{len(clips)} clips, alone and as a batch")


def encoder_outputs(subject: Subject) -> str:
    """Compares hidden states, logits, or x-vectors and logits, on the extractor's features of single clips and a batch.

    Where a layer of an x-vector head is dilated, transformers counts that layer's frames as if it were not, and takes
    frames of padding into the mean and deviation of the shorter rows of a batch, and of a clip whose features are
    filled up. Such a head is compared on whole clips alone, and should be used so in transformers.
    """
    experiment, forward, has_batch = subject.run.experiment, _forward(subject), subject.has_batches
    alone, num_frames = [(wave, subject.extract(wave)) for wave in subject.waves], experiment.model.num_frames
    if experiment.objective.model_kind == "speaker_verification":
        head = experiment.objective.head
        has_batch &= not any(dilation > 1 and kernel > 1 for _, _, kernel, dilation in head.layers)
        whole = zip(subject.waves, map(subject.whole, subject.clips), strict=True)
        alone = [
            (wave, inputs) for wave, inputs in whole if num_frames(subject.features(inputs).shape[1]) >= head.shortest
        ]
        if not alone:
            raise Differs(f"no clip has the {head.shortest} frames that a vector takes")
    batches = [features for _, features in alone] + [subject.extract([wave for wave, _ in alone])] * has_batch
    worst, longest = 0.0, max(subject.features(batch).shape[1] for batch in batches)
    for batch in batches:
        features, lengths = subject.features(batch), batch["attention_mask"].sum(-1).astype(np.int32)
        features = np.pad(features, ((0, 0), (0, longest - features.shape[1]), (0, 0)))  # one length: one program
        for output, expected in zip(outputs(subject.model, batch), forward(features, lengths), strict=True):
            for row, length in enumerate(lengths.tolist()):
                real = slice(num_frames(length)) if output.ndim == 3 else slice(None)
                worst = max(worst, distance(output[row, real], expected[row, real]))
    return within(worst, f"{len(alone)} clips alone" + ", and a batch" * has_batch)


def _forward(subject: Subject) -> Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, ...]]:
    """Returns `(features [B, T, F], lengths [B]) -> outputs`, each [B, T, ...] or [B, ...], in the folder's ids."""
    config, objective, params = subject.run.experiment.model, subject.run.experiment.objective, subject.made.params

    def x_vectors(module, x_BxTxF, length_B):
        hidden_BxTxD = hidden_states(module.encoder, x_BxTxF, length_B, module.mix)
        vector_BxE = module.speaker(hidden_BxTxD, config.num_frames(length_B))[:, 0]
        return vector_BxE, module.speaker.output(vector_BxE)

    mix = jnp.asarray(params["mix"]) if "mix" in params else None

    def outputs(encoder, x_BxTxF, length_B):
        hidden_BxTxD = hidden_states(encoder, x_BxTxF, length_B, mix)
        if objective.model_kind == "classification":
            num_frames_B = config.num_frames(length_B)
            inside = frame_mask(num_frames_B, hidden_BxTxD.shape[1])[..., None]
            hidden_BxTxD = jnp.where(inside, hidden_BxTxD, 0).sum(1) / num_frames_B[:, None]
        if "head" not in params:
            return (hidden_BxTxD,)
        return (hidden_BxTxD @ params["head"]["kernel"] + params["head"]["bias"],)

    if objective.model_kind == "speaker_verification":
        make = partial(SpeakerModel, config, objective.head, len(objective.classes), objective.weighted_layers)
        return compiled(lambda rngs: make(rngs=rngs), params, x_vectors)
    return compiled(lambda rngs: make_encoder(config, rngs=rngs), params["encoder"], outputs)


def projections(subject: Subject) -> str:
    """Compares what contexts and targets of the contrastive task become, of single clips.

    A frame whose two best codes are equally good to rounding, in a group, may get another one; it is left out and
    counted.
    """
    config, objective, worst, num_ties = subject.run.experiment.model, subject.run.experiment.objective, 0.0, 0

    def both(module: ContrastiveModel, x_BxTxF, length_B):
        hidden_BxTxD, _ = module.encoder(x_BxTxF, length_B)
        target_BxTxC = module.encoder.targets(x_BxTxF, length_B)
        best_BxTxGx2, _ = jax.lax.top_k(module.contrast.quantizer.logits(target_BxTxC), 2)
        is_tie_BxT = (best_BxTxGx2[..., 0] - best_BxTxGx2[..., 1] < TOLERANCE).any(-1)
        quantized = module.contrast.quantizer(target_BxTxC)
        return module.contrast.context(hidden_BxTxD), module.contrast.target(quantized.vectors), is_tie_BxT

    forward = compiled(lambda rngs: ContrastiveModel(config, objective, rngs=rngs), subject.made.params, both)
    for wave in subject.waves:
        inputs = subject.extract(wave)
        computed = subject.model(**{name: torch.tensor(value) for name, value in inputs.items()})
        context, target, is_tie = forward(subject.features(inputs), inputs["attention_mask"].sum(-1).astype(np.int32))
        worst = max(worst, distance(computed.projected_states.numpy(), context))
        worst = max(worst, distance(computed.projected_quantized_states.numpy()[~is_tie], target[~is_tie]))
        num_ties += int(is_tie.sum())
    return within(worst, f"{len(subject.clips)} clips alone" + f", but for {num_ties} frames" * bool(num_ties))


def ctc_ids(subject: Subject) -> str:
    """Compares the blank, the number of ids and the text of every id; if imported, also the ids of letters."""
    ctc_tokenizer, tokenizer, config = subject.run.tokenizer, subject.tokenizer, subject.model.config
    ids = subject.to_folder_ids(range(ctc_tokenizer.vocab_size))
    num_rows = ctc_tokenizer.places.num_rows if subject.is_foreign else len(tokenizer)
    sizes = {config.vocab_size, ctc_tokenizer.vocab_size, num_rows}
    blanks = {tokenizer.pad_token_id, config.pad_token_id, ids[PADDING]}
    if is_transducer := hasattr(
        config, "blank_token_id"
    ):  # whose blank is not padding, and is no part of what is decoded
        blanks = {config.blank_token_id, ids[PADDING]}
    if len(blanks) > 1 or len(sizes) > 1:
        raise Differs(f"blanks {blanks}, vocabularies {sizes}")
    for local_id, folder_id in list(enumerate(ids))[is_transducer:]:
        text, expected = _without_special(subject, tokenizer.decode([folder_id])), ctc_tokenizer.decode([local_id])
        expect_equal(f"the text of {folder_id}, {local_id} here,", text.split(), expected.split())
    if subject.is_foreign:
        letters = (piece.strip("\u2581") for piece in ctc_tokenizer.pieces)
        text = " ".join(letter for letter in letters if len(letter) == 1)
        text_ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        expect_equal(repr(text), text_ids, subject.to_folder_ids(ctc_tokenizer.encode(text)))
    return f"{ctc_tokenizer.vocab_size}; the blank is {PADDING}" + f", and {ids[PADDING]} there" * subject.is_foreign


def _without_special(subject: Subject, text: str) -> str:
    """Removes bos, eos and unk from a transcript by an imported tokenizer, as ours leaves them out.

    `skip_special_tokens` would leave out the spaces too, as Wav2Vec2CTCTokenizer counts them among these.
    """
    for name in ("bos", "eos", "unk") if subject.is_foreign else ():
        if token := getattr(subject.tokenizer, f"{name}_token", None):
            text = text.replace(token, "")
    return text


def _greedy_texts(subject: Subject) -> list[str]:
    """Returns the run's transcript of every clip, from samples."""
    experiment, tokenizer = subject.run.experiment, subject.run.tokenizer
    objective = experiment.objective.build(experiment.model, experiment.frontend, tokenizer)
    paths = subject.by_clip(lambda params, batch: best_path(*objective.logits(params, batch)))
    return [tokenizer.decode(collapse(path[None])[0]) for path in paths]


def _compare_whole_clips(subject: Subject, what: str, expected: Sequence[Any], read: Callable[..., Any]) -> str:
    """Compares what `read(logits, num_frames)` takes from the folder's logits of whole clips with the run's."""
    for clip, value in zip(subject.clips, expected, strict=True):
        inputs = subject.whole(clip)
        num_frames = subject.run.experiment.model.num_frames(int(inputs["attention_mask"].sum()))
        logits = outputs(subject.model, inputs)[0][0]
        expect_equal(f"the {what} of {len(clip)} samples", read(logits, num_frames), value)
    return f"equal on {len(subject.clips)} clips"


def greedy_text(subject: Subject) -> str:
    """Compares transcripts from samples, in transformers by extractor, model and tokenizer, of whole clips."""

    def words(logits: np.ndarray, num_frames: int) -> list[str]:
        return _without_special(subject, subject.tokenizer.decode(logits[:num_frames].argmax(-1))).split()

    return _compare_whole_clips(subject, "transcript", [text.split() for text in _greedy_texts(subject)], words)


def utterance_classes(subject: Subject) -> str:
    """Compares the likeliest class of whole clips by name, from samples."""
    experiment, names = subject.run.experiment, subject.model.config.id2label
    logits = experiment.objective.classifier(experiment.model, experiment.frontend, subject.run.tokenizer)
    ids = subject.by_clip(lambda params, batch: logits(params, batch, None).argmax(-1))
    expected = [experiment.objective.classes[int(label)] for label in ids]
    return _compare_whole_clips(subject, "class", expected, lambda logits, _: names[int(logits.argmax())])


def frame_classes(subject: Subject) -> str:
    """Compares the likeliest class of every frame of whole clips by name, from samples."""
    experiment, names = subject.run.experiment, subject.model.config.id2label
    logits = experiment.objective.classifier(experiment.model, experiment.frontend)
    rows = subject.by_clip(lambda params, batch: logits(params, batch, None))
    expected = [[experiment.objective.classes[label] for label in row[:count].argmax(-1)] for row, count in rows]
    return _compare_whole_clips(
        subject,
        "classes of the frames",
        expected,
        lambda logits, num_frames: [names[label] for label in logits[:num_frames].argmax(-1).tolist()],
    )


def pipeline(subject: Subject) -> str:
    """Compares transcripts with the pipeline's, where no vector of filler can change them; counts the others."""
    if subject.is_foreign:
        return ""
    mel, num_frames = subject.run.experiment.frontend.mel, subject.run.experiment.model.num_frames
    recognize = transformers.pipeline("automatic-speech-recognition", model=str(subject.folder), device="cpu")
    others = []
    for clip, wave, expected in zip(subject.clips, subject.waves, _greedy_texts(subject), strict=True):
        text = recognize({"raw": wave, "sampling_rate": DEFAULT_SAMPLE_RATE})["text"]
        vectors = mel.num_frames(len(clip))
        if ending(mel, len(clip)) == "same" or num_frames(vectors) == num_frames(vectors + 1):
            expect_equal(f"the transcript of {len(clip)} samples", text.split(), expected.split())
        else:
            others.append(text.split() == expected.split())
    result = f"equal on {len(subject.clips) - len(others)} clips"
    return result + (f"; of {len(others)} whose last vector is not full, on {sum(others)}" if others else "")
