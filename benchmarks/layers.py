"""Single operations of the conformer against their plain forms, and the effect of the input projection's bias.

    python benchmarks/layers.py

Operations: forward and backward, on 2 x 10 s of audio as 500 frames of width 256 with 31 taps, float32. The norm
is a conformer's gradient norm at initialisation, when SpecAugment has blanked frames, with and without the bias.
"""

import argparse

from interleave import load, medians, pin

BATCH, FRAMES, DIM, TAPS, HEADS, LEFT, RIGHT, RATE = 2, 500, 256, 31, 4, 64, 8, 0.1


def pairs():
    """Returns (name, our form, plain form, arguments) of every operation."""
    import jax
    import jax.numpy as jnp

    from jax_speechlm.nn.attention.relative import relative_shift
    from jax_speechlm.nn.layers import depthwise, dropout

    keys = jax.random.split(jax.random.key(0), BATCH)
    x = jax.random.normal(keys[0], (BATCH, FRAMES, DIM))
    kernel = jax.random.normal(keys[1], (TAPS, DIM))
    by_distance = jax.random.normal(keys[0], (BATCH, HEADS, FRAMES, LEFT + 1 + RIGHT))
    distance = jnp.clip(jnp.arange(FRAMES) - jnp.arange(FRAMES)[:, None], -LEFT, RIGHT) + LEFT

    def grouped_convolution(x, kernel):
        return jax.lax.conv_general_dilated(
            x, kernel[:, None], (1,), [(TAPS - 1, 0)], dimension_numbers=("NTC", "TIO", "NTC"), feature_group_count=DIM
        )

    def random_bits(x):
        kept = jax.vmap(lambda key, row: jax.random.bernoulli(key, 1 - RATE, row.shape))(keys, x)
        return jnp.where(kept, x / (1 - RATE), 0)

    def gathered(scores):
        index = jnp.broadcast_to(distance, (*scores.shape[:-1], FRAMES))
        return jnp.take_along_axis(scores, index, axis=-1)

    def shifted(scores):
        return relative_shift(scores, LEFT, RIGHT)

    return [
        ("depthwise convolution: shifted products, grouped", depthwise, grouped_convolution, (x, kernel)),
        ("dropout: hash of the place, jax.random", lambda x: dropout(x, RATE, keys), random_bits, (x,)),
        ("scores by distance: reshape, gather", shifted, gathered, (by_distance,)),
    ]


def timed(function, arrays):
    """Returns `function` forward and backward as `() -> None`."""
    import jax
    import jax.numpy as jnp

    def both(*arrays):
        return jax.value_and_grad(lambda *arrays: jnp.sum(jnp.square(function(*arrays))), range(len(arrays)))(*arrays)

    run = jax.jit(both)
    return lambda: jax.block_until_ready(run(*arrays))


def gradient_norms() -> dict[str, float]:
    """Returns the gradient's norm over all parameters with and without the input projection's initial bias."""
    import jax
    import jax.numpy as jnp
    import optax

    from jax_speechlm.models.conformer import Conformer, ConformerConfig
    from jax_speechlm.nn import functional

    config = ConformerConfig(dim=96, num_layers=6, num_heads=4)

    def make(rngs):
        return Conformer(config, rngs=rngs)

    graphdef, params = functional.declare(make).graphdef, functional.init(make, jax.random.key(0))
    features = jax.random.normal(jax.random.key(1), (BATCH, 250, config.input_dim)).at[:, 100:112].set(0)
    wanted = jax.random.normal(jax.random.key(2), (BATCH, 250, config.dim))

    @jax.jit
    def norm(params):
        def loss(params):
            hidden, _ = functional.bind(graphdef, params)(features, jnp.full(BATCH, 250))
            return jnp.mean(hidden * wanted)

        return optax.global_norm(jax.grad(loss)(params))

    zeroed = params | {"input": params["input"] | {"bias": jnp.zeros_like(params["input"]["bias"])}}
    return {"as drawn": float(norm(params)), "zero": float(norm(zeroed))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=15)
    args = parser.parse_args()
    pin(args.threads)

    operations = pairs()
    programs = {}
    for name, ours, plain, arrays in operations:
        programs |= {f"{name} ours": timed(ours, arrays), f"{name} plain": timed(plain, arrays)}
    seconds = medians(programs, args.rounds)

    print(f"{'forward and backward':52} {'ours ms':>8} {'plain ms':>9} {'ratio':>6}")
    for name, *_ in operations:
        ours, plain = seconds[f"{name} ours"], seconds[f"{name} plain"]
        print(f"{name:52} {1e3 * ours:8.2f} {1e3 * plain:9.2f} {plain / ours:6.1f}")
    norms = gradient_norms()
    print("norm of the gradient with 12 blank frames: ", end="")
    print(", ".join(f"bias {name} {value:.3g}" for name, value in norms.items()))
    print(f"{args.threads} threads, medians of {args.rounds} interleaved rounds; {load()}")


if __name__ == "__main__":
    main()
