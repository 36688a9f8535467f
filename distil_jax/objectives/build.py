"""Builds an objective from the sections of a config."""

import functools
from collections.abc import Callable

from flax import nnx

from distil_jax.config.objectives import ObjectiveConfig, check_teacher
from distil_jax.config.teacher import TeacherConfig
from distil_jax.objectives import (
  base,
  distil,
  grpo,
  minillm,
  opsd,
  sdpo,
  sft,
  teachers,
)

# The only place that tells objectives apart. A new one is a file beside these,
# a section in `config.objectives` and a line here.
OBJECTIVES: dict[str, Callable[..., base.Objective]] = {
  "distil": distil.build,
  "sdpo": sdpo.build,
  "opsd": opsd.build,
  "minillm": minillm.build,
  "grpo": grpo.build,
  "sft": sft.build,
}


def build_objective(
  objective: ObjectiveConfig,
  teacher: TeacherConfig,
  *,
  graphdef: nnx.GraphDef,
  layout: base.BatchLayout,
) -> base.Objective:
  """Builds the functions of a training step.

  Args:
    objective, teacher: sections of a config.
    graphdef: from `decoder.make`.
    layout: how a step cuts its batch.

  Raises:
    ConfigError: the teacher cannot tell what the objective asks.
  """
  check_teacher(objective, teacher)
  network = teachers.Network(
    graphdef,
    chunk_size=objective.chunk_size,
    trust_region_rate=(
      teacher.trust_region_rate
      if teacher.parameters == "trust_region"
      else None
    ),
  )
  forward = _forward_passes(network, teacher)
  return OBJECTIVES[objective.kind](objective, forward, layout)


def _forward_passes(
  network: teachers.Network, teacher: TeacherConfig
) -> base.ForwardPasses:
  """Binds the network, and how the teacher is asked."""
  own_fn = functools.partial(teachers.own_statistics, network=network)
  if teacher.access == "probabilities":
    return base.ForwardPasses(
      own_fn=own_fn,
      compare_fn=functools.partial(teachers.dense_statistics, network=network),
    )
  sizes = {"samples": teacher.num_samples, "top_k": teacher.top_k}
  return base.ForwardPasses(
    own_fn=own_fn,
    compare_fn=functools.partial(
      teachers.sparse_statistics, network=network, kind=teacher.access
    ),
    ask_fn=functools.partial(
      teachers.ask_teacher,
      network=network,
      kind=teacher.access,
      size=sizes[teacher.access],
    ),
  )
