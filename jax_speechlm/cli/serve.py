"""`jax-speechlm serve`."""

from collections.abc import Sequence


def serve(argv: Sequence[str], prog: str) -> None:
    """Runs `serve_run` with a command line. Raises `ValueError` if the serve extra is not installed."""
    import tyro

    from jax_speechlm.parallel.hardware import cache_compilations

    try:
        from jax_speechlm.serving.run import serve_run
    except ModuleNotFoundError as error:
        raise ValueError(f"{error.name} is missing: pip install 'jax_speechlm[serve]'") from error
    cache_compilations()
    tyro.cli(serve_run, prog=prog, args=argv)
