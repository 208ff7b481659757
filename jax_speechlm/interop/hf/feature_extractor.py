"""Log-mel settings as Hugging Face's `SeamlessM4TFeatureExtractor` has them (Parakeet's are in `parakeet`).

The extractor computes Kaldi's log-mel, normalises each bin over the utterance and lays `stride` frames end to end, as
ours does. They part at the end of a clip, where frames do not fill a vector. Ours drops them. The extractor first fills
the longest clip of its batch up to an even number of frames, and so may come to one vector more (`Ending`), which
depends on the batch. `pad_to_multiple_of=1`, an argument of its call, makes it drop them too for a clip by itself.
"""

from typing import Any, Literal

from data_pipelines.core.audio_format import SAMPLE_RATE
from jax_speechlm.frontend.logmel import LogMel
from jax_speechlm.interop.folders import ExportError
from jax_speechlm.interop.hf import parakeet
from jax_speechlm.interop.hf.class_settings import FEATURES

FILE = "preprocessor_config.json"

Ending = Literal["same", "masked", "kept"]
"""What the extractor makes of a clip's end, by itself: the vectors that we have; one more, which its attention mask
leaves out (other outputs of the model do not depend on it, but the speech recognition pipeline spells it too); or one
more that is taken for real."""


def front_end_to_hugging_face(mel: LogMel) -> dict[str, Any]:
    """The settings of a `preprocessor_config.json`.

    Raises:
      ExportError: the extractor has no such features; names the setting.
    """
    stands = {
        f"frontend.mel.variant={mel.variant!r}": mel.variant != "kaldi",
        f"frontend.mel.normalize={mel.normalize}": not mel.normalize,
        # The extractor's mask takes every second frame of `stride`: of one there is none.
        f"frontend.mel.stack={mel.stack}": mel.stack < 2,
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
        "sampling_rate": SAMPLE_RATE,
        "stride": mel.stack,
    }


def front_end_from_hugging_face(values: dict[str, Any]) -> LogMel:
    """The `LogMel` of a `preprocessor_config.json`.

    Raises:
      ExportError: it is of another extractor, or has settings that ours has not.
    """
    kind = values.get("feature_extractor_type")
    if kind == parakeet.EXTRACTOR:
        return parakeet.features_from_hugging_face(values)
    if kind != "SeamlessM4TFeatureExtractor" or values.get("sampling_rate", SAMPLE_RATE) != SAMPLE_RATE:
        raise ExportError(
            f"{FILE}: only a SeamlessM4TFeatureExtractor at {SAMPLE_RATE} Hz has a counterpart here, not {kind}"
        )
    values = FEATURES[kind] | values
    return LogMel(num_mel_bins=values["num_mel_bins"], stack=values["stride"])


def ending(mel: LogMel, num_samples: int) -> Ending:
    """What becomes of the end of a clip of so many samples."""
    if mel.variant == "nemo":  # ParakeetFeatureExtractor has a window more than whole hops, always masked
        return "masked"
    frames = mel.replace(stack=1).num_frames(num_samples)
    if (frames + frames % 2) // mel.stack == frames // mel.stack:
        return "same"
    return "kept" if frames % mel.stack >= 2 else "masked"  # the mask is that of a vector's second frame
