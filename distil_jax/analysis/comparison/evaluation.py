"""Held-out evaluation of a trial."""

import functools

import jax
import jax.numpy as jnp

from distil_jax.analysis.comparison import tasks
from distil_jax.analysis.comparison.trial_setting import (
  FEEDBACK_KEY,
  Setting,
  repeat,
  sample,
)
from distil_jax.models import decoder, layers
from distil_jax.objectives import scoring
from distil_jax.ops import fused_statistics, masking


@functools.partial(
  jax.jit, static_argnames=("setting", "num_problems", "num_samples")
)
def held_out_rewards(
  params: decoder.Params,
  key: jax.Array,
  *,
  setting: Setting,
  num_problems: int,
  num_samples: int,
) -> jax.Array:
  """Rewards of held-out problems, shape `[num_problems, num_samples]`."""
  problems, sampled = _held_out(params, key, setting, num_problems, num_samples)
  shape = (num_problems, num_samples, -1)
  return tasks.judge(
    setting.family,
    problems,
    sampled.completion_ids.reshape(shape),
    sampled.completion_mask.reshape(shape),
  )


@functools.partial(
  jax.jit, static_argnames=("setting", "num_problems", "num_samples")
)
def evaluate(
  params: decoder.Params,
  teacher_params: decoder.Params,
  key: jax.Array,
  *,
  setting: Setting,
  num_problems: int,
  num_samples: int,
) -> dict[str, jax.Array]:
  """How the student does on held-out problems, and how its teacher does.

  Returns:
    scalars: `avg` (mean reward), `length` (tokens), `entropy` (nats per
    token), `p_eos` (mean probability of the end before the last token),
    `good_route` (share of the first route), `teacher` (accuracy of the
    teacher's own samples, feedback in its prompt).
  """
  family = setting.family
  problems, sampled = _held_out(params, key, setting, num_problems, num_samples)
  shape = (num_problems, num_samples, -1)
  ids, mask = sampled.completion_ids, sampled.completion_mask
  rewards = tasks.judge(
    family, problems, ids.reshape(shape), mask.reshape(shape)
  )
  prompt_ids = tasks.prompts(repeat(problems, num_samples))
  hidden = scoring.completion_hidden_states(
    params,
    prompt_ids,
    jnp.ones_like(prompt_ids),
    ids,
    mask,
    graphdef=setting.graphdef,
  )
  ends, entropies = fused_statistics.token_log_probs(
    hidden, layers.unembedding(params), jnp.full_like(ids, tasks.EOS)
  )
  is_last = jnp.pad(mask[:, 1:], ((0, 0), (0, 1))) == 0
  before = mask * (1 - is_last)
  return {
    "avg": jnp.mean(rewards),
    "length": jnp.mean(jnp.sum(mask, axis=1)),
    "entropy": _mean(entropies, mask),
    "p_eos": _mean(jnp.exp(ends), before),
    "good_route": jnp.mean(ids[:, 0] == tasks.ROUTES[0]),
    "teacher": teacher_accuracy(
      teacher_params, key, setting=setting, num_problems=num_problems
    ),
  }


def teacher_accuracy(
  teacher_params: decoder.Params,
  key: jax.Array,
  *,
  setting: Setting,
  num_problems: int,
) -> jax.Array:
  """Mean reward of the teacher's own completions, feedback in its prompt."""
  family = setting.family
  key = jax.random.fold_in(key, FEEDBACK_KEY)
  keys = jax.random.split(key, 4)
  problems = tasks.make_problems(family, keys[0], num_problems)
  route = jax.random.randint(keys[1], (num_problems,), 0, len(family.routes))
  sibling, _ = tasks.reference_completion(family, problems, route, keys[2])
  prompt_ids, prompt_mask = tasks.teacher_prompts(
    problems, *tasks.hints(family, problems, sibling)
  )
  sampled = sample(
    teacher_params,
    problems,
    prompt_ids,
    keys[3],
    setting=setting,
    group_size=1,
    prompt_mask=prompt_mask,
  )
  rewards = tasks.judge(
    family,
    problems,
    sampled.completion_ids[:, None],
    sampled.completion_mask[:, None],
  )
  return jnp.mean(rewards)


def _held_out(params, key, setting, num_problems, num_samples):
  problems_key, samples_key = jax.random.split(key)
  problems = tasks.make_problems(setting.family, problems_key, num_problems)
  sampled = sample(
    params,
    problems,
    tasks.prompts(problems),
    samples_key,
    setting=setting,
    group_size=num_samples,
  )
  return problems, sampled


def _mean(values, mask):
  total = jnp.sum(masking.where_counts(values, mask))
  return total / jnp.maximum(jnp.sum(mask), 1)
