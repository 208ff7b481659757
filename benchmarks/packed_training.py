"""Training steps on packed rows beside buckets: useful audio a second, and the time to compile a run's programs.

    python benchmarks/packed_training.py --data-dir data

The steps of `demo/finetune` (CTC, conformer XS, 48 s a batch) on the utterances of asterisk-en, and of `demo/pretrain`
(BEST-RQ) on those of asterisk-en and queen-en: their lengths, with noise in place of the audio. Useful audio excludes
padding. Each plan's steps are drawn from an epoch, in proportion to their shapes; rounds are interleaved. Without a
prepared set lengths are drawn from a gamma distribution.
"""

import argparse
import itertools
import time
from pathlib import Path

import numpy as np
from interleave import load, pin

RATE = 16_000
PLANS = {  # settings of the data, by the name of the line
    "demo/finetune": {
        "4 buckets": {"packed": False},
        "rows of 24 s": {"packed": True},
        "rows of 12 and 24 s": {"packed": True, "row_seconds": (12.0, 24.0)},
        "rows of 8 and 24 s": {"packed": True, "row_seconds": (8.0, 24.0)},
    },
    "demo/pretrain": {
        "3 buckets, crops": {"packed": False},
        "rows of 8 s": {"packed": True, "max_crop": 0.0},
        "rows of 16 s": {"packed": True, "max_crop": 0.0, "row_seconds": (16.0,)},
    },
}


def lengths_of(data_dir: Path, sets: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Returns samples and characters of the utterances of sets, or drawn ones if they are not prepared."""
    from data_pipelines.core.errors import DataError
    from data_pipelines.storage.index import read_sets

    try:
        index = read_sets(data_dir, sets, "train")
        return index.num_samples, np.array([len(text.as_py() or "") for text in index.column("text")])
    except DataError as error:
        print(f"{error}: lengths are drawn instead")
        seconds = np.clip(np.random.default_rng(0).gamma(1.5, 2.0, 1000), 0.5, 23.0)
        return (RATE * seconds).astype(np.int64), (14 * seconds).astype(np.int64)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, default=Path("data"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, default=24, help="timed steps of a plan")
    parser.add_argument("--recipes", nargs="*", default=list(PLANS), choices=list(PLANS))
    args = parser.parse_args()
    pin(args.threads)

    import jax

    from data_pipelines.batching.fields import BatchSpec
    from data_pipelines.tokenizers.base import CharTokenizer
    from jax_speechlm.parallel import mesh as meshes
    from jax_speechlm.parallel.mesh import MeshShape
    from jax_speechlm.recipes import registry
    from jax_speechlm.training.source import plan_speech
    from jax_speechlm.training.state import make_trainer

    tokenizer = CharTokenizer("abcdefghijklmnopqrstuvwxyz ")
    mesh = meshes.make_mesh(MeshShape(data=1), jax.devices()[:1])

    def run_of(experiment, num_samples, tokens):
        """Returns a function that runs the next step and gives (useful seconds, wall seconds), and its programs."""
        plan = plan_speech(experiment, num_samples, tokens if experiment.objective.kind == "ctc" else None, tokenizer)
        objective = experiment.objective.build(experiment.model, experiment.frontend, tokenizer)
        trainer = make_trainer(objective, experiment.optimizer, 1000, 0, mesh)
        state, rng = [trainer.init(jax.random.key(0))], np.random.default_rng(0)
        spec = BatchSpec.speech(packed=experiment.data.packed)

        def batch_of(step):
            planned = plan.batch(step)
            bucket, items = plan.buckets[planned.bucket], planned.rows
            batch = spec.empty(
                {
                    "rows": len(items),
                    "samples": bucket.num_samples,
                    "tokens": bucket.num_tokens,
                    "utterances": bucket.num_utterances,
                }
            )
            batch["audio"][:] = rng.normal(0, 3000, batch["audio"].shape)
            real = items >= 0
            length = np.where(real, np.minimum(num_samples[items], bucket.num_samples), 0)
            batch["audio_length"][:] = length.reshape(batch["audio_length"].shape)
            batch["example_id"][:] = items.reshape(batch["example_id"].shape)
            batch["weight"][:] = real.reshape(batch["weight"].shape)
            if experiment.data.packed:
                batch["audio_start"][:] = planned.start
            if bucket.num_tokens:
                batch["tokens"][:] = rng.integers(1, 27, batch["tokens"].shape)
                batch["token_length"][:] = np.where(real, tokens[items], 0).reshape(batch["token_length"].shape)
            return bucket, batch, length.sum() / RATE

        compiled, compile_seconds = {}, 0.0
        for step in itertools.count():
            bucket, batch, _ = batch_of(step)
            if bucket not in compiled:
                start = time.perf_counter()
                state[0], metrics = trainer.step(state[0], meshes.shard_batch(mesh, batch))
                jax.block_until_ready(metrics)
                compiled[bucket] = True
                compile_seconds += time.perf_counter() - start
            if len(compiled) == len(plan.buckets):
                break
        steps = itertools.count(plan.curriculum_steps if experiment.data.packed else plan.steps_per_epoch * 4)

        def run():
            _, batch, useful = batch_of(next(steps))
            batch = meshes.shard_batch(mesh, batch)
            start = time.perf_counter()
            state[0], metrics = trainer.step(state[0], batch)
            jax.block_until_ready(metrics)
            return useful, time.perf_counter() - start

        return run, len(compiled), compile_seconds, plan.padding_share

    for name in args.recipes:
        experiment = registry.load(name)
        num_samples, tokens = lengths_of(args.data_dir, experiment.data.sets)
        with jax.set_mesh(mesh):
            lines = {
                line: run_of(experiment.replace(data=experiment.data.replace(**settings)), num_samples, tokens)
                for line, settings in PLANS[name].items()
            }
            totals = {line: np.zeros(2) for line in lines}
            for _ in range(args.steps):
                for line, (run, *_) in lines.items():
                    totals[line] += run()
        print(f"{name:24} {'programs':>8} {'first steps s':>14} {'padding':>8} {'useful s/s':>11} {'ratio':>6}")
        rates = {line: useful / seconds for line, (useful, seconds) in totals.items()}
        plain = next(iter(rates.values()))
        for line, (_, programs, seconds, padding) in lines.items():
            print(
                f"{line:24} {programs:8} {seconds:14.1f} {padding:8.1%} {rates[line]:11.1f} {rates[line] / plain:6.2f}"
            )
    print(f"{args.threads} threads, {args.steps} interleaved steps of each plan; {load()}")


if __name__ == "__main__":
    main()
