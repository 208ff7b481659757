"""Distillation: a student is trained on its targets and on the outputs of trained models for the same input.

For every frame or token, frozen teachers provide a distribution over the vocabulary as a soft target at a temperature
(Hinton et al. 2015), and hidden states of chosen layers as regression targets, through a linear map where the widths
differ (FitNets, Romero et al. 2015; the cosine distance is DistilBERT's, Sanh et al. 2019). Teachers receive the batch
without the student's dropout and augmentation.

Their parameters are the model's group "distillation/teachers": arguments of the compiled step, sharded over the mesh by
the same rules as all others, without gradients and optimizer state. A checkpoint contains references to the teachers
instead of their parameters; a restart reads them again.
"""

import dataclasses
from collections.abc import Callable
from typing import Annotated, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, PRNGKeyArray
from pydantic import Field, NonNegativeFloat, PositiveInt

from data_pipelines.core.tokenizer import Tokenizer
from jax_speechlm.core.batch import Batch, example_keys, frame_mask
from jax_speechlm.core.config import Config
from jax_speechlm.core.errors import CheckpointError
from jax_speechlm.core.tree import paths
from jax_speechlm.frontend.frontend import FrontEnd
from jax_speechlm.models.encoders import EncoderConfig
from jax_speechlm.models.transformer_config import TransformerConfig
from jax_speechlm.nn import functional
from jax_speechlm.nn.functional import Params
from jax_speechlm.nn.layers import Linear
from jax_speechlm.nn.vocabulary_loss import CHUNK_LOGITS
from jax_speechlm.objectives.asr import ctc
from jax_speechlm.objectives.asr.ctc import CTC
from jax_speechlm.objectives.base import Metrics, Objective, ObjectiveConfig, Runs, frame_grid, mean
from jax_speechlm.objectives.lm import causal_lm
from jax_speechlm.objectives.lm.causal_lm import CausalLM

GROUP = "distillation"
"""Parameter group used in training only: the teachers, and the maps between widths."""

Distance = Literal["cosine", "l2"]

_SMALL = 1e-12  # squared norms below it count as zero


class Teacher(Config):
    """A trained model, and the layers whose hidden states are distilled.

    Attributes:
      checkpoint: a run's directory, or one of its checkpoints/<step> folders; of the student's kind and tokenizer.
      layers: pairs (layers of the student, layers of the teacher): layer counts after which hidden states should agree.
      model, frontend: its model and front end; None reads them from the checkpoint.
    """

    checkpoint: str
    layers: tuple[tuple[PositiveInt, PositiveInt], ...] = ()
    model: Annotated[EncoderConfig | TransformerConfig, Field(discriminator="kind")] | None = None
    frontend: FrontEnd | None = None


class Distillation(ObjectiveConfig):
    """Settings of distillation.

    The loss is (1 - share) * the student's own + share * temperature^2 * KL(teachers || student), both at the
    temperature, + hidden_weight * the distance of hidden states.

    Attributes:
      student: the student's own objective.
      teachers: with several, the mean of their distributions is the target.
      share: share of the divergence from the teachers in the loss.
      temperature: divides the logits of student and teachers; higher values emphasise unlikely tokens.
      hidden_weight: weight of the mean distance over all pairs of layers.
      hidden_distance: "cosine" for 1 - cosine, "l2" for the mean squared difference.
    """

    kind: Literal["distillation"] = "distillation"
    student: Annotated[CTC | CausalLM, Field(discriminator="kind")] = CTC()
    teachers: Annotated[tuple[Teacher, ...], Field(min_length=1)]
    share: Annotated[float, Field(ge=0, le=1)] = 0.5
    temperature: Annotated[float, Field(ge=1e-4, le=1e4)] = 1.0
    hidden_weight: NonNegativeFloat = 1.0
    hidden_distance: Distance = "cosine"

    @property
    def model_kind(self) -> str:
        return self.student.model_kind

    def resolve(self, runs: Runs) -> "Distillation":
        """Returns the objective with each teacher's model, front end and exact checkpoint filled in.

        A checkpoint of the student is thereby complete without its teachers' folders, and a restart uses the same
        teachers. A teacher with given model and front end may be missing, so that a run can be planned without it.

        Raises:
          CheckpointError: a teacher's checkpoint cannot be read, or was trained for a task other than the student's.
        """
        return self.replace(teachers=tuple(self._resolved(teacher, runs) for teacher in self.teachers))

    def _resolved(self, teacher: Teacher, runs: Runs) -> Teacher:
        try:
            checkpoint = runs.find(teacher.checkpoint)
        except CheckpointError:
            if teacher.model is None or teacher.frontend is None:
                raise
            return teacher
        experiment = runs.experiment(checkpoint)
        if experiment.objective.model_kind != self.student.kind:
            raise CheckpointError(
                f"{checkpoint}: was trained by {experiment.objective.model_kind}, its student is by "
                f"{self.student.kind}: name a teacher of the same kind"
            )
        shape = {"model": teacher.model or experiment.model, "frontend": teacher.frontend or experiment.frontend}
        return teacher.replace(checkpoint=checkpoint, **shape)

    def load_teachers(self, shapes: Params, tokenizer: Tokenizer | None, runs: Runs) -> Params:
        """Reads the teachers' parameters.

        Args:
          shapes: of all parameters of the run, with their shardings.
          tokenizer: the student's.

        Returns:
          The teachers' part of the parameters, sharded as in `shapes`.

        Raises:
          CheckpointError: a checkpoint cannot be read, or has another tokenizer or other parameters than expected.
        """
        expected = shapes[GROUP]["teachers"]
        params = {
            str(place): _teacher_params(teacher, expected[str(place)], tokenizer, runs)
            for place, teacher in enumerate(self.teachers)
        }
        return {GROUP: {"teachers": params}}

    def build(self, model: Config, frontend: FrontEnd, tokenizer: Tokenizer | None) -> Objective:
        """Builds the objective for a student, front end and tokenizer.

        The loss is a mean over the student's targets, which are tokens: for CTC, divergence and distance are summed
        over frames and divided by the number of tokens, like its own loss. Metrics: `loss`, its parts `own`,
        `divergence` (temperature^2 * KL, nats) and `distance`, and the student's other metrics.

        Raises:
          ValueError: an error of the student's objective; or a teacher whose model is unknown, of another kind, with
            other frames, or without a given layer.
        """
        own = self.student.build(model, frontend, tokenizer)
        built = [self._build(teacher, model, frontend, tokenizer) for teacher in self.teachers]

        def scaffold(rngs: nnx.Rngs) -> nnx.Dict:
            maps = {
                f"{number}_{pair}": Linear((model.dim,), (teacher.model.dim,), ("embed", None), rngs=rngs)
                for number, teacher in enumerate(self.teachers)
                for pair in range(len(teacher.layers))
                if teacher.model.dim != model.dim
            }
            teachers = {str(number): each.make(rngs) for number, each in enumerate(built)}
            return nnx.Dict({"teachers": nnx.Dict(teachers)} | ({"maps": nnx.Dict(maps)} if maps else {}))

        def make(rngs: nnx.Rngs) -> nnx.Module:
            module = own.make(rngs)
            setattr(module, GROUP, scaffold(rngs))
            return module

        sides = _Sides(
            functional.declare(own.make).graphdef,
            functional.declare(scaffold).graphdef,
            _Speech(self.student, frontend) if isinstance(self.student, CTC) else _Text(self.student),
        )
        logits = own.logits and (lambda params, batch: own.logits(student_part(params), batch))

        def flops(length, rows):
            # A teacher's forward pass costs a third of a training step.
            return sum([own.forward_flops(length, rows), *(each.forward_flops(length, rows) / 3 for each in built)])

        teachers = f"{GROUP}/teachers"
        return Objective(
            make,
            _Loss(self, sides),
            frozen=(teachers,),
            borrowed=(teachers,),
            load_borrowed=self.load_teachers,
            training_only=(GROUP,),
            forward_flops=flops,
            logits=logits,
        )

    def _build(self, teacher: Teacher, model: Config, frontend: FrontEnd, tokenizer: Tokenizer | None) -> Objective:
        """Builds a teacher's objective, used for its module and FLOPs."""
        if teacher.model is None or teacher.frontend is None:
            raise ValueError(
                f"objective.teachers: the shape of {teacher.checkpoint} is not known yet: it is read from the "
                "checkpoint when training begins (`resolve`)"
            )
        if teacher.model.kind != model.kind:
            raise ValueError(
                f"objective.teachers: {teacher.checkpoint} is a {teacher.model.kind}, the student a {model.kind}: name "
                f"one that was trained by {self.student.kind}"
            )
        if self.student.kind == "ctc":
            ours, theirs = frame_grid(model, frontend.mel), frame_grid(teacher.model, teacher.frontend.mel)
            if ours != theirs:
                raise ValueError(
                    f"objective.teachers: {teacher.checkpoint} has {theirs}; the student has {ours}. They need frames "
                    "in common"
                )
        for here, there in teacher.layers:
            if here > model.num_layers or there > teacher.model.num_layers:
                raise ValueError(
                    f"objective.teachers: the pair of layers ({here}, {there}) goes beyond the student's "
                    f"{model.num_layers} or the {teacher.model.num_layers} of {teacher.checkpoint}"
                )
        own = type(self.student)()  # default settings: only the module is used, not the loss
        plain = teacher.frontend.replace(augment=type(teacher.frontend.augment)())
        return own.build(teacher.model, plain, tokenizer)


def _teacher_params(teacher: Teacher, shapes: Params, tokenizer: Tokenizer | None, runs: Runs) -> Params:
    params, own_tokenizer = runs.params(teacher.checkpoint)
    if own_tokenizer is None or tokenizer is None or own_tokenizer.fingerprint != tokenizer.fingerprint:
        raise CheckpointError(
            f"{teacher.checkpoint}: this teacher has another tokenizer than its student: set --data.tokenizer "
            f"{teacher.checkpoint}"
        )
    found, expected = (
        {name: leaf.shape for name, leaf in zip(paths(tree), jax.tree.leaves(tree), strict=True)}
        for tree in (params, shapes)
    )
    for name in found | expected:
        if found.get(name) != expected.get(name):
            raise CheckpointError(
                f"{teacher.checkpoint}: {name} is {found.get(name, 'not there')}, objective.teachers says "
                f"{expected.get(name, 'it is not there')}: leave model and frontend out, and they are read from it"
            )
    return jax.tree.map(
        lambda leaf, shape: jax.device_put(np.asarray(leaf, shape.dtype), shape.sharding), params, shapes
    )


def student_part(params: Params) -> Params:
    """Returns the parameters without the training-only group."""
    return {name: group for name, group in params.items() if name != GROUP}


class View(NamedTuple):
    """Outputs of a model for a batch.

    Attributes:
      states: inputs of `logits` at every position.
      logits: `states of some positions -> logits [..., V]`.
      tapped: hidden states by layer count.
    """

    states: Float[Array, "rows time _"]
    logits: Callable[[Array], Array]
    tapped: dict[int, Float[Array, "rows time _"]]


class Lesson(NamedTuple):
    """A student's outputs for a batch, its own metrics, and the weights of the distillation losses.

    Attributes:
      view: the student's outputs.
      metrics: metrics of its objective; `loss` contains the number of targets.
      weight: weight per position, 0 to exclude it.
      repeat: repeats a per-row array of the batch for the student's rows (views).
    """

    view: View
    metrics: Metrics
    weight: Float[Array, "rows time"]
    repeat: Callable[[Array], Array]


@dataclasses.dataclass(frozen=True)
class _Speech:
    """Forward passes of CTC models."""

    config: CTC
    frontend: FrontEnd

    def learn(self, model: ctc.CTCModel, batch: Batch, key: PRNGKeyArray | None, taps: tuple[int, ...]) -> Lesson:
        spelled = ctc.forward(model, batch, key, self.config, self.frontend, taps)
        feasible_B = ctc.is_feasible(spelled.length, *map(spelled.repeat, (batch["tokens"], batch["token_length"])))
        weight_B = spelled.repeat(batch["weight"]) / spelled.views * feasible_B
        weight_BxT = frame_mask(spelled.length, spelled.logits.shape[1]) * weight_B[:, None]
        view = View(spelled.logits, lambda logits: logits, spelled.tapped)
        return Lesson(view, ctc.score(spelled, batch, self.config), weight_BxT, spelled.repeat)

    def teach(self, model: ctc.CTCModel, teacher: Teacher, batch: Batch, taps: tuple[int, ...]) -> View:
        spelled = ctc.forward(model, batch, None, CTC(), teacher.frontend, taps)
        return View(spelled.logits, lambda logits: logits, spelled.tapped)


@dataclasses.dataclass(frozen=True)
class _Text:
    """Forward passes of causal language models."""

    config: CausalLM

    def learn(
        self, model: causal_lm.TextModel, batch: Batch, key: PRNGKeyArray | None, taps: tuple[int, ...]
    ) -> Lesson:
        keys = None if key is None else example_keys(key, batch["example_id"])
        view = self._read(model, batch, keys, taps)
        target_BxT, weight_BxT = causal_lm.next_tokens(batch["tokens"], batch["segment"])
        weight_BxT = weight_BxT * batch["weight"][:, None]
        _, metrics = causal_lm.scored(model.transformer, view.states, target_BxT, weight_BxT, self.config.z_weight)
        return Lesson(view, metrics, weight_BxT, lambda x: x)

    def teach(self, model: causal_lm.TextModel, teacher: Teacher, batch: Batch, taps: tuple[int, ...]) -> View:
        del teacher
        return self._read(model, batch, None, taps)

    def _read(self, model: causal_lm.TextModel, batch: Batch, keys: Array | None, taps: tuple[int, ...]) -> View:
        transformer = model.transformer
        row = batch["tokens"], batch["segment"], batch["position"]
        hidden, tapped = transformer.hidden_states(*row, keys, taps)
        return View(hidden, transformer.logits, tapped)


class _Sides(NamedTuple):
    """Graph definitions of student and teachers, and the forward passes of their kind of model."""

    student: nnx.GraphDef
    scaffold: nnx.GraphDef
    senses: _Speech | _Text


@dataclasses.dataclass(frozen=True)
class _Loss:
    """The loss function `(params, batch, key) -> (loss, metrics)`."""

    config: Distillation
    sides: _Sides

    def __call__(self, params: Params, batch: Batch, key: PRNGKeyArray | None) -> tuple[Float[Array, ""], Metrics]:
        config, senses = self.config, self.sides.senses
        student = functional.bind(self.sides.student, student_part(params))
        scaffold = functional.bind(self.sides.scaffold, params[GROUP])
        taps = _unique(here for teacher in config.teachers for here, _ in teacher.layers)
        lesson = senses.learn(student, batch, key, taps)

        views = []
        for number, teacher in enumerate(config.teachers):
            taps = _unique(there for _, there in teacher.layers)
            view = senses.teach(scaffold["teachers"][str(number)], teacher, batch, taps)
            states, tapped = jax.lax.stop_gradient((view.states, view.tapped))
            states, tapped = jax.tree.map(lesson.repeat, (states, tapped))
            views.append(View(states, lambda x, logits=view.logits: jax.lax.stop_gradient(logits(x)), tapped))

        own, targets = lesson.metrics["loss"]
        divergence_BxT = divergences(lesson.view, views, config.temperature)
        sums = {"own": own, "divergence": _total(lesson.weight, divergence_BxT)}
        total = (1 - config.share) * sums["own"] + config.share * sums["divergence"]
        distances = [
            distance(self._mapped(scaffold, number, pair, lesson.view.tapped[here]), views[number].tapped[there],
                     config.hidden_distance)
            for number, teacher in enumerate(config.teachers)
            for pair, (here, there) in enumerate(teacher.layers)
        ]  # fmt: skip
        if distances:
            sums["distance"] = _total(lesson.weight, sum(distances) / len(distances))
            total = total + config.hidden_weight * sums["distance"]
        metrics = lesson.metrics | {name: (each, targets) for name, each in sums.items()} | {"loss": (total, targets)}
        return mean(total, targets), metrics

    def _mapped(self, scaffold: Any, number: int, pair: int, hidden: Array) -> Array:
        name = f"{number}_{pair}"
        maps = getattr(scaffold, "maps", {})
        return maps[name](hidden) if name in maps else hidden


def divergences(student: View, teachers: list[View], temperature: float) -> Float[Array, "rows time"]:
    """Computes temperature^2 * KL(mean of the teachers' distributions || the student's) at every position, in nats.

    The factor keeps the gradient's scale independent of the temperature (Hinton et al. 2015, section 2). Logits of a
    large vocabulary are computed in chunks of positions, and recomputed for the gradient.
    """

    def part(states: list[Array]) -> Array:
        here, *there = (
            jax.nn.log_softmax(view.logits(x).astype(jnp.float32) / temperature)
            for view, x in zip((student, *teachers), states, strict=True)
        )
        target = there[0] if len(there) == 1 else jax.nn.logsumexp(jnp.stack(there), axis=0) - jnp.log(len(there))
        return temperature**2 * jnp.sum(jnp.exp(target) * (target - here), axis=-1)

    states = [view.states for view in (student, *teachers)]
    rows, time = states[0].shape[:2]
    vocab = jax.eval_shape(student.logits, states[0]).shape[-1]
    places = max(1, CHUNK_LOGITS // vocab)  # of a row
    if places >= time:
        return part(states)
    fill = -time % places

    def cut(x):
        return jnp.moveaxis(jnp.pad(x, ((0, 0), (0, fill), (0, 0))).reshape(rows, -1, places, x.shape[-1]), 1, 0)

    found = jax.lax.map(jax.checkpoint(part), [cut(x) for x in states])
    return jnp.moveaxis(found, 0, 1).reshape(rows, -1)[:, :time]


def distance(
    here: Float[Array, "rows time dim"], there: Float[Array, "rows time dim"], kind: Distance
) -> Float[Array, "rows time"]:
    """Computes 1 - cosine, or the mean squared difference, of two vectors at every position."""
    here, there = here.astype(jnp.float32), there.astype(jnp.float32)
    if kind == "l2":
        return jnp.mean(jnp.square(here - there), axis=-1)
    lengths = [jax.lax.rsqrt(jnp.maximum(jnp.sum(jnp.square(x), axis=-1), _SMALL)) for x in (here, there)]
    return 1 - jnp.sum(here * there, axis=-1) * lengths[0] * lengths[1]


def _total(weight: Array, each: Array) -> Array:
    return jnp.sum(jnp.where(weight > 0, weight * each, 0))


def _unique(numbers: Any) -> tuple[int, ...]:
    return tuple(sorted(set(numbers)))
