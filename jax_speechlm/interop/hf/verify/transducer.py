"""Comparisons of transducers that stream: outputs of the encoder and transcripts, at every latency."""

import numpy as np
import torch

from jax_speechlm.core.vocabulary import PADDING
from jax_speechlm.decoding.transducer.greedy import MAX_SYMBOLS
from jax_speechlm.inference.asr.hypothesis import Endpointing
from jax_speechlm.inference.asr.transducer import TransducerRecognizer
from jax_speechlm.interop.hf.verify.subject import Subject, compiled, distance, within
from jax_speechlm.interop.hf.verify.verdict import expect_equal
from jax_speechlm.models.streaming import StreamingEncoder


def encoder_outputs(subject: Subject) -> str:
    """Compares the encoder's part of the joint network's input, of clips as a batch, at every latency."""
    experiment, batch, worst = subject.run.experiment, subject.extract(subject.waves), 0.0
    config, objective = experiment.model, experiment.objective.of_model.replace(ctc_weight=0.0)
    lengths = batch["attention_mask"].sum(-1).astype(np.int32)
    make = objective.make_model(config, subject.run.tokenizer)

    def project(module, x_BxTxF, length_B, *chunk):
        hidden_BxTxD, _ = module.encoder(x_BxTxF, length_B, chunk=chunk)
        return module.project(hidden_BxTxD)

    compute = compiled(make, subject.made.params, project)
    for length in config.chunk_lengths:
        expected = compute(batch["input_features"], lengths, *map(np.int32, StreamingEncoder(config, length).chunk))
        inputs = {name: torch.tensor(batch[name]) for name in ("input_features", "attention_mask")}
        found = subject.model.get_audio_features(**inputs, num_lookahead_tokens=length - 1).pooler_output.numpy()
        for row, vectors in enumerate(lengths.tolist()):
            frames = slice(config.num_frames(vectors))
            worst = max(worst, distance(found[row, frames], expected[row, frames]))
    return within(worst, f"{len(lengths)} clips with {_list(config.chunk_lengths)} frames a chunk")


def streamed_text(subject: Subject) -> str:
    """Compares the greedy transcripts of streams with those of `generate` of whole clips, at every latency."""
    experiment, recognizer = subject.run.experiment, TransducerRecognizer(subject.run)
    (blank,) = subject.to_folder_ids([PADDING])  # with which the predictor begins, too
    frame_ms = 1000 * experiment.frame_samples / experiment.sample_rate
    for length in experiment.model.chunk_lengths:
        streams = recognizer.streams(1, round(frame_ms * length), Endpointing())
        for clip, wave in zip(subject.clips, subject.waves, strict=True):
            stream = streams.join()
            stream.accept(clip)
            inputs = subject.extract(wave)
            inputs = {name: torch.tensor(inputs[name]) for name in ("input_features", "attention_mask")}
            options = {"num_lookahead_tokens": length - 1, "decoder_start_token_id": blank}
            most = (MAX_SYMBOLS + 1) * experiment.model.num_frames(inputs["input_features"].shape[1])
            (ids,) = subject.model.generate(**inputs, **options, max_new_tokens=most).sequences.tolist()
            text = subject.tokenizer.decode([id_ for id_ in ids if id_ != blank], group_tokens=False)
            what = f"the transcript of {len(clip)} samples with {length} frames a chunk"
            expect_equal(what, text.split(), stream.finalize().text.split())
    return f"equal on {len(subject.clips)} clips with {_list(experiment.model.chunk_lengths)} frames a chunk"


def _list(lengths: tuple[int, ...]) -> str:
    return ", ".join(map(str, sorted(lengths)))
