"""English text that any Debian machine can fetch by package name.

`text-en` is running prose: the King James Bible by chapter, fortunes one by one, an FAQ and a manual by page. `dict-en`
is dictionaries by entry: fragments of sentences, three times as much.
"""

import gzip
import hashlib
import re
import struct
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

from data_pipelines.audio.clips import Dropped
from data_pipelines.core.errors import DataError
from data_pipelines.sources import debian
from data_pipelines.sources.html_text import prose
from data_pipelines.text.documents import Document, TextSource

_DIGITS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"

Items = Iterator[Document | Dropped]


def bible(root: Path) -> Items:
    """Yields the chapters of the King James Bible, with a verse per line.

    The package has one LZW stream (Unix `compress`, which gzip reads) after a table of offsets.
    """
    data = (root / "usr/lib/bible.data").read_bytes()
    _, windows = struct.unpack(">II", data[0x54:0x5C])
    stream = data[0x5C + 4 * (windows + 1) :]
    text = subprocess.run(["gzip", "-dc"], input=stream, capture_output=True, check=True).stdout.decode()
    chapters: dict[str, list[str]] = {}
    for chapter, verse in re.findall(r"^(\w+):\d+ (.*)$", text, re.MULTILINE):
        chapters.setdefault(chapter, []).append(verse)
    for chapter, verses in chapters.items():
        yield Document(f"bible/{chapter}", "\n".join(verses), "en", "bible")


def fortunes(root: Path) -> Items:
    """Yields sayings, verses and jokes, one per document; drawings are left out."""
    for path in sorted((root / "usr/share/games/fortunes").iterdir()):
        if path.suffix or path.name == "ascii-art":
            continue
        text = re.sub(".\b", "", path.read_text("utf-8"))  # letters struck over to print bold
        for number, fortune in enumerate(re.split(r"^%$", text, flags=re.MULTILINE)):
            yield Document(f"fortunes/{path.name}/{number}", fortune, "en", "fortunes")


def anarchism(root: Path, max_characters: int = 4_000_000) -> Items:
    """Yields the pages of an FAQ on anarchism, in the order of their names' digests.

    Pages beyond `max_characters` in total are dropped: one long political text by a few authors would be a third of the
    set.
    """
    pages = {
        path.stem: prose(path.read_text("utf-8")) for path in (root / "usr/share/doc/anarchism/html").glob("*.html")
    }
    total = 0
    for name in sorted(pages, key=lambda name: hashlib.sha1(name.encode()).digest()):
        total += len(pages[name])
        if total > max_characters:
            yield Dropped(f"anarchism/{name}", f"beyond the {max_characters / 1e6:g} MB that one text may have")
        else:
            yield Document(f"anarchism/{name}", pages[name], "en", "anarchism")


def postgresql(root: Path) -> Items:
    """Yields the pages of PostgreSQL's manual."""
    for path in sorted(root.glob("usr/share/doc/postgresql-doc-*/html/*.html")):
        yield Document(f"postgresql/{path.stem}", prose(path.read_text("utf-8")), "en", "postgresql")


def dictionary(root: Path) -> Items:
    """Yields the entries of a dictionary in the dictd format: an index of base-64 offsets into a gzipped file."""
    (index,) = root.glob("usr/share/dictd/*.index")
    data = gzip.decompress(index.with_suffix(".dict.dz").read_bytes())
    seen = set()
    for line in index.read_text("utf-8").splitlines():
        headword, *location = line.split("\t")
        start, size = map(_base64, location)
        if start in seen or headword.startswith("00"):  # another headword of the same entry; notes on the dictionary
            continue
        seen.add(start)
        yield Document(f"{index.stem}/{start}", data[start : start + size].decode("utf-8", "replace"), "en", index.stem)


def _base64(digits: str) -> int:
    value = 0
    for digit in digits:
        value = 64 * value + _DIGITS.index(digit)
    return value


def wordnet(root: Path) -> Items:
    """Yields the glosses of WordNet, each after the words that it explains."""
    for kind in ("adj", "adv", "noun", "verb"):
        for line in (root / f"usr/share/wordnet/data.{kind}").read_text("utf-8").splitlines():
            if line.startswith(" "):  # the licence
                continue
            entry, gloss = line.split(" | ", 1)
            offset, _, _, count, *fields = entry.split(" ")
            words = [word.replace("_", " ") for word in fields[: 2 * int(count, 16) : 2]]
            yield Document(f"wordnet/{kind}/{offset}", f"{', '.join(words)}: {gloss}", "en", "wordnet")


_SETS: dict[str, dict[str, Callable[[Path], Items]]] = {
    "text-en": {
        "bible-kjv-text": bible,
        "fortunes": fortunes,
        "anarchism": anarchism,
        "postgresql-doc": postgresql,
    },
    "dict-en": {
        "dict-gcide": dictionary,
        "dict-foldoc": dictionary,
        "dict-jargon": dictionary,
        "dict-devil": dictionary,
        "wordnet-base": wordnet,
    },
}
NAMES = tuple(_SETS)


def debian_texts(name: str, cache: Path) -> TextSource:
    """Fetches the packages of one of `NAMES` into `cache` (see `debian.fetch`) and describes their set.

    Returns:
      The set, whose documents are read when they are needed.

    Raises:
      DataError: a package cannot be fetched.
    """
    fetched = {debian.fetch(debian.newest(package), cache): parse for package, parse in _SETS[name].items()}
    return TextSource(
        name=name,
        licence="public domain (Bible), GPL, GFDL, PostgreSQL, WordNet: see the packages' copyright files",
        origin={package.name: package.version for package in fetched},
        documents=lambda: (item for package, parse in fetched.items() for item in _named(package, parse)),
        languages=("en",),
    )


def _named(package: debian.Package, parse: Callable[[Path], Items]) -> Items:
    try:
        yield from parse(package.root)
    except (OSError, ValueError, subprocess.CalledProcessError) as error:
        raise DataError(
            f"{package.root}: the package {package.name} {package.version} has an unexpected layout ({error}); "
            "delete the folder and prepare again, or name text of your own with --text"
        ) from error
