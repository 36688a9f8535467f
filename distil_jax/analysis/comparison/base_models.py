"""Base models whose competence is set, not hoped for.

A base model is trained on soft targets: at each place it learns the very
distribution that its family prescribes, with feedback in the prompt and
without. Its success rate, its preference between routes and its trust in
feedback are then what the comparison says they are.
"""

import dataclasses
import functools
import json
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax

from distil_jax.analysis.comparison import tasks
from distil_jax.models import decoder, hf_export, hf_weights, layers
from distil_jax.models import decoder_config as models_config

Settings = Mapping[str, Any]
Report = Callable[[int, float], None]

# Of a base model, beside its weights.
_SETTINGS = "base.json"

# Share of the demonstrations that have feedback in their prompt: copying out
# of it is harder to learn than the rest.
_TOLD = 0.7
# How much of a prefix is spoilt: the teacher must be right after the student's
# errors too.
_SPOILT = (0.2, 0.8)


def network(
  *, width: int, num_layers: int, num_heads: int, max_positions: int = 512
) -> models_config.DecoderConfig:
  """A Qwen3 of the comparison's vocabulary."""
  return models_config.DecoderConfig(
    vocab_size=tasks.VOCAB_SIZE,
    width=width,
    num_layers=num_layers,
    num_heads=num_heads,
    num_kv_heads=num_heads // 2,
    head_size=width // num_heads,
    mlp_size=8 * width // 3,
    tie_embeddings=False,
    rope_theta=10_000.0,
    max_positions=max_positions,
    remat="none",
  )


@functools.cache
def num_params(*, width: int, num_layers: int, num_heads: int) -> int:
  """Size of a network."""
  config = network(width=width, num_layers=num_layers, num_heads=num_heads)
  _, shapes = decoder.make(config)
  return sum(leaf.size for leaf in jax.tree.leaves(shapes))


@dataclasses.dataclass(frozen=True)
class Plan:
  """How a base model is trained; static under jit.

  Attributes:
    family: what it learns.
    network: its sizes.
    num_steps: optimiser steps.
    batch_size: demonstrations of a step.
    learning_rate: the highest, after a warm-up and before a cosine.
  """

  family: tasks.Family
  network: models_config.DecoderConfig
  num_steps: int
  batch_size: int
  learning_rate: float

  @property
  def optimizer(self) -> optax.GradientTransformation:
    schedule = optax.warmup_cosine_decay_schedule(
      0.0, self.learning_rate, self.num_steps // 20 + 1, self.num_steps
    )
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adam(schedule))


def train(
  key: jax.Array,
  plan: Plan,
  *,
  report: Report = lambda step, excess: None,
  steps_between: int = 20,
) -> tuple[decoder.Params, np.ndarray]:
  """Trains a base model from nothing.

  Args:
    key: of its initial parameters and its demonstrations.
    plan: what to train and how.
    report: gets each number of steps done, and the mean excess of the steps
      since the number before.
    steps_between: two reports; it changes nothing else.

  Returns:
    its parameters, and the excess of its cross-entropy over the targets' own
    entropy in each step, nats per token; shape `[num_steps]`.
  """
  init_key, data_key = jax.random.split(key)
  keys = jax.random.split(data_key, plan.num_steps)
  state = _init(init_key, plan=plan)
  for begin in range(0, plan.num_steps, steps_between):
    end = min(begin + steps_between, plan.num_steps)
    state = _steps(state, keys, np.int32(begin), np.int32(end), plan=plan)
    report(end, float(np.mean(np.asarray(state[2])[begin:end])))
  return state[0], np.asarray(state[2])


@functools.partial(jax.jit, static_argnames="plan")
def _init(key: jax.Array, *, plan: Plan):
  """Parameters, state of the optimiser, and room for the excess."""
  params = decoder.init(plan.network, key)
  return params, plan.optimizer.init(params), jnp.zeros(plan.num_steps)


@functools.partial(jax.jit, static_argnames="plan", donate_argnames="state")
def _steps(state, keys, begin, end, *, plan: Plan):
  """The steps from `begin` to before `end`, by one program for any number."""
  graphdef, _ = decoder.make(plan.network)

  def step(i, state):
    params, opt_state, excesses = state
    excess, gradients = jax.value_and_grad(_loss)(
      params, keys[i], graphdef, plan.family, plan.batch_size
    )
    updates, opt_state = plan.optimizer.update(gradients, opt_state, params)
    params = cast(decoder.Params, optax.apply_updates(params, updates))
    return params, opt_state, excesses.at[i].set(excess)

  return jax.lax.fori_loop(begin, end, step, state)


def save(
  folder: pathlib.Path, params: decoder.Params, plan: Plan, settings: Settings
) -> None:
  """Writes a base model with the settings that made it.

  Before it has been written whole it `is_kept` no more than before.
  """
  folder.mkdir(parents=True, exist_ok=True)
  text = json.dumps(settings, indent=2) + "\n"
  (folder / _SETTINGS).write_text(text, encoding="utf-8")
  hugging_face = models_config.to_hugging_face(
    plan.network, eos_ids=(tasks.EOS,), pad_id=tasks.PAD
  )
  hf_export.save(folder, params, config_json=hugging_face)


def is_saved(folder: pathlib.Path) -> bool:
  """Whether a whole base model is there; its config is what comes last."""
  return (folder / hf_weights.CONFIG).is_file()


def differences(folder: pathlib.Path, settings: Settings) -> list[str]:
  """Settings with which a base model was made, and which would differ now.

  Those of older base models are not known and count as the same.
  """
  path = folder / _SETTINGS
  if not path.is_file():
    return []
  made_with = json.loads(path.read_text(encoding="utf-8"))
  return [
    f"{name}={made_with.get(name)} then, {settings.get(name)} now"
    for name in sorted(made_with.keys() | settings.keys())
    if made_with.get(name) != settings.get(name)
  ]


def load(folder: pathlib.Path, plan: Plan) -> decoder.Params:
  """A base model that `is_kept`."""
  _, template = decoder.make(plan.network)
  return hf_weights.load(folder, template, tie_embeddings=False)


def _loss(params, key, graphdef, family, batch_size):
  """KL from the targets to the model, nats per token."""
  prompts, prompt_mask, ids, mask, targets = _demonstrations(
    family, key, batch_size
  )
  sequences = jnp.concatenate([prompts, ids], axis=1)
  sequence_mask = jnp.concatenate([prompt_mask, mask], axis=1)
  hidden = decoder.hidden_states(graphdef, params, sequences, sequence_mask)
  hidden = hidden[:, prompts.shape[1] - 1 : -1]
  # Twenty tokens: the whole of the logits is small here.
  logits = hidden @ layers.unembedding(params)
  costs = optax.losses.kl_divergence(jax.nn.log_softmax(logits), targets)
  return jnp.sum(costs * mask) / jnp.sum(mask)


def _demonstrations(family, key, batch_size):
  """Prompts with and without feedback, spoilt completions, targets."""
  keys = jax.random.split(key, 9)
  problems = tasks.make_problems(family, keys[0], batch_size)
  preferences = jnp.asarray([r.preference for r in family.routes])
  route = jax.random.categorical(
    keys[1],
    jnp.log(0.5 * preferences + 0.5 / len(family.routes)),
    shape=(batch_size,),
  )
  sibling_route = jax.random.randint(
    keys[2], (batch_size,), 0, len(family.routes)
  )
  sibling, _ = tasks.reference_completion(
    family, problems, sibling_route, keys[3]
  )
  hint_ids, hint_mask = tasks.hints(family, problems, sibling)
  is_told = jax.random.bernoulli(keys[4], _TOLD, (batch_size,))
  told, told_mask = tasks.teacher_prompts(problems, hint_ids, hint_mask)
  # Without feedback the same row holds the bare problem, padded on the left.
  is_problem = jnp.arange(told.shape[1]) > hint_ids.shape[1]
  told_mask = told_mask * (is_told[:, None] | is_problem[None])
  ids, mask = tasks.reference_completion(family, problems, route, keys[5])
  share = jnp.asarray(_SPOILT)[
    jax.random.randint(keys[6], (batch_size, 1), 0, len(_SPOILT))
  ]
  spoils = jax.random.bernoulli(keys[7], share, ids.shape) & (ids < 10)
  ids = jnp.where(spoils, jax.random.randint(keys[8], ids.shape, 0, 10), ids)
  targets = tasks.base_targets(
    family, problems, route, ids, is_told, sibling_route
  )
  return told, told_mask, ids, mask, targets
