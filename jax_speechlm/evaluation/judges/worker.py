"""The process of one judge of speech: `python worker.py JUDGE SETTINGS`, SETTINGS being a JSON object.

It needs numpy and the judge's own packages, and nothing of this project, so that another interpreter may run it. Lines
of JSON go both ways: first `{"ready": {PACKAGE: VERSION}}` or `{"missing": REASON}`, then for each request
`{"id": 7, "audio": PATH}`, with a "reference" for judges that compare, one answer `{"id": 7, ...}` with the judge's
`text`, `scores` or `vector`, or `error`. The audio is a WAV file with one channel of 16-bit samples at 16 kHz. The
process ends with its standard input.
"""

import importlib.metadata
import json
import os
import sys
import wave
from collections.abc import Callable
from typing import Any

import numpy as np

SAMPLE_RATE = 16_000

Answer = dict[str, Any]


def whisper(model: str, beam_size: int = 5) -> Callable[[np.ndarray], Answer]:
    """Opens Whisper in CTranslate2's form from a folder; English, and without sampling, so that results repeat."""
    from faster_whisper import WhisperModel

    recognizer = WhisperModel(model, device="cpu", local_files_only=True)

    def judge(samples: np.ndarray) -> Answer:
        segments, _ = recognizer.transcribe(
            _as_float(samples), language="en", beam_size=beam_size, temperature=0.0, condition_on_previous_text=False
        )
        return {"text": " ".join(segment.text.strip() for segment in segments)}

    return judge


def pocketsphinx() -> Callable[[np.ndarray], Answer]:
    """Opens pocketsphinx with the US English model of its package."""
    from pocketsphinx import Decoder

    def new_decoder() -> Decoder:
        return Decoder(loglevel="FATAL", cmn="batch")  # batch: nothing is carried over from earlier audio

    decoder = new_decoder()

    def judge(samples: np.ndarray) -> Answer:
        nonlocal decoder
        try:
            decoder.start_utt()
            decoder.process_raw(samples.tobytes(), full_utt=True)
            decoder.end_utt()
        except RuntimeError:  # which leaves it within an utterance
            decoder = new_decoder()
            raise
        best = decoder.hyp()
        return {"text": best.hypstr if best else ""}

    return judge


def dnsmos() -> Callable[[np.ndarray], Answer]:
    """Opens DNSMOS: P.835 (overall, signal, background) and P.808. Shorter audio than 9 s is repeated."""
    from speechmos import dnsmos as model

    names = {"overall": "ovrl_mos", "signal": "sig_mos", "background": "bak_mos", "p808": "p808_mos"}

    def judge(samples: np.ndarray) -> Answer:
        scores = model.run(_as_float(samples), sr=SAMPLE_RATE)
        return {"scores": {name: float(scores[key]) for name, key in names.items()}}

    return judge


def resemblyzer() -> Callable[[np.ndarray], Answer]:
    """Opens Resemblyzer's speaker encoder; vectors of length 1."""
    from resemblyzer import VoiceEncoder, preprocess_wav

    encoder = VoiceEncoder("cpu")

    def judge(samples: np.ndarray) -> Answer:
        voiced = preprocess_wav(_as_float(samples))
        if not len(voiced):
            return {"error": "no speech found"}
        return {"vector": [float(value) for value in encoder.embed_utterance(voiced)]}

    return judge


def comparison() -> Callable[[np.ndarray, np.ndarray], Answer]:
    """Opens wide-band PESQ (ITU-T P.862.2) and STOI (Taal et al. 2011), which compare speech with its original."""
    from pesq import pesq
    from pystoi import stoi

    def judge(samples: np.ndarray, reference: np.ndarray) -> Answer:
        clean, changed = _as_float(reference), _as_float(samples)
        scores = {"pesq": pesq(SAMPLE_RATE, clean, changed, "wb"), "stoi": stoi(clean, changed, SAMPLE_RATE)}
        return {"scores": {name: float(score) for name, score in scores.items()}}

    return judge


JUDGES = {each.__name__: each for each in (whisper, pocketsphinx, dnsmos, resemblyzer, comparison)}
PACKAGES = {
    "whisper": "faster-whisper",
    "pocketsphinx": "pocketsphinx",
    "dnsmos": "speechmos",
    "resemblyzer": "Resemblyzer",
    "comparison": "pesq",
}


def _as_float(samples: np.ndarray) -> np.ndarray:
    return samples.astype(np.float32) / 32_768


def _read(path: str) -> np.ndarray:
    with wave.open(path) as file:
        if (file.getframerate(), file.getnchannels(), file.getsampwidth()) != (SAMPLE_RATE, 1, 2):
            raise ValueError("not one channel of 16-bit samples at 16 kHz")
        if not file.getnframes():
            raise ValueError("no samples")  # on which DNSMOS never ends
        return np.frombuffer(file.readframes(file.getnframes()), "<i2")


def main(name: str, settings: str) -> None:
    """Opens a judge and answers requests until the end of the input."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # packages print progress, which must not run into the answers

    def send(answer: Answer) -> None:
        print(json.dumps(answer), file=answers, flush=True)

    try:
        judge = JUDGES[name](**json.loads(settings))
        ready = {PACKAGES[name]: importlib.metadata.version(PACKAGES[name])}
    except Exception as error:
        send({"missing": f"{type(error).__name__}: {error}", "module": getattr(error, "name", None)})
        return
    send({"ready": ready})
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = judge(*(_read(request[name]) for name in ("audio", "reference") if name in request))
        except Exception as error:  # of one recording: the next may do
            answer = {"error": f"{type(error).__name__}: {error}"}
        send({"id": request["id"], **answer})


if __name__ == "__main__":
    main(*sys.argv[1:])
