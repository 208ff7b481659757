"""Practice of what a learner missed: spaced repetition (FSRS), stored by learner in one SQLite file."""

import contextlib
import json
import sqlite3
import unicodedata
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import fsrs

from data_pipelines.core.errors import DataError
from data_pipelines.core.lines import check_storable

_APPLICATION = 0x5350_5455  # marks the files of this module, in SQLite's header
_TABLES = """
CREATE TABLE learners (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE);
CREATE TABLE items (
  id INTEGER PRIMARY KEY,
  learner INTEGER NOT NULL REFERENCES learners ON DELETE CASCADE,
  item TEXT NOT NULL,
  card TEXT NOT NULL,
  due TEXT NOT NULL,
  UNIQUE (learner, item)
);
CREATE TABLE reviews (
  item INTEGER NOT NULL REFERENCES items ON DELETE CASCADE,
  at TEXT NOT NULL,
  knew INTEGER NOT NULL
);
"""


class Item(NamedTuple):
    """Something to practise, and when it is due (UTC)."""

    item: str
    due: datetime


class PracticeStore(contextlib.AbstractContextManager):
    """The learners of a file and what they practise; a context manager, which closes it.

    Names are values, never part of a path or of SQL. What is erased is overwritten in the file.

    Args:
      path: a file, made if it does not exist.

    Raises:
      DataError: the file is damaged, of another program, or in use; of every method too.
    """

    def __init__(self, path: Path):
        self.path = path
        self._scheduler = fsrs.Scheduler(enable_fuzzing=False)  # the same answers have the same dates
        with self._named_errors():
            self._connection = sqlite3.connect(path, isolation_level=None)
        try:
            with self._named_errors():
                self._connection.execute("PRAGMA foreign_keys = ON")
                self._connection.execute("PRAGMA secure_delete = ON")
                self._prepare()
        except BaseException:
            self._connection.close()
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._connection.close()

    def _prepare(self) -> None:
        with self._transaction():
            (mark,) = self._connection.execute("PRAGMA application_id").fetchone()
            (tables,) = self._connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
            if mark == 0 and tables == 0:
                for statement in filter(str.strip, _TABLES.split(";")):
                    self._connection.execute(statement)
                self._connection.execute(f"PRAGMA application_id = {_APPLICATION}")
            elif mark != _APPLICATION:
                raise DataError(f"{self.path}: is a database of another program: name another file with --store")

    def review(self, learner: str, item: str, knew: bool, at: datetime | None = None) -> datetime:
        """Stores whether a learner knew an item, a new one too; returns when it is due next."""
        at = at or datetime.now(UTC)
        if not item.strip():
            raise DataError("an item to practise needs a text")
        with self._named_errors(), self._transaction():
            owner = self._learner(learner, make=True)
            row = self._connection.execute(
                "SELECT card FROM items WHERE learner = ? AND item = ?", (owner, item)
            ).fetchone()
            card = fsrs.Card(card_id=0, due=at) if row is None else self._card(row[0])
            card, _ = self._scheduler.review_card(card, fsrs.Rating.Good if knew else fsrs.Rating.Again, at)
            due = card.due.astimezone(UTC)
            (number,) = self._connection.execute(
                "INSERT INTO items (learner, item, card, due) VALUES (?, ?, ?, ?) "
                "ON CONFLICT (learner, item) DO UPDATE SET card = excluded.card, due = excluded.due RETURNING id",
                (owner, item, json.dumps(card.to_dict()), due.isoformat()),
            ).fetchone()
            self._connection.execute("INSERT INTO reviews VALUES (?, ?, ?)", (number, at.isoformat(), int(knew)))
        return due

    def items(self, learner: str) -> list[Item]:
        """Returns what a learner practises, the first due first; nothing of a learner who is not known."""
        with self._named_errors():
            rows = self._connection.execute(
                "SELECT item, due FROM items WHERE learner = ? ORDER BY due, items.id", (self._learner(learner),)
            ).fetchall()
        try:
            return [Item(item, datetime.fromisoformat(due)) for item, due in rows]
        except (ValueError, TypeError) as error:
            raise self._damaged(repr(error)) from error

    def export(self, learner: str) -> dict[str, Any]:
        """Returns all that is stored of a learner. Raises `DataError` if the learner is not known."""
        with self._named_errors():
            owner = self._known(learner)
            rows = self._connection.execute("SELECT id, item, card FROM items WHERE learner = ? ORDER BY id", (owner,))
            items = []
            for number, item, card in rows.fetchall():
                reviews = self._connection.execute(
                    "SELECT at, knew FROM reviews WHERE item = ? ORDER BY rowid", (number,)
                ).fetchall()
                stored = self._card(card).to_dict()
                items.append(
                    {
                        "item": item,
                        **{key: stored[key] for key in ("due", "stability", "difficulty")},
                        "reviews": [{"at": at, "knew": bool(knew)} for at, knew in reviews],
                    }
                )
        return {"learner": _name(learner), "items": items}

    def erase(self, learner: str) -> int:
        """Erases all that is stored of a learner, from the file too; returns the number of items.

        Raises:
          DataError: the learner is not known.
        """
        with self._named_errors():
            owner, count = self._known(learner), len(self.items(learner))
            with self._transaction():
                self._connection.execute("DELETE FROM learners WHERE id = ?", (owner,))
            self._connection.execute("VACUUM")
        return count

    def _known(self, learner: str) -> int:
        owner = self._learner(learner)
        if owner is None:
            raise DataError(f"{self.path}: has no learner {learner!r}")
        return owner

    def _learner(self, learner: str, make: bool = False) -> int | None:
        name = _name(learner)
        if make:
            self._connection.execute("INSERT OR IGNORE INTO learners (name) VALUES (?)", (name,))
        row = self._connection.execute("SELECT id FROM learners WHERE name = ?", (name,)).fetchone()
        return None if row is None else row[0]

    def _card(self, text: str) -> fsrs.Card:
        try:
            return fsrs.Card.from_dict(json.loads(text))
        except (ValueError, KeyError, TypeError) as error:
            raise self._damaged(repr(error)) from error

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            if self._connection.in_transaction:  # SQLite itself ends it after some errors
                self._connection.execute("ROLLBACK")
            raise
        self._connection.execute("COMMIT")

    @contextlib.contextmanager
    def _named_errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.OperationalError as error:
            raise DataError(
                f"{self.path}: cannot be read or written ({error}): check its folder, close what else uses it, or name "
                "another file with --store"
            ) from error
        except sqlite3.DatabaseError as error:
            raise self._damaged(str(error)) from error

    def _damaged(self, why: str) -> DataError:
        return DataError(
            f"{self.path}: is damaged, or no file of jax-speechlm tutor ({why}): take a copy of it, or name another "
            "file with --store"
        )


def _name(learner: str) -> str:
    name = unicodedata.normalize("NFC", learner).strip()
    try:
        check_storable("learner", name)
    except ValueError as error:
        raise DataError(f"the learner's name cannot be stored: {error}") from error
    if not name:
        raise DataError("a learner needs a name")
    return name
