"""Recursive filters as matrix products: blocks of samples, and the state from one block to the next."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32

_BLOCK = 128  # samples
Sections = tuple[tuple[float, ...], ...]
"""Second-order sections as `scipy.signal` has them: rows of (b0, b1, b2, 1, a1, a2)."""


def sos_filter(audio: Float[Array, "batch samples"], sections: Sections) -> Float32[Array, "batch samples"]:
    """Filters rows by second-order sections one after the other, from a state of zeros: `scipy.signal.sosfilt`.

    A sample depends on earlier samples only, so neither on padding after an utterance nor on other rows.
    """
    batch, num_samples = audio.shape
    product = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)
    # Padding by the largest amount needed and cutting the excess keeps sizes symbolic (`jax.export`).
    num_blocks = -(-num_samples // _BLOCK)
    padded = jnp.pad(audio.astype(jnp.float32), ((0, 0), (0, _BLOCK)))[:, : num_blocks * _BLOCK]
    x_KxBxN = jnp.moveaxis(padded.reshape(batch, num_blocks, _BLOCK), 1, 0)
    for section in sections:
        direct, observed, driven, carried = _block_matrices(tuple(map(float, section)))

        def step(state_Bx2: Array, x_BxN: Array, driven=driven, carried=carried) -> tuple[Array, Array]:
            return product(state_Bx2, carried) + product(x_BxN, driven), state_Bx2

        _, states_KxBx2 = jax.lax.scan(step, jnp.zeros((batch, 2)), x_KxBxN)
        x_KxBxN = product(x_KxBxN, direct) + product(states_KxBx2, observed)
    return jnp.moveaxis(x_KxBxN, 0, 1).reshape(batch, num_blocks * _BLOCK)[:, :num_samples]


@functools.cache
def _block_matrices(section: tuple[float, ...]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Returns the matrices from samples and state before a block to its outputs, and to the state after it."""
    b0, b1, b2, a0, a1, a2 = np.asarray(section) / section[3]
    del a0
    transition, inputs = np.array([[-a1, 1.0], [-a2, 0.0]]), np.array([b1 - a1 * b0, b2 - a2 * b0])
    transition, inputs, outputs = _balanced(transition, inputs, np.array([1.0, 0.0]))
    powers = [np.eye(2)]
    for _ in range(_BLOCK):
        powers.append(transition @ powers[-1])
    impulse = np.array([b0] + [outputs @ power @ inputs for power in powers[: _BLOCK - 1]])
    later = np.arange(_BLOCK) - np.arange(_BLOCK)[:, None]
    direct = np.where(later >= 0, impulse[np.maximum(later, 0)], 0)
    observed = np.stack([outputs @ power for power in powers[:_BLOCK]], axis=1)
    driven = np.stack([powers[_BLOCK - 1 - n] @ inputs for n in range(_BLOCK)])
    arrays = direct, observed, driven, powers[_BLOCK].T
    return tuple(array.astype(np.float32) for array in arrays)


def _balanced(transition: np.ndarray, inputs: np.ndarray, outputs: np.ndarray) -> tuple[np.ndarray, ...]:
    """Returns a system in balanced coordinates, whose states are as large as what they add to the output.

    In those of the direct form float32 would lose three digits where a cut-off is a thousandth of the rate.
    """
    import scipy.linalg

    reached = scipy.linalg.solve_discrete_lyapunov(transition, np.outer(inputs, inputs))
    seen = scipy.linalg.solve_discrete_lyapunov(transition.T, np.outer(outputs, outputs))
    root = np.linalg.cholesky(reached)
    values, vectors = np.linalg.eigh(root.T @ seen @ root)
    to_state = root @ vectors * values**-0.25
    from_state = np.linalg.inv(to_state)
    return from_state @ transition @ to_state, from_state @ inputs, outputs @ to_state


def butterworth(kind: str, hertz: float | tuple[float, float], sample_rate: int, order: int = 4) -> Sections:
    """Returns a Butterworth filter.

    Args:
      kind: "highpass", "lowpass" or "bandpass".
      hertz: cut-off, or both of a band.
      order: of the filter; of each edge of a band.
    """
    import scipy.signal

    sections = scipy.signal.butter(order, hertz, kind, fs=sample_rate, output="sos")
    return tuple(tuple(map(float, section)) for section in sections)


def fir_filter(
    audio: Float[Array, "batch samples"], responses: Float[Array, "batch taps"]
) -> Float32[Array, "batch samples"]:
    """Convolves every row with a response of its own, and cuts what comes after the row's last sample.

    A partitioned convolution: spectra of blocks of samples and of parts of the response, by matrix products as in
    `nn.stft`, are multiplied and added over the parts.
    """
    batch, num_samples = audio.shape
    num_blocks, num_parts = -(-num_samples // _BLOCK), -(-responses.shape[1] // _BLOCK)
    forward, backward = _dfts()
    product = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)

    def blocks(x: Array, count: int) -> Array:
        return jnp.pad(x, ((0, 0), (0, count * _BLOCK - x.shape[1]))).reshape(batch, count, _BLOCK)

    own = blocks(audio.astype(jnp.float32), num_blocks)
    before = jnp.pad(own, ((0, 0), (1, 0), (0, 0)))[:, :-1]
    signal = product(jnp.concatenate([before, own], axis=-1), forward)
    parts = product(blocks(responses.astype(jnp.float32), num_parts), forward[:_BLOCK])
    signal = jnp.pad(signal, ((0, 0), (num_parts - 1, 0), (0, 0)))

    def add(total: tuple[Array, Array], part: Array) -> tuple[tuple[Array, Array], None]:
        earlier = jax.lax.dynamic_slice_in_dim(signal, num_parts - 1 - part, num_blocks, axis=1)
        real, imaginary = jnp.split(earlier, 2, axis=-1)
        own_part = jax.lax.dynamic_slice_in_dim(parts, part, 1, axis=1)
        a, b = jnp.split(own_part, 2, axis=-1)
        return (total[0] + real * a - imaginary * b, total[1] + real * b + imaginary * a), None

    nothing = jnp.zeros((batch, num_blocks, _BLOCK + 1))
    (real, imaginary), _ = jax.lax.scan(add, (nothing, nothing), jnp.arange(num_parts))
    filtered = product(jnp.concatenate([real, imaginary], axis=-1), backward)
    return filtered.reshape(batch, num_blocks * _BLOCK)[:, :num_samples]


@functools.cache
def _dfts() -> tuple[np.ndarray, np.ndarray]:
    """Returns the DFT of two blocks, [samples, real and imaginary parts], and the second block of its inverse."""
    size, frequency = 2 * _BLOCK, np.arange(_BLOCK + 1)
    angle = 2 * np.pi * (np.outer(np.arange(size), frequency) % size) / size
    forward = np.concatenate([np.cos(angle), -np.sin(angle)], axis=1)
    twice = np.where((frequency == 0) | (frequency == _BLOCK), 1, 2) / size
    backward = np.concatenate([np.cos(angle) * twice, -np.sin(angle) * twice], axis=1).T[:, _BLOCK:]
    return forward.astype(np.float32), backward.astype(np.float32)
