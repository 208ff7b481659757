"""Entry point of `jax-speechlm COMMAND`; each command calls a function that can also be used from Python."""

import difflib
import importlib.metadata
import logging
import os
import pkgutil
import sys
from collections.abc import Callable, Sequence

from jax_speechlm.cli.commands import COMMANDS, GROUPS, OLD_COMMANDS, Command
from jax_speechlm.cli.console import repeated_option, use_utf8
from jax_speechlm.core import exit_status
from jax_speechlm.parallel.platforms import cache_compilations


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit status (`jax_speechlm.core.exit_status`)."""
    if argv is None:
        use_utf8()
    argv = list(sys.argv[1:] if argv is None else argv)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # no messages of TensorFlow's import
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")  # unused, and it logs a message
    if not argv or argv[0] in ("-h", "--help", "--version"):
        version = f"jax-speechlm {importlib.metadata.version('jax_speechlm')}"
        _until_closed(lambda: print(version if argv[:1] == ["--version"] else _help(), flush=True))
        return 0
    command = COMMANDS.get(OLD_COMMANDS.get(argv[0], argv[0]))
    if command is None:
        near = difflib.get_close_matches(argv[0], COMMANDS, n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        print(f"jax-speechlm has no command {argv[0]!r}.{hint} jax-speechlm --help lists all.", file=sys.stderr)
        return exit_status.WRONG_COMMAND_LINE
    if repeated := repeated_option(argv[1:]):
        print(f"{repeated} is given twice; several values follow one option: {repeated} A B", file=sys.stderr)
        return exit_status.WRONG_COMMAND_LINE
    status = 0
    try:
        status = _until_closed(lambda: _run_or_explain(command, argv[1:], prog=f"jax-speechlm {argv[0]}"))
    except UnicodeError as error:
        print(
            f"error: text that is not UTF-8, in an argument or in a file ({error}): convert it first", file=sys.stderr
        )
        return exit_status.USER_ERROR
    except exit_status.USER_ERRORS as error:
        print(f"error: {error}", file=sys.stderr)
        return exit_status.status_of(error)
    return status or 0


def _until_closed(function: Callable[[], int | None]) -> int | None:
    """Calls a function that prints, up to the exit of the output's reader, such as `head`."""
    try:
        return function()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _run_or_explain(command: Command, argv: Sequence[str], prog: str) -> int | None:
    """Runs a command; where its help is asked for, the command's example follows it."""
    try:
        return _run(command, argv, prog)
    except SystemExit as ended:
        own = argv[: argv.index("--")] if "--" in argv else argv
        if ended.code == 0 and {"-h", "--help"} & set(own):
            print("example:", *command.example.splitlines(), sep="\n  ", flush=True)
        raise


def _run(command: Command, argv: Sequence[str], prog: str) -> int | None:
    cache_compilations()
    try:
        function = pkgutil.resolve_name(command.run)
    except ModuleNotFoundError as error:
        if not command.extra:
            raise
        raise ValueError(f"{error.name} is missing: pip install 'jax_speechlm[{command.extra}]'") from error
    if command.parses:
        return function(argv, prog=prog)
    import tyro

    if command.config:
        from jax_speechlm.cli.experiment import bind_experiment

        function, argv = bind_experiment(function, argv, command.config)
    status = tyro.cli(function, prog=prog, args=argv)
    return status if isinstance(status, int) else 0


def _help() -> str:
    rows = []
    for group, heading in GROUPS.items():
        rows.append(f"\n{heading}:")
        for name, command in COMMANDS.items():
            if command.group == group:
                rows.append(f"  {name:<16} {command.summary}\n  {'':<16}   $ {command.example.splitlines()[0]}")
    return (
        "jax-speechlm: pretrain, finetune and evaluate speech models in JAX\n\nusage: jax-speechlm COMMAND ...\n"
        + "\n".join(rows)
        + "\n\n`jax-speechlm COMMAND --help` explains every option of a command; --version prints the version.\n\n"
        + exit_status.SUMMARY
    )
