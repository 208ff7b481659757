"""Fitting a k-means: wall seconds of a whole fit, against scikit-learn's MiniBatchKMeans at equal batches and steps.

    python benchmarks/kmeans.py
    python benchmarks/kmeans.py --frames 1000000 --init random      # the steps alone

Frames of --dim features are in memory as float32 (10 million of 256 are 10 GB), drawn around centres of uneven weight.
Both programs start by greedy k-means++ on three batches, or from random rows, and draw the rows of each batch from all
frames; one pass of batches, no early stop. Compilation happens in uncounted runs, and is printed separately.
"""

import argparse
import time

import numpy as np
from interleave import load, medians, pin


def draw(frames: int, dim: int, rng: np.random.Generator) -> np.ndarray:
    """Draws float32 [frames, dim]: a thousand overlapping clouds, some a hundred times as frequent as others."""
    centres = rng.normal(size=(1000, dim)).astype(np.float32)
    weight = np.exp(rng.normal(0, 1.5, len(centres)))
    x = np.empty((frames, dim), np.float32)
    for start in range(0, frames, 100_000):
        part = x[start : start + 100_000]
        part[:] = rng.standard_normal(part.shape, dtype=np.float32)
        part += centres[rng.choice(len(centres), len(part), p=weight / weight.sum())]
    return x


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=10_000_000)
    parser.add_argument("--dim", type=int, default=256)
    parser.add_argument("--units", type=int, default=500)
    parser.add_argument("--batch-size", type=int, default=10_000)
    parser.add_argument("--init", choices=("k-means++", "random"), default="k-means++")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    pin(args.threads)

    from sklearn.cluster import MiniBatchKMeans
    from threadpoolctl import threadpool_limits

    from jax_speechlm.parallel.mesh import MeshShape, make_mesh
    from jax_speechlm.units import kmeans

    frames, mesh = draw(args.frames, args.dim, np.random.default_rng(0)), make_mesh(MeshShape())
    steps = max(1, args.frames // args.batch_size)
    config = kmeans.KMeans(num_units=args.units, batch_size=args.batch_size, num_steps=steps, init=args.init)
    found = {}

    def ours():
        found["jax_speechlm"] = kmeans.fit_kmeans(frames, config, mesh)

    def theirs():
        peer = MiniBatchKMeans(
            args.units,
            batch_size=args.batch_size,
            max_iter=1,
            max_no_improvement=None,
            compute_labels=False,
            init=args.init,
            n_init=1,
            random_state=0,
        )
        found["scikit-learn"] = peer.fit(frames).cluster_centers_

    start = time.perf_counter()
    kmeans.fit_kmeans(frames[: 3 * args.batch_size], config.replace(num_steps=1), mesh)
    compiling = time.perf_counter() - start
    with threadpool_limits(args.threads):
        seconds = medians({"jax_speechlm": ours, "scikit-learn": theirs}, args.rounds)

    print(f"{args.frames:,} frames x {args.dim}, {args.units} units, {steps} steps of {args.batch_size:,}, {args.init}")
    print(f"{'k-means':14} {'seconds':>8} {'frames/s':>12} {'inertia':>9} {'ours is':>9}")
    sample = frames[:: max(1, args.frames // 200_000)]
    for name, value in seconds.items():
        ratio = value / seconds["jax_speechlm"]
        inertia = kmeans.inertia(sample, found[name])
        print(f"{name:14} {value:8.2f} {steps * args.batch_size / value:12,.0f} {inertia:9.3f} {ratio:7.2f} x")
    print(
        f"first start and step, with compiling: {compiling:.1f} s. {args.threads} threads, medians of {args.rounds} "
        f"interleaved rounds; {load()}"
    )


if __name__ == "__main__":
    main()
