"""The setting of a trial and how it samples."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from distil_jax import config as configs
from distil_jax.analysis.comparison import tasks
from distil_jax.generation import random_keys, sampler
from distil_jax.generation.sampling_params import SamplingParams
from distil_jax.models import decoder, decoder_config
from distil_jax.types import Rollout

# Folded into a trial's key: training, and held-out problems, share no noise.
PROBLEMS_KEY, SAMPLES_KEY, FEEDBACK_KEY = 0, 1, 2


@dataclasses.dataclass(frozen=True)
class Setting:
  """What a compiled trial is made for; static under jit.

  Attributes:
    family: whose problems.
    network: of student and teacher.
    objective, teacher: sections of a training config.
    num_problems, group_size: rollouts of one step.
    mini_batch_size: sequences per optimiser update; None: one update a step.
    decay_steps: training steps in which a cosine brings the learning rate to
      0; None: it stays.
  """

  family: tasks.Family
  network: decoder_config.DecoderConfig
  objective: Any
  teacher: configs.TeacherConfig
  num_problems: int = 16
  group_size: int = 8
  mini_batch_size: int | None = None
  decay_steps: int | None = None

  @property
  def num_sequences(self) -> int:
    return self.num_problems * self.group_size

  @property
  def graphdef(self):
    return decoder.make(self.network)[0]

  @property
  def guard(self) -> configs.GuardConfig | None:
    """Of a teacher that there is."""
    is_used = self.objective.needs_teacher
    return self.teacher.guard if is_used else None


def sample(
  params: decoder.Params,
  problems: tasks.Problems,
  prompt_ids: jax.Array,
  key: jax.Array,
  *,
  setting: Setting,
  group_size: int,
  prompt_mask: jax.Array | None = None,
) -> Rollout:
  """Completions of some prompts, at temperature 1."""
  if prompt_mask is None:
    prompt_mask = jnp.ones_like(prompt_ids)
  # Problems are drawn: their number in the batch tells them apart.
  count = jnp.arange(prompt_ids.shape[0], dtype=jnp.uint32)
  names = jnp.stack([problems.index, count], axis=1)
  return sampler.generate(
    params,
    prompt_ids,
    prompt_mask,
    random_keys.sample_keys(key, names, group_size),
    SamplingParams(max_tokens=setting.family.completion_length),
    graphdef=setting.graphdef,
    eos_ids=(tasks.EOS,),
    pad_id=tasks.PAD,
  )


def repeat(problems: tasks.Problems, group_size: int) -> tasks.Problems:
  return jax.tree.map(lambda x: jnp.repeat(x, group_size, axis=0), problems)
