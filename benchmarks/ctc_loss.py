"""Our CTC loss beside optax's: time of loss and gradient, and the largest error of the gradient.

    python benchmarks/ctc_loss.py

Random logits, every row full; errors are against the forward-backward recursion in float64.
"""

import argparse

import numpy as np
from interleave import load, medians, pin

SIZES = {  # rows, frames, tokens, vocabulary, standard deviation of the logits
    "22 s of letters at 40 ms": (2, 543, 120, 32, 1.0),
    "30 s of letters at 20 ms": (2, 1500, 300, 32, 3.0),
    "12 s of 1,024 pieces at 40 ms": (4, 300, 60, 1024, 1.0),
}


def exact_gradient(logits: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """Returns d(-log p) / d(logits) [T, V] of one row, in float64 (Graves et al. 2006, equation 16)."""
    log_p = logits.astype(np.float64)
    log_p -= np.logaddexp.reduce(log_p, axis=1, keepdims=True)
    labels = np.zeros(2 * len(tokens) + 1, int)
    labels[1::2] = tokens
    skips = np.zeros(len(labels), bool)
    skips[3::2] = labels[3::2] != labels[1:-2:2]

    def walk(scores: np.ndarray, skips: np.ndarray) -> np.ndarray:
        """Returns log-probabilities of all beginnings, [T, states]."""
        state = np.full(scores.shape, -np.inf)
        state[0, :2] = scores[0, :2]
        for t in range(1, len(scores)):
            before = np.concatenate([[-np.inf, -np.inf], state[t - 1]])
            state[t] = np.logaddexp(before[2:], before[1:-1])
            state[t] = np.where(skips, np.logaddexp(state[t], before[:-2]), state[t]) + scores[t]
        return state

    scores = log_p[:, labels]
    backward_skips = np.zeros_like(skips)
    backward_skips[2:] = skips[::-1][:-2]
    joint = walk(scores, skips) + walk(scores[::-1, ::-1], backward_skips)[::-1, ::-1] - scores
    posterior = np.exp(joint - np.logaddexp.reduce(joint, axis=1, keepdims=True))
    gradient = np.exp(log_p)
    for state, label in enumerate(labels):
        gradient[:, label] -= posterior[:, state]
    return gradient


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=15)
    args = parser.parse_args()
    pin(args.threads)

    import jax
    import jax.numpy as jnp
    import optax

    from jax_speechlm.objectives.asr.ctc_loss import ctc_loss

    print(f"{'':30} {'ours ms':>8} {'optax ms':>9} {'our error':>10} {'optax error':>12}")
    for name, (rows, frames, tokens, vocab, scale) in SIZES.items():
        rng = np.random.default_rng(0)
        logits = (scale * rng.standard_normal((rows, frames, vocab))).astype(np.float32)
        labels = rng.integers(1, vocab, (rows, tokens))
        length, token_length = jnp.full(rows, frames), jnp.full(rows, tokens)
        nothing = jnp.zeros((rows, frames)), jnp.zeros((rows, tokens))

        def ours(x, labels=labels, length=length, token_length=token_length):
            return ctc_loss(x, length, jnp.asarray(labels), token_length)[0].sum()

        def theirs(x, labels=labels, nothing=nothing):
            return optax.ctc_loss(x, nothing[0], labels, nothing[1]).sum()

        steps = {key: jax.jit(jax.value_and_grad(loss)) for key, loss in (("ours", ours), ("optax", theirs))}
        programs = {key: lambda step=step, x=logits: jax.block_until_ready(step(x)) for key, step in steps.items()}
        seconds = medians(programs, args.rounds)
        exact = np.stack([exact_gradient(*row) for row in zip(logits, labels, strict=True)])
        errors = {key: np.abs(np.asarray(step(logits)[1]) - exact).max() for key, step in steps.items()}
        print(
            f"{name:30} {1e3 * seconds['ours']:8.1f} {1e3 * seconds['optax']:9.1f} {errors['ours']:10.1e} "
            f"{errors['optax']:12.1e}"
        )
    print(f"{args.threads} threads, medians of {args.rounds} interleaved rounds; {load()}")


if __name__ == "__main__":
    main()
