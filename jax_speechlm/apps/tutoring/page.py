"""The page of a reading: the words of the text, coloured by what became of them."""

import html

from jax_speechlm.apps.tutoring.reading import Reading, ReadWord

_STYLE = """body{font:18px/1.8 system-ui,sans-serif;max-width:50rem;margin:2rem auto;padding:0 1rem;color:#222}
.correct{color:#146c2e}.substituted{color:#b3261e;text-decoration:underline wavy}
.left-out{color:#b3261e;text-decoration:line-through}
.inserted{color:#0b57d0;font-style:italic}.repeated{color:#8f5b00;font-style:italic}.not-judged{color:#767676}
small{color:#767676}table{border-collapse:collapse;font-size:1rem}
td,th{padding:.1rem .6rem;border-bottom:1px solid #ddd;text-align:left}"""
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"  # nothing is fetched, no script runs


def as_html(reading: Reading, title: str) -> str:
    """Returns a self-contained page; what is recognised and scored of a word stands in its tooltip."""
    counts = "".join(
        f"<tr><td>{html.escape(name)}</td><td>{'-' if value is None else f'{value:g}'}</td></tr>"
        for name, value in reading.summary.items()
    )
    title = html.escape(title)
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><meta http-equiv="Content-Security-Policy" '
        f'content="{_POLICY}"><title>{title}</title><style>{_STYLE}</style><h1>{title}</h1>'
        f"<p>{' '.join(map(_marked, reading.words))}</p><table>{counts}</table>"
        '<p><small><span class="correct">correct</span>, <span class="substituted">another word</span>, '
        '<span class="left-out">left out</span>, <span class="inserted">added</span>, '
        '<span class="repeated">said again</span>, <span class="not-judged">not judged</span>; pauses in seconds. '
        "No person has judged the reading.</small></p></html>\n"
    )


def _marked(word: ReadWord) -> str:
    details = [word.verdict]
    if word.heard:
        details.append(f"recognised: {word.heard}")
    if word.free is not None:
        details.append(f"pronunciation {word.free:.2f} ({word.aligned:.2f} by alignment)")
    pause = f"<small>[{word.pause:.1f} s]</small> " if word.pause else ""
    return (
        f'{pause}<span class="{word.verdict.replace(" ", "-")}" title="{html.escape("; ".join(details))}">'
        f"{html.escape(word.word or word.heard)}</span>"
    )
