"""Batch norm of exported and imported convolutions: in evaluation a scale and an offset a channel."""

import numpy as np

EPSILON = 1e-5  # that batch norm adds to a variance


def fold(arrays: dict[str, np.ndarray], norm: str, bias: str | None) -> None:
    """Folds the batch norm `norm`, and the bias of the convolution before it, into its weight and bias, in place.

    Args:
      bias: name of the convolution's bias, which may be absent; None if the convolution never has one.

    Raises:
      ValueError: an array of the norm is missing, or they differ in shape.
    """
    variance = arrays.pop(f"{norm}.running_var").astype(np.float64)
    mean = arrays.pop(f"{norm}.running_mean", None)
    weight, offset = (arrays.get(f"{norm}.{part}") for part in ("weight", "bias"))
    before = np.zeros_like(variance) if bias is None else arrays.pop(bias, np.zeros_like(variance))
    if any(array is None or array.shape != variance.shape for array in (mean, weight, offset, before)):
        named = "" if bias is None else f" or {bias}"
        raise ValueError(f"{norm} lacks weight, bias or running_mean, or they{named} differ in shape")
    arrays.pop(f"{norm}.num_batches_tracked", None)
    scale = weight / np.sqrt(variance + EPSILON)
    arrays[f"{norm}.weight"] = scale.astype(np.float32)
    arrays[f"{norm}.bias"] = (offset + (before - mean.astype(np.float64)) * scale).astype(np.float32)


def fixed_statistics(norm: str, channels: int) -> dict[str, np.ndarray]:
    """Returns running statistics with which a batch norm multiplies by its weight and adds its bias, exactly.

    With epsilon the variance is 1 but for float32's rounding, too little to round any scale to another.
    """
    return {
        f"{norm}.running_mean": np.zeros(channels, np.float32),
        f"{norm}.running_var": np.full(channels, 1 - EPSILON, np.float32),
        f"{norm}.num_batches_tracked": np.zeros((), np.int64),
    }
