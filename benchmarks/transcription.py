"""Transcribing a test split: a recognizer of ours against transformers with the same, exported weights.

    jax-speechlm export runs/finetune --to hf --out exported
    python benchmarks/transcription.py runs/finetune exported --sets asterisk-en

Both decode greedily in float32 on the same cores, from int16 samples to text, the front end included. Each takes the
clips sorted by length, in batches of at most --seconds of audio: ours in the shapes that `transcribe` uses, theirs
padded to the longest, batch by batch. Then the first result: a fresh process that loads the model and transcribes one
clip, compilation included (ours once with an empty compilation cache, then with a warm one). The last lines count the
clips on which the two texts agree. The peer needs the [parity] extra.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from interleave import load, medians, pin

_OURS = """
import sys
from jax_speechlm.inference.asr.ctc import Recognizer
(transcript,) = Recognizer.load(sys.argv[1]).transcribe([sys.argv[2]])
"""
_THEIRS = """
import sys, soundfile, transformers, torch
torch.set_num_threads(int(sys.argv[3]))
samples, rate = soundfile.read(sys.argv[2], dtype="float32")  # by itself the pipeline runs ffmpeg, which may be missing
transformers.pipeline("automatic-speech-recognition", model=sys.argv[1])({"raw": samples, "sampling_rate": rate})
"""


def peer(folder: Path, threads: int) -> Callable[[list[np.ndarray]], list[str]]:
    """transformers' model in a folder, as a function from a batch of clips to texts."""
    try:
        import torch
        import transformers
    except ImportError as error:
        raise SystemExit(f"{error.name} is missing: pip install '.[parity]'") from error

    torch.set_num_threads(threads)
    model = transformers.AutoModelForCTC.from_pretrained(folder, dtype=torch.float32).eval()
    processor = transformers.AutoProcessor.from_pretrained(folder)

    def transcribe(clips: list[np.ndarray]) -> list[str]:
        audio = [clip.astype(np.float32) / 32768 for clip in clips]
        with torch.inference_mode():
            inputs = processor(audio, sampling_rate=16_000, return_tensors="pt", padding=True)
            ids = model(**inputs).logits.argmax(-1)
        # Otherwise frames of padding would be decoded.
        return processor.batch_decode(ids.where(inputs["attention_mask"] > 0, model.config.pad_token_id))

    return transcribe


def batches_of(clips: list[np.ndarray], seconds: float) -> list[list[int]]:
    """Returns clip numbers by length, in batches of at most `seconds` padded seconds."""
    batches: list[list[int]] = [[]]
    for number in sorted(range(len(clips)), key=lambda number: len(clips[number])):
        if batches[-1] and (len(batches[-1]) + 1) * len(clips[number]) > seconds * 16_000:
            batches.append([])
        batches[-1].append(number)
    return batches


def first_result(code: str, arguments: list[str], **environment: str) -> float:
    """Returns the wall seconds of a fresh process."""
    start = time.perf_counter()
    command = [sys.executable, "-c", code, *arguments]
    subprocess.run(command, check=True, env=os.environ | environment, capture_output=True)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a run that was trained by ctc")
    parser.add_argument("folder", type=Path, help="the same, exported by --to hf")
    parser.add_argument("--sets", nargs="+", default=["asterisk-en"], help="prepared sets (default: asterisk-en)")
    parser.add_argument("--data-dir", type=Path, default=Path("data"))
    parser.add_argument("--seconds", type=float, default=60.0, help="of audio in a batch, padding included")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    pin(args.threads)

    import soundfile

    from data_pipelines.audio import decode as audio
    from data_pipelines.storage.index import read_sets
    from data_pipelines.storage.records import RecordReader
    from jax_speechlm.inference.asr.ctc import Recognizer
    from jax_speechlm.inference.segmentation import in_batches

    with tempfile.TemporaryDirectory() as scratch:
        index = read_sets(args.data_dir, args.sets, "test")
        (part,) = index.parts
        reader, clips = RecordReader(index), []
        for row in range(len(index)):
            file = Path(scratch) / "clip.flac"
            file.write_bytes(reader.read(row)[0])
            clips.append(audio.decode(file))
        recognizer, transcribe = Recognizer.load(args.run), peer(args.folder, args.threads)
        batches, found = batches_of(clips, args.seconds), {}

        def ours() -> None:
            texts = recognizer.recognize(in_batches(clips))
            found["jax_speechlm"] = [texts[number] for number in range(len(clips))]

        def theirs() -> None:
            texts = {}
            for batch in batches:
                texts |= dict(zip(batch, transcribe([clips[number] for number in batch]), strict=True))
            found["transformers"] = [texts[number] for number in range(len(clips))]

        seconds = medians({"jax_speechlm": ours, "transformers": theirs}, args.rounds)
        mel = recognizer.experiment.frontend.mel
        frames = mel.replace(stack=1).num_frames(np.array([len(clip) for clip in clips]))
        alike = np.array([one.split() == other.split() for one, other in zip(*found.values(), strict=True)])
        certain = frames % mel.stack < 2  # in a batch theirs has a vector more for any two frames that are left over

        clip = Path(scratch) / "clip.wav"
        soundfile.write(clip, clips[len(clips) // 2], 16_000)
        cache = {"JAX_COMPILATION_CACHE_DIR": f"{scratch}/cache", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
        mine, other = [str(args.run), str(clip)], [str(args.folder), str(clip), str(args.threads)]
        first = {"jax_speechlm, nothing compiled before": [first_result(_OURS, mine, **cache)]}
        for _ in range(3):
            first.setdefault("jax_speechlm, compiled before", []).append(first_result(_OURS, mine, **cache))
            first.setdefault("transformers", []).append(first_result(_THEIRS, other))

    hours = sum(map(len, clips)) / 16_000
    print(f"{len(clips)} clips, {hours:.0f} s of audio, of {part}")
    print(f"{'':14} {'seconds':>8} {'of transformers':>16} {'audio s / s':>12}")
    for name, value in seconds.items():
        print(f"{name:14} {value:8.3f} {value / seconds['transformers']:16.2f} {hours / value:12.0f}")
    print(f"the same text for {alike[certain].sum()} of {certain.sum()} clips, and for {alike[~certain].sum()} of the")
    print(f"{(~certain).sum()} that end within a vector, which transformers pads and encodes in a batch")
    for name, values in first.items():
        print(f"first result, {name:38} {statistics.median(values):6.1f} s")
    print(f"{args.threads} threads, medians of {args.rounds} interleaved rounds; {load()}")


if __name__ == "__main__":
    main()
