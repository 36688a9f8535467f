"""Compiles a trial: sampling, training steps and held-out evaluation.

All problems are arrays, so many training steps run in one program without
returning to Python.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from distil_jax.analysis.comparison import problem_families, trial_batch
from distil_jax.analysis.comparison.program_setting import (
  FEEDBACK_KEY,
  PROBLEMS_KEY,
  SAMPLES_KEY,
  Setting,
)
from distil_jax.generation import random_keys, sampler
from distil_jax.generation.sampling_params import SamplingParams
from distil_jax.models import decoder, layers
from distil_jax.objectives import scoring
from distil_jax.ops import fused_statistics, masking
from distil_jax.training import (
  build_step,
  optimizers,
  teacher_guard,
  train_state,
  train_step,
)
from distil_jax.types import Rollout, TrainBatch

_WARMUP_STEPS = 10


def init_state(
  setting: Setting, params: decoder.Params, seed: int
) -> train_state.TrainState:
  """Returns the state before the first step; copies the parameters."""
  return train_state.init_state(
    jax.tree.map(jnp.copy, params),
    # The rate has no part in the optimizer's state.
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
  """Runs training steps: problems, rollouts, verdicts, feedback, updates.

  Args:
    state: State to start from; its key and step determine all noise.
    learning_rate: A scalar array, so that a grid of rates compiles once.
    setting: What the trial is compiled for.
    num_steps: Number of steps.

  Returns:
    The next state, and the mean of each metric over the steps.
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
) -> tuple[TrainBatch, jax.Array, problem_families.Problems]:
  """Samples a training batch; for `sft` it holds demonstrations.

  Returns:
    The batch, rewards `[P, G]`, and the problems `[P]`.
  """
  problems = problem_families.make_problems(
    setting.family, jax.random.fold_in(key, PROBLEMS_KEY), setting.num_problems
  )
  rollout = sample(
    params,
    problems,
    problem_families.prompts(problems),
    jax.random.fold_in(key, SAMPLES_KEY),
    setting=setting,
    group_size=setting.group_size,
  )
  batch, rewards = trial_batch.build_batch(
    problems, rollout, key, setting=setting
  )
  return batch, rewards, problems


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
  """Returns rewards on held-out problems `[num_problems, num_samples]`."""
  problems, rollout = _held_out(params, key, setting, num_problems, num_samples)
  shape = (num_problems, num_samples, -1)
  return problem_families.judge(
    setting.family,
    problems,
    rollout.completion_ids.reshape(shape),
    rollout.completion_mask.reshape(shape),
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
  """Evaluates student and teacher on held-out problems.

  Returns:
    Scalars: `avg` (mean reward), `length` (tokens), `entropy` (nats per token),
    `p_eos` (mean probability of the end before the last token), `good_route`
    (share of the first route), `teacher` (accuracy of the teacher's own
    samples, with feedback in its prompt).
  """
  family = setting.family
  problems, rollout = _held_out(params, key, setting, num_problems, num_samples)
  shape = (num_problems, num_samples, -1)
  ids, mask = rollout.completion_ids, rollout.completion_mask
  rewards = problem_families.judge(
    family, problems, ids.reshape(shape), mask.reshape(shape)
  )
  prompt_ids = problem_families.prompts(
    problem_families.repeat(problems, num_samples)
  )
  hidden = scoring.completion_hidden_states(
    params,
    prompt_ids,
    jnp.ones_like(prompt_ids),
    ids,
    mask,
    graphdef=setting.graphdef,
  )
  end_log_probs, entropies = fused_statistics.token_log_probs(
    hidden, layers.unembedding(params), jnp.full_like(ids, problem_families.EOS)
  )
  # The end at the last token is right, so p_eos is measured before it.
  is_last = jnp.pad(mask[:, 1:], ((0, 0), (0, 1))) == 0
  before_last = mask * (1 - is_last)
  return {
    "avg": jnp.mean(rewards),
    "length": jnp.mean(jnp.sum(mask, axis=1)),
    "entropy": _mean(entropies, mask),
    "p_eos": _mean(jnp.exp(end_log_probs), before_last),
    "good_route": jnp.mean(ids[:, 0] == problem_families.ROUTES[0]),
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
  """Returns the mean reward of the teacher's samples, given feedback."""
  # Feedback of the problems themselves and never wrong: what is measured is if
  # the teacher still reads it.
  family = setting.family
  key = jax.random.fold_in(key, FEEDBACK_KEY)
  keys = jax.random.split(key, 4)
  problems = problem_families.make_problems(family, keys[0], num_problems)
  route = jax.random.randint(keys[1], (num_problems,), 0, len(family.routes))
  sibling, _ = problem_families.reference_completion(
    family, problems, route, keys[2]
  )
  prompt_ids, prompt_mask = problem_families.teacher_prompts(
    problems, *problem_families.hints(family, problems, sibling)
  )
  rollout = sample(
    teacher_params,
    problems,
    prompt_ids,
    keys[3],
    setting=setting,
    group_size=1,
    prompt_mask=prompt_mask,
  )
  rewards = problem_families.judge(
    family,
    problems,
    rollout.completion_ids[:, None],
    rollout.completion_mask[:, None],
  )
  return jnp.mean(rewards)


def sample(
  params: decoder.Params,
  problems: problem_families.Problems,
  prompt_ids: jax.Array,
  key: jax.Array,
  *,
  setting: Setting,
  group_size: int,
  prompt_mask: jax.Array | None = None,
) -> Rollout:
  """Samples completions of prompts at temperature 1."""
  if prompt_mask is None:
    prompt_mask = jnp.ones_like(prompt_ids)
  # Problems are drawn at random and may repeat, so their row in the batch is
  # part of the name that seeds their samples.
  count = jnp.arange(prompt_ids.shape[0], dtype=jnp.uint32)
  names = jnp.stack([problems.index, count], axis=1)
  return sampler.generate(
    params,
    prompt_ids,
    prompt_mask,
    random_keys.sample_keys(key, names, group_size),
    SamplingParams(max_tokens=setting.family.completion_length),
    graphdef=setting.graphdef,
    eos_ids=(problem_families.EOS,),
    pad_id=problem_families.PAD,
  )


def _held_out(
  params: decoder.Params,
  key: jax.Array,
  setting: Setting,
  num_problems: int,
  num_samples: int,
) -> tuple[problem_families.Problems, Rollout]:
  problems_key, samples_key = jax.random.split(key)
  problems = problem_families.make_problems(
    setting.family, problems_key, num_problems
  )
  rollout = sample(
    params,
    problems,
    problem_families.prompts(problems),
    samples_key,
    setting=setting,
    group_size=num_samples,
  )
  return problems, rollout


def _guarded(
  state: train_state.TrainState, key: jax.Array, setting: Setting
) -> train_state.TrainState:
  """Returns the state after its teacher was checked, if a check is due."""
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
    state,
    # A cond, so that steps without a look do not pay for the samples.
    guard=jax.lax.cond(is_due, look, lambda: state.guard),
  )


def _optimizer(setting, learning_rate):
  # Without a warm-up the first steps decide whether a large rate survives, and
  # a grid of rates would be chosen from by luck.
  mini_batch_size = setting.mini_batch_size or setting.num_sequences
  schedule = optimizers.make_schedule(
    learning_rate=learning_rate,
    warmup_steps=_WARMUP_STEPS,
    schedule="constant" if setting.decay_steps is None else "cosine",
    num_steps=setting.decay_steps,
  )
  return optimizers.make_optimizer(
    schedule,
    weight_decay=0.0,
    updates_per_step=setting.num_sequences // mini_batch_size,
  )


def _mean(values: jax.Array, mask: jax.Array) -> jax.Array:
  total = jnp.sum(masking.where_counts(values, mask))
  return total / jnp.maximum(jnp.sum(mask), 1)
