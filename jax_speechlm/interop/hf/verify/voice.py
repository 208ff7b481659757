"""Comparisons of acoustic models of speech synthesis: ids, durations, spectrograms, and what the pipeline plays."""

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
import transformers

from data_pipelines.core.errors import DataError
from data_pipelines.core.tokenizer import PHONES, Tokenizer
from data_pipelines.text.spoken_form import text_for
from jax_speechlm.inference.synthesize import LONGEST_PART
from jax_speechlm.inference.vocode import StreamedVocoder
from jax_speechlm.interop.hf.registry import READERS, read_model
from jax_speechlm.interop.hf.verify.subject import Subject, distance, open_model, within
from jax_speechlm.interop.hf.verify.verdict import expect_equal
from jax_speechlm.models.tts.text import boundary_id

_MOST_TOKENS = 100  # of the sentence of all tokens
_TEXTS = "a stitch in time saves nine", "Where is it? Here, and not there!"


class _Sentence(NamedTuple):
    text: str  # as the folder's tokenizer takes it
    ids: list[int]  # the run's, without boundaries


def ids(subject: Subject) -> str:
    """Compares the ids of sentences, with a boundary at both ends; in the other case too, where a voice has one."""
    tokenizer = subject.run.tokenizer
    boundary, sentences = boundary_id(tokenizer), _sentences(subject)
    for text, own in sentences:
        expect_equal(repr(text[:60]), subject.tokenizer(text)["input_ids"], [boundary, *own, boundary])
    expect_equal("the size of the vocabulary", subject.model.config.vocab_size, boundary + 1)
    return f"of {len(sentences)} sentences; the boundary is {boundary}"


def durations(subject: Subject) -> str:
    """Compares the frames of every token."""
    total = 0
    for (text, _), (_, own), output in _spoken(subject):
        expect_equal(f"the frames of the tokens of {text[:60]!r}", output.duration_outputs[0].tolist(), own.tolist())
        total += int(own.sum())
    return f"equal, {total} frames"


def spectrograms(subject: Subject) -> str:
    """Compares the log-mel spectrograms of sentences alone; of the last speaker where there are several."""
    worst, count = 0.0, 0
    for _, (own, _), output in _spoken(subject):
        expect_equal("the shape of a spectrogram", list(output.spectrogram.shape), [1, *own.shape])
        worst, count = max(worst, distance(own, output.spectrogram[0].numpy())), count + 1
    return within(worst, f"{count} sentences")


class _NoVocoder:
    """Stands for a vocoder in transformers' pipeline, and returns the spectrogram."""

    @dataclasses.dataclass(frozen=True)
    class Config:
        sampling_rate: int

    def __init__(self, sample_rate: int):
        self.config = self.Config(sample_rate)

    def __call__(self, spectrogram: torch.Tensor) -> torch.Tensor:
        return spectrogram


def pipeline(subject: Subject) -> str:
    """Compares what transformers' pipeline plays, with the folder's tokenizer and the given exported vocoder.

    Without a vocoder it compares the spectrogram that the pipeline gives to one.
    """
    rate = subject.run.experiment.sample_rate
    theirs, ours = _NoVocoder(rate), None
    if subject.vocoder is not None:
        folder = subject.vocoder.checkpoint
        architecture = read_model(folder).architecture
        theirs = open_model(folder, READERS[architecture].auto_class, architecture)
        ours = StreamedVocoder(subject.vocoder)
    speak = transformers.pipeline("text-to-speech", model=str(subject.folder), vocoder=theirs, device="cpu")
    worst, samples = 0.0, 0
    for text, own in _sentences(subject):
        mel, _ = subject.synthesizer.spectrogram(own, _speaker(subject))
        expected = mel if ours is None else ours.vocode([mel])[0]
        speech = speak(text, forward_params=_speaker_ids(subject))
        expect_equal("the sample rate", speech["sampling_rate"], rate)
        expect_equal(f"the shape of {text[:60]!r}", list(np.shape(speech["audio"])), list(expected.shape))
        worst, samples = max(worst, distance(speech["audio"], expected)), samples + len(expected)
    of_what = "spectrograms, no vocoder given" if ours is None else f"{samples} samples by {type(theirs).__name__}"
    return within(worst, of_what)


def _sentences(subject: Subject) -> list[_Sentence]:
    """Returns sentences in the voice's letters: of the texts that it can read, and one of all its tokens."""
    tokenizer = subject.run.tokenizer
    has_phones, lines = tokenizer.kind in PHONES, []
    for text in (*_TEXTS, *subject.texts):
        with contextlib.suppress(DataError):  # signs or letters that it does not know
            lines += text_for(tokenizer, text).split("\n")
    encoded = {line: tokenizer.encode(line) for line in lines}
    every = list(range(1, min(tokenizer.vocab_size, _MOST_TOKENS)))
    if has_phones:
        encoded = {tokenizer.decode(own): own for own in (*encoded.values(), every)}
    else:
        text = tokenizer.decode(every)
        encoded |= {line.swapcase(): own for line, own in encoded.items() if _has_no_other_case(tokenizer, line)}
        encoded[text] = tokenizer.encode(text)
    return [_Sentence(text, own) for text, own in encoded.items() if 0 < len(own) <= LONGEST_PART]


def _has_no_other_case(tokenizer: Tokenizer, text: str) -> bool:
    letters = {letter for letter in text if letter.isalpha()}
    return text.isascii() and all(tokenizer.unknown(letter.swapcase()) for letter in letters)


def _spoken(subject: Subject) -> Iterator[tuple[_Sentence, tuple[np.ndarray, np.ndarray], Any]]:
    """Yields each sentence with our spectrogram and durations, and the outputs of transformers."""
    boundary = boundary_id(subject.run.tokenizer)
    for sentence in _sentences(subject):
        tokens = torch.tensor([[boundary, *sentence.ids, boundary]])
        output = subject.model(tokens, **_speaker_ids(subject), return_dict=True)
        yield sentence, subject.synthesizer.spectrogram(sentence.ids, _speaker(subject)), output


def _speaker(subject: Subject) -> int:
    return subject.run.experiment.objective.num_speakers - 1


def _speaker_ids(subject: Subject) -> dict[str, torch.Tensor]:
    has_several = subject.run.experiment.objective.num_speakers > 1
    return {"speaker_ids": torch.tensor([_speaker(subject)])} if has_several else {}
