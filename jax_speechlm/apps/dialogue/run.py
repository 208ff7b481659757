"""`jax-speechlm chat`: a dialogue, typed or spoken."""

import contextlib
import json
import sys
from collections.abc import Callable
from pathlib import Path

from tyro.conf import OmitArgPrefixes, Positional

from data_pipelines.audio import microphone as microphones
from data_pipelines.audio.player import find_player, play_sound
from data_pipelines.audio.turns import next_turn
from data_pipelines.core.errors import DataError
from jax_speechlm.apps.commands.understanding import Meaning, SpeechUnderstanding, of_text
from jax_speechlm.apps.dialogue.script import Script
from jax_speechlm.apps.dialogue.session import Session
from jax_speechlm.apps.dialogue.trial import Trial, load_conversations
from jax_speechlm.evaluation.conversations import TrialReport
from jax_speechlm.inference.lm.phrasing import PROMPT, Phrasing
from jax_speechlm.inference.load import load, open_transcriber
from jax_speechlm.inference.synthesize import Synthesizer
from jax_speechlm.inference.vocode import GRIFFIN_LIM
from jax_speechlm.serving.settings import Address, ConversationLimits


def chat(
    dialogue: Positional[str],
    *,
    asr: Path | None = None,
    tts: Path | None = None,
    vocoder: str = GRIFFIN_LIM,
    microphone: bool = False,
    threshold: float | None = None,
    lm: Path | None = None,
    lm_prompt: str = PROMPT,
    conversations: Path | None = None,
    user_voice: Path | None = None,
    out: Path | None = None,
    graph: bool = False,
    serve: bool = False,
    address: OmitArgPrefixes[Address] = Address(),  # noqa: B008  frozen
    limits: OmitArgPrefixes[ConversationLimits] = ConversationLimits(),  # noqa: B008  frozen
) -> None:
    """Runs a dialogue that is declared in a YAML file; prints its replies, and the completed tasks at the end.

    With --serve many hold it at a time: on a page with a microphone, over HTTP and over Wyoming.

    Args:
      dialogue: its file, or a shipped one: coffee, voicemail.
      asr: a run that transcribes; needed for speech.
      tts: a voice, which speaks the replies.
      vocoder: directory of the voice's vocoder's run, or griffin-lim.
      microphone: turns are spoken, to the default microphone; otherwise they are lines of text, an empty one a silence.
      threshold: confidence below which speech is not understood, as of `jax-speechlm commands`.
      lm: a run that generates text, which may phrase the replies to turns as long as it names the same values and
        numbers; without such a phrasing a reply stays as it is.
      lm_prompt: what it continues, with the reply for "{reply}".
      conversations: holds scripted conversations instead, a YAML file or a shipped one (coffee_conversations,
        voicemail_conversations), and prints how many succeed; with --asr they are spoken.
      user_voice: a voice for the turns of scripted conversations without a recording; by default that of --tts.
      out: folder of the report on scripted conversations; by default <dialogue>-trial.
      graph: prints the dialogue as a graph in Mermaid's format, and ends.
      serve: answers conversations over HTTP, with a page, until Ctrl-C.
      address: where the service is reached, with --serve.
      limits: of the service's conversations.
    """
    script = Script.load(dialogue)
    if graph:
        print(script.graph(), end="")
        return
    if serve and (microphone or conversations):
        raise ValueError("--serve takes its turns from a page: leave out --microphone and --conversations")
    if microphone and asr is None:
        raise ValueError("--microphone needs a run that transcribes: name one with --asr")
    phrasing = None if lm is None else Phrasing(load(lm), lm_prompt)
    recognizer = None if asr is None else SpeechUnderstanding(open_transcriber(asr), threshold)
    voice = None if tts is None else Synthesizer.load(tts, vocoder)
    if conversations is not None:
        user = voice if user_voice is None else Synthesizer.load(user_voice, vocoder)
        report = _try(script, conversations, recognizer, user, voice)
        report.publish(out or Path(f"{script.file.path.stem}-trial"), str(conversations))
        if report.failed and recognizer is None:
            raise DataError(f"{len(report.failed)} of {len(report.outcomes)} conversations failed")
        return
    if serve:
        try:
            from jax_speechlm.apps.dialogue import serve as service
        except ModuleNotFoundError as error:
            raise ValueError(f"{error.name} is missing: pip install 'jax_speechlm[serve]'") from error
        service.serve(script, recognizer, voice, phrasing, address, limits)
        return
    say = _speaker(voice)
    listen = _read if not microphone or recognizer is None else _listener(recognizer, script.declared.timeout.seconds)
    session = Session(script, phrasing)
    say(session.start())
    try:
        while not session.is_over:
            say(session.reply_to(listen(session)))
    except (EOFError, KeyboardInterrupt):
        print()
    for done in session.done:
        print(json.dumps({"intent": done.intent, "slots": done.slots}, ensure_ascii=False))


def _try(
    script: Script,
    conversations: Path,
    recognizer: SpeechUnderstanding | None,
    user: Synthesizer | None,
    voice: Synthesizer | None,
) -> TrialReport:
    loaded, folder = load_conversations(conversations)
    trial = Trial(script, recognizer, user, voice, folder)
    return TrialReport(
        dialogue=str(script.file.path.stem),
        speech="typed" if recognizer is None else "recorded or synthesised",
        outcomes=tuple(trial.hold(conversation) for conversation in loaded),
    )


def _speaker(voice: Synthesizer | None) -> Callable[[str], None]:
    """Returns what prints and speaks a reply."""
    player = [] if voice is None else find_player("speaking", "leave out --tts")

    def say(text: str) -> None:
        print(text, flush=True)
        if voice is not None and text:
            for samples in voice.stream(text):
                play_sound(player, samples, voice.sample_rate)

    return say


def _read(session: Session) -> Meaning | None:
    """Reads a line of text; an empty one is silence. Raises EOFError at the end."""
    line = input("> " if sys.stdin.isatty() else "").strip()
    return of_text(line, session.expected) if line else None


def _listener(recognizer: SpeechUnderstanding, timeout: float) -> Callable[[Session], Meaning | None]:
    """Returns what listens to a turn. The microphone is off while a reply is spoken."""

    def listen(session: Session) -> Meaning | None:
        with contextlib.closing(microphones.blocks(recognizer.rate)) as blocks:
            samples = next_turn(blocks, recognizer.rate, timeout)
        meaning = None if samples is None else recognizer.understand(samples, session.expected)
        print("> " + ("" if meaning is None else meaning.text), flush=True)
        return meaning

    return listen
