"""Dialogues: the shipped ones by their conversations, state, errors of declarations, and speech that is recognised."""

import json
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import soundfile
import yaml

from data_pipelines.audio.turns import next_turn
from data_pipelines.core.errors import DataError
from jax_speechlm.apps.commands.understanding import SpeechUnderstanding, of_text
from jax_speechlm.apps.dialogue.script import Script
from jax_speechlm.apps.dialogue.session import Session
from jax_speechlm.apps.dialogue.trial import Trial, load_conversations
from jax_speechlm.cli import main
from jax_speechlm.inference.asr.ctc import Recognizer
from tests.serving.served_dialogues import LETTERS
from tests.serving.tone_voice import ToneVoice
from tests.trained_tones import RATE, speak, trained_run

SHIPPED = [
    (name, conversation)
    for name in ("coffee", "voicemail")
    for conversation in load_conversations(f"{name}_conversations")[0]
]


@pytest.mark.parametrize(("name", "conversation"), SHIPPED, ids=lambda value: getattr(value, "name", value))
def test_shipped_dialogues_hold_their_conversations(name, conversation):
    outcome = Trial(Script.load(name)).hold(conversation)
    assert not outcome.wrong
    assert outcome.turns == len(conversation.turns)


def test_a_conversation_goes_on_from_its_state():
    """Whether the state is kept in memory or goes through JSON after each turn."""
    script = Script.load("coffee")
    for conversation in load_conversations("coffee_conversations")[0]:
        kept = Session(script)
        kept.start()
        stored = Session.from_json(script, kept.to_json())
        for turn in conversation.turns:
            meaning = None if turn.silence else of_text(turn.user, kept.expected)
            reply = kept.reply_to(meaning)
            stored = Session.from_json(script, stored.to_json())
            assert stored.reply_to(meaning) == reply
            assert stored.to_json() == kept.to_json()


@pytest.mark.parametrize("state", ["{}", "[", '{"node": "elsewhere"}', "null"])
def test_a_state_of_something_else_is_refused(state):
    script = Script.load("coffee")
    session = Session(script)
    session.start()
    changed = {"node": "elsewhere"} if "elsewhere" in state else {"offered": "wheels"}
    for text in (state, json.dumps(json.loads(session.to_json()) | changed)):
        with pytest.raises(DataError, match="no state of the dialogue"):
            Session.from_json(script, text)


def test_fifty_conversations_at_once_do_not_mix():
    script = Script.load("coffee")
    conversations = load_conversations("coffee_conversations")[0]
    with ThreadPoolExecutor(50) as pool:
        outcomes = list(pool.map(Trial(script).hold, [conversations[number % 8] for number in range(50)]))
    assert not [outcome.wrong for outcome in outcomes if outcome.wrong]


DECLARED = """
start: order
grammar: coffee
nodes:
  order:
    intent: orderDrink
    slots:
      size: {ask: "Which size?", offer: [small, large]}
    confirm: "{{ size }}?"
    next: end
  end: {say: "Good bye."}
"""


@pytest.mark.parametrize(
    ("old", "new", "line", "message"),
    [
        ("start: order", "start: begin", 2, "there is no node 'begin'"),
        ("next: end", "next: nowhere", 10, "there is no node 'nowhere'"),
        ("    next: end\n", "", 10, "nothing leads to end"),
        ('end: {say: "Good bye."}', 'end: {say: "Good bye.", next: order}', 5, "from order the dialogue never ends"),
        ("orderDrink", "orderTea", 6, "no intent 'orderTea': there are orderDrink"),
        ("size: {", "weight: {", 8, "nothing fills weight"),
        ("[small, large]", "[small, huge]", 8, "huge is not in the grammar's list"),
        ("{{ size }}?", "{{ colour }}?", 9, "names colour, which is no slot"),
        ("{{ size }}?", "{{ size", 9, "is no template"),
        ("{{ size }}?", "{{ size.__class__.__mro__ }}", 9, "is no template"),
        ("ask:", "demand:", 8, "has no setting 'demand'"),
        ("grammar: coffee\n", "", 5, "none, as no grammar is named"),
        ("grammar: coffee", "grammar: tea", 1, "shipped ones are coffee"),
        ("start: order", "start: order\nlanguage: de", 3, "has no phrases for yes, no"),
        ('say: "Good bye."', "choices: []", 11, "has something to say"),
        (DECLARED, "- a\n", 1, "should be an object"),
        (DECLARED, "a: [", 2, "is not YAML"),
    ],
)
def test_errors_of_a_declaration_name_file_and_line(tmp_path, old, new, line, message):
    file = tmp_path / "mine.yaml"
    assert old in DECLARED
    file.write_text(DECLARED.replace(old, new))
    with pytest.raises(DataError, match=re.escape(message)) as caught:
        Script.load(file)
    if "shipped" not in message and "YAML" not in message:
        assert str(caught.value).startswith(f"{file}, line {line}:"), caught.value


def test_what_is_said_is_never_executed():
    """Not even by way of the grammar: values of slots come from its lists."""
    script = Script.load("coffee")
    for said in ("{{ 7 * 7 }} latte", "${jndi:ldap://x} latte", "{coffeeDrink}", "<drink>", "$(reboot)"):
        session = Session(script)
        session.start()
        reply = session.reply_to(of_text(said, session.expected))
        assert "49" not in reply
        assert set(session.slots.values()) <= {"latte"}


def test_a_dialogue_is_drawn_as_a_graph(capsys):
    assert main(["chat", "voicemail", "--graph"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "flowchart TD"
    nodes = yaml.safe_load((Path(__file__).parents[2] / "jax_speechlm/apps/dialogue/voicemail.yaml").read_text())[
        "nodes"
    ]
    assert sum(" -->" in line for line in lines) == sum(
        len(node.get("choices", [])) + ("next" in node) for node in nodes.values()
    )


def test_the_command_reads_lines(monkeypatch, capsys):
    lines = iter(["a latte", "", "large", "yes", "no"])
    monkeypatch.setattr("builtins.input", lambda prompt: next(lines))
    assert main(["chat", "coffee"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[2] == "Are you still there? Small, medium or large?"
    assert json.loads(said[-1]) == {"intent": "orderDrink", "slots": {"coffeeDrink": "latte", "size": "large"}}


@pytest.fixture(scope="module")
def recognizer():
    return SpeechUnderstanding(Recognizer.load(trained_run()))


def test_spoken_conversations_are_held_to_what_is_expected(tmp_path, recognizer):
    """The sounds of a word that is not expected give another turn than the text would, or none."""
    for name, text in (("abc", "abc ab"), ("cba", "cba"), ("acb", "acb acb")):
        soundfile.write(tmp_path / f"{name}.wav", speak(text)[0], RATE)
    (tmp_path / "letters.yaml").write_text(LETTERS)
    turns = [
        {"user": "acb acb", "audio": "acb.wav", "says": "One. Two."},
        {"silence": True, "says": "Are you still there?"},
        {"user": "cba", "audio": "cba.wav", "says": "Other. One. Two."},
        {"user": "abc ab", "audio": "abc.wav", "at": "end"},
    ]
    file = tmp_path / "conversations.yaml"
    file.write_text(yaml.safe_dump({"conversations": [{"name": "letters", "turns": turns}]}))
    (conversation,), folder = load_conversations(file)
    outcome = Trial(Script.load(tmp_path / "letters.yaml"), recognizer, voice=ToneVoice(), folder=folder).hold(
        conversation
    )
    assert (outcome.wrong, outcome.understood, len(outcome.latency)) == ("", 3, 3)
    assert outcome.seconds > sum(len(speak(text)[0]) for text in ("abc ab", "cba", "acb acb")) / RATE


def test_silence_is_not_a_turn(tmp_path, recognizer):
    (tmp_path / "letters.yaml").write_text(LETTERS)
    session = Session(Script.load(tmp_path / "letters.yaml"))
    session.start()
    assert recognizer.understand(np.zeros(RATE, np.int16), session.expected) is None


def test_a_turn_of_the_microphone_is_cut_at_a_pause():
    samples, quiet = speak("abc ab")[0], np.zeros(RATE, np.int16)
    recorded = np.concatenate([quiet, samples, quiet, samples])
    blocks = np.split(recorded, range(800, len(recorded), 800))
    turn = next_turn(iter(blocks), RATE, timeout=5.0)
    assert len(samples) <= len(turn) <= len(samples) + RATE
    assert np.isin(samples[samples > 5000], turn).all()
    assert next_turn(iter(blocks), RATE, timeout=0.5) is None
    with pytest.raises(EOFError):
        next_turn(iter(blocks[:3]), RATE, timeout=5.0)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("conversations: []", "at least 1"),
        ("conversations: [{name: a, turns: [{user: a, silence: true}]}]", "or silence: true"),
        ("conversations: [{name: a, turns: [{users: a}]}]", "did you mean 'user'"),
    ],
)
def test_errors_of_conversations_name_the_file(tmp_path, content, message):
    (tmp_path / "c.yaml").write_text(content)
    with pytest.raises(DataError, match=re.escape(message)) as caught:
        load_conversations(tmp_path / "c.yaml")
    assert "c.yaml, line 1" in str(caught.value)


def test_a_failed_conversation_fails_the_command(tmp_path, capsys):
    (tmp_path / "c.yaml").write_text("conversations: [{name: a, turns: [{user: a latte, at: more}]}]")
    status = main(["chat", "coffee", "--conversations", str(tmp_path / "c.yaml"), "--out", str(tmp_path / "out")])
    assert status != 0
    assert "1 of 1 conversations failed" in capsys.readouterr().err
    assert (
        json.loads((tmp_path / "out/report.json").read_text())["outcomes"][0]["wrong"]
        == "turn 1: is at order, not at more"
    )


def test_the_dialogue_of_the_page_holds_its_conversation(tmp_path, monkeypatch):
    page = (Path(__file__).parents[2] / "docs/dialogues.md").read_text()
    files = re.findall(r"```yaml\n# (\w+\.yaml).*?\n(.*?)```", page, re.DOTALL)
    assert [name for name, _ in files] == ["room.yaml", "room_grammar.yaml", "room_conversations.yaml"]
    for name, content in files:
        (tmp_path / name).write_text(content)
    monkeypatch.chdir(tmp_path)
    assert "jax-speechlm chat room.yaml --conversations room_conversations.yaml" in page
    assert main(["chat", "room.yaml", "--conversations", "room_conversations.yaml"]) == 0
