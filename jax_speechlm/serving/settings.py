"""Settings of a server, without what it imports."""

from typing import Annotated

import pydantic

from jax_speechlm.core.config import Config


class Address(Config):
    """Where a service is reached.

    Attributes:
      host: the address to listen at. The default accepts connections from this machine alone: there is neither a
        password nor encryption, so use a proxy that has both for others.
      port: 0 picks a free one and prints it.
      names: host names (or host:port) under which browsers reach the service by a proxy. Requests from pages of other
        sites are refused; so are, on this machine's own address, requests to other names than localhost.
      wyoming_port: also answer the protocol of Home Assistant's voice pipelines at this port.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    names: tuple[str, ...] = ()
    wyoming_port: int | None = None


class ConversationLimits(Config):
    """Limits of served conversations.

    Attributes:
      max_conversations: at a time; further ones get 503 until one ends.
      idle_seconds: without a turn, after which a conversation ends.
    """

    max_conversations: Annotated[int, pydantic.Field(ge=1)] = 50
    idle_seconds: Annotated[float, pydantic.Field(gt=0)] = 300.0
