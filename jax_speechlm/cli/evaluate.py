"""`jax-speechlm eval` and `score-pairs`, which measure a run as it was trained for."""

import importlib
from collections.abc import Sequence

EVALUATIONS = {
    "ctc": "jax_speechlm.evaluation.recognition",
    "joint": "jax_speechlm.evaluation.recognition",
    "speech_lm": "jax_speechlm.evaluation.recognition",
    "causal_lm": "jax_speechlm.evaluation.language",
    "masked_lm": "jax_speechlm.evaluation.masked_text",
    "unit_lm": "jax_speechlm.evaluation.unit_language",
    "classification": "jax_speechlm.evaluation.classification",
    "frame_classification": "jax_speechlm.evaluation.frame_classification",
    "speaker_verification": "jax_speechlm.evaluation.speakers",
}
"""The module whose `evaluate_run` measures what a run was trained for, by its objective."""


def evaluate(argv: Sequence[str], prog: str) -> None:
    import tyro

    from jax_speechlm.parallel.hardware import cache_compilations
    from jax_speechlm.training.checkpoints import CheckpointError

    cache_compilations()
    kind = _trained_by(argv) or "ctc"  # whose options are shown where no run is named
    if kind not in EVALUATIONS:
        raise CheckpointError(
            f"{argv[0]} was trained by {kind}, whose only measure is its loss, which training logs; there is an "
            f"evaluation for {', '.join(EVALUATIONS)}"
        )
    tyro.cli(importlib.import_module(EVALUATIONS[kind]).evaluate_run, prog=prog, args=argv)


def score_pairs(argv: Sequence[str], prog: str) -> None:
    import tyro

    from jax_speechlm.parallel.hardware import cache_compilations

    cache_compilations()
    if _trained_by(argv) == "unit_lm":
        from jax_speechlm.evaluation.spoken_pairs import score_spoken_pairs as run
    else:
        from jax_speechlm.evaluation.minimal_pairs import score_pairs as run
    tyro.cli(run, prog=prog, args=argv)


def _trained_by(argv: Sequence[str]) -> str | None:
    """The objective of the run that a command line begins with, whose kind decides the options; None without one."""
    from jax_speechlm.inference.checkpoint import objective_kind

    return objective_kind(argv[0]) if argv and not argv[0].startswith("-") else None
