"""Documents and sources of text, the input of the prepare job."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from data_pipelines.audio.clips import Dropped


@dataclass(frozen=True)
class Document:
    """One natural unit of text: a chapter, a page, an entry, a line of a file of lines.

    Attributes:
      id: unique within the set; identifies the origin of the text.
      text: paragraphs and verses are lines; blank lines separate larger pieces.
      target: what a model is to answer to the text; '' if it has none. Of the steps of cleaning only
        `personal` changes it.
      language: two-letter code, or '' if the source does not state it.
      source: part of the set that it belongs to, such as "bible"; sources are reported separately.
      label: a class, for classification; '' if it has none.
      split: '' for the rule of `data_pipelines.text.normalize.text_split_of`.
    """

    id: str
    text: str
    language: str = ""
    source: str = ""
    label: str = ""
    target: str = ""
    split: str = ""


@dataclass(frozen=True)
class TextSource:
    """A set of text that `prepare` can clean and store.

    Attributes:
      name: of the prepared set, and of its folder.
      origin: packages with versions, or files with digests; kept in the prepared set.
      documents: yields documents and dropped items; every call starts from the beginning.
      languages: of the set; `Cleaning.languages` overrides them.
    """

    name: str
    licence: str
    origin: dict[str, str]
    documents: Callable[[], Iterator[Document | Dropped]]
    languages: tuple[str, ...] = ()
