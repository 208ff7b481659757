"""Makes ctc.npz: torch's CTC loss and its gradient on rows of mixed lengths.

    python tests/golden/make_ctc.py        (needs torch; see the [parity] extra)

Among the rows: repeated tokens, exactly as many frames as needed, one frame too few, an empty transcript.
"""

from pathlib import Path

import numpy as np


def cases() -> dict[str, np.ndarray]:
    """Inputs: logits [B, T, V], lengths [B], tokens [B, U] and token lengths [B]."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(1, 9, (7, 12)).astype(np.int32)
    tokens[1, :4] = [3, 3, 3, 5]  # needs two blanks: 6 frames
    tokens[2, :4] = [3, 3, 3, 5]
    return {
        "logits": (3 * rng.standard_normal((7, 50, 9))).astype(np.float32),
        "lengths": np.array([50, 6, 5, 41, 30, 1, 20], np.int32),
        "tokens": tokens,
        "token_lengths": np.array([12, 4, 4, 12, 0, 1, 7], np.int32),
    }


def torch_ctc(case: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """torch's loss of each row, 0 where infeasible, and the gradient of their sum with respect to the logits.

    In double precision: its float32 gradient is off by up to 1e-3 where a loss is a thousand nats.
    """
    import torch

    logits = torch.tensor(case["logits"], dtype=torch.float64, requires_grad=True)
    losses = torch.nn.functional.ctc_loss(
        logits.log_softmax(-1).transpose(0, 1),
        torch.tensor(case["tokens"]),
        torch.tensor(case["lengths"]),
        torch.tensor(case["token_lengths"]),
        blank=0,
        reduction="none",
        zero_infinity=True,
    )
    losses.sum().backward()
    return losses.detach().numpy(), logits.grad.numpy()


def main() -> None:
    losses, gradient = torch_ctc(cases())
    np.savez_compressed(Path(__file__).with_name("ctc.npz"), losses=losses, gradient=gradient)


if __name__ == "__main__":
    main()
