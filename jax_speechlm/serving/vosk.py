"""The protocol of Vosk's server on a WebSocket: samples in binary messages, an answer to each.

The client may first send `{"config": {"sample_rate": 16000}}`, and `{"eof": 1}` at the end. An answer is
`{"partial": text}`, or `{"result": [words], "text": text}` where a segment has ended, as the last one does.
"""

import json
from collections.abc import Sequence
from typing import Any

from jax_speechlm.inference.asr.hypothesis import Endpointing
from jax_speechlm.inference.transcript import Segment
from jax_speechlm.serving.forms import ApiError
from jax_speechlm.serving.live import LiveAudio, Socket

_RATES = range(4_000, 192_001)
_IGNORED = {"words", "max_alternatives", "phrase_list", "model"}
_ENDPOINTING = Endpointing(silence_seconds=0.5)


async def serve_vosk(socket: Socket, audio: LiveAudio, rate: int) -> None:
    """Answers a client until it sends the end or closes.

    Args:
      rate: of the samples in Hz, unless the client states another.

    Raises:
      ApiError: a message is none of the protocol, or exceeds a limit.
    """
    num_ended = 0
    while (message := await socket.receive()) is not None:
        if isinstance(message, bytes):
            progress = None
            async for latest in audio.add(message, rate, _ENDPOINTING):
                progress = latest
            if progress is None:
                await socket.send(json.dumps({"partial": ""}))
                continue
            ended, num_ended = progress.segments[num_ended:], len(progress.segments)
            answer = _result(ended) if ended else {"partial": progress.partial.text}
            await socket.send(json.dumps(answer, ensure_ascii=False))
            continue
        request = _request(message)
        if "config" in request:
            if audio.is_open:
                raise ApiError(400, "config after audio: open another connection", code="invalid_message")
            rate = _rate(request["config"], rate)
        if "eof" in request or "reset" in request:
            progress = await audio.finalize() if audio.is_open else None
            ended, num_ended = progress.segments[num_ended:] if progress else (), 0
            await socket.send(json.dumps(_result(ended), ensure_ascii=False))
            if "eof" in request:
                return


def _request(message: str) -> dict[str, Any]:
    try:
        request = json.loads(message)
    except (ValueError, RecursionError):
        request = None
    if not isinstance(request, dict) or request.keys() - {"config", "eof", "reset"} or not request:
        raise ApiError(
            400,
            f'a text message is {{"config": ...}}, {{"eof": 1}} or {{"reset": 1}}; got {message[:80]!r}',
            code="invalid_message",
        )
    return request


def _rate(config: Any, rate: int) -> int:
    if not isinstance(config, dict) or config.keys() - {"sample_rate"} - _IGNORED:
        known = ", ".join(["sample_rate", *sorted(_IGNORED)])
        raise ApiError(400, f"config has the fields {known}; got {json.dumps(config)[:200]}", code="invalid_message")
    rate = config.get("sample_rate", rate)
    if isinstance(rate, bool) or not isinstance(rate, int | float) or rate not in _RATES:
        limits = f"from {_RATES[0]} to {_RATES[-1]}"
        raise ApiError(400, f"sample_rate must be an integer {limits}; got {str(rate)[:80]}", code="invalid_message")
    return int(rate)


def _result(segments: Sequence[Segment]) -> dict[str, Any]:
    words = [
        {"conf": round(word.confidence, 4), "start": round(word.start, 3), "end": round(word.end, 3), "word": word.word}
        for segment in segments
        for word in segment.words
    ]
    return ({"result": words} if words else {}) | {"text": " ".join(segment.text for segment in segments)}
