"""Log-mel settings as Hugging Face's `SeamlessM4TFeatureExtractor` has them (Parakeet's are in `parakeet`).

The extractor computes Kaldi's log-mel, normalises each bin over the utterance and concatenates `stride` frames, as ours
does. At the end of a clip, ours drops frames that do not fill a vector. The extractor first pads the longest clip of
its batch to an even number of frames, and so may give one vector more (`Ending`), which depends on the batch. With
`pad_to_multiple_of=1`, an argument of its call, it drops them too for a clip by itself.
"""

from typing import Any, Literal

from data_pipelines.core.audio_format import DEFAULT_SAMPLE_RATE
from jax_speechlm.frontend.cepstra import Cepstra
from jax_speechlm.frontend.frontend import AnyMel
from jax_speechlm.frontend.logmel import LogMel
from jax_speechlm.frontend.waveform import Waveform
from jax_speechlm.interop.folders import ExportError
from jax_speechlm.interop.hf import hifigan, nemotron, parakeet, wav2vec2, whisper
from jax_speechlm.interop.hf.class_settings import FEATURES

FILE = "preprocessor_config.json"

Ending = Literal["same", "masked", "kept"]
"""The extractor's vectors of a clip by itself: the same as ours; one more, which its attention mask leaves out (other
outputs of the model do not depend on it, but the speech recognition pipeline decodes it too); or one more in the mask.
"""


def front_end_to_hugging_face(mel: AnyMel) -> dict[str, Any]:
    """Returns the settings of a `preprocessor_config.json`; an `ExportError` names a setting that it does not have."""
    if not isinstance(mel, LogMel | Cepstra):
        raise ExportError(
            f"frontend.mel.variant={mel.variant!r} has no counterpart in Hugging Face's SeamlessM4TFeatureExtractor, "
            "which the classes of this encoder take: a model trained on Kaldi's log-mel can be exported"
        )
    stands = {
        f"frontend.mel.variant={mel.variant!r}": mel.variant != "kaldi",
        f"frontend.mel.taper={mel.taper!r}": mel.taper not in (None, "povey"),
        f"frontend.mel.warp={getattr(mel, 'warp', 1)}": getattr(mel, "warp", 1) != 1,
        f"frontend.mel.normalize={mel.normalize}": mel.normalize is not True,
        # The extractor's mask takes every second frame of `stride`: of one there is none.
        f"frontend.mel.stack={mel.stack}": mel.stack < 2,
        f"frontend.mel.sample_rate={mel.sample_rate}": mel.sample_rate != DEFAULT_SAMPLE_RATE,
    }
    for setting, stands_in_the_way in stands.items():
        if stands_in_the_way:
            raise ExportError(
                f"{setting} has no counterpart in Hugging Face's SeamlessM4TFeatureExtractor, which computes Kaldi's "
                "log-mel, normalised, with two frames or more in a vector: a model trained so can be exported"
            )
    return {
        "feature_extractor_type": "SeamlessM4TFeatureExtractor",
        "feature_size": mel.num_mel_bins,
        "num_mel_bins": mel.num_mel_bins,
        "padding_side": "right",
        "padding_value": 0.0,
        "return_attention_mask": True,
        "sampling_rate": DEFAULT_SAMPLE_RATE,
        "stride": mel.stack,
    }


def front_end_from_hugging_face(values: dict[str, Any]) -> AnyMel:
    """Converts a `preprocessor_config.json`; refuses other extractors, and settings that ours does not have."""
    kind = values.get("feature_extractor_type")
    if kind == parakeet.EXTRACTOR:
        return parakeet.features_from_hugging_face(values)
    if kind == nemotron.EXTRACTOR:
        return nemotron.features_from_hugging_face(values)
    if kind == hifigan.EXTRACTOR:
        return hifigan.features_from_hugging_face(values)
    if kind == wav2vec2.EXTRACTOR:
        return wav2vec2.features_from_hugging_face(values)
    if kind == whisper.EXTRACTOR:
        return whisper.features_from_hugging_face(values)
    if kind != "SeamlessM4TFeatureExtractor" or values.get("sampling_rate", DEFAULT_SAMPLE_RATE) != DEFAULT_SAMPLE_RATE:
        raise ExportError(
            f"{FILE}: only a SeamlessM4TFeatureExtractor at {DEFAULT_SAMPLE_RATE} Hz has a counterpart here, not {kind}"
        )
    values = FEATURES[kind] | values
    return LogMel(num_mel_bins=values["num_mel_bins"], stack=values["stride"])


def ending(mel: LogMel | Waveform, num_samples: int) -> Ending:
    """Returns how the extractor treats the end of a clip of `num_samples`."""
    if isinstance(mel, Waveform):
        return "same"
    if mel.variant == "nemo":  # ParakeetFeatureExtractor has a window more than whole hops, always masked
        return "masked"
    frames = mel.replace(stack=1).num_frames(num_samples)
    if (frames + frames % 2) // mel.stack == frames // mel.stack:
        return "same"
    return "kept" if frames % mel.stack >= 2 else "masked"  # the mask is that of a vector's second frame
