"""What every comparison with transformers needs: a folder's model, opened by it, and how far numbers differ."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from jax_speechlm.interop.hf.verify.verdict import Check

TOLERANCE = 1e-4  # of features and of what the model makes of them, absolute

_AUTO = {
    "Wav2Vec2BertModel": "AutoModel",
    "Wav2Vec2BertForCTC": "AutoModelForCTC",
    "Wav2Vec2BertForSequenceClassification": "AutoModelForAudioClassification",
    "Wav2Vec2BertForAudioFrameClassification": "AutoModelForAudioFrameClassification",
    "Wav2Vec2BertForXVector": "AutoModelForAudioXVector",
    "ParakeetForCTC": "AutoModelForCTC",
    "LlamaForCausalLM": "AutoModelForCausalLM",
    "Qwen3ForCausalLM": "AutoModelForCausalLM",
    "ModernBertForMaskedLM": "AutoModelForMaskedLM",
    "BertForMaskedLM": "AutoModelForMaskedLM",
    "ModernBertForSequenceClassification": "AutoModelForSequenceClassification",
    "RobertaForMaskedLM": "AutoModelForMaskedLM",
    "VoxtralForConditionalGeneration": "AutoModelForSpeechSeq2Seq",
}


def open_model(folder: Path, architecture: str, rounded_to: str = "float32") -> Any:
    """The model of a folder, in float32, from safetensors alone and without any code of the folder's.

    Args:
      rounded_to: a type that its parameters pass through.

    Raises:
      ValueError: it is not of that class, or has other arrays.
    """
    auto = getattr(transformers, _AUTO[architecture])
    options = {"use_safetensors": True, "trust_remote_code": False, "local_files_only": True}
    model, info = auto.from_pretrained(folder, dtype=torch.float32, output_loading_info=True, **options)
    if type(model).__name__ != architecture:
        raise ValueError(f"it opens as {type(model).__name__}")
    if wrong := {key: sorted(map(str, names)) for key, names in info.items() if names}:
        raise ValueError(f"arrays are not those of the class: {wrong}")
    for parameter in model.parameters():  # not its buffers, such as rotary angles
        parameter.data = parameter.data.to(getattr(torch, rounded_to)).float()
    return model.eval()


def outputs(model: Any, inputs: Any) -> np.ndarray:
    """Its logits, or the last hidden states where it has no head."""
    found = model(**{name: torch.tensor(value) for name, value in inputs.items()})
    return (found.logits if "logits" in found else found.last_hidden_state).numpy()


def distance(one: np.ndarray, other: np.ndarray) -> float:
    """The largest absolute difference; infinite where a number is none."""
    difference = np.abs(one - other)
    return float(np.where(np.isnan(difference), np.inf, difference).max(initial=0))


def within(name: str, worst: float, of_what: str) -> Check:
    """Whether the largest difference is small enough."""
    return Check(name, f"{worst:.1e} at most, of {TOLERANCE:.0e} ({of_what})", bool(worst <= TOLERANCE))


def words(text: str) -> str:
    """A text without the amount of its white space."""
    return " ".join(text.split())
