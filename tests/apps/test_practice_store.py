"""Practice: what is due when, learners apart, names that are SQL or paths, damaged files, erasing."""

import json
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest

from data_pipelines.core.errors import DataError
from jax_speechlm.apps.tutoring.practice import PracticeStore
from jax_speechlm.cli import main
from jax_speechlm.core.exit_status import USER_ERROR

NOW = datetime(2026, 1, 1, tzinfo=UTC)
NAMES = ["Ada", "'; DROP TABLE items; --", "../../etc/passwd", "a' OR '1'='1", "Zoë", "名前", '"', "%"]


@pytest.fixture
def store(tmp_path):
    with PracticeStore(tmp_path / "tutor.sqlite") as opened:
        yield opened


def test_what_is_known_is_due_later_and_later(store):
    at, waits = NOW, []
    for _ in range(5):
        due = store.review("Ada", "through", knew=True, at=at)
        waits.append(due - at)
        at = due
    assert waits == sorted(waits)
    assert waits[-1] > timedelta(days=20)
    missed = store.review("Ada", "through", knew=False, at=at)
    assert missed - at < timedelta(hours=1)
    assert [each.item for each in store.items("Ada")] == ["through"]


def test_items_are_in_the_order_in_which_they_are_due(store):
    store.review("Ada", "known", knew=True, at=NOW)
    store.review("Ada", "missed", knew=False, at=NOW)
    assert [each.item for each in store.items("Ada")] == ["missed", "known"]


def test_learners_are_apart_whatever_their_names(store, tmp_path):
    for number, name in enumerate(NAMES):
        store.review(name, f"item {number}", knew=False, at=NOW)
    for number, name in enumerate(NAMES):
        assert [each.item for each in store.items(name)] == [f"item {number}"]
    assert store.items("somebody") == []
    assert store.erase(NAMES[1]) == 1
    for number, name in enumerate(NAMES):
        assert len(store.items(name)) == (number != 1)
    assert [path.name for path in tmp_path.iterdir()] == ["tutor.sqlite"]


def test_items_are_values_too(store):
    item = "x'); DELETE FROM learners; --"
    store.review("Ada", item, knew=False, at=NOW)
    assert [each.item for each in store.items("Ada")] == [item]


def test_nothing_of_an_erased_learner_is_in_the_file(store):
    store.review("Persephone", "pomegranate", knew=False, at=NOW)
    store.review("Ada", "engine", knew=False, at=NOW)
    assert b"Persephone" in store.path.read_bytes()
    assert store.erase("Persephone") == 1
    content = store.path.read_bytes()
    assert b"Persephone" not in content
    assert b"pomegranate" not in content
    assert b"engine" in content
    with pytest.raises(DataError, match="has no learner 'Persephone'"):
        store.erase("Persephone")


def test_an_export_has_all_that_is_stored(store):
    store.review("Ada", "through", knew=False, at=NOW)
    store.review("Ada", "through", knew=True, at=NOW + timedelta(days=1))
    exported = json.loads(json.dumps(store.export("Ada")))
    assert exported["learner"] == "Ada"
    (item,) = exported["items"]
    assert item["item"] == "through"
    assert [review["knew"] for review in item["reviews"]] == [False, True]
    assert datetime.fromisoformat(item["due"]) == store.items("Ada")[0].due


def test_the_state_is_kept_in_the_file(tmp_path):
    path = tmp_path / "tutor.sqlite"
    with PracticeStore(path) as first:
        first.review("Ada", "through", knew=True, at=NOW)
        items = first.items("Ada")
    with PracticeStore(path) as second:
        assert second.items("Ada") == items


def test_several_learners_at_once(tmp_path):
    path = tmp_path / "tutor.sqlite"
    PracticeStore(path).__exit__(None, None, None)

    def practise(number: int) -> None:
        with PracticeStore(path) as store:
            for item in range(5):
                store.review(f"learner {number % 2}", f"{number} {item}", knew=False, at=NOW)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(practise, range(4)))
    with PracticeStore(path) as store:
        assert len(store.items("learner 0")) == len(store.items("learner 1")) == 10


@pytest.mark.parametrize("learner", ["", "  ", "a\0b", "\ud800"])
def test_names_that_cannot_be_stored(store, learner):
    with pytest.raises(DataError, match="learner"):
        store.review(learner, "through", knew=True, at=NOW)


@pytest.mark.parametrize("damage", ["text", "cut", "overwritten", "other", "card", "due"])
def test_a_damaged_file_is_named(tmp_path, capsys, damage):
    path = tmp_path / "learners.db"
    if damage == "text":
        path.write_bytes(b"this is no database, and long enough to be read as the header of one" * 20)
    elif damage == "other":
        with sqlite3.connect(path) as other:
            other.execute("CREATE TABLE learners (id INTEGER)")
        other.close()
    else:
        with PracticeStore(path) as store:
            for number in range(50):
                store.review("Ada", f"item {number}" * 20, knew=False, at=NOW)
        content = path.read_bytes()
        if damage == "cut":
            path.write_bytes(content[: len(content) // 2])
        elif damage == "overwritten":
            path.write_bytes(content[:100] + b"\xaa" * (len(content) - 100))
        else:
            with sqlite3.connect(path) as direct:
                direct.execute(f"UPDATE items SET {damage} = '{{'")
            direct.close()
    before = path.read_bytes()
    command = ["tutor", "practice", "Ada", "--store", str(path), "--forgot", "item 0" * 20]
    assert main(command) == USER_ERROR
    message = capsys.readouterr().err
    assert "learners.db" in message
    assert "--store" in message
    if damage in ("text", "other"):
        assert path.read_bytes() == before


def test_a_folder_is_no_store(tmp_path, capsys):
    assert main(["tutor", "practice", "Ada", "--store", str(tmp_path)]) == USER_ERROR
    assert str(tmp_path) in capsys.readouterr().err


def test_commands_on_a_file_that_does_not_exist_make_none(tmp_path, capsys):
    for action in ("export", "erase"):
        assert main(["tutor", action, "Ada", "--store", str(tmp_path / "none.sqlite")]) == USER_ERROR
        assert "does not exist" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_reading_feeds_the_practice(tmp_path, capsys):
    words = tmp_path / "words.jsonl"
    rows = [
        ("Through,", "substituted"),
        ("the", "correct"),
        ("wood", "left out"),
        ("", "inserted"),
        ("42", "not judged"),
    ]
    words.write_text("".join(json.dumps({"word": word, "verdict": verdict}) + "\n" for word, verdict in rows))
    command = ["tutor", "practice", "Ada", "--store", str(tmp_path / "s.sqlite"), "--reading", str(words)]
    assert main(command) == 0
    with PracticeStore(tmp_path / "s.sqlite") as store:
        assert sorted(each.item for each in store.items("Ada")) == ["through", "wood"]
        first = {each.item: each.due for each in store.items("Ada")}
    words.write_text(json.dumps({"word": "wood", "verdict": "correct"}) + "\n")
    assert main(command) == 0
    with PracticeStore(tmp_path / "s.sqlite") as store:
        second = {each.item: each.due for each in store.items("Ada")}
    assert second["through"] == first["through"]
    assert second["wood"] > first["wood"]
    words.write_text("{}\n")
    assert main(command) == USER_ERROR
    assert "words.jsonl, line 1" in capsys.readouterr().err
