"""One training step of a causal LM (forward, backward, AdamW): our transformer against Hugging Face's Llama in torch.

    python benchmarks/lm_step.py

Equal size: 12 layers of width 512, 8 heads, feed-forward 1,408, 8,192 tokens, untied; rows of 512 tokens, no dropout,
float32. The peer runs eagerly and through torch.compile, both with its default (torch's own fused) attention. GFLOP/s
count three times the forward pass's matrix products, with the causal half of attention, and nothing else; their share
is of a float32 product of two 2048 x 2048 matrices by the same library on the same cores. The peer
needs the [bench] extra.
"""

import argparse

from interleave import load, medians, pin

LAYERS, DIM, HEADS, INNER, VOCAB = 12, 512, 8, 1408, 8192


def ours(rows: int, tokens: int, **settings):
    """Returns our step as `() -> None`, the reference product, and the FLOPs of one forward pass."""
    import jax
    import jax.numpy as jnp
    import optax

    from jax_speechlm.models.transformer import Transformer
    from jax_speechlm.models.transformer_config import TransformerConfig, forward_flops
    from jax_speechlm.nn import functional
    from jax_speechlm.objectives.lm.causal_lm import next_tokens, token_metrics

    config = TransformerConfig.llama(
        dim=DIM, num_layers=LAYERS, num_heads=HEADS, num_kv_heads=HEADS, head_dim=DIM // HEADS, ffn_dim=INNER,
        tied=False, **settings,
    )  # fmt: skip

    def make(rngs):
        return Transformer(config, VOCAB, rngs=rngs)

    graphdef, params = functional.declare(make).graphdef, functional.init(make, jax.random.key(0))
    optimizer = optax.adamw(1e-4)
    tokens_BxT = jax.random.randint(jax.random.key(1), (rows, tokens), 0, VOCAB)
    segment_BxT, position_BxT = jnp.ones((rows, tokens), jnp.int32), jnp.tile(jnp.arange(tokens), (rows, 1))

    def step(params, opt_state, tokens_BxT, segment_BxT, position_BxT):
        def loss(params):
            model = functional.bind(graphdef, params)
            hidden = model(tokens_BxT, segment_BxT, position_BxT)
            total, count = token_metrics(model, hidden, *next_tokens(tokens_BxT, segment_BxT))[0]["loss"]
            return total / count

        updates, opt_state = optimizer.update(jax.grad(loss)(params), opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    step = jax.jit(step, donate_argnums=(0, 1))
    state = [params, optimizer.init(params)]

    def run():
        state[:] = jax.block_until_ready(step(*state, tokens_BxT, segment_BxT, position_BxT))

    matrix = jnp.ones((2048, 2048))
    product = jax.jit(jnp.matmul)
    flops = forward_flops(config, VOCAB, tokens, rows)
    return run, lambda: product(matrix, matrix).block_until_ready(), flops


def hugging_face(rows: int, tokens: int, threads: int, compiled: bool):
    """Returns the peer's step as `() -> None`, and its reference product."""
    try:
        import torch
        import transformers
    except ImportError as error:
        raise SystemExit(f"{error.name} is missing: pip install '.[bench]', or give --alone") from error

    torch.set_num_threads(threads)
    config = transformers.LlamaConfig(
        vocab_size=VOCAB, hidden_size=DIM, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
        intermediate_size=INNER, tie_word_embeddings=False, use_cache=False,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config).train()
    forward = torch.compile(model) if compiled else model
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    batch = torch.randint(0, VOCAB, (rows, tokens))

    def run():
        optimizer.zero_grad(set_to_none=True)
        forward(input_ids=batch, labels=batch).loss.backward()
        optimizer.step()

    matrix = torch.ones(2048, 2048)
    return run, lambda: torch.matmul(matrix, matrix)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--rows", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--remat", nargs="+", default=["none", "dots", "full"], help="remat policies to time")
    parser.add_argument("--alone", action="store_true", help="leave the peer out")
    args = parser.parse_args()
    pin(args.threads)

    steps, products = {}, {}
    for remat in args.remat:
        name = f"jax_speechlm, remat {remat}"
        steps[name], products["jax"], flops = ours(args.rows, args.tokens, remat=remat)
    if not args.alone:
        for compiled, name in ((False, "torch, eager"), (True, "torch.compile")):
            steps[f"Llama, {name}"], products["torch"] = hugging_face(args.rows, args.tokens, args.threads, compiled)
    seconds = medians(steps | products, args.rounds)

    print(f"{'training step':28} {'seconds':>8} {'of torch':>9} {'GFLOP/s':>8} {'of matmul':>10}")
    for name in steps:
        rate = 3 * flops / seconds[name]
        peak = 2 * 2048**3 / seconds["torch" if "torch" in name else "jax"]
        against = f"{seconds[name] / seconds['Llama, torch, eager']:9.2f}" if not args.alone else f"{'':9}"
        print(f"{name:28} {seconds[name]:8.3f} {against} {rate / 1e9:8.1f} {rate / peak:10.0%}")
    for name in products:
        rate = 2 * 2048**3 / seconds[name] / 1e9
        print(f"{'2048 x 2048 product, ' + name:28} {seconds[name]:8.3f} {'':9} {rate:8.1f}")
    size = f"{args.rows} x {args.tokens} tokens, {args.threads} threads"
    print(f"{size}, medians of {args.rounds} interleaved rounds; {load()}")


if __name__ == "__main__":
    main()
