"""One trial: an objective on a family, many steps in one compiled program."""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from distil_jax.analysis.comparison import tasks
from distil_jax.analysis.comparison.evaluation import teacher_accuracy
from distil_jax.analysis.comparison.trial_setting import (
  FEEDBACK_KEY,
  PROBLEMS_KEY,
  SAMPLES_KEY,
  Setting,
  repeat,
  sample,
)
from distil_jax.models import decoder
from distil_jax.training import (
  build_step,
  optimizers,
  teacher_guard,
  train_state,
  train_step,
)
from distil_jax.types import TrainBatch

_WARMUP_STEPS = 10


def init_state(
  setting: Setting, params: decoder.Params, seed: int
) -> train_state.TrainState:
  """State before the first step."""
  return train_state.init_state(
    jax.tree.map(jnp.copy, params),
    optimizer=_optimizer(setting, 1.0),
    keeps_teacher=setting.objective.keeps_teacher(setting.teacher),
    seed=seed,
    guard_action=setting.guard.action if setting.guard else None,
  )


@functools.partial(
  jax.jit, static_argnames=("setting", "num_steps"), donate_argnames="state"
)
def train(
  state: train_state.TrainState,
  learning_rate: jax.Array,
  *,
  setting: Setting,
  num_steps: int,
) -> tuple[train_state.TrainState, train_step.Metrics]:
  """Some steps: problems, rollouts, verdicts, teacher prompts, updates.

  Args:
    state: where to begin; its key and step decide all noise.
    learning_rate: an array, so that a grid of rates compiles once.
    setting: what is trained.
    num_steps: how many steps.

  Returns:
    the next state, and the mean of each metric over the steps.
  """
  step_fn = build_step.train_step(
    setting.objective,
    setting.teacher,
    graphdef=setting.graphdef,
    optimizer=_optimizer(setting, learning_rate),
    group_size=setting.group_size,
    num_sequences=setting.num_sequences,
    mini_batch_size=setting.mini_batch_size,
  )

  def step(state, _):
    key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)
    batch, rewards, _ = experience(state.params, key, setting=setting)
    state, metrics = step_fn(state, batch)
    metrics["reward"] = jnp.mean(rewards)
    metrics["completion_length"] = (
      jnp.sum(batch.completion_mask) / batch.completion_mask.shape[0]
    )
    if setting.guard:
      state = _guarded(state, key, setting)
      metrics["guard"] = state.guard.is_holding.astype(jnp.float32)
    return state, metrics

  state, metrics = jax.lax.scan(step, state, length=num_steps)
  return state, jax.tree.map(jnp.mean, metrics)


def experience(
  params: decoder.Params, key: jax.Array, *, setting: Setting
) -> tuple[TrainBatch, jax.Array, tasks.Problems]:
  """A batch to learn from: of rollouts or, for `sft`, of demonstrations.

  Returns:
    the batch, rewards `[P, G]`, and the problems `[P]`.
  """
  family = setting.family
  fold = jax.random.fold_in
  problems = tasks.make_problems(
    family, fold(key, PROBLEMS_KEY), setting.num_problems
  )
  sampled = sample(
    params,
    problems,
    tasks.prompts(problems),
    fold(key, SAMPLES_KEY),
    setting=setting,
    group_size=setting.group_size,
  )
  shape = (setting.num_problems, setting.group_size, -1)
  ids = sampled.completion_ids.reshape(shape)
  mask = sampled.completion_mask.reshape(shape)
  rewards = tasks.judge(family, problems, ids, mask)
  repeated = repeat(problems, setting.group_size)
  sibling, has_sibling = _siblings(ids, rewards)
  told = _wrong_for_some(
    family, repeated, fold(key, FEEDBACK_KEY), setting.group_size
  )
  hint_ids, hint_mask = tasks.hints(family, told, sibling)
  teacher_ids, teacher_mask = tasks.teacher_prompts(
    repeated, hint_ids, hint_mask
  )
  prompt_ids = tasks.prompts(repeated)
  has_signal = jnp.ones(setting.num_sequences, jnp.int32)
  if family.feedback == "sibling":
    has_signal = has_sibling
  batch = TrainBatch(
    prompt_ids=prompt_ids,
    prompt_mask=jnp.ones_like(prompt_ids),
    teacher_prompt_ids=teacher_ids,
    teacher_prompt_mask=teacher_mask,
    completion_ids=sampled.completion_ids,
    completion_mask=sampled.completion_mask,
    sample_mask=has_signal,
    rewards=rewards.reshape(-1),
    old_log_probs=sampled.log_probs,
  )
  if not setting.objective.uses_rollouts:
    batch = _demonstrated(family, batch, told, sibling, key)
  return batch, rewards, problems


def _guarded(
  state: train_state.TrainState, key: jax.Array, setting: Setting
) -> train_state.TrainState:
  """The state after a look at its teacher, where one is due."""
  settings = setting.guard
  assert settings is not None

  def look():
    accuracy = teacher_accuracy(
      state.teacher_params,
      key,
      setting=setting,
      num_problems=settings.num_problems,
    )
    return teacher_guard.look(
      state.guard,
      accuracy * settings.num_problems,
      jnp.int32(settings.num_problems),
      margin=settings.margin,
    )

  is_due = state.step % settings.every == 0
  return dataclasses.replace(
    state, guard=jax.lax.cond(is_due, look, lambda: state.guard)
  )


def _optimizer(setting, learning_rate):
  # Warmed up: large rates live or die by their first steps otherwise, and a
  # grid would choose by luck.
  mini_batch_size = setting.mini_batch_size or setting.num_sequences
  return optimizers.make_optimizer(
    learning_rate=learning_rate,
    warmup_steps=_WARMUP_STEPS,
    schedule="constant" if setting.decay_steps is None else "cosine",
    num_steps=setting.decay_steps,
    weight_decay=0.0,
    updates_per_step=setting.num_sequences // mini_batch_size,
  )[0]


def _siblings(ids, rewards):
  """The first other success of the group `[B, T]`, and whether there is one."""
  group_size = rewards.shape[1]
  others = rewards[:, None, :] * (1 - jnp.eye(group_size))[None]
  first = jnp.argmax(others > 0, axis=-1)
  chosen = jnp.take_along_axis(ids, first[..., None], axis=1)
  has_one = jnp.any(others > 0, axis=-1).astype(jnp.int32)
  return chosen.reshape(-1, ids.shape[-1]), has_one.reshape(-1)


def _wrong_for_some(family, problems, key, group_size):
  """Problems whose feedback is told: here and there another's."""
  if not family.wrong_feedback:
    return problems
  num_problems = problems.index.shape[0] // group_size
  is_wrong = jax.random.bernoulli(key, family.wrong_feedback, (num_problems,))
  is_wrong = jnp.repeat(is_wrong, group_size)[:, None]
  return tasks.Problems(
    digits=jnp.where(
      is_wrong, jnp.roll(problems.digits, group_size, axis=0), problems.digits
    ),
    fresh=jnp.where(
      is_wrong, jnp.roll(problems.fresh, group_size, axis=0), problems.fresh
    ),
    index=problems.index,
  )


def _demonstrated(family, batch, problems, sibling, key):
  """The batch with an expert's completions in place of the student's.

  The expert has the teacher's habits: it takes each route as often as the base
  model does. Where siblings are the only feedback they are the experts.
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
    ids, _ = tasks.reference_completion(family, problems, route, filler_key)
  return batch.replace(
    completion_ids=ids,
    completion_mask=(ids != tasks.PAD).astype(jnp.int32),
    teacher_prompt_ids=batch.teacher_prompt_ids[:, :0],
    teacher_prompt_mask=batch.teacher_prompt_mask[:, :0],
  )
