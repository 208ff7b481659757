"""`jax-speechlm import`."""

import os
from collections.abc import Sequence


def import_folder(argv: Sequence[str], prog: str) -> None:
    """Runs `import_run` with a command line."""
    import tyro

    from jax_speechlm.interop.hf.import_ import import_run
    from jax_speechlm.parallel.hardware import cache_compilations

    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # else it warns after every fork
    cache_compilations()
    tyro.cli(import_run, prog=prog, args=argv)
