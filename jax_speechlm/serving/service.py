"""Bases of the services that an endpoint offers: routes, and of a trained run its description."""

import abc
import base64
import contextlib
import logging
import math
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from typing import Any, ClassVar, TypeVar

import jax
import numpy as np
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse

from data_pipelines.audio import decode
from data_pipelines.core.errors import DataError
from jax_speechlm.core.batch import Batch
from jax_speechlm.frontend.frontend import FrontEnd, features
from jax_speechlm.frontend.logmel import LogMel
from jax_speechlm.frontend.waveform import Waveform
from jax_speechlm.inference.segmentation import Samples, shape_of
from jax_speechlm.recipes.experiment import Experiment
from jax_speechlm.serving.admission import Client, Requests, Work
from jax_speechlm.serving.forms import ApiError, Body, Upload, internal_error, read_upload

T = TypeVar("T")

log = logging.getLogger(__name__)

_PICTURE_SECONDS = 30.0


class Service(abc.ABC):
    """A share of an endpoint.

    Attributes:
      name: of the service; of a run, the model's name in the API.
      task: what it does, as errors and the page call it.
      route: path of the requests that it serves.
      page: path of its page.
      model_names: names of the models that requests may choose.
      requests: the requests in progress of the whole endpoint.
      sample_rate: of the audio that it takes, in Hz.
    """

    task: str
    route: str
    page: ClassVar[str] = ""
    model_names: Sequence[str] = ()

    def __init__(self, name: str, requests: Requests, sample_rate: int):
        self.name, self.requests, self.limits, self.sample_rate = name, requests, requests.limits, sample_rate

    @abc.abstractmethod
    def close(self) -> None:
        """Ends what runs beside requests."""

    @abc.abstractmethod
    def add_routes(self, app: FastAPI) -> None:
        """Adds the service's routes."""

    @abc.abstractmethod
    def programs(self) -> Sequence[Callable[[], Any]]:
        """Returns calls that compile what requests will run."""

    @abc.abstractmethod
    def health(self) -> dict[str, dict[str, int | float]]:
        """Returns counters of what was computed."""

    async def run(
        self, client: Client, function: Callable[[Any], Any], work: Work, timeout: float | None = None
    ) -> Any:
        """Runs `function(work)` as `Requests.run` does.

        Raises:
          ApiError: as `Requests.run`; the audio cannot be decoded or is too long; or an unexpected error, which is
            logged here, as the server would close the connection of an exception that reaches it.
          DataError: from the function.
        """
        try:
            return await self.requests.run(client, function, work, timeout)
        except decode.AudioTooLongError as error:
            limit = f"the audio is longer than the limit of {self.limits.max_minutes:g} minutes"
            raise ApiError.invalid("file", limit, "audio_too_long") from error
        except decode.AudioError as error:
            message = f"the file cannot be decoded as audio: {error.reason}"
            raise ApiError.invalid("file", message, "bad_audio") from error
        except (ApiError, DataError):
            raise
        except Exception as error:
            log.exception("a request failed")
            raise internal_error() from error

    def blocks(self, upload: Upload, work: Work) -> Iterator[Samples]:
        """Decodes an upload, until the work is cancelled. Raises `AudioError` if it cannot be decoded."""
        name = "upload.g722" if upload.filename.lower().endswith(".g722") else "upload"  # G.722 has no header
        max_seconds = 60 * self.limits.max_minutes
        yield from decode.stream(
            upload.content, name=name, rate=self.sample_rate, max_seconds=max_seconds, check=work.check
        )

    async def upload_of(self, request: Request) -> Upload:
        """Reads a form with an audio file. Raises `ApiError` as `read_upload`."""
        return await read_upload(request, int(self.limits.max_megabytes * 2**20))


class RunService(Service):
    """A trained run and its share of an endpoint; closing it ends the thread of the model, after what it computes."""

    picture_route: ClassVar[str]

    def __init__(self, name: str, requests: Requests, experiment: Experiment, params: Any):
        super().__init__(name, requests, experiment.sample_rate)
        self.experiment, self._params = experiment, params
        self.model_names = (name,)
        frontend = experiment.frontend  # of samples there is no picture of frequencies
        self._picture_of = FrontEnd(mel=LogMel()) if isinstance(frontend.mel, Waveform) else frontend
        self._features = jax.jit(lambda batch: features(batch, self._picture_of, None))

    def details(self) -> dict[str, Any]:
        """Returns the fields of `/v1/models/NAME` that OpenAI's schema lacks."""
        return {"task": self.task, "route": self.route, "card": self.card()}

    def card(self) -> dict[str, Any]:
        """Returns a description of the model for display."""
        return {
            "trained by": self.experiment.objective.kind,
            "to": self.task,
            "on": ", ".join(getattr(self.experiment.data, "sets", ())) or self.experiment.data.kind,
            "parameters": sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(self._params)),
        }

    def add_picture_route(self, app: FastAPI) -> None:
        """Adds the route of the page that returns the features of an audio file as a picture."""

        @app.post(self.picture_route, include_in_schema=False)
        async def picture(request: Request) -> JSONResponse:
            body = Body(request)
            async with self.requests.admitted(body):
                upload = await self.upload_of(request)
                return JSONResponse(await self.run(body, lambda work: self.picture(upload, work), Work()))

    def picture(self, upload: Upload, work: Work) -> dict[str, Any]:
        """Returns log-mel features of the first 30 s as grey levels: a byte a bin, low bins first, frame by frame."""
        most, blocks = int(_PICTURE_SECONDS * self.sample_rate), []
        for block in self.blocks(upload, work):
            blocks.append(block)
            if sum(map(len, blocks)) >= most:
                break
        samples = np.concatenate(blocks)[:most]
        padded = np.pad(samples, (0, max(shape_of(len(samples)) - len(samples), 0)))[None]
        batch: Batch = {"audio": padded, "audio_length": np.array([len(samples)], np.int32)}
        x, length = jax.device_get(self._features(batch))
        bins = self._picture_of.mel.num_mel_bins
        frames = x[0, : length[0]].reshape(-1, bins)
        low, high = np.percentile(frames, (1, 99.5)) if len(frames) else (0.0, 1.0)
        shades = np.clip((frames - low) / max(high - low, 1e-6) * 255, 0, 255).astype(np.uint8)
        return {
            "frames": len(shades),
            "bins": bins,
            "seconds": len(samples) / self.sample_rate,
            "shades": base64.b64encode(shades.tobytes()).decode(),
        }


async def chain(first: T, rest: AsyncGenerator[T, None]) -> AsyncGenerator[T, None]:
    """Yields `first` and then the rest, which is closed in every case."""
    async with contextlib.aclosing(rest):
        yield first
        async for item in rest:
            yield item
