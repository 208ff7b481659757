"""The table of comparisons between transformers and this project, for each class of exported model.

The folder alone is opened, by the Auto classes, and everything is computed in float32 on the CPU: the same audio or
texts have to give the same numbers, ids and texts.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import torch

from data_pipelines.audio import decode as audio_files
from data_pipelines.core.audio_format import DEFAULT_SAMPLE_RATE
from jax_speechlm.interop.hf import fastspeech2, hifigan, nemotron, wav2vec2, wav2vec2_bert
from jax_speechlm.interop.hf import text_families as families
from jax_speechlm.interop.hf.registry import READERS, TEXT_MODELS, Package
from jax_speechlm.interop.hf.speech_heads import Head
from jax_speechlm.interop.hf.verify import codec, speech, speech_lm, text, transducer, vocoder, voice, whisper
from jax_speechlm.interop.hf.verify.subject import TEXTS, Subject, in_float32, open_model, quiet, synthetic_clips
from jax_speechlm.interop.hf.verify.verdict import Check, guarded
from jax_speechlm.training.runs import LoadedRun

_MOST_SECONDS = 30  # of a clip; transcription cuts longer ones too

Comparison = Callable[[Subject], str]
"""Returns a summary, "" where it does not apply to the run; raises `verdict.Differs` at a difference."""

_SPEECH = {"front end": speech.front_end}
_LOGITS = _SPEECH | {"logits": speech.encoder_outputs}
_RECOGNIZER = _LOGITS | {"ids": speech.ctc_ids, "greedy text": speech.greedy_text, "pipeline": speech.pipeline}
_OF_HEADS: dict[Head, dict[str, Comparison]] = {
    "Model": _SPEECH | {"hidden states": speech.encoder_outputs},
    "ForPreTraining": _SPEECH | {"projections": speech.projections},
    "ForCTC": _RECOGNIZER,
    "ForSequenceClassification": _LOGITS | {"class": speech.utterance_classes},
    "ForAudioFrameClassification": _LOGITS | {"classes": speech.frame_classes},
    "ForXVector": _SPEECH | {"speakers": text.class_names, "vectors": speech.encoder_outputs},
}
_MASKED = {"ids": text.ids, "logits": text.logits}
_TEXT_CLASSES = {"ids": text.ids, "classes": text.class_names, "logits": text.logits, "pipeline": text.pipeline}
_TOKEN_CLASSES = {"ids": text.ids, "classes": text.class_names, "logits": text.logits}
_CAUSAL = _MASKED | {"continuation": text.continuations}

COMPARISONS: dict[str, dict[str, Comparison]] = {
    **{name: _OF_HEADS[head] for name, head in (wav2vec2_bert.ARCHITECTURES | wav2vec2.ARCHITECTURES).items()},
    "ParakeetForCTC": _RECOGNIZER,
    nemotron.ARCHITECTURE: (
        _SPEECH | {"hidden states": transducer.encoder_outputs, "ids": speech.ctc_ids, "text": transducer.streamed_text}
    ),
    **{name: _MASKED if name.endswith("MaskedLM") else _CAUSAL for name in TEXT_MODELS},
    **{name: {"ids": text.ids, "hidden states": text.logits} for name in families.ENCODERS.values()},
    **{name: _TEXT_CLASSES for name in families.CLASSIFIERS.values()},
    **{name: _TOKEN_CLASSES for name in families.TAGGERS.values()},
    **{name: _MASKED | {"pairs": text.pairs} for name in families.READERS_OF_SPANS.values()},
    **{name: {"front end": vocoder.front_end, "samples": vocoder.waveforms} for name in hifigan.ARCHITECTURES},
    fastspeech2.MODEL: {
        "ids": voice.ids,
        "durations": voice.durations,
        "spectrogram": voice.spectrograms,
        "pipeline": voice.pipeline,
    },
    "WavTokenizerModel": {"codes": codec.codes, "samples": codec.samples},
    "WhisperForConditionalGeneration": {
        "front end": whisper.front_end,
        "ids": whisper.ids,
        "logits": whisper.logits,
        "greedy text": whisper.greedy_text,
    },
    "VoxtralForConditionalGeneration": {
        "front end": speech_lm.front_end,
        "ids": speech_lm.ids,
        "logits": speech_lm.logits,
        "answer": speech_lm.answers,
    },
}
"""The comparisons of each class by name, in order."""


def compare(
    folder: Path,
    run: LoadedRun,
    made: Package,
    audio: Sequence[Path],
    texts: Sequence[str],
    rounded_to: str = "float32",
    vocoder: LoadedRun | None = None,
) -> Iterator[Check]:
    """Opens a folder with transformers and runs its comparisons on built-in and given audio and texts.

    `made` is `run` in Hugging Face's terms; `vocoder` is a voice's, read from a folder. Parameters of transformers are
    rounded to the type of the imported ones.
    """
    clips = [*synthetic_clips(), *(audio_files.decode(file)[: _MOST_SECONDS * DEFAULT_SAMPLE_RATE] for file in audio)]
    with quiet(), torch.no_grad():
        try:
            model = open_model(folder, READERS[made.architecture].auto_class, made.architecture, rounded_to)
        except Exception as error:  # settings that no class has end in errors of every kind
            yield Check("opens", f"{type(error).__name__}: {error}", False)
            return
        yield Check("opens", f"{type(model).__name__}, every array in its place", True)
        subject = Subject(folder, in_float32(run), made, model, clips, [*TEXTS, *texts], vocoder)
        for name, comparison in COMPARISONS[made.architecture].items():
            check = guarded(name, partial(comparison, subject))
            if check.result:
                yield check
            if name == "ids" and not check.passed:  # the next ones would not compare the same inputs
                return
