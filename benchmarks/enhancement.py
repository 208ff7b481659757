"""What clean-up does to noisy speech: SNR, DNSMOS, PESQ and STOI before and after, and the WER of recognizers.

    python benchmarks/enhancement.py --speech asterisk-en --noise FOLDER --judge-python PYTHON
    python benchmarks/enhancement.py --speech asterisk-en --noise FOLDER --run runs/whisper runs/finetune --clips 60

Clips of a prepared set (test split) get noise from the audio files of a folder, one file after the other. SNR is that
of the clean clip, high-passed as all methods begin, to what differs from it. PYTHON has speechmos, pesq and pystoi.
WER is of greedy transcripts, with 95 % intervals over the clips.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np

CONDITIONS = ("noisy", "none", "wiener", "subtraction", "gate")
COLUMNS = ("snr", "overall", "signal", "background", "pesq", "stoi")


def clips(name: str, data_dir: Path, num: int, shortest: float, longest: float) -> list[tuple[np.ndarray, str]]:
    """Returns clips of so many seconds, and their transcripts."""
    from data_pipelines.audio.decode import decode_flac
    from data_pipelines.storage import index as indexes
    from data_pipelines.storage.records import RecordReader

    index = indexes.read_sets(data_dir, (name,), "test", 16_000)
    reader, seconds = RecordReader(index), index.num_samples / 16_000
    rows, texts = np.flatnonzero((seconds > shortest) & (seconds < longest)), index.column("text").to_pylist()
    chosen = rows[np.unique(np.linspace(0, len(rows) - 1, num).astype(int))].tolist()
    return [(decode_flac(reader.read(row)[0]), texts[row]) for row in chosen]


def noisy(clip: np.ndarray, noise: np.ndarray, decibels: float) -> np.ndarray:
    """Returns int16 of a clip with looped noise at an SNR, without clipping."""
    speech, noise = clip.astype(np.float64), np.resize(noise, len(clip)).astype(np.float64)
    noise *= np.sqrt(np.mean(speech**2) / max(np.mean(noise**2), 1) / 10 ** (decibels / 10))
    return np.rint(np.clip(speech + noise, -32768, 32767)).astype(np.int16)


def judge_process(python: Path, name: str):
    """Starts a judge."""
    from jax_speechlm.evaluation.judges.catalogue import WORKER
    from jax_speechlm.evaluation.judges.process import JudgeProcess

    return JudgeProcess([str(python), str(WORKER), name, "{}"], timeout=600)


def print_errors(runs: list[Path], speech: list[tuple[np.ndarray, str]], noises: list[np.ndarray], snr: list[float]):
    """Prints the WER of recognizers on the clips, with noise, and cleaned."""
    import jax_speechlm
    from jax_speechlm.evaluation import base, report
    from jax_speechlm.inference.enhance import enhance_clip

    models = {str(run): jax_speechlm.load(run) for run in runs}
    print("| SNR, dB | clean-up | " + " | ".join(models) + " |\n|---:|---|" + "---:|" * len(models))
    for decibels in (np.inf, *snr):
        recorded = [noisy(clip, noises[n % len(noises)], decibels) for n, (clip, _) in enumerate(speech)]
        for condition in CONDITIONS:
            changed = [clip if condition == "noisy" else enhance_clip(clip, 16_000, condition) for clip in recorded]
            cells = []
            for model in models.values():
                texts = [transcript.text for transcript in model.transcribe(changed)]
                said = zip(texts, speech, strict=True)
                utterances = [
                    report.Utterance(id=str(number), reference=reference, hypothesis=text)
                    for number, (text, (_, reference)) in enumerate(said)
                ]
                score = report.evaluate(utterances).wer
                cells.append(base.percent(score.rate, score.interval))
            print(f"| {decibels:g} | {condition} | {' | '.join(cells)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--speech", default="asterisk-en")
    parser.add_argument("--data-dir", type=Path, default=Path("data"))
    parser.add_argument("--noise", type=Path, required=True)
    parser.add_argument("--judge-python", type=Path)
    parser.add_argument("--run", type=Path, nargs="+", default=[], help="recognizers, whose WER is measured instead")
    parser.add_argument("--clips", type=int, default=10)
    parser.add_argument("--snr", type=float, nargs="+", default=[0.0, 10.0, 20.0])
    arguments = parser.parse_args()

    from data_pipelines.audio.decode import decode
    from data_pipelines.audio.wav import write_wav
    from jax_speechlm.inference.enhance import enhance_clip

    if arguments.judge_python is None and not arguments.run:
        parser.error("name --judge-python, or recognizers with --run")
    noises = [decode(path) for path in sorted(arguments.noise.rglob("*.flac"))]
    limits = (0, 30) if arguments.run else (3, 8)
    speech = clips(arguments.speech, arguments.data_dir, arguments.clips, *limits)
    # Their levels halve, so that sums do not clip.
    speech = [(clip // 2, text) for clip, text in speech]
    if arguments.run:
        print_errors(arguments.run, speech, noises, arguments.snr)
        return

    print("| SNR, dB | clean-up | " + " | ".join(COLUMNS) + " |\n|---:|---|" + "---:|" * len(COLUMNS))
    with tempfile.TemporaryDirectory() as folder:
        judges = [judge_process(arguments.judge_python, name) for name in ("dnsmos", "comparison")]
        changed_path, clean_path = Path(folder) / "changed.wav", Path(folder) / "clean.wav"
        for decibels in arguments.snr:
            scores = {condition: [] for condition in CONDITIONS}
            for number, (clip, _) in enumerate(speech):
                reference = enhance_clip(clip, 16_000, "none")
                write_wav(clean_path, reference / np.float32(2**15), 16_000)
                recorded = noisy(clip, noises[number % len(noises)], decibels)
                for condition in CONDITIONS:
                    changed = recorded if condition == "noisy" else enhance_clip(recorded, 16_000, condition)
                    write_wav(changed_path, changed / np.float32(2**15), 16_000)
                    # The high-pass filter changes phases: what it passed is compared with what it makes of the clip.
                    original = (clip if condition == "noisy" else reference).astype(np.float64)
                    row = {"snr": 10 * np.log10(np.sum(original**2) / np.sum((changed - original) ** 2))}
                    row |= judges[0].judge(changed_path)["scores"]
                    row |= judges[1].judge(changed_path, clean_path)["scores"]
                    scores[condition].append([row[name] for name in COLUMNS])
            for condition in CONDITIONS:
                means = " | ".join(f"{mean:.2f}" for mean in np.mean(scores[condition], axis=0))
                print(f"| {decibels:g} | {condition} | {means} |", flush=True)
        for process in judges:
            process.close()


if __name__ == "__main__":
    main()
