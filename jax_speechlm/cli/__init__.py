"""`jax-speechlm VERB`: every command of the project, each a thin layer over a function that also runs from Python."""

import argparse
import importlib
import importlib.metadata
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from jax_speechlm.cli.console import repeated_option, use_utf8
from jax_speechlm.core import exit_status

if TYPE_CHECKING:
    from jax_speechlm.recipes.experiment import Experiment


class Verb(NamedTuple):
    """One command: the function that runs it, what it does, and an example.

    Attributes:
      typed: whether the command line is read into the function's own arguments (tyro); else it takes (argv, prog).
    """

    run: str
    summary: str
    example: str
    typed: bool = False


VERBS = {
    "prepare": Verb(
        "jax_speechlm.cli:prepare",
        "fetch or read speech and write it as a data set",
        "jax-speechlm prepare asterisk-en queen-en    |    jax-speechlm prepare --manifest my.jsonl",
    ),
    "train-tokenizer": Verb(
        "jax_speechlm.cli:train_tokenizer",
        "train a character or SentencePiece tokenizer on transcripts or text",
        "jax-speechlm train-tokenizer --sets queen-en --kind unigram --vocab-size 500 --out data/unigram-500",
    ),
    "train-ngram": Verb(
        "jax_speechlm.decoding.lm.train_ngram:train_ngram",
        "estimate an n-gram language model for decoding",
        "jax-speechlm train-ngram --sets text-en asterisk-en --order 4 --unit word --out data/en-4.arpa.gz",
        typed=True,
    ),
    "pretrain": Verb(
        "jax_speechlm.cli:pretrain",
        "train an encoder on audio alone",
        "jax-speechlm pretrain --config demo_pretrain --run-dir runs/pretrain --num-steps 2000",
    ),
    "finetune": Verb(
        "jax_speechlm.cli:finetune",
        "train on transcripts, from a pretrained encoder or from scratch",
        "jax-speechlm finetune --config demo_finetune --from runs/pretrain --run-dir runs/finetune",
    ),
    "eval": Verb(
        "jax_speechlm.cli:evaluate",
        "measure a checkpoint as it was trained for: WER, bits per byte or per second, masked accuracy, or classes",
        "jax-speechlm eval runs/finetune --sets asterisk-en --split test",
    ),
    "score-pairs": Verb(
        "jax_speechlm.cli:score_pairs",
        "ask a language model which of a minimal pair is the good one: of sentences (BLiMP), or recordings (sWUGGY)",
        "jax-speechlm score-pairs runs/lm blimp/*.jsonl    |    jax-speechlm score-pairs runs/units lexical/dev",
    ),
    "generate": Verb(
        "jax_speechlm.cli:generate",
        "continue texts, or speech as units, with a language model; answer audio files with a speech-language model",
        'jax-speechlm generate runs/lm "In the beginning" --temperature 0.8 --top-p 0.95',
    ),
    "compare": Verb(
        "jax_speechlm.evaluation.recognition:compare_reports",
        "paired bootstrap between two evaluations",
        "jax-speechlm compare runs/a/eval/*/report.json runs/b/eval/*/report.json",
        typed=True,
    ),
    "rover": Verb(
        "jax_speechlm.evaluation.rover:rover_reports",
        "join the transcripts of several evaluations by a vote on every word",
        "jax-speechlm rover runs/*/eval/asterisk-en-test-greedy/report.json --out runs/rover",
        typed=True,
    ),
    "average": Verb(
        "jax_speechlm.compression.average:average_runs",
        "average checkpoints of one run, or of several, into one",
        "jax-speechlm average runs/finetune --last 5 --out runs/average    |    average runs/a runs/b --out runs/soup",
        typed=True,
    ),
    "quantize": Verb(
        "jax_speechlm.compression.quantize:quantize_run",
        "round a trained model's weights to 8 or 4 bits",
        "jax-speechlm quantize runs/finetune --kind int8 --out runs/int8",
        typed=True,
    ),
    "transcribe": Verb(
        "jax_speechlm.cli.transcribe:transcribe_files",
        "turn audio files into text",
        "jax-speechlm transcribe runs/finetune interview.mp3 --format srt",
        typed=True,
    ),
    "serve": Verb(
        "jax_speechlm.serving:serve",
        "answer requests for transcripts over HTTP, in OpenAI's form, and show a page to try a run on",
        "jax-speechlm serve runs/finetune --port 8000",
    ),
    "translate": Verb(
        "jax_speechlm.cli.transcribe:translate_files",
        "turn audio files of other languages into English text, with a speech-language model",
        "jax-speechlm translate runs/translate interview.mp3",
        typed=True,
    ),
    "self-train": Verb(
        "jax_speechlm.apps.self_training:self_train",
        "transcribe untranscribed audio, keep what the model is sure of, and train on it",
        "jax-speechlm self-train runs/finetune --sets queen-en --out pseudo --run-dir runs/self",
        typed=True,
    ),
    "embed": Verb(
        "jax_speechlm.inference.embed:embed_files",
        "write what an encoder's layers make of audio files: a vector a file, or one a frame",
        "jax-speechlm embed runs/pretrain *.wav --out embeddings.npz",
        typed=True,
    ),
    "classify": Verb(
        "jax_speechlm.inference.classify:classify",
        "say what a classifier takes audio files, or texts, for",
        "jax-speechlm classify runs/digits *.wav    |    jax-speechlm classify runs/sources 'In the beginning'",
        typed=True,
    ),
    "segment": Verb(
        "jax_speechlm.inference.segment:segment_files",
        "say when speech is heard in audio files, with a model that was trained to tell",
        "jax-speechlm segment runs/voice meeting.mp3",
        typed=True,
    ),
    "probe": Verb(
        "jax_speechlm.evaluation.probing:probe_run",
        "train linear maps of an encoder's frozen layers to speaker, language, words or characters",
        "jax-speechlm probe runs/pretrain --sets fsdd --target text --leave-out speaker",
        typed=True,
    ),
    "align": Verb(
        "jax_speechlm.apps.align:align_run",
        "find when each word of known transcripts is said",
        "jax-speechlm align runs/finetune --sets asterisk-en --split test --format ctm",
        typed=True,
    ),
    "units": Verb(
        "jax_speechlm.cli:units",
        "fit speech units (k-means), label data sets with them, report what they are",
        "jax-speechlm units fit --sets queen-en --out data/units/mfcc-100 --num-units 100",
    ),
    "export": Verb(
        "jax_speechlm.interop.export:export",
        "turn a checkpoint into a format that others read, and prove it equal",
        "jax-speechlm export runs/finetune --to hf --out exported/finetune",
    ),
    "import": Verb(
        "jax_speechlm.interop.hf.import_:main",
        "make a run of a folder of Hugging Face's, and prove it equal",
        "jax-speechlm import downloads/qwen3-0.6b --out runs/qwen3",
    ),
    "plan": Verb(
        "jax_speechlm.cli:plan",
        "compile a run for accelerators that are not here: what it needs, what it costs, whether it fits",
        "jax-speechlm plan --config librispeech_960_v5e16 --topology v5e-16 --price 1.2",
    ),
    "launch": Verb(
        "jax_speechlm.cli.launch:launch",
        "start, watch and stop a job on Cloud TPU, GKE, Slurm, SkyPilot's clouds or this machine",
        "jax-speechlm launch gke --job job.json --dry-run -- pretrain --config librispeech_960_v5e16",
    ),
    "configs": Verb("jax_speechlm.cli:list_configs", "list the experiments that ship", "jax-speechlm configs"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command. Returns its exit status, one of `jax_speechlm.core.exit_status`."""
    if argv is None:
        use_utf8()
    argv = list(sys.argv[1:] if argv is None else argv)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # what TensorFlow says as it is imported
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")  # unused here, and it announces itself
    if not argv or argv[0] in ("-h", "--help"):
        print(_help())
        return 0
    if argv[0] == "--version":
        print(f"jax-speechlm {importlib.metadata.version('jax_speechlm')}")
        return 0
    verb = VERBS.get(argv[0])
    if verb is None:
        print(f"jax-speechlm has no command {argv[0]!r}.\n\n{_help()}", file=sys.stderr)
        return exit_status.WRONG_COMMAND_LINE
    if repeated := repeated_option(argv[1:]):
        print(f"{repeated} is given twice; several values follow one option: {repeated} A B", file=sys.stderr)
        return exit_status.WRONG_COMMAND_LINE
    status = 0
    try:
        status = _run(verb, argv[1:], prog=f"jax-speechlm {argv[0]}")
    except BrokenPipeError:  # whoever read our output, `head` say, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except UnicodeError as error:
        print(
            f"error: text that is not UTF-8, in an argument or in a file ({error}): convert it first", file=sys.stderr
        )
        return exit_status.USER_ERROR
    except exit_status.user_errors() as error:
        print(f"error: {error}", file=sys.stderr)
        return exit_status.status_of(error)
    return status or 0


def _run(verb: Verb, argv: Sequence[str], prog: str) -> int | None:
    module, name = verb.run.split(":")
    function = getattr(importlib.import_module(module), name)
    if not verb.typed:
        return function(argv, prog=prog)
    import tyro

    from jax_speechlm.parallel.hardware import cache_compilations

    cache_compilations()
    tyro.cli(function, prog=prog, args=argv)
    return 0


def _help() -> str:
    rows = [f"  {name:<16} {verb.summary}\n  {'':<16}   $ {verb.example}" for name, verb in VERBS.items()]
    return (
        "jax-speechlm: pretrain, finetune and evaluate speech models in JAX\n\nusage: jax-speechlm COMMAND ...\n\n"
        + "\n".join(rows)
        + "\n\n`jax-speechlm COMMAND --help` explains every option of a command; --version prints the version.\n\n"
        + exit_status.SUMMARY
    )


def pretrain(argv: Sequence[str], prog: str) -> int:
    return _train(argv, prog, "demo_pretrain")


def finetune(argv: Sequence[str], prog: str) -> int:
    return _train(argv, prog, "demo_finetune")


def _train(argv: Sequence[str], prog: str, default_config: str) -> int:
    import jax

    from data_pipelines.core.paths import as_path
    from jax_speechlm.parallel import distributed
    from jax_speechlm.parallel.hardware import cache_compilations
    from jax_speechlm.planning.check import check_fits
    from jax_speechlm.training.loop import train

    cache_compilations()

    parser = _experiment_parser(prog, default_config)
    parser.add_argument(
        "--run-dir", help="where checkpoints and logs go: a folder, gs://... or s3://... (default: runs/<config>)"
    )
    parser.add_argument(
        "--from",
        dest="start",
        action="append",
        help="take over what this run or checkpoint has of encoder and transformer (start.0.groups); may be repeated",
    )
    parser.add_argument("--force", action="store_true", help="start even if the longest batch cannot fit into memory")
    experiment, known = _experiment(parser, argv, prog)
    run_dir = as_path(known.run_dir or Path("runs") / Path(known.config).stem)
    with distributed.session():
        if not known.force:
            check_fits(experiment)
        result = train(experiment, run_dir)
        # A launcher that starts again only what fails must not take a run that a signal stopped for done.
        stopped = result.stopped_by or result.step < experiment.num_steps
        status = int(os.environ.get("JAX_SPEECHLM_STOPPED_STATUS", 0)) if stopped else 0
        if jax.process_index():
            return status
    figures = "  ".join(f"{name} {value:.4g}" for name, value in result.dev.items())
    for text in result.warnings:
        print(f"warning: {text}", file=sys.stderr)
    print(
        f"{result.step} steps, {result.minutes:.1f} minutes, {result.seen}; dev: {figures}\n"
        f"checkpoints: {run_dir / 'checkpoints'}   logs: tensorboard --logdir {run_dir / 'tensorboard'}"
    )
    return status


def _experiment_parser(prog: str, default_config: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=prog, add_help=False, allow_abbrev=False)
    parser.add_argument(
        "--config", default=default_config, help="a shipped experiment, or a .py or .json file (default: %(default)s)"
    )
    return parser


def _experiment(
    parser: argparse.ArgumentParser, argv: Sequence[str], prog: str
) -> tuple["Experiment", argparse.Namespace]:
    """The experiment that a command line names, with every setting that it changes, and the command's own options."""
    import tyro

    from jax_speechlm import configs
    from jax_speechlm.recipes.experiment import Experiment, Start

    known, rest = parser.parse_known_args(argv)
    if {"-h", "--help"} & set(rest):
        print(parser.format_help(), "\nEvery setting of the experiment is an option too:\n")
    experiment = configs.load(known.config)
    if getattr(known, "start", None):
        experiment = experiment.replace(start=tuple(Start(checkpoint=path) for path in known.start))
    experiment = tyro.cli(
        Experiment,
        prog=prog,
        default=experiment,
        args=rest,
        config=(tyro.conf.AvoidSubcommands, tyro.conf.FlagConversionOff),
    )
    return experiment, known


def plan(argv: Sequence[str], prog: str) -> int:
    # Compiling for a TPU must not look for one.
    os.environ["JAX_PLATFORMS"] = "cpu"
    parser = _experiment_parser(prog, "librispeech_960_v5e16")
    parser.description = "Compiles a run's train step for accelerators that are not here. Exit status 3: does not fit."
    parser.add_argument("--topology", help="v5e-256, v5p-512, v6e-64, h100-64, ... (default: the experiment's own)")
    parser.add_argument("--slices", type=int, help="TPU slices that the network joins; sets mesh.replica")
    parser.add_argument("--all", action="store_true", help="plan every shipped experiment; prints a table in Markdown")
    parser.add_argument("--fit", action="store_true", help="search mesh, remat and batch for the fastest that fits")
    parser.add_argument("--max-compiles", type=int, default=12, help="of --fit (default: %(default)s)")
    parser.add_argument("--longest-only", action="store_true", help="compile the longest batch shape alone")
    parser.add_argument("--price", type=float, help="of one chip for one hour, in any currency")
    parser.add_argument(
        "--vocab-size", type=int, help="where the tokenizer is not here (default: by its folder's name)"
    )
    parser.add_argument("--out", type=Path, help="folder of plan.html and plan.json (default: plans/CONFIG-TOPOLOGY)")
    experiment, known = _experiment(parser, argv, prog)

    from jax_speechlm.cli.plan import plan_shipped, run_plan

    if known.all:
        print(plan_shipped(known.out or Path("plans"), lambda text: print(text, file=sys.stderr)))
        return 0
    return run_plan(
        experiment,
        known.topology,
        known.slices,
        known.out or Path("plans") / f"{Path(known.config).stem}-{known.topology or experiment.topology}",
        longest_only=known.longest_only,
        search=known.fit,
        max_compiles=known.max_compiles,
        price=known.price,
        vocab_size=known.vocab_size,
    )


def list_configs(argv: Sequence[str], prog: str) -> None:
    from jax_speechlm import configs

    argparse.ArgumentParser(prog=prog, description="Lists the experiments that ship.").parse_args(argv)
    for name in configs.names():
        print(f"{name:<24} {configs.docstring(name).splitlines()[0]}")


def prepare(argv: Sequence[str], prog: str) -> None:
    from data_pipelines.prepare import command as preparation

    preparation.main(argv, prog)


def train_tokenizer(argv: Sequence[str], prog: str) -> None:
    import tyro

    def run(
        sets: tuple[str, ...],
        out: Path,
        kind: Literal["char", "unigram", "bpe"] = "unigram",
        vocab_size: int = 500,
        byte_fallback: bool = False,
        max_characters: int = 20_000_000,
        data_dir: Path = Path("data"),
    ) -> None:
        """Trains a tokenizer on the transcripts or documents of prepared training splits.

        Args:
          sets: names of prepared data sets; "name:split" takes another split than "train".
          out: folder to write; give it to training as --data.tokenizer.
          kind: single characters, or SentencePiece pieces by a unigram model or byte pairs.
          vocab_size: number of tokens, the CTC blank included; characters take what the text has.
          byte_fallback: spell what has no piece in bytes, so that every text comes back whole; for language models.
          max_characters: SentencePiece learns from rows drawn at random, as many as have so many characters.
          data_dir: folder of the prepared data sets.
        """
        from data_pipelines.storage import index
        from data_pipelines.tokenizers import base

        rows = index.read_sets(data_dir, sets, "train")
        if kind == "char":
            texts = [text for part in rows.parts for text in part.texts()]
            tokenizer = base.train_tokenizer(texts, kind, None, out)
        else:
            texts = index.sample_texts(rows, max_characters)
            tokenizer = base.train_tokenizer(texts, kind, vocab_size, out, byte_fallback=byte_fallback)
        print(
            f"{out}: {tokenizer.kind} tokenizer with {tokenizer.vocab_size} ids from {len(texts)} of {len(rows)} texts"
        )

    tyro.cli(run, prog=prog, args=argv)


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


def units(argv: Sequence[str], prog: str) -> None:
    from tyro.extras import subcommand_cli_from_dict

    from jax_speechlm.cli import units as command
    from jax_speechlm.parallel.hardware import cache_compilations

    cache_compilations()
    actions = {"fit": command.fit, "label": command.label, "report": command.report}
    subcommand_cli_from_dict(actions, prog=prog, args=argv)


def score_pairs(argv: Sequence[str], prog: str) -> None:
    import tyro

    from jax_speechlm.parallel.hardware import cache_compilations

    cache_compilations()
    if _trained_by(argv) == "unit_lm":
        from jax_speechlm.evaluation.spoken_pairs import score_spoken_pairs as run
    else:
        from jax_speechlm.evaluation.minimal_pairs import score_pairs as run
    tyro.cli(run, prog=prog, args=argv)


def generate(argv: Sequence[str], prog: str) -> None:
    import tyro

    from jax_speechlm.parallel.hardware import cache_compilations

    cache_compilations()
    if _trained_by(argv) == "unit_lm":
        from jax_speechlm.inference.lm.units import generate_units as run
    elif _trained_by(argv) == "speech_lm":
        from jax_speechlm.inference.asr.speech_lm import answer_files as run
    else:
        from jax_speechlm.inference.lm.causal import generate_texts as run
    tyro.cli(run, prog=prog, args=argv)


def _trained_by(argv: Sequence[str]) -> str | None:
    """The objective of the run that a command line begins with, whose kind decides the options; None without one."""
    from jax_speechlm.inference.checkpoint import objective_kind

    return objective_kind(argv[0]) if argv and not argv[0].startswith("-") else None


if __name__ == "__main__":
    sys.exit(main())
