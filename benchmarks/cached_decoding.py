"""Greedy generation with a cache: ours against `generate` of transformers, on the same weights.

    python benchmarks/cached_decoding.py

A Llama of 12 layers of width 512, 8 heads, 8,192 tokens, randomly initialised in torch and taken over by
`interop.transformer`; prompts of 64 tokens continued by 128, float32. Both read the prompt and keep keys and values;
the time is of the whole call, and tokens a second count new tokens of all rows. The last column is the share of tokens
on which the two agree, as a check of equal work. The peer needs the [bench] extra.
"""

import argparse

import numpy as np
from interleave import load, medians, pin


def peer(args: argparse.Namespace):
    """Returns the model, and its greedy continuation as `prompt [rows, tokens] -> tokens [rows, new]`."""
    try:
        import torch
        import transformers
    except ImportError as error:
        raise SystemExit(f"{error.name} is missing: pip install '.[bench]'") from error

    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=args.vocab, hidden_size=args.dim, num_hidden_layers=args.layers, num_attention_heads=8,
        intermediate_size=11 * args.dim // 4, tie_word_embeddings=False,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config).eval()
    end = args.vocab - 2  # as in our vocabulary, where 0 is padding and the last id a mask: neither may follow
    settings = transformers.GenerationConfig(
        max_new_tokens=args.new, do_sample=False, use_cache=True, eos_token_id=end, pad_token_id=0,
        suppress_tokens=[0, end + 1],
    )  # fmt: skip

    def generate(prompt: np.ndarray) -> np.ndarray:
        ids = torch.from_numpy(prompt).long()
        with torch.inference_mode():
            found = model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=settings)
        return found[:, prompt.shape[1] :].numpy()

    return model, generate


def ours(model, args: argparse.Namespace):
    """Returns the same for our transformer with the peer's weights."""
    import jax

    from jax_speechlm.core.vocabulary import Vocabulary
    from jax_speechlm.decoding.lm.generate import GREEDY, sample
    from jax_speechlm.interop.hf import transformer as interop
    from jax_speechlm.interop.hf.mapping import read
    from jax_speechlm.models.transformer import Transformer
    from jax_speechlm.nn import functional

    config = interop.config_from_hugging_face(model.config.to_dict())
    state_dict = {name: value.numpy() for name, value in model.state_dict().items()}
    params = jax.device_put(read(interop.sources(state_dict, config)))
    vocabulary = Vocabulary(args.vocab - 2)
    graphdef = functional.declare(lambda rngs: Transformer(config, vocabulary.size, rngs=rngs)).graphdef

    @jax.jit
    def run(params, prompt, lengths, keys):
        limits = {"max_new": args.new, "context": args.prompt + args.new}
        return sample(functional.bind(graphdef, params), vocabulary, prompt, lengths, keys, GREEDY, **limits)

    def generate(prompt: np.ndarray) -> np.ndarray:
        rows, length = prompt.shape
        keys = jax.random.split(jax.random.key(0), rows)
        return np.asarray(run(params, prompt, np.full(rows, length, np.int32), keys).tokens)

    return generate


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8], help="numbers of prompts at a time")
    parser.add_argument("--prompt", type=int, default=64)
    parser.add_argument("--new", type=int, default=128)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--vocab", type=int, default=8192)
    args = parser.parse_args()
    pin(args.threads)

    model, theirs = peer(args)
    mine = ours(model, args)
    rng = np.random.default_rng(0)
    print(f"{'rows':>4}  {'':14} {'seconds':>8} {'tokens/s':>9} {'of transformers':>16} {'agree':>7}")
    for rows in args.rows:
        prompt = rng.integers(1, args.vocab - 2, (rows, args.prompt)).astype(np.int32)
        one, other = mine(prompt), theirs(prompt)
        agree = (one[:, : other.shape[1]] == other).mean()
        programs = {"jax_speechlm": lambda p=prompt: mine(p), "transformers": lambda p=prompt: theirs(p)}
        seconds = medians(programs, args.rounds)
        for name, value in seconds.items():
            ratio = seconds["transformers"] / value
            print(f"{rows:4}  {name:14} {value:8.3f} {rows * args.new / value:9.1f} {ratio:15.2f}x {agree:7.1%}")
    print(f"{args.threads} threads, medians of {args.rounds} interleaved rounds; {load()}")


if __name__ == "__main__":
    main()
