"""One training step of FastSpeech 2 (forward, backward, AdamW): ours against transformers' in torch, of equal size.

    python benchmarks/fastspeech2_step.py

The model of `asterisk_tts/fastspeech2` (5.3 M parameters) and its dropout, 8 utterances of 48 tokens and 192 frames
(3.1 s), float32, with given durations, pitch and energy: both predict all three and the log-mel frames. `tts` is the
whole step of our task, which computes the spectrogram from samples and learns the alignment too; its peer would need
both as programs of their own. The peer needs the [parity] extra.
"""

import argparse

from interleave import load, medians, pin
from steps import adamw_step, task_step

ROWS, TOKENS, FRAMES, HOP = 8, 48, 4, 256  # frames of a token


def draw_batch():
    """Returns token ids, frames of the tokens, their pitch and energy, and log-mel frames."""
    import numpy as np

    rng = np.random.default_rng(0)
    tokens = rng.integers(1, 29, (ROWS, TOKENS)).astype(np.int32)
    pitch, energy = rng.normal(size=(2, ROWS, TOKENS)).astype(np.float32)
    mel = (rng.normal(size=(ROWS, FRAMES * TOKENS, 80)) - 2).astype(np.float32)
    return tokens, np.full((ROWS, TOKENS), FRAMES, np.int32), pitch, energy, mel


def acoustic(remat: str):
    """Returns our step with given durations as `() -> None`, and the number of parameters."""
    import jax
    import jax.numpy as jnp

    from jax_speechlm.core.segments import Segments
    from jax_speechlm.models.tts import fastspeech2 as fs2
    from jax_speechlm.nn import functional
    from jax_speechlm.recipes.asterisk_tts import fastspeech2

    config = fastspeech2.config().model.replace(remat=remat)
    tokens, frames, pitch, energy, mel = map(jnp.asarray, draw_batch())
    text, speech = Segments.of(jnp.full(ROWS, TOKENS)), Segments.of(frames.sum(1))

    def make(rngs):
        return fs2.FastSpeech2(config, 29, 1, rngs=rngs)

    graphdef, params = functional.declare(make).graphdef, functional.init(make, jax.random.key(0))

    def loss(params, key):
        keys = [jax.random.split(each, (ROWS, 1)) for each in jax.random.split(key, 3)]
        module = functional.bind(graphdef, params)
        hidden = module.encode(tokens, text, None, keys[0])
        predicted = module.predict(hidden, text, keys[1])
        matrix = fs2.one_hot_tokens(fs2.token_of_frame(frames, mel.shape[1]), TOKENS)
        x = fs2.repeat_by_frame(module.add_variances(hidden, pitch, energy), matrix)
        outputs = module.decode(x, speech, keys[2])
        errors = zip(predicted, (jnp.log1p(frames), pitch, energy), strict=True)
        total = sum(jnp.square(one - other).mean() for one, other in errors)
        return total + sum(jnp.abs(output - mel).mean() for output in outputs)

    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    return adamw_step(loss, params), size


def task():
    """Returns the whole step of our task as `() -> None`, and the number of parameters, the aligner's included."""
    import numpy as np

    from data_pipelines.tokenizers.base import CharTokenizer
    from jax_speechlm.recipes.asterisk_tts import fastspeech2

    tokens, rng, samples = draw_batch()[0], np.random.default_rng(1), FRAMES * TOKENS * HOP - 1
    count = np.ones(ROWS, np.int32)
    batch = {
        "audio": (3000 * rng.normal(size=(ROWS, samples))).astype(np.int16),
        "audio_length": samples * count,
        "tokens": tokens[:, 1:-1],  # the task adds a boundary at both ends
        "token_length": (TOKENS - 2) * count,
        "pitch": rng.uniform(100, 200, (ROWS, FRAMES * TOKENS)).astype(np.float32),
        "label": 0 * count,
        "weight": count.astype(np.float32),
        "example_id": np.arange(ROWS, dtype=np.int32),
    }
    run, sizes = task_step(fastspeech2.config(), CharTokenizer("\n 'abcdefghijklmnopqrstuvwxyz"), batch)
    return run, sum(sizes.values())


def hugging_face(threads: int):
    """Returns the peer's step as `() -> None`, and the number of parameters."""
    try:
        import torch
        import transformers
    except ImportError as error:
        raise SystemExit(f"{error.name} is missing: pip install '.[parity]'") from error

    from jax_speechlm.interop.hf.fastspeech2 import config_to_hugging_face
    from jax_speechlm.recipes.asterisk_tts import fastspeech2

    torch.set_num_threads(threads)
    values = config_to_hugging_face(fastspeech2.config().model, 29, 1)
    model = transformers.FastSpeech2ConformerModel(transformers.FastSpeech2ConformerConfig(**values)).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    tokens, frames, pitch, energy, mel = map(torch.tensor, draw_batch())
    labels = {"pitch_labels": pitch[..., None], "energy_labels": energy[..., None], "spectrogram_labels": mel}

    def run():
        optimizer.zero_grad(set_to_none=True)
        model(tokens.long(), duration_labels=frames.long(), return_dict=True, **labels).loss.backward()
        optimizer.step()

    return run, sum(value.numel() for value in model.parameters())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--remat", nargs="+", default=["none", "dots"], help="remat policies to time")
    parser.add_argument("--cpu-time", action="store_true", help="CPU seconds, with --threads 1: for a busy machine")
    args = parser.parse_args()
    pin(args.threads)

    steps = {f"ours, remat {remat}": acoustic(remat) for remat in args.remat}
    steps["tts, the task of that model"] = task()
    steps["FastSpeech2ConformerModel"] = hugging_face(args.threads)
    seconds = medians({name: run for name, (run, _) in steps.items()}, args.rounds, args.cpu_time)

    print(f"{'training step':28} {'parameters':>10} {'seconds':>8} {'of torch':>9}")
    for name, (_, size) in steps.items():
        print(f"{name:28} {size:10,} {seconds[name]:8.3f} {seconds[name] / seconds['FastSpeech2ConformerModel']:9.2f}")
    print(f"{args.threads} threads, medians of {args.rounds} interleaved rounds; {load()}")


if __name__ == "__main__":
    main()
