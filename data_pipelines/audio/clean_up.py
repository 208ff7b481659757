"""Clean-up of clips, by the functions that run on devices: JAX is imported only where it is asked for."""

import pkgutil
from typing import Literal

import numpy as np
from numpy.typing import NDArray

CleanUpMethod = Literal["wiener", "subtraction", "gate", "none"]
"""Methods of `jax_speechlm.frontend.clean_up.CleanUp`; "none" is its high-pass filter alone."""

_FUNCTION = "jax_speechlm.inference.enhance:enhance_clip"  # by name, as this package does without JAX


def clean_clip(samples: NDArray[np.int16], rate: int, method: CleanUpMethod) -> NDArray[np.int16]:
    """Returns a clip without noise, as long; thread-safe."""
    return pkgutil.resolve_name(_FUNCTION)(samples, rate, method)
