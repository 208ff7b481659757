"""The endpoint's throughput and latency: many callers at a time against one.

    python benchmarks/serving.py runs/demo_finetune

Starts `jax-speechlm serve` as a process of its own and posts clips of 2 to 8 s of noise to it over HTTP: from one
caller, then from --callers, each of whom sends its next clip after a response. Prints requests and seconds of audio a
second, latencies, and windows a batch.
"""

import argparse
import concurrent.futures
import io
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from interleave import load

RATE = 16_000


def clips(count: int) -> list[tuple[float, bytes]]:
    """Returns (seconds, wav bytes) of every clip."""
    import soundfile

    rng, made = np.random.default_rng(0), []
    for _ in range(count):
        buffer, seconds = io.BytesIO(), rng.uniform(2, 8)
        samples = (3000 * rng.normal(size=int(seconds * RATE))).astype(np.int16)
        soundfile.write(buffer, samples, RATE, format="WAV")
        made.append((seconds, buffer.getvalue()))
    return made


def ask(url: str, sent: list[tuple[float, bytes]], callers: int) -> tuple[float, list[float], float]:
    """Returns wall seconds, the seconds of every request, and windows a batch."""
    import httpx

    before = httpx.get(f"{url}/health").json()["heard"]
    with httpx.Client(base_url=url, timeout=600, limits=httpx.Limits(max_connections=callers)) as client:

        def one(clip: tuple[float, bytes]) -> float:
            began = time.perf_counter()
            client.post("/v1/audio/transcriptions", files={"file": ("clip.wav", clip[1])}).raise_for_status()
            return time.perf_counter() - began

        with concurrent.futures.ThreadPoolExecutor(callers) as pool:
            began = time.perf_counter()
            latencies = list(pool.map(one, sent))
            wall = time.perf_counter() - began
    after = httpx.get(f"{url}/health").json()["heard"]
    return wall, latencies, (after["windows"] - before["windows"]) / (after["batches"] - before["batches"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a run that transcribes")
    parser.add_argument("--callers", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--requests", type=int, default=64, help="that all callers together send")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()

    command = [sys.executable, "-m", "jax_speechlm.cli", "serve", str(args.run), "--port", "0"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        url = re.search(r"http://\S+", server.stdout.readline()).group()
        sent = clips(args.requests)
        seconds = sum(each for each, _ in sent)
        ask(url, sent, max(args.callers))
        found = {callers: [] for callers in args.callers}
        for _ in range(args.rounds):
            for callers in args.callers:
                found[callers].append(ask(url, sent, callers))
        print("| callers | requests/s | audio-s/s | p50 | p95 | windows a batch |\n|---:|---:|---:|---:|---:|---:|")
        for callers, rounds in found.items():
            wall = np.median([each[0] for each in rounds])
            p50, p95 = np.percentile([latency for each in rounds for latency in each[1]], (50, 95))
            windows = np.mean([each[2] for each in rounds])
            rates = f"{args.requests / wall:.1f} | {seconds / wall:.0f}"
            print(f"| {callers} | {rates} | {1000 * p50:.0f} ms | {1000 * p95:.0f} ms | {windows:.1f} |")
        print(f"{args.requests} clips, {seconds:.0f} s, medians of {args.rounds} interleaved rounds; {load()}")
    finally:
        server.terminate()
        server.wait(60)


if __name__ == "__main__":
    main()
