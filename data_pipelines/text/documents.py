"""What a source of text hands to preparation: documents, and what it left out (`clips.Dropped`)."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from data_pipelines.audio.clips import Dropped


@dataclass(frozen=True)
class Document:
    """One natural unit of text: a chapter, a page, an entry, a line of a file of lines.

    Attributes:
      id: unique within the set; tells where the text comes from.
      text: paragraphs and verses are lines; a blank line parts larger pieces.
      language: two-letter code, or '' where the source does not say.
      source: which part of the set it belongs to, such as "bible"; sources are reported one by one.
      label: a class, for classification; '' where there is none.
      split: '' leaves it to the rule of `text.text_split_of`.
    """

    id: str
    text: str
    language: str = ""
    source: str = ""
    label: str = ""
    split: str = ""


@dataclass(frozen=True)
class TextSource:
    """A set of text that `prepare` can clean and store.

    Attributes:
      name: of the prepared set, and of its folder.
      licence: of the text.
      origin: packages with versions, or files with digests; kept in the prepared set.
      documents: yields the documents and what was left out; every call begins anew.
      languages: those that the set is meant to be in; `Cleaning.languages` overrides them.
    """

    name: str
    licence: str
    origin: dict[str, str]
    documents: Callable[[], Iterator[Document | Dropped]]
    languages: tuple[str, ...] = ()
