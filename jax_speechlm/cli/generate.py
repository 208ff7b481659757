"""`jax-speechlm generate`."""

from collections.abc import Sequence

from jax_speechlm.inference.checkpoint import objective_kind


def generate(argv: Sequence[str], prog: str) -> None:
    import tyro

    from jax_speechlm.parallel.hardware import cache_compilations

    cache_compilations()
    kind = objective_kind(argv[0]) if argv and not argv[0].startswith("-") else None
    if kind == "unit_lm":
        from jax_speechlm.inference.lm.units import generate_units as run
    elif kind == "speech_lm":
        from jax_speechlm.inference.asr.speech_lm import answer_files as run
    else:
        from jax_speechlm.inference.lm.causal import generate_texts as run
    tyro.cli(run, prog=prog, args=argv)
