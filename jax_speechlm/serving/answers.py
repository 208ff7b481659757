"""Responses: a transcript in OpenAI's response formats."""

import zlib
from collections.abc import Sequence
from typing import Any

from fastapi.responses import JSONResponse, PlainTextResponse, Response

from jax_speechlm.decoding.ctc.alignment import Word
from jax_speechlm.inference.asr.base import Transcriber
from jax_speechlm.inference.transcript import SUBTITLES, Segment, phrases
from jax_speechlm.serving.forms import ApiError, Upload

FORMATS = ("json", "text", "srt", "verbose_json", "vtt")
_STREAMED = ("json", "text")  # formats that can be sent as events


class Wish:
    """The response that a form requests: its format, and whether the text is sent as events while it is decoded."""

    def __init__(self, upload: Upload):
        """Reads the form's fields. Raises `ApiError` if one has an unsupported value."""
        self.format = upload.one("response_format", FORMATS)
        self.stream = upload.one("stream", ("false", "true", "0", "1", "False", "True")).lower() in ("true", "1")
        if self.stream and self.format not in _STREAMED:
            formats = " or ".join(_STREAMED)
            raise ApiError.invalid("stream", f"stream sends text: response_format must be {formats}, not {self.format}")
        if included := upload.values("include"):
            raise ApiError.invalid("include[]", f"include[]: {included[0][:80]!r} is not supported")
        name, granularities = "timestamp_granularities[]", upload.values("timestamp_granularities")
        if unknown := set(granularities) - {"word", "segment"}:
            raise ApiError.invalid(name, f"{name} may be word and segment; got {min(unknown)[:80]!r}")
        self._words = "word" in granularities
        self._language = (upload.fields.get("language") or [""])[-1]

    def answer(self, transcriber: Transcriber, segments: Sequence[Segment], seconds: float) -> Response:
        """Builds the response in the requested format; `seconds` is the duration of the audio."""
        text = transcriber.text_of(segments)
        if self.format in SUBTITLES:
            return PlainTextResponse(
                SUBTITLES[self.format](segments), media_type="text/vtt" if self.format == "vtt" else "text/plain"
            )
        if self.format == "text":
            return PlainTextResponse(text + "\n")
        if self.format == "json":
            return JSONResponse({"text": text})
        spoken = [(segment, phrase) for segment in segments for phrase in phrases([segment])]
        body = {
            "task": transcriber.task,
            # The model does not identify languages; translations are English.
            "language": "english" if transcriber.task == "translate" else self._language or "unknown",
            "duration": seconds,
            "text": text,
            "segments": [_phrase(transcriber, index, *pair) for index, pair in enumerate(spoken)],
        }
        if self._words:
            words = (word for segment in segments for word in segment.words)
            body["words"] = [{"word": word.word, **_times(word)} for word in words]
        if alternatives := [
            {**_times(segment), "texts": list(segment.alternatives)} for segment in segments if segment.alternatives
        ]:
            body["alternatives"] = alternatives
        return JSONResponse(body)


def _phrase(transcriber: Transcriber, index: int, segment: Segment, phrase: Segment) -> dict[str, Any]:
    """Returns a phrase with all fields of OpenAI's schema; Whisper-specific fields have neutral values."""
    text = phrase.text.encode()
    return {
        "id": index,
        "seek": int(100 * segment.start),  # Whisper's frames of 10 ms
        **_times(phrase),
        "text": phrase.text,
        "tokens": transcriber.tokenizer.encode(phrase.text),
        "temperature": 0.0,
        "avg_logprob": round(phrase.avg_logprob, 4),
        "compression_ratio": round(len(text) / len(zlib.compress(text)), 4),
        "no_speech_prob": 0.0,
    }


def _times(part: Segment | Word) -> dict[str, float]:
    return {"start": round(part.start, 3), "end": round(part.end, 3)}
