"""A voice from recordings to a table of how good it is, on real speech: `make demo-tts`.

Fetches asterisk-en (24 minutes of studio prompts, one voice) unless it is prepared, measures the pitch of its training
speech, trains a small FastSpeech 2 together with its alignment, synthesises five sentences of the test split, which
training does not use, and judges 30 of them beside the natural recordings and their copies by the vocoder. The judges
are distances of signals and, if a run of yours is named, the errors of its transcripts. All steps are counted, none
timed, so the same seed gives the same voice.
"""

import os
import sys
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # hides TensorFlow's messages at import
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")  # unused here; it prints a message

import numpy as np
import tyro
from jaxtyping import Float
from rich.console import Console
from rich.table import Table

from data_pipelines.audio.wav import write_wav
from data_pipelines.core.errors import DataError
from data_pipelines.core.files import write_bytes
from data_pipelines.prepare.job import prepare
from data_pipelines.prepare.pitch import pitch
from jax_speechlm.evaluation.judges.catalogue import JudgeSettings
from jax_speechlm.evaluation.speech_rows import natural_speech
from jax_speechlm.evaluation.synthesizers import evaluate_run
from jax_speechlm.inference.synthesize import Speech, Synthesizer
from jax_speechlm.inference.vocode import GRIFFIN_LIM
from jax_speechlm.parallel.platforms import cache_compilations
from jax_speechlm.recipes import registry
from jax_speechlm.training.checkpoints import CheckpointError
from jax_speechlm.training.loop import TrainingStopped, train
from jax_speechlm.training.pictures import to_png

JUDGED = 30
"""Utterances of the table."""
SPOKEN = 5
"""Sentences that are written as files."""
_WORDS = range(4, 13)  # of a sentence that is written as a file, if the set has such
_ZOOM = 3  # pixels of a value of a picture


def main(
    data_dir: Path = Path("data"),
    run_dir: Path = Path("runs/demo-tts"),
    name: str = "asterisk-en",
    config: str = "demo/voice",
    vocoder: str = GRIFFIN_LIM,
    recognizer: Path | None = None,
    seed: int = 0,
) -> None:
    """Runs all stages.

    Args:
      data_dir: prepared data.
      run_dir: folder of the run, the synthesised sentences, their pictures and the table.
      name: the set, prepared already or one that `prepare` fetches.
      config: recipe of the voice, or a .py file; its data sets are replaced.
      vocoder: directory of a vocoder's run, or griffin-lim, which needs no training.
      recognizer: directory of a run that transcribes, as one more judge, such as runs/demo/finetune of `make demo`.
      seed: of the training.
    """
    cache_compilations()
    console = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 140)
    stages = Table("stage", "minutes", title="jax_speechlm demo of speech synthesis", title_justify="left")
    began = start = time.perf_counter()

    def finished(stage: str) -> None:
        nonlocal start
        stages.add_row(stage, _minutes(start))
        start = time.perf_counter()

    console.rule("prepare")
    if not (data_dir / name / "meta.json").is_file():
        prepare(name, data_dir=data_dir).print(console)
    finished("prepare")

    experiment = registry.load(config)
    data = experiment.data.replace(sets=(name,), data_dir=str(data_dir))
    experiment = experiment.replace(data=data, seed=seed)
    console.rule("measure the pitch (pYIN)")
    pitch((f"{name}:train", f"{name}:dev"), hop=experiment.frontend.mel.hop, data_dir=data_dir)
    finished("pitch")

    console.rule("train the voice (FastSpeech 2 and its aligner)")
    voice = run_dir / "voice"
    result = train(experiment, voice)
    if result.step < experiment.num_steps:
        sys.exit("Stopped. The same command goes on from there.")
    finished(f"train ({result.seen})")

    console.rule("synthesise")
    texts, natural = natural_speech(data_dir, (name,), "test")
    chosen = [text for text in texts if len(text.text.split()) in _WORDS][:SPOKEN] or texts[:SPOKEN]
    synthesizer = Synthesizer.load(voice, vocoder)
    for number, text in enumerate(chosen, start=1):
        (speech,) = synthesizer.synthesize(text.text, language=text.language or "en")
        write_wav(run_dir / f"{number}.wav", speech.samples, speech.sample_rate)
        recorded = synthesizer.vocoder.spectrogram(natural.audio[text.id])
        _write_png(run_dir / f"{number}.mel.png", one_above_the_other(recorded.T[::-1], speech.mel.T[::-1]))
        _write_png(run_dir / f"{number}.alignment.png", alignment(speech))
        seconds = len(speech.samples) / speech.sample_rate
        console.print(f"{run_dir / f'{number}.wav'}: {seconds:.2f} s, {text.text!r}", markup=False)
    finished("synthesise")

    console.rule("judge")
    settings = JudgeSettings(judges=(), recognizer=recognizer)
    evaluate_run(
        voice, (name,), vocoders=(vocoder,), limit=JUDGED, settings=settings, data_dir=data_dir, out=run_dir / "judged"
    )
    finished("judge")

    console.print(stages)
    console.print(f"{_minutes(began)} minutes in all. Test: {name}, seed {seed}.")
    console.print(f"speech    {run_dir}/1.wav to {len(chosen)}.wav; of each, N.mel.png: the recording above the voice,")
    console.print("          and N.alignment.png: the frames of every character")
    console.print(f"page      {run_dir / 'judged' / 'index.html'}")
    console.print(f"run       {voice}   TensorBoard logs {voice / 'tensorboard'}")


def one_above_the_other(
    first: Float[np.ndarray, "bins width"], second: Float[np.ndarray, "bins other_width"]
) -> Float[np.ndarray, "height widest"]:
    """Returns two spectrograms with a dark line between them, the shorter one with a dark end."""
    width = max(first.shape[1], second.shape[1])
    padded = [np.pad(each, ((0, 0), (0, width - each.shape[1])), constant_values=np.nan) for each in (first, second)]
    return np.concatenate([padded[0], np.full((1, width), np.nan), padded[1]])


def alignment(speech: Speech) -> Float[np.ndarray, "tokens frames"]:
    """Returns 1 where a frame is one of a token, the first token lowest."""
    token_of_frame = np.repeat(np.arange(len(speech.durations)), speech.durations)
    return (token_of_frame == np.arange(len(speech.durations))[:, None])[::-1].astype(np.float32)


def _write_png(file: Path, values: Float[np.ndarray, "height width"]) -> None:
    write_bytes(file, to_png(np.kron(values, np.ones((_ZOOM, _ZOOM)))))


def _minutes(start: float) -> str:
    return f"{(time.perf_counter() - start) / 60:.1f}"


if __name__ == "__main__":
    try:
        tyro.cli(main, description=__doc__)
    except (DataError, CheckpointError, TrainingStopped) as error:
        sys.exit(f"error: {error}")
