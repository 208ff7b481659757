"""Special ids of Whisper's vocabularies, and the prompts that they form (Radford et al. 2022, section 2.3)."""

from typing import Literal

import pydantic

from jax_speechlm.core.config import Config

TIMESTAMPS = 1501
"""Ids of times, of every 20 ms from 0 to 30 s."""

TIMES_PER_SECOND = 50

Id = pydantic.NonNegativeInt


class WhisperTokens(Config):
    """Special ids, of the run's own numbering.

    Attributes:
      start: begins a prompt (<|startoftranscript|>).
      no_timestamps: ends the prompt of a text without times. The ids of times follow it.
      languages: codes of languages and their ids; empty in English models, whose prompts have no language and task.
      transcribe, translate: ids of the tasks.
      previous: precedes the text before a window (<|startofprev|>).
      no_speech: predicted in place of a text where there is no speech (<|nospeech|>).
      suppressed: never generated.
      suppressed_first: not generated as the first id of a text.
    """

    start: Id
    no_timestamps: Id
    languages: tuple[tuple[str, Id], ...] = ()
    transcribe: Id | None = None
    translate: Id | None = None
    previous: Id | None = None
    no_speech: Id | None = None
    suppressed: tuple[Id, ...] = ()
    suppressed_first: tuple[Id, ...] = ()

    @property
    def first_timestamp(self) -> int:
        """The id of 0 seconds."""
        return self.no_timestamps + 1

    def prompt(
        self, language: str | None, task: Literal["transcribe", "translate"], timestamps: bool = False
    ) -> list[int]:
        """Returns the ids before a text.

        Raises:
          ValueError: the model does not know the language, or is of English and has no tasks.
        """
        ends = [] if timestamps else [self.no_timestamps]
        if not self.languages:
            if language not in (None, "en") or task != "transcribe":
                raise ValueError(
                    "this Whisper transcribes English only: set objective.language to None and objective.task to "
                    "transcribe, or import a multilingual one"
                )
            return [self.start, *ends]
        languages = dict(self.languages)
        if language not in languages:
            raise ValueError(f"objective.language is {language!r}; this Whisper has {', '.join(sorted(languages))}")
        return [self.start, languages[language], getattr(self, task), *ends]
