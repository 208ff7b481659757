"""Predictor of a language model of text and speech units: scores speech, continues text and speech.

Speech is generated as unit ids, which `UnitDecoder` turns into samples: a codec's codes by the codec, units of a
k-means by a voice that was trained on them.
"""

import dataclasses
import functools
import itertools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
from jaxtyping import Float, Float32, Integer
from tyro.conf import OmitArgPrefixes, Positional

from data_pipelines.audio.wav import write_wav
from data_pipelines.storage.units import read_units
from jax_speechlm.core.errors import CheckpointError
from jax_speechlm.core.vocabulary import Modality
from jax_speechlm.decoding.lm.generate import Beam, Sampling, check_counts, method_of
from jax_speechlm.inference.codec import CodecModel
from jax_speechlm.inference.lm.causal import LanguageModel
from jax_speechlm.inference.lm.generation import UnitContinuation, read_continuations
from jax_speechlm.inference.synthesize import Synthesizer
from jax_speechlm.inference.unit_encoder import UnitEncoder
from jax_speechlm.inference.vocode import GRIFFIN_LIM
from jax_speechlm.objectives.lm.unit_lm import UnitLM
from jax_speechlm.training.runs import LoadedRun, trained_units
from jax_speechlm.units.features import CodecLatents, read_features

Part = str | Integer[np.ndarray, "..."]
"""Part of a document: text, or units as `Units.sequence` gives them."""


@dataclasses.dataclass(frozen=True, eq=False)
class UnitModel:
    """A language model of text and speech units.

    Attributes:
      units: folder of the k-means in the run's data settings.
      fingerprint: of the k-means; the model accepts only its units.
    """

    abilities: ClassVar[tuple[str, ...]] = ("generate", "score")

    lm: LanguageModel
    units: str
    fingerprint: str

    @classmethod
    def load(cls, path: str | Path) -> "UnitModel":
        """Reads a run's newest checkpoint, which a unit language model's training wrote; else `CheckpointError`."""
        run = LoadedRun.load(path, UnitLM, "score speech")
        data, model, num_units = run.experiment.data, run.experiment.model, run.experiment.objective.num_units
        lm = LanguageModel(model, run.tokenizer, run.params, data.context, run.checkpoint, num_units)
        return cls(lm, data.units, run.units)

    def check(self, units: str | Path | None = None) -> Path:
        """Returns the folder of a k-means, by default the run's `data.units`.

        Raises:
          DataError: the folder cannot be read.
          CheckpointError: it is not the k-means that the model was trained on.
        """
        return trained_units(units or self.units, self.fingerprint, self.lm.checkpoint)

    def prompt(self, parts: Sequence[Part], then: Modality | None = None) -> list[int]:
        """Encodes the beginning of a document, followed by a switch to the modality `then` if needed."""
        vocabulary = self.lm.vocabulary
        ids, modality = [vocabulary.begin], "text"
        for part in parts:
            here = "text" if isinstance(part, str) else "units"
            ids += self._change(modality, here)
            is_text = here == "text"
            ids += self.lm.tokenizer.encode(part) if is_text else (part.astype(int) + vocabulary.first_unit).tolist()
            modality = here
        return ids + (self._change(modality, then) if then else [])

    def document(self, units: Integer[np.ndarray, "..."]) -> list[int]:
        """Encodes an utterance as a document with its boundaries."""
        return [*self.prompt([units]), self.lm.vocabulary.boundary]

    def unit_nats(
        self, utterances: Sequence[Integer[np.ndarray, "..."]], *, stride: int | None = None
    ) -> list[Float[np.ndarray, "..."]]:
        """Computes the negative log-likelihood of deduplicated units given the preceding ones, without the end.

        Returns:
          For each utterance [units], in nats.
        """
        nats = self.lm.token_nll([self.document(each) for each in utterances], stride=stride)
        return [each[1:-1] for each in nats]  # without the speech token and the end

    def generate(
        self,
        prompts: Sequence[Sequence[Part]],
        method: Sampling | Beam = Sampling(),  # noqa: B008  frozen
        *,
        modality: Modality | None = None,
        max_tokens: int = 128,
        samples: int = 1,
        seed: int = 0,
    ) -> list[list[UnitContinuation]]:
        """Continues documents from their first parts, as `LanguageModel.generate`; `modality` restricts new tokens."""
        ids = [self.prompt(parts, modality) for parts in prompts]
        continuations = self.lm.continue_ids(
            ids, method, modality=modality, max_tokens=max_tokens, samples=samples, seed=seed
        )
        return [
            read_continuations(arrays, self.lm.vocabulary, functools.partial(self._read, start), UnitContinuation)
            for start, arrays in zip(ids, continuations, strict=True)
        ]

    def _change(self, before: Modality, now: Modality) -> list[int]:
        vocabulary = self.lm.vocabulary
        return [] if before == now else [vocabulary.text if now == "text" else vocabulary.speech]

    def _read(self, start: list[int], ids: list[int]) -> tuple[dict[str, str | list[int]], ...]:
        vocabulary = self.lm.vocabulary
        switches = (vocabulary.speech, vocabulary.text)
        # Generated text may begin inside a word of the prompt, so both are decoded together.
        before = list(itertools.takewhile(lambda number: number < vocabulary.boundary, reversed(start)))[::-1]
        parts: list[dict[str, str | list[int]]] = []

        def kind(number):
            return "switch" if number in switches else "units" if vocabulary.is_unit(number) else "text"

        for name, group in itertools.groupby(ids, kind):
            run = list(group)
            if name == "units":
                parts.append({"units": [number - vocabulary.first_unit for number in run]})
            elif name == "text":
                begin = len(self.lm.tokenizer.decode(before))
                parts.append({"text": self.lm.tokenizer.decode(before + run)[begin:]})
            before = []
        return tuple(parts)


@dataclasses.dataclass(frozen=True, eq=False)
class UnitDecoder:
    """Turns units into waveforms.

    Attributes:
      decode: returns the samples of a sequence of units, in [-1, 1].
      sample_rate: of the samples, in Hz.
    """

    decode: Callable[[Integer[np.ndarray, "..."]], Float32[np.ndarray, "..."]]
    sample_rate: int

    @classmethod
    def load(
        cls, units: str | Path, voice: str | Path | None = None, vocoder: str | Path = GRIFFIN_LIM
    ) -> "UnitDecoder":
        """Reads the codec that a folder of units is of, or a voice that was trained on them.

        Args:
          voice: a run of text to speech whose texts are these units; None for a codec's own decoder.
          vocoder: of the voice: a run, or "griffin-lim".

        Raises:
          CheckpointError: the voice was trained on texts or on other units; or without a voice the units are clusters,
            or the codec cannot be read or has changed.
        """
        known = read_units(units)
        if voice is not None:
            synthesizer = Synthesizer.load(voice, vocoder)
            if synthesizer.units != known.fingerprint:
                spoken = f"the units {synthesizer.units}" if synthesizer.units else "texts"
                raise CheckpointError(
                    f"{voice}: was trained on {spoken}, and the units of {units} are {known.fingerprint}: name a voice "
                    f"that was trained with --objective.text units --data.units {units}"
                )
            return cls(synthesizer.speak_units, synthesizer.sample_rate)
        features = read_features(known.about["features"])
        if not isinstance(features, CodecLatents):
            raise CheckpointError(
                f"{units}: its units are clusters, from which no samples can be computed without a voice that was "
                "trained on them: name its run with --voice (jax-speechlm finetune --config asterisk_tts/unit_voice "
                f"--data.units {units}), or leave out --out"
            )
        codec = CodecModel(features.read())
        return cls(lambda ids: codec.decode_codes([ids])[0], codec.sample_rate)

    def write(self, path: Path, parts: Sequence[Integer[np.ndarray, "..."]]) -> Path | None:
        """Decodes parts of speech as one waveform and writes it as a WAV file; nothing if there is no speech."""
        units = np.concatenate([np.zeros(0, np.int32), *parts])
        if not len(units):
            return None
        write_wav(path, self.decode(units), self.sample_rate)
        return path


def generate_units(
    checkpoint: Positional[Path],
    prompts: Positional[tuple[str, ...]] = (),
    audio_prompts: tuple[Path, ...] = (),
    units: Path | None = None,
    modality: Literal["free", "text", "units"] = "free",
    max_tokens: int = 128,
    samples: int = 1,
    sampling: OmitArgPrefixes[Sampling] = Sampling(),  # noqa: B008  frozen
    beam_size: int = 0,
    length_penalty: float = 1.0,
    seed: int = 0,
    out: Path | None = None,
    voice: Path | None = None,
    vocoder: str = GRIFFIN_LIM,
) -> None:
    """Continues text and speech. Speech is generated as unit ids, and with --out also as WAV files.

    Prints JSON lines with prompt, audio, parts (text or units), log_prob (nats), num_tokens and ended; with --out also
    wav, the file with the speech of prompt and continuation, null if there is none. A continuation depends on its
    prompt, the settings and the seed, not on other prompts.

    Args:
      checkpoint: a unit language model's run directory, or one of its checkpoints/<step> folders.
      prompts: beginnings of texts; without prompts and audio a document is generated from the start.
      audio_prompts: audio files. With prompts, give one per prompt, to follow its text; else each begins a document.
      units: folder of the k-means that the model was trained on; by default `data.units` of the run.
      modality: generate text only, units only, or freely both.
      max_tokens: most tokens added; the model may end the document before.
      samples: continuations per prompt.
      sampling: sampling of tokens; --temperature 0 always takes the most likely.
      beam_size: above 0: beam search instead of sampling, with this many hypotheses, all of which are printed.
      length_penalty: of the beam search: 0 compares by probability, 1 by its geometric mean over tokens.
      seed: seed of sampling.
      out: folder of the WAV files 0.wav, 1.wav, ..., in the order of the lines. A codec's units need nothing else.
      voice: run that makes the WAV files: a voice that was trained on the same units.
      vocoder: of the voice: directory of a vocoder's run, or griffin-lim.
    """
    if voice and not out:
        raise ValueError("--voice makes WAV files: name a folder for them with --out")
    method = method_of(sampling, beam_size, length_penalty)
    check_counts(max_tokens=max_tokens, samples=samples)
    model = UnitModel.load(checkpoint)
    decoder = UnitDecoder.load(model.check(units), voice, vocoder) if out else None
    spoken_units = UnitEncoder.load(model.check(units)).encode_sequences(audio_prompts) if audio_prompts else []
    if prompts and audio_prompts and len(prompts) != len(audio_prompts):
        raise ValueError(
            f"{len(prompts)} texts and {len(audio_prompts)} audio files: give one for each, or only one kind"
        )
    count = max(len(prompts), len(spoken_units), 1)
    texts, files = prompts or ("",) * count, audio_prompts or (None,) * count
    spoken = [[sequence] for sequence in spoken_units] or [[]] * count
    parts = [[*([text] if text else []), *speech] for text, speech in zip(texts, spoken, strict=True)]
    options = {"max_tokens": max_tokens, "samples": samples, "seed": seed}
    results = model.generate(parts, method, modality=None if modality == "free" else modality, **options)
    numbers = itertools.count()
    for text, file, speech, continuations in zip(texts, files, spoken, results, strict=True):
        for each in continuations:
            line = {"prompt": text, "audio": file and str(file), **each._asdict()}
            if decoder:
                generated = [np.array(part["units"]) for part in each.parts if "units" in part]
                wav = decoder.write(out / f"{next(numbers)}.wav", [*speech, *generated])
                line["wav"] = wav and str(wav)
            print(json.dumps(line, ensure_ascii=False), flush=True)
