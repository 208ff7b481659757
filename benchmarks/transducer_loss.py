"""The transducer loss in chunks beside the plain form with the logits of all nodes: time and memory with the gradient.

    python benchmarks/transducer_loss.py

Both begin with the outputs of encoder and predictor and end with the gradients of these and of the output layer.
"""

import argparse

from interleave import load, medians, pin

SIZES = {  # rows, frames, tokens, vocabulary, joint dimension, durations
    "RNN-T, 500 pieces": (8, 400, 80, 500, 128, ()),
    "TDT, 500 pieces": (8, 400, 80, 500, 128, (0, 1, 2, 3, 4)),
    "RNN-T, 30 letters": (8, 200, 100, 30, 96, ()),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    pin(args.threads)

    import jax
    import jax.numpy as jnp

    from jax_speechlm.objectives.asr.transducer_loss import packed_transducer_loss, transducer_loss

    print(f"{'':20} {'chunks s':>9} {'plain s':>8} {'chunks MB':>10} {'plain MB':>9}")
    for name, (rows, frames, tokens, vocab, dim, durations) in SIZES.items():
        keys = jax.random.split(jax.random.key(0), 4)
        width = vocab + len(durations)
        shapes = (rows, frames, dim), (rows, tokens + 1, dim), (dim, width)
        encoder, predictor, kernel = (jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=False))
        params = encoder, predictor, kernel * dim**-0.5, jnp.zeros(width)
        labels = jax.random.randint(keys[3], (rows, tokens), 1, vocab)
        length, token_length = jnp.full(rows, frames), jnp.full(rows, tokens)

        def chunks(params, labels=labels, length=length, token_length=token_length, durations=durations):
            encoder, predictor, kernel, bias = params
            segment = jnp.ones(encoder.shape[:2], jnp.int32)
            targets = segment, labels[:, None], token_length[:, None]
            return packed_transducer_loss(
                encoder, predictor[:, None], kernel, bias, *targets, durations=durations
            )[0].sum()  # fmt: skip

        def plain(params, labels=labels, length=length, token_length=token_length, durations=durations):
            encoder, predictor, kernel, bias = params
            logits = jnp.tanh(encoder[:, :, None] + predictor[:, None]) @ kernel + bias
            return transducer_loss(logits, length, labels, token_length, durations=durations)[0].sum()

        forms = {"chunks": chunks, "plain": plain}
        programs = {key: jax.jit(jax.value_and_grad(loss)).lower(params).compile() for key, loss in forms.items()}
        megabytes = {key: each.memory_analysis().temp_size_in_bytes / 1e6 for key, each in programs.items()}
        runs = {key: lambda each=each, x=params: jax.block_until_ready(each(x)) for key, each in programs.items()}
        seconds = medians(runs, args.rounds)
        print(
            f"{name:20} {seconds['chunks']:9.2f} {seconds['plain']:8.2f} {megabytes['chunks']:10.0f} "
            f"{megabytes['plain']:9.0f}"
        )
    print(f"{args.threads} threads, medians of {args.rounds} interleaved rounds; {load()}")


if __name__ == "__main__":
    main()
