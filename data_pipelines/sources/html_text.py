"""Running prose of an HTML page: paragraphs, headings and list items, without code, tables and navigation."""

from html.parser import HTMLParser

_BLOCKS = frozenset([
    "p", "div", "h1", "h2", "h3", "h4", "h5", "h6", "li", "dt", "dd", "blockquote", "br", "hr", "tr", "section",
    "article", "figcaption",
])  # fmt: skip
_SKIPPED = frozenset(["head", "script", "style", "pre", "table", "svg", "nav"])
_SKIPPED_CLASSES = frozenset(["navheader", "navfooter", "toc", "index", "book-navigation", "footnotes"])
_VOID = frozenset([
    "area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "track", "wbr",
])  # fmt: skip


def prose(html: str) -> str:
    """Returns the text of a page, with one paragraph per line."""
    parser = _Prose()
    parser.feed(html)
    parser.close()
    parser.end_paragraph()
    return "\n".join(parser.paragraphs)


class _Prose(HTMLParser):
    def __init__(self):
        super().__init__(convert_charrefs=True)
        self.paragraphs: list[str] = []
        self._parts: list[str] = []
        self._skipped: list[str] = []  # open tags from the outermost skipped element inwards

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in _BLOCKS:
            self.end_paragraph()
        if tag in _VOID:
            return
        if self._skipped:
            if tag == self._skipped[0]:  # only nesting of the same tag can be mistaken for its end
                self._skipped.append(tag)
        elif tag in _SKIPPED or _SKIPPED_CLASSES & set((dict(attrs).get("class") or "").split()):
            self._skipped.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if self._skipped and tag == self._skipped[0]:
            self._skipped.pop()
        if tag in _BLOCKS:
            self.end_paragraph()

    def handle_data(self, data: str) -> None:
        if not self._skipped:
            self._parts.append(data)

    def end_paragraph(self) -> None:
        if text := " ".join("".join(self._parts).split()):
            self.paragraphs.append(text)
        self._parts.clear()
