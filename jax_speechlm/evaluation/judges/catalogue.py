"""The judges of speech: their columns, and the command of each one's process."""

import json
import sys
from pathlib import Path
from typing import Annotated, Literal, get_args

import pydantic

from jax_speechlm.core.config import Config
from jax_speechlm.evaluation.judges.process import JudgeError

JudgeName = Literal["whisper", "pocketsphinx", "dnsmos", "resemblyzer"]
RECOGNIZERS: tuple[JudgeName, ...] = ("whisper", "pocketsphinx")

WORKER = Path(__file__).with_name("worker.py")
"""Program of a judge's process."""


class JudgeSettings(Config):
    """Which judges judge, and how they are opened.

    Attributes:
      judges: models of others, each in a process of its own. One that is not installed leaves its columns out.
      whisper: folder of an English Whisper model in CTranslate2's form, as faster-whisper reads it.
      recognizer: a run that transcribes, as a further judge.
      judge_python: the Python interpreter that the judges are installed in; by default this one.
      judge_timeout: seconds that a judge may take for a recording.
    """

    judges: tuple[JudgeName, ...] = get_args(JudgeName)
    whisper: Path | None = None
    recognizer: Path | None = None
    judge_python: Path | None = None
    judge_timeout: Annotated[float, pydantic.Field(gt=0)] = 120.0

    def command(self, judge: JudgeName) -> list[str]:
        """Returns the command of a judge's process. Raises `JudgeError` if a setting is missing."""
        settings = {}
        if judge == "whisper":
            if self.whisper is None:
                raise JudgeError("no weights: name a folder by --whisper (hf download Systran/faster-whisper-tiny.en)")
            if not (self.whisper / "model.bin").is_file():
                raise JudgeError(f"{self.whisper} has no model.bin: --whisper names a folder in CTranslate2's form")
            settings = {"model": str(self.whisper.absolute())}
        return [str(self.judge_python or sys.executable), str(WORKER), judge, json.dumps(settings)]
