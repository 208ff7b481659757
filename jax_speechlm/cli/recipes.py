"""`jax-speechlm configs`."""

import argparse
from collections.abc import Sequence


def list_configs(argv: Sequence[str], prog: str) -> None:
    from jax_speechlm import configs

    argparse.ArgumentParser(prog=prog, description="Lists the experiments that ship.").parse_args(argv)
    for name in configs.names():
        print(f"{name:<24} {configs.docstring(name).splitlines()[0]}")
