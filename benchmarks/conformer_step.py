"""One training step with CTC (forward, backward, AdamW): our conformer against Hugging Face's in torch, of equal size.

    python benchmarks/conformer_step.py

12 layers of width 256, 2 x 10 s of audio as 500 feature vectors each, dropout 0.1 everywhere, float32. GFLOP/s count
three times the forward pass's matrix products, without recomputation; their share is of a float32 product of two
2048 x 2048 matrices by the same library on the same cores. The peer needs the [bench] extra.
"""

import argparse

from interleave import load, medians, pin
from steps import adamw_step

BATCH, FRAMES, FEATURES, TOKENS, VOCAB = 2, 500, 160, 40, 32
LAYERS, DIM, HEADS, DROPOUT = 12, 256, 4, 0.1


def ours(remat: str):
    """Returns our step as `() -> None`, the reference product, and the FLOPs of one forward pass."""
    import jax
    import jax.numpy as jnp

    from jax_speechlm.models.conformer import ConformerConfig, forward_flops
    from jax_speechlm.nn import functional
    from jax_speechlm.objectives.asr.ctc import CTCModel
    from jax_speechlm.objectives.asr.ctc_loss import ctc_loss

    config = ConformerConfig(
        dim=DIM, num_layers=LAYERS, num_heads=HEADS, dropout=DROPOUT, attention_dropout=DROPOUT, remat=remat
    )

    def make(rngs):
        return CTCModel(config, VOCAB, rngs=rngs)

    graphdef, params = functional.declare(make).graphdef, functional.init(make, jax.random.key(0))
    features = jax.random.normal(jax.random.key(1), (BATCH, FRAMES, FEATURES))
    tokens = jax.random.randint(jax.random.key(2), (BATCH, TOKENS), 1, VOCAB)
    length, token_length = jnp.full(BATCH, FRAMES), jnp.full(BATCH, TOKENS)

    def loss(params, key):
        keys = jax.random.split(key, BATCH)
        logits = functional.bind(graphdef, params)(features, length, keys=keys)[0]
        return ctc_loss(logits, length, tokens, token_length)[0].mean()

    matrix = jnp.ones((2048, 2048))
    product = jax.jit(jnp.matmul)
    run = adamw_step(loss, params)
    return run, lambda: product(matrix, matrix).block_until_ready(), forward_flops(config, FRAMES, BATCH)


def hugging_face(threads: int):
    """Returns the peer's step as `() -> None`, and its reference product."""
    try:
        import torch
        import transformers
    except ImportError as error:
        raise SystemExit(f"{error.name} is missing: pip install '.[bench]', or give --alone") from error

    torch.set_num_threads(threads)
    rates = ("hidden", "activation", "attention", "feat_proj", "conformer_conv", "final")
    rates = {f"{name}_dropout": DROPOUT for name in rates}
    config = transformers.Wav2Vec2BertConfig(
        hidden_size=DIM, num_hidden_layers=LAYERS, num_attention_heads=HEADS, intermediate_size=4 * DIM,
        vocab_size=VOCAB, layerdrop=0.0, apply_spec_augment=False, ctc_loss_reduction="mean", **rates,
    )  # fmt: skip
    model = transformers.Wav2Vec2BertForCTC(config).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    features = torch.randn(BATCH, FRAMES, FEATURES)
    mask = torch.ones(BATCH, FRAMES, dtype=torch.long)
    tokens = torch.randint(1, VOCAB, (BATCH, TOKENS))

    def run():
        optimizer.zero_grad(set_to_none=True)
        model(features, attention_mask=mask, labels=tokens).loss.backward()
        optimizer.step()

    matrix = torch.ones(2048, 2048)
    return run, lambda: torch.matmul(matrix, matrix)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--remat", nargs="+", default=["none", "dots", "full"], help="remat policies to time")
    parser.add_argument("--alone", action="store_true", help="leave the peer out")
    args = parser.parse_args()
    pin(args.threads)

    steps, products = {}, {}
    for remat in args.remat:
        name = f"jax_speechlm, remat {remat}"
        steps[name], products["jax"], flops = ours(remat)
    if not args.alone:
        steps["Hugging Face, torch"], products["torch"] = hugging_face(args.threads)
    seconds = medians(steps | products, args.rounds)

    print(f"{'training step':28} {'seconds':>8} {'of torch':>9} {'GFLOP/s':>8} {'of matmul':>10}")
    for name in steps:
        rate = 3 * flops / seconds[name]
        peak = 2 * 2048**3 / seconds["torch" if "torch" in name else "jax"]
        against = f"{seconds[name] / seconds['Hugging Face, torch']:9.2f}" if not args.alone else f"{'':9}"
        print(f"{name:28} {seconds[name]:8.3f} {against} {rate / 1e9:8.1f} {rate / peak:10.0%}")
    for name in products:
        print(
            f"{'2048 x 2048 product, ' + name:28} {seconds[name]:8.3f} {'':9} {2 * 2048**3 / seconds[name] / 1e9:8.1f}"
        )
    print(f"{args.threads} threads, medians of {args.rounds} interleaved rounds; {load()}")


if __name__ == "__main__":
    main()
