"""Greedy search of transducers against a loop over frames of one row; any cut, batch and padding give the same."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_speechlm.decoding.transducer.greedy import init_state, step
from tests.contracts.streaming import verify_streaming
from tests.decoding.transducers import CASES, FRAMES, frames, model

SYMBOLS = 3


@functools.cache
def search(name: str):
    return jax.jit(functools.partial(step, model(name), durations=CASES[name][1], max_symbols=SYMBOLS))


def one_by_one(name: str, encoder_TxJ: np.ndarray) -> list[tuple[int, int, int, float]]:
    """(frame, token, duration, log-probability) of the tokens of an utterance, by a loop as in the papers."""
    network, durations = model(name), CASES[name][1]
    state, time, emitted = network.init_state(1), 0, []
    while time < len(encoder_TxJ):
        for _ in range(SYMBOLS):
            log_p, log_d = (
                np.asarray(x[0]) for x in network.log_probs(jnp.asarray(encoder_TxJ[None, time]), state.output)
            )
            token = int(log_p.argmax())
            choices = [i for i, d in enumerate(durations) if d or token]
            best = max(choices, key=lambda i: log_d[i]) if durations else None
            duration = durations[best] if durations else int(not token)
            if token:
                log_prob = log_p[token] + (log_d[best] if durations else 0)
                emitted.append((time, token, duration, log_prob))
                state = network.step(state, jnp.array([token]))
            if duration:
                break
        time += max(duration, 1)
    return emitted


@pytest.mark.parametrize("name", CASES)
def test_equals_a_loop_over_frames_whatever_the_batch_and_the_padding(name):
    encoder, length = frames(4), np.array([FRAMES, 5, 0, 11])
    encoder[np.arange(FRAMES) >= length[:, None]] = 9.0
    _, emissions = search(name)(init_state(model(name), 4), encoder, length)
    counts = []
    for row, frames_of_row in enumerate(length):
        expected = one_by_one(name, encoder[row, :frames_of_row])
        places = [tuple(place) for place in np.argwhere(emissions.tokens[row])]
        found = [(t, *(x[row, t, s] for x in emissions[:3])) for t, s in places]
        assert [(t, token, duration) for t, token, _, duration in found] == [each[:3] for each in expected]
        np.testing.assert_allclose([each[2] for each in found], [each[3] for each in expected], atol=1e-5)
        counts.append(len(expected))
    assert counts[0] > 4
    assert (np.asarray(emissions.tokens) > 0).sum(-1).max() > 1  # a frame with several tokens


@pytest.mark.parametrize("name", CASES)
def test_any_cut_gives_the_tokens_of_the_whole(name):
    def arrays(emissions):
        parts = *(x.astype(jnp.float32) for x in emissions[:3]), emissions.blank[..., None]
        return jnp.concatenate(parts, axis=-1)

    def run(state, piece):
        state, emissions = search(name)(state, piece, jnp.full(len(piece), piece.shape[1]))
        return state, arrays(emissions)

    verify_streaming(
        init=functools.partial(init_state, model(name)),
        step=run,
        finalize=lambda state: jnp.zeros((2, 0, 3 * SYMBOLS + 1)),
        full=lambda inputs: run(init_state(model(name), len(inputs)), jnp.asarray(inputs))[1],
        inputs=frames(2),
    )
