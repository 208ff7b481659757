"""The transducer loss in chunks beside the plain form with the logits of all nodes: time and memory with the gradient.

    python benchmarks/transducer_loss.py

All begin with the outputs of encoder and predictor and end with the gradients of these and of the output layer. RNN-T
is compared with torchaudio's loss, on the logits of all nodes too, where torch and torchaudio are installed. The values
have to agree. torchaudio's wheels on PyPI are built for CUDA: beside a CPU build of torch its library loads once
libtorch_cuda.so and libc10_cuda.so with the functions that it names (empty ones suffice) and libcudart.so (of the
package nvidia-cuda-runtime) are in LD_LIBRARY_PATH.
"""

import argparse
from collections.abc import Callable, Sequence

import numpy as np
from interleave import load, medians, pin

SIZES = {  # rows, frames, tokens, vocabulary, joint dimension, durations
    "RNN-T, 500 pieces": (8, 400, 80, 500, 128, ()),
    "TDT, 500 pieces": (8, 400, 80, 500, 128, (0, 1, 2, 3, 4)),
    "RNN-T, 30 letters": (8, 200, 100, 30, 96, ()),
}


def torchaudio(params: Sequence[np.ndarray], targets: Sequence[np.ndarray], threads: int) -> Callable[[], float]:
    """Returns the function that computes torchaudio's loss and its gradients of the same inputs.

    Args:
      params: encoder and predictor outputs, kernel and bias of the output layer.
      targets: labels, lengths in frames and in labels.
    """
    import torch
    from torchaudio.functional import rnnt_loss

    torch.set_num_threads(threads)
    tensors = [torch.tensor(np.array(x), requires_grad=True) for x in params]
    whole = [torch.tensor(np.array(x), dtype=torch.int32) for x in targets]

    def run() -> float:
        encoder, predictor, kernel, bias = tensors
        logits = torch.tanh(encoder[:, :, None] + predictor[:, None]) @ kernel + bias
        loss = rnnt_loss(logits, *whole, blank=0, reduction="sum")
        torch.autograd.grad(loss, tensors)
        return loss.item()

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cpu-time", action="store_true", help="CPU seconds instead of wall seconds")
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    args = parser.parse_args()
    pin(args.threads)

    import jax
    import jax.numpy as jnp

    from jax_speechlm.objectives.asr.transducer_loss import packed_transducer_loss, transducer_loss

    print(f"{'':20} {'chunks s':>9} {'plain s':>8} {'torchaudio s':>12} {'chunks MB':>10} {'plain MB':>9}")
    for name in args.sizes:
        rows, frames, tokens, vocab, dim, durations = SIZES[name]
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
        if not durations:
            try:
                runs["torchaudio"] = torchaudio(params, (labels, length, token_length), args.threads)
            except (ImportError, OSError) as error:
                print(f"without torchaudio: {error}")
            else:
                np.testing.assert_allclose(runs["torchaudio"](), runs["chunks"]()[0], rtol=1e-4)
        seconds = medians(runs, args.rounds, args.cpu_time)
        print(
            f"{name:20} {seconds['chunks']:9.2f} {seconds['plain']:8.2f} {seconds.get('torchaudio', np.nan):12.2f} "
            f"{megabytes['chunks']:10.0f} {megabytes['plain']:9.0f}"
        )
    print(f"{args.threads} threads, medians of {args.rounds} interleaved rounds; {load()}")


if __name__ == "__main__":
    main()
