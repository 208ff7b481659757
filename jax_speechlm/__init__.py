"""Speech-language models in JAX. `jax_speechlm.load(path)` opens a trained checkpoint, and imports what that needs."""

from typing import TYPE_CHECKING

from jax_speechlm.parallel.platforms import skip_absent_tpu

if TYPE_CHECKING:
    from jax_speechlm.inference.load import TrainedModel, load

__all__ = ["TrainedModel", "load"]

skip_absent_tpu()  # before anything imports JAX


def __getattr__(name: str):
    if name == "__version__":
        from importlib import metadata

        return metadata.version("jax_speechlm")
    if name in __all__:
        from jax_speechlm.inference import load as loading

        return getattr(loading, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "__version__"})
