"""Writes ngram.npz: what KenLM's lmplz estimates from a small corpus, in full and pruned, and its binary form.

    python tests/golden/make_ngram.py --lmplz build/bin/lmplz --build-binary build/bin/build_binary

The programs come with KenLM's sources (https://github.com/kpu/kenlm), not with the kenlm package.
"""

import argparse
import random
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent


def corpus() -> Iterator[str]:
    """Sentences whose words are as unevenly frequent as those of a language, and often follow the same word."""
    rng = random.Random(0)
    for _ in range(400):
        words = [int(rng.paretovariate(0.6)) % 3000]
        while rng.random() < 0.85:
            words.append((7 * words[-1] + 1) % 3000 if rng.random() < 0.5 else int(rng.paretovariate(0.6)) % 3000)
        yield " ".join(f"w{word}" for word in words)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lmplz", default="lmplz")
    parser.add_argument("--build-binary", default="build_binary")
    args = parser.parse_args()
    lines = list(corpus())
    arrays = {"corpus": np.array(lines)}
    with tempfile.TemporaryDirectory() as folder:
        for name, prune in (("full", (0, 0, 0, 0)), ("pruned", (0, 0, 1, 2))):
            command = [args.lmplz, "-o", "4", "-S", "1G", "-T", folder, "--prune", *map(str, prune)]
            done = subprocess.run(command, input="\n".join(lines) + "\n", capture_output=True, text=True, check=True)
            arpa = Path(folder) / f"{name}.arpa"
            arpa.write_text(done.stdout)
            rows = [line.split("\t") for line in done.stdout.splitlines() if "\t" in line]
            arrays[f"{name}_prune"] = np.array(prune)
            arrays[f"{name}_ngrams"] = np.array([row[1] for row in rows])
            arrays[f"{name}_log10"] = np.array([[float(row[0]), float((*row, 0)[2])] for row in rows])
        subprocess.run([args.build_binary, "trie", Path(folder) / "pruned.arpa", HERE / "ngram.binary"], check=True)
    np.savez_compressed(HERE / "ngram.npz", **arrays)


if __name__ == "__main__":
    main()
