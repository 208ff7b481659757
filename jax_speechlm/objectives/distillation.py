"""Distillation: a student is trained on its targets and on the outputs of trained models for the same input.

For every frame or token, frozen teachers provide a distribution over the vocabulary as a soft target at a temperature
(Hinton et al. 2015), and hidden states of chosen layers as regression targets, through a linear map where the widths
differ (FitNets, Romero et al. 2015; the cosine distance is DistilBERT's, Sanh et al. 2019). Teachers receive the batch
without the student's dropout and augmentation.

Their parameters are the model's group "distillation/teachers": arguments of the compiled step, sharded over the mesh by
the same rules as all others, without gradients and optimizer state. A checkpoint contains references to the teachers
instead of their parameters; a restart reads them again.
"""

from collections.abc import Callable, Iterable
from typing import Annotated, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, PRNGKeyArray
from pydantic import Field, NonNegativeFloat, PositiveInt

from data_pipelines.core.tokenizer import Tokenizer
from jax_speechlm.core.batch import Batch, by_utterance
from jax_speechlm.core.config import Config
from jax_speechlm.core.errors import CheckpointError
from jax_speechlm.core.tree import paths
from jax_speechlm.frontend.frontend import FrontEnd
from jax_speechlm.models.encoders import EncoderConfig
from jax_speechlm.models.transducer import TransducerModel
from jax_speechlm.models.transformer_config import TransformerConfig
from jax_speechlm.nn import functional
from jax_speechlm.nn.functional import Params
from jax_speechlm.nn.layers import Linear
from jax_speechlm.nn.vocabulary_loss import CHUNK_LOGITS
from jax_speechlm.objectives.asr import ctc
from jax_speechlm.objectives.asr.ctc import CTC
from jax_speechlm.objectives.asr.ctc_loss import is_feasible
from jax_speechlm.objectives.asr.transducer import Transducer
from jax_speechlm.objectives.base import (
    Metrics,
    Objective,
    ObjectiveConfig,
    Runs,
    check_keeps_time,
    frame_grid,
    mean,
    row_keys,
)
from jax_speechlm.objectives.lm import causal_lm
from jax_speechlm.objectives.lm.causal_lm import CausalLM
from jax_speechlm.parallel import sequence
from jax_speechlm.parallel.mesh import BATCH_AXES

GROUP = "distillation"
"""Parameter group used in training only: the teachers, and the maps between widths."""

Distance = Literal["cosine", "l2"]

_SMALL = 1e-12  # squared norms below it count as zero


class Teacher(Config):
    """A trained model, and the layers whose hidden states are distilled.

    Attributes:
      checkpoint: a run's directory, or one of its checkpoints/<step> folders; with the student's tokenizer, and of its
        kind, or of kind ctc for a transducer.
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
      student: the student's own objective. The distribution of a transducer is that of its CTC head.
      teachers: with several, the mean of their distributions is the target.
      share: share of the divergence from the teachers in the loss.
      temperature: divides the logits of student and teachers; higher values emphasise unlikely tokens.
      hidden_weight: weight of the mean distance over all pairs of layers.
      hidden_distance: "cosine" for 1 - cosine, "l2" for the mean squared difference.
    """

    kind: Literal["distillation"] = "distillation"
    student: Annotated[CTC | CausalLM | Transducer, Field(discriminator="kind")] = CTC()
    teachers: Annotated[tuple[Teacher, ...], Field(min_length=1)]
    share: Annotated[float, Field(ge=0, le=1)] = 0.5
    temperature: Annotated[float, Field(ge=1e-4, le=1e4)] = 1.0
    hidden_weight: NonNegativeFloat = 1.0
    hidden_distance: Distance = "cosine"

    @property
    def model_kind(self) -> str:
        return self.student.model_kind

    @property
    def of_model(self) -> ObjectiveConfig:
        return self.student

    @property
    def _taught(self) -> CTC | CausalLM:
        """Default settings of the teachers' objective, of which only the module is used, not the loss."""
        return CTC() if isinstance(self.student, Transducer) else type(self.student)()

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
        if experiment.objective.model_kind != self._taught.kind:
            raise CheckpointError(
                f"{checkpoint}: was trained by {experiment.objective.model_kind}, its student is by "
                f"{self.student.kind}: name a teacher of kind {self._taught.kind}"
            )
        shape = {"model": teacher.model or experiment.model, "frontend": teacher.frontend or experiment.frontend}
        return teacher.replace(checkpoint=checkpoint, **shape)

    def load_teachers(self, shapes: Params, tokenizer: Tokenizer | None, runs: Runs) -> Params:
        """Reads the teachers' part of the parameters, sharded as in `shapes`, which are of the whole run.

        Raises:
          CheckpointError: a checkpoint cannot be read, or has another tokenizer or other parameters than expected.
        """
        expected = shapes[GROUP]["teachers"]
        params = {
            str(index): _teacher_params(teacher, expected[str(index)], tokenizer, runs)
            for index, teacher in enumerate(self.teachers)
        }
        return {GROUP: {"teachers": params}}

    def build(self, model: Config, frontend: FrontEnd, tokenizer: Tokenizer | None) -> Objective:
        """Builds the objective. The loss is a mean over the student's targets, which are tokens: for CTC, divergence
        and distance are summed over frames and divided by the number of tokens, like its own loss. Metrics: `loss`, its
        parts `own`, `divergence` (temperature^2 * KL, nats) and `distance`, and the student's other metrics.
        """
        check_keeps_time(frontend, "teachers' frames, which are of speech without augmentation")
        if isinstance(self.student, Transducer) and not self.student.ctc_weight:
            raise ValueError(
                "objective.student is a transducer without the CTC head that takes the teachers' distributions: set "
                "objective.student.ctc_weight above 0"
            )
        own = self.student.build(model, frontend, tokenizer)
        built = [self._build(teacher, model, frontend, tokenizer) for teacher in self.teachers]

        def scaffold(rngs: nnx.Rngs) -> nnx.Dict:
            maps = {
                f"{index}_{pair}": Linear((model.dim,), (teacher.model.dim,), ("embed", None), rngs=rngs)
                for index, teacher in enumerate(self.teachers)
                for pair in range(len(teacher.layers))
                if teacher.model.dim != model.dim
            }
            teachers = {str(index): teacher.make(rngs) for index, teacher in enumerate(built)}
            return nnx.Dict({"teachers": nnx.Dict(teachers)} | ({"maps": nnx.Dict(maps)} if maps else {}))

        def make(rngs: nnx.Rngs) -> nnx.Module:
            module = own.make(rngs)
            setattr(module, GROUP, scaffold(rngs))
            return module

        student_graph, scaffold_graph = (functional.declare(part).graphdef for part in (own.make, scaffold))

        def loss(params: Params, batch: Batch, key: PRNGKeyArray | None) -> tuple[Float[Array, ""], Metrics]:
            student = functional.bind(student_graph, student_part(params))
            metrics = self._score(student, functional.bind(scaffold_graph, params[GROUP]), batch, key, frontend)
            return mean(*metrics["loss"]), metrics

        def flops(length, rows):
            # A teacher's forward pass costs a third of a training step.
            teachers = (teacher.forward_flops(length, rows) / 3 for teacher in built)
            return sum([own.forward_flops(length, rows), *teachers])

        teachers = f"{GROUP}/teachers"
        return Objective(
            make,
            loss,
            frozen=(teachers,),
            borrowed=(teachers,),
            load_borrowed=self.load_teachers,
            training_only=(GROUP,),
            forward_flops=flops,
            logits=own.logits and (lambda params, batch: own.logits(student_part(params), batch)),
        )

    def _score(
        self, student: nnx.Module, scaffold: nnx.Dict, batch: Batch, key: PRNGKeyArray | None, frontend: FrontEnd
    ) -> Metrics:
        layers = [layer for teacher in self.teachers for layer, _ in teacher.layers]
        view = _view(student, self.student, batch, key, frontend, layers)
        metrics, weight_BxT = view.score()
        maps = getattr(scaffold, "maps", {})
        teacher_views, distances = [], []
        for index, teacher in enumerate(self.teachers):
            module, layers = scaffold["teachers"][str(index)], [layer for _, layer in teacher.layers]
            taught = _view(module, self._taught, batch, None, teacher.frontend, layers)
            states, tapped = jax.lax.stop_gradient((taught.states, taught.tapped))
            states, tapped = jax.tree.map(view.repeat, (states, tapped))
            teacher_views.append(View(states, lambda x, f=taught.logits: jax.lax.stop_gradient(f(x)), tapped))
            for pair, (student_layer, teacher_layer) in enumerate(teacher.layers):
                hidden, name = view.tapped[student_layer], f"{index}_{pair}"
                hidden = maps[name](hidden) if name in maps else hidden
                distances.append(distance(hidden, tapped[teacher_layer], self.hidden_distance))

        def total_of(values_BxT: Array) -> Array:
            return jnp.sum(jnp.where(weight_BxT > 0, weight_BxT * values_BxT, 0))

        own, targets = metrics["loss"]
        sums = {"own": own, "divergence": total_of(divergences(view, teacher_views, self.temperature))}
        total = (1 - self.share) * sums["own"] + self.share * sums["divergence"]
        if distances:
            sums["distance"] = total_of(sum(distances) / len(distances))
            total = total + self.hidden_weight * sums["distance"]
        return metrics | {name: (part, targets) for name, part in {**sums, "loss": total}.items()}

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
                f"one that was trained by {self._taught.kind}"
            )
        if isinstance(self._taught, CTC):
            grid, teacher_grid = frame_grid(model, frontend.mel), frame_grid(teacher.model, teacher.frontend.mel)
            if grid != teacher_grid:
                raise ValueError(
                    f"objective.teachers: {teacher.checkpoint} has {teacher_grid}; the student has {grid}. They need "
                    "frames in common"
                )
        for pair in teacher.layers:
            if pair[0] > model.num_layers or pair[1] > teacher.model.num_layers:
                raise ValueError(
                    f"objective.teachers: the pair of layers {pair} goes beyond the student's "
                    f"{model.num_layers} or the {teacher.model.num_layers} of {teacher.checkpoint}"
                )
        plain = teacher.frontend.replace(augment=type(teacher.frontend.augment)())
        return self._taught.build(teacher.model, plain, tokenizer)


def _teacher_params(teacher: Teacher, shapes: Params, tokenizer: Tokenizer | None, runs: Runs) -> Params:
    params, own_tokenizer = runs.params(teacher.checkpoint)
    if own_tokenizer is None or tokenizer is None or own_tokenizer.fingerprint != tokenizer.fingerprint:
        raise CheckpointError(
            f"{teacher.checkpoint}: this teacher has another tokenizer than its student: set --data.tokenizer "
            f"{teacher.checkpoint}"
        )
    stored, expected = (
        {name: leaf.shape for name, leaf in zip(paths(tree), jax.tree.leaves(tree), strict=True)}
        for tree in (params, shapes)
    )
    for name in stored | expected:
        if stored.get(name) != expected.get(name):
            raise CheckpointError(
                f"{teacher.checkpoint}: {name} is {stored.get(name, 'not there')}, objective.teachers says "
                f"{expected.get(name, 'it is not there')}: leave model and frontend out, and they are read from it"
            )
    return jax.tree.map(
        lambda leaf, shape: jax.device_put(np.asarray(leaf, shape.dtype), shape.sharding), params, shapes
    )


def student_part(params: Params) -> Params:
    """Returns the parameters without the training-only group."""
    return {name: group for name, group in params.items() if name != GROUP}


class View(NamedTuple):
    """Outputs of a student or teacher for a batch.

    Attributes:
      score: returns the metrics of the model's objective, whose `loss` contains the number of targets, and the weight
        of each position in the distillation losses.
      repeat: repeats a per-row array of the batch for the rows of `states`.
    """

    states: Float[Array, "rows time _"]  # inputs of `logits`
    logits: Callable[[Array], Array]  # of states of some positions
    tapped: dict[int, Float[Array, "rows time _"]]  # hidden states by layer count
    score: Callable[[], tuple[Metrics, Float[Array, "rows time"]]] | None = None
    repeat: Callable[[Array], Array] = lambda x: x


def _view(
    model: ctc.CTCModel | TransducerModel | causal_lm.TextModel,
    config: CTC | Transducer | CausalLM,
    batch: Batch,
    key: PRNGKeyArray | None,
    frontend: FrontEnd,
    layers: Iterable[int],
) -> View:
    """Runs a model of the student's kind, with hidden states of some layers."""
    taps = tuple(sorted(set(layers)))
    if isinstance(config, CTC | Transducer):
        output, views, repeat = config.forward(model, batch, key, frontend, taps), 1, View._field_defaults["repeat"]
        if isinstance(config, CTC):
            logits, views, repeat = output.logits, output.views, output.repeat
        else:
            logits = model.ctc_logits(output.hidden)

        def score():
            targets = (repeat(by_utterance(batch)[name]) for name in ("tokens", "token_length", "weight"))
            tokens_BxNxU, token_length_BxN, weight_BxN = targets
            feasible_BxN = is_feasible(output.segments.length, tokens_BxNxU, token_length_BxN)
            weight_BxT = output.segments.spread(weight_BxN / views * feasible_BxN, logits.shape[1])
            own = config.score(output, batch) if isinstance(config, CTC) else config.score(model, output, batch)
            return own, weight_BxT

        return View(logits, lambda logits: logits, output.tapped, score, repeat)

    transformer = model.transformer
    row = batch["tokens"], batch["segment"], batch["position"]
    hidden, tapped = transformer.hidden_states(*row, row_keys(key, batch), taps)

    def score():
        targets = causal_lm.weighted_targets(batch)
        return causal_lm.token_metrics(transformer, hidden, *targets, config.z_weight)[0], targets[1]

    return View(hidden, transformer.logits, tapped, score)


def divergences(
    student: View, teachers: list[View], temperature: float, chunk_logits: int = CHUNK_LOGITS
) -> Float[Array, "rows time"]:
    """Computes temperature^2 * KL(mean of the teachers' distributions || the student's) at every position, in nats.

    The factor keeps the gradient's scale independent of the temperature (Hinton et al. 2015, section 2). Logits of a
    large vocabulary are computed in chunks of at most `chunk_logits` per device, and recomputed for the gradient.
    """

    def part(states: list[Array]) -> Array:
        own, *others = (
            jax.nn.log_softmax(view.logits(x).astype(jnp.float32) / temperature)
            for view, x in zip((student, *teachers), states, strict=True)
        )
        target = others[0] if len(others) == 1 else jax.nn.logsumexp(jnp.stack(others), axis=0) - jnp.log(len(others))
        return temperature**2 * jnp.sum(jnp.exp(target) * (target - own), axis=-1)

    states = [view.states for view in (student, *teachers)]
    rows, time = states[0].shape[:2]
    vocab = jax.eval_shape(student.logits, states[0]).shape[-1]
    shards = sequence.num_devices(BATCH_AXES)
    own_rows = rows // shards if rows % shards == 0 else rows
    places = max(1, chunk_logits // (vocab * own_rows))  # of a row
    if places >= time:
        return part(states)
    fill = -time % places

    def cut(x):
        return jnp.moveaxis(jnp.pad(x, ((0, 0), (0, fill), (0, 0))).reshape(rows, -1, places, x.shape[-1]), 1, 0)

    chunks = jax.lax.map(jax.checkpoint(part), [cut(x) for x in states])
    return jnp.moveaxis(chunks, 0, 1).reshape(rows, -1)[:, :time]


def distance(
    x: Float[Array, "rows time dim"], y: Float[Array, "rows time dim"], kind: Distance
) -> Float[Array, "rows time"]:
    """Computes 1 - cosine, or the mean squared difference, of two vectors at every position."""
    x, y = x.astype(jnp.float32), y.astype(jnp.float32)
    if kind == "l2":
        return jnp.mean(jnp.square(x - y), axis=-1)
    scales = [jax.lax.rsqrt(jnp.maximum(jnp.sum(jnp.square(vector), axis=-1), _SMALL)) for vector in (x, y)]
    return 1 - jnp.sum(x * y, axis=-1) * scales[0] * scales[1]
