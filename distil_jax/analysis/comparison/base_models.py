"""Trains base models to a competence that their family prescribes.

A base model is trained on soft targets: at each position it learns the
distribution that its family prescribes, with and without feedback in the
prompt. This fixes its success rate, its preference between routes and its trust
in feedback.
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

from distil_jax.analysis.comparison import problem_families
from distil_jax.models import (
  decoder,
  hf_config,
  hf_directory,
  hf_export,
  hf_weights,
  layers,
)
from distil_jax.models import decoder_config as models_config

Settings = Mapping[str, Any]
Report = Callable[[int, float], None]

# File with the settings of a base model, beside its weights.
_SETTINGS = "base.json"

# Share of demonstrations with feedback in the prompt. It is large because
# copying from feedback is harder to learn than the rest.
_FEEDBACK_SHARE = 0.7
# Shares of digits that are corrupted, because the teacher must also be right
# after errors of the student.
_CORRUPTED_SHARES = (0.2, 0.8)


def network(
  *, width: int, num_layers: int, num_heads: int, max_positions: int = 512
) -> models_config.DecoderConfig:
  """Returns the config of a small Qwen3 with the comparison's vocabulary."""
  return models_config.DecoderConfig(
    vocab_size=problem_families.VOCAB_SIZE,
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
  """Returns the number of parameters of a network."""
  config = network(width=width, num_layers=num_layers, num_heads=num_heads)
  _, shapes = decoder.make(config)
  return sum(leaf.size for leaf in jax.tree.leaves(shapes))


@dataclasses.dataclass(frozen=True)
class Plan:
  """Holds how a base model is trained; static under jit.

  Attributes:
    family: Family that it learns.
    network: Sizes of the network.
    num_steps: Optimizer steps.
    batch_size: Demonstrations per step.
    learning_rate: Peak rate, after a warm-up and before a cosine decay.
  """

  family: problem_families.Family
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
  """Trains a base model from scratch.

  Args:
    key: Key of initial parameters and demonstrations.
    plan: What to train and how.
    report: Called with the number of steps done, and the mean excess of the
      steps since the last call.
    steps_between: Steps between two reports; does not change the result.

  Returns:
    The parameters, and per step the excess of the cross-entropy over the
    entropy of the targets, nats per token; shape `[num_steps]`.
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
  """Returns parameters, optimizer state, and zeros for the excess."""
  params = decoder.init(plan.network, key)
  return params, plan.optimizer.init(params), jnp.zeros(plan.num_steps)


@functools.partial(jax.jit, static_argnames="plan", donate_argnames="state")
def _steps(state, keys, begin, end, *, plan: Plan):
  """Runs steps `begin` to `end` - 1; one program serves all ranges."""
  graphdef, _ = decoder.make(plan.network)

  def step(i, state):
    params, opt_state, excesses = state
    excess, gradients = jax.value_and_grad(_loss)(
      params, keys[i], graphdef, plan.family, plan.batch_size
    )
    updates, opt_state = plan.optimizer.update(gradients, opt_state, params)
    params = cast(decoder.Params, optax.apply_updates(params, updates))
    return params, opt_state, excesses.at[i].set(excess)

  # The ends of the loop are arrays, so another range needs no other program.
  return jax.lax.fori_loop(begin, end, step, state)


def save(
  folder: pathlib.Path, params: decoder.Params, plan: Plan, settings: Settings
) -> None:
  """Saves a base model with the settings that made it.

  `is_saved` is True only after everything has been written.
  """
  folder.mkdir(parents=True, exist_ok=True)
  text = json.dumps(settings, indent=2) + "\n"
  (folder / _SETTINGS).write_text(text, encoding="utf-8")
  hugging_face = hf_config.to_hugging_face(
    plan.network, eos_ids=(problem_families.EOS,), pad_id=problem_families.PAD
  )
  hf_export.save(folder, params, plan.network, config_json=hugging_face)


def is_saved(folder: pathlib.Path) -> bool:
  """Returns True if a complete base model is there.

  Its config is written last.
  """
  return (folder / hf_directory.CONFIG).is_file()


def differences(folder: pathlib.Path, settings: Settings) -> list[str]:
  """Describes the settings in which a saved base model differs.

  Base models of earlier versions have no settings, and count as the same.
  """
  path = folder / _SETTINGS
  if not path.is_file():
    return []
  saved = json.loads(path.read_text(encoding="utf-8"))
  return [
    f"{name}={saved.get(name)} then, {settings.get(name)} now"
    for name in sorted(saved.keys() | settings.keys())
    if saved.get(name) != settings.get(name)
  ]


def load(folder: pathlib.Path, plan: Plan) -> decoder.Params:
  """Loads a base model for which `is_saved` is True."""
  _, template = decoder.make(plan.network)
  return hf_weights.load(folder, template, plan.network)


def _loss(params, key, graphdef, family, batch_size):
  """Returns the KL divergence from targets to model, nats per token."""
  prompts, prompt_mask, ids, mask, targets = _demonstrations(
    family, key, batch_size
  )
  sequences = jnp.concatenate([prompts, ids], axis=1)
  sequence_mask = jnp.concatenate([prompt_mask, mask], axis=1)
  hidden = decoder.hidden_states(graphdef, params, sequences, sequence_mask)
  hidden = hidden[:, prompts.shape[1] - 1 : -1]
  # The vocabulary has twenty tokens, so all logits fit in memory.
  logits = hidden @ layers.unembedding(params)
  costs = optax.losses.kl_divergence(jax.nn.log_softmax(logits), targets)
  return jnp.sum(costs * mask) / jnp.sum(mask)


def _demonstrations(family, key, batch_size):
  """Returns prompts with and without feedback, completions and targets."""
  keys = jax.random.split(key, 9)
  problems = problem_families.make_problems(family, keys[0], batch_size)
  preferences = jnp.asarray([r.preference for r in family.routes])
  # Half of the routes are drawn evenly, so that the base model learns the steps
  # of a rare one too.
  route = jax.random.categorical(
    keys[1],
    jnp.log(0.5 * preferences + 0.5 / len(family.routes)),
    shape=(batch_size,),
  )
  sibling_route = jax.random.randint(
    keys[2], (batch_size,), 0, len(family.routes)
  )
  sibling, _ = problem_families.reference_completion(
    family, problems, sibling_route, keys[3]
  )
  hint_ids, hint_mask = problem_families.hints(family, problems, sibling)
  has_feedback = jax.random.bernoulli(keys[4], _FEEDBACK_SHARE, (batch_size,))
  prompts, prompt_mask = problem_families.teacher_prompts(
    problems, hint_ids, hint_mask
  )
  # Without feedback the same row holds only the problem, padded on the left.
  is_problem = jnp.arange(prompts.shape[1]) > hint_ids.shape[1]
  prompt_mask = prompt_mask * (has_feedback[:, None] | is_problem[None])
  ids, mask = problem_families.reference_completion(
    family, problems, route, keys[5]
  )
  share = jnp.asarray(_CORRUPTED_SHARES)[
    jax.random.randint(keys[6], (batch_size, 1), 0, len(_CORRUPTED_SHARES))
  ]
  is_corrupted = jax.random.bernoulli(keys[7], share, ids.shape) & (ids < 10)
  random_digits = jax.random.randint(keys[8], ids.shape, 0, 10)
  ids = jnp.where(is_corrupted, random_digits, ids)
  targets = problem_families.base_targets(
    family, problems, route, ids, has_feedback, sibling_route
  )
  return prompts, prompt_mask, ids, mask, targets
