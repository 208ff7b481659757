"""Adaptation of any trained model by LoRA: the same loss, of which only low-rank updates of linear maps are trained."""

import dataclasses
from collections.abc import Callable
from typing import Any

from flax import nnx

from jax_speechlm.nn import functional
from jax_speechlm.nn.functional import Params
from jax_speechlm.nn.lora import GROUP, LoRA, attach, make_updates
from jax_speechlm.objectives.base import Objective


def adapted(objective: Objective, config: LoRA) -> Objective:
    """Returns an objective whose model has the further parameter group "lora", the only one that is trained.

    Raises:
      ValueError: the model has LoRA of its own, or a target matches no linear map.
    """
    if not config.rank:
        return objective
    groups = functional.declare(objective.make).shapes
    if GROUP in groups:
        raise ValueError("lora.rank and the model's own (model.lora.rank) are both set: keep one of them")

    def make(rngs: nnx.Rngs) -> nnx.Module:
        module = objective.make(rngs)
        module.lora = make_updates(module, config, rngs=rngs)
        return module

    def of_base(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(params: Params, *args: Any) -> Any:
            base = {name: group for name, group in params.items() if name != GROUP}
            return function(attach(base, params[GROUP], config.scale), *args)

        return call

    return dataclasses.replace(
        objective,
        make=make,
        loss=of_base(objective.loss),
        logits=objective.logits and of_base(objective.logits),
        pictures=objective.pictures and of_base(objective.pictures),
        frozen=tuple(groups),
    )
