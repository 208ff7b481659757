"""Transcripts of an imported Whisper: this project's against transformers', on a prepared set.

    jax-speechlm import whisper-tiny.en --out runs/whisper-tiny.en
    python benchmarks/whisper.py runs/whisper-tiny.en whisper-tiny.en --set asterisk-en

Needs torch and transformers (the [parity] extra), and faster-whisper for `--ct2`. All decode greedily, without
temperatures, in float32 on the CPU, `--rows` windows of 30 s at a time (faster-whisper one); features, encoder and
decoder are all timed, reading audio is not. Each side's times
are the median of `--runs` passes, interleaved, after one that compiles or warms up; CPU seconds are of all threads.
The table has the transcripts that are equal, and each side's WER by Whisper's normaliser of English.
"""

import argparse
import dataclasses
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from data_pipelines.storage import index as indexes
from jax_speechlm.evaluation.batches import speech_batches
from jax_speechlm.evaluation.normalizers import normalizer
from jax_speechlm.evaluation.wer import align, count, rate
from jax_speechlm.inference.asr.aed import AttentionRecognizer, Fallback


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="the imported run")
    parser.add_argument("folder", type=Path, help="the folder that it was imported from")
    parser.add_argument("--set", default="asterisk-en")
    parser.add_argument("--split", default="test")
    parser.add_argument("--data-dir", type=Path, default=Path("data"))
    parser.add_argument("--utterances", type=int, help="the first of the set; all by default")
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--ct2", type=Path, help="the same model for faster-whisper, by ct2-transformers-converter")
    parser.add_argument("--runs", type=int, default=1)
    args = parser.parse_args()
    index = indexes.read_sets(args.data_dir, (args.set,), args.split, 16_000)
    references = index.column("text").to_pylist()[: args.utterances]
    clips = read_clips(index, len(references))
    sides = {"jax_speechlm": ours(args.run), "transformers": theirs(args.folder)}
    if args.ct2:
        sides["faster-whisper"] = faster(args.ct2)
    groups = [clips[first : first + args.rows] for first in range(0, len(clips), args.rows)]
    texts, times = {}, {name: [] for name in sides}
    for number in range(args.runs + 1):
        for name, transcribe in sides.items():
            start = time.perf_counter(), time.process_time()
            texts[name] = [text for group in groups for text in transcribe(group)]
            if number:
                times[name].append((time.perf_counter() - start[0], time.process_time() - start[1]))
    equal = sum(len(set(same)) == 1 for same in zip(*texts.values(), strict=True))
    print(f"{equal} of {len(clips)} transcripts are equal")
    for reference, *pair in zip(references, *texts.values(), strict=True):
        if len(set(pair)) > 1:
            print(f"  {reference!r}: {pair}")
    normalize = normalizer("whisper-english")
    seconds = sum(map(len, clips)) / 16_000
    for name in sides:
        pairs = [list(map(normalize, side)) for side in (references, texts[name])]
        wer = rate(count(align(*pairs, "word")))
        wall, cpu = (statistics.median(x) for x in zip(*times[name], strict=True))
        print(f"{name}: WER {wer:.2%}, {wall:.1f} s, {cpu:.1f} CPU s for {len(clips)} clips ({seconds:.0f} s of audio)")


def read_clips(index: indexes.Index, num: int) -> list[np.ndarray]:
    """Returns the int16 samples of the first utterances."""
    clips = {}
    for batch in speech_batches(index, 160, 120.0, batch_multiple=8):
        for row, audio, length in zip(*(batch[name] for name in ("example_id", "audio", "audio_length")), strict=True):
            clips[int(row)] = np.array(audio[:length])
    return [clips[row] for row in range(num)]


def ours(run: Path) -> Callable[[list[np.ndarray]], list[str]]:
    recognizer = dataclasses.replace(AttentionRecognizer.load(run), fallback=Fallback(temperatures=(0.0,)))

    def transcribe(clips: list[np.ndarray]) -> list[str]:
        audio = np.zeros((len(clips), 480_000), np.int16)
        for row, clip in zip(audio, clips, strict=True):
            row[: len(clip)] = clip
        lengths = np.array([len(clip) for clip in clips], np.int32)
        batch = {"audio": audio, "audio_length": lengths, "example_id": np.arange(len(clips))}
        return [answer.text for answer in recognizer.answers(batch)]

    return transcribe


def theirs(folder: Path) -> Callable[[list[np.ndarray]], list[str]]:
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    extractor = transformers.AutoFeatureExtractor.from_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForSpeechSeq2Seq.from_pretrained(folder, dtype=torch.float32).eval()
    # as published folders name it
    model.generation_config.no_timestamps_token_id = tokenizer.convert_tokens_to_ids("<|notimestamps|>")

    def transcribe(clips: list[np.ndarray]) -> list[str]:
        waves = [clip / np.float32(32768) for clip in clips]
        features = extractor(waves, sampling_rate=16_000, return_tensors="pt")["input_features"]
        with torch.no_grad():
            rows = model.generate(features, do_sample=False, num_beams=1)
        return [tokenizer.decode(row, skip_special_tokens=True).strip() for row in rows]

    return transcribe


def faster(folder: Path) -> Callable[[list[np.ndarray]], list[str]]:
    from faster_whisper import WhisperModel

    model = WhisperModel(str(folder), device="cpu", compute_type="float32")
    options = {"language": "en", "beam_size": 1, "temperature": 0.0, "without_timestamps": True}

    def transcribe(clips: list[np.ndarray]) -> list[str]:
        found = [model.transcribe(clip / np.float32(32768), **options)[0] for clip in clips]
        return [" ".join(segment.text.strip() for segment in segments) for segments in found]

    return transcribe


if __name__ == "__main__":
    main()
