"""Builds the training batch of a trial from its rollouts; all under jit."""

from typing import Any

import jax
import jax.numpy as jnp

from distil_jax.analysis.comparison import problem_families
from distil_jax.analysis.comparison.program_setting import FEEDBACK_KEY, Setting
from distil_jax.types import Rollout, TrainBatch


def build_batch(
  problems: problem_families.Problems,
  rollout: Rollout,
  key: jax.Array,
  *,
  setting: Setting,
) -> tuple[TrainBatch, jax.Array]:
  """Judges rollouts and builds the teacher's prompts from feedback.

  Args:
    problems: P problems.
    rollout: G completions of each, P * G = B rows.
    key: Key of the training step.
    setting: What the trial is compiled for. Demonstrations replace the
      completions of an objective that does not use rollouts.

  Returns:
    The batch, and rewards of shape `[P, G]`.
  """
  family = setting.family
  shape = (setting.num_problems, setting.group_size, -1)
  ids = rollout.completion_ids.reshape(shape)
  mask = rollout.completion_mask.reshape(shape)
  rewards = problem_families.judge(family, problems, ids, mask)
  repeated = problem_families.repeat(problems, setting.group_size)
  sibling, has_sibling = _siblings(ids, rewards)
  feedback_problems = _wrong_for_some(
    family, repeated, jax.random.fold_in(key, FEEDBACK_KEY), setting.group_size
  )
  hint_ids, hint_mask = problem_families.hints(
    family, feedback_problems, sibling
  )
  teacher_ids, teacher_mask = problem_families.teacher_prompts(
    repeated, hint_ids, hint_mask
  )
  prompt_ids = problem_families.prompts(repeated)
  has_signal = jnp.ones(setting.num_sequences, jnp.int32)
  if family.feedback == "sibling":
    has_signal = has_sibling
  batch = TrainBatch(
    prompt_ids=prompt_ids,
    prompt_mask=jnp.ones_like(prompt_ids),
    teacher_prompt_ids=teacher_ids,
    teacher_prompt_mask=teacher_mask,
    completion_ids=rollout.completion_ids,
    completion_mask=rollout.completion_mask,
    sample_mask=has_signal,
    rewards=rewards.reshape(-1),
    old_log_probs=rollout.log_probs,
  )
  if not setting.objective.uses_rollouts:
    batch = _demonstrated(family, batch, feedback_problems, sibling, key)
  return batch, rewards


def _siblings(
  ids: jax.Array, rewards: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Returns the first other success of each row's group.

  Returns:
    Its ids `[B, T]`, and 1 for each row that has one `[B]`.
  """
  group_size = rewards.shape[1]
  # A sample's own success is no sibling.
  others = rewards[:, None, :] * (1 - jnp.eye(group_size))[None]
  first = jnp.argmax(others > 0, axis=-1)
  chosen = jnp.take_along_axis(ids, first[..., None], axis=1)
  has_one = jnp.any(others > 0, axis=-1).astype(jnp.int32)
  return chosen.reshape(-1, ids.shape[-1]), has_one.reshape(-1)


def _wrong_for_some(
  family: problem_families.Family,
  problems: problem_families.Problems,
  key: jax.Array,
  group_size: int,
) -> problem_families.Problems:
  """Returns the problems that feedback is about; for some rows another one."""
  if not family.wrong_feedback:
    return problems
  num_problems = problems.index.shape[0] // group_size
  is_wrong = jax.random.bernoulli(key, family.wrong_feedback, (num_problems,))
  # A whole group shares its feedback, wrong or not, as in training.
  is_wrong = jnp.repeat(is_wrong, group_size)[:, None]
  return problem_families.Problems(
    digits=jnp.where(
      is_wrong, jnp.roll(problems.digits, group_size, axis=0), problems.digits
    ),
    fresh=jnp.where(
      is_wrong, jnp.roll(problems.fresh, group_size, axis=0), problems.fresh
    ),
    index=problems.index,
  )


def _demonstrated(
  family: problem_families.Family,
  batch: Any,
  problems: problem_families.Problems,
  sibling: jax.Array,
  key: jax.Array,
) -> TrainBatch:
  """Replaces the student's completions by those of an expert.

  The expert takes each route as often as the base model does. In a family whose
  only feedback are siblings, the siblings are the expert's completions.
  """
  if family.feedback == "sibling":
    ids = sibling
  else:
    route_key, filler_key = jax.random.split(
      jax.random.fold_in(key, FEEDBACK_KEY + 1)
    )
    preferences = jnp.asarray([route.preference for route in family.routes])
    route = jax.random.categorical(
      route_key, jnp.log(preferences), shape=(batch.rewards.shape[0],)
    )
    ids, _ = problem_families.reference_completion(
      family, problems, route, filler_key
    )
  return batch.replace(
    completion_ids=ids,
    completion_mask=(ids != problem_families.PAD).astype(jnp.int32),
    teacher_prompt_ids=batch.teacher_prompt_ids[:, :0],
    teacher_prompt_mask=batch.teacher_prompt_mask[:, :0],
  )
