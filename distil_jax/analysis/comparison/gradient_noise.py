"""Measures how well one batch estimates the gradient."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from distil_jax.analysis.comparison import program_setting
from distil_jax.config.objectives import DistilConfig
from distil_jax.models import decoder
from distil_jax.training import build_step

# Samples a batch: (params, key, *, setting) -> (batch, rewards, problems).
Experience = Callable[..., tuple[Any, Any, Any]]

# Estimators are compared with the gradient of this loss: the summed
# cross-entropy to the teacher with its credit, without anything that trades
# exactness for less variance.
EXACT = DistilConfig(
  local_cost=None,
  cost="cross_entropy",
  normalize=False,
  future_weight=1.0,
  baseline=None,
  terminal_neutral=False,
  reward_weight=0.0,
  failure_weighted=False,
)
# Weights of the parts of a gradient that come from a score function.
_SCORE_WEIGHTS = ("future_weight", "reward_weight")


@dataclasses.dataclass(frozen=True)
class Quality:
  """Compares an estimator with the exact gradient.

  Attributes:
    noise: Standard deviation of one batch over the norm of the mean.
    cosine_of_mean: Cosine of the mean over all batches to the exact gradient.
    cosine_of_batch: Mean over batches of the cosine of one batch.
    variance: Trace of the covariance of one batch.
  """

  noise: float
  cosine_of_mean: float
  cosine_of_batch: float
  variance: float


def qualities(
  settings: dict[str, program_setting.Setting],
  params: decoder.Params,
  *,
  experience: Experience,
  num_batches: int,
  num_reference: int,
  seed: int = 0,
) -> dict[str, Quality]:
  """Compares estimators at the same parameters, on the same batches.

  Args:
    settings: One estimator each; they differ only in their objectives.
    params: Parameters of student and teacher.
    experience: Samples a batch.
    num_batches: Number of batches on which each estimator is measured.
    num_reference: Number of other batches, whose mean gradient stands for the
      exact one.
    seed: Seed of the batches.
  """
  key = jax.random.key(seed)
  some = next(iter(settings.values()))
  exact = dataclasses.replace(some, objective=EXACT)
  reference, _, _ = _moments(
    params,
    jax.random.fold_in(key, 0),
    setting=exact,
    experience=experience,
    num_batches=num_reference,
  )
  found = {}
  for name, setting in settings.items():
    mean, square, cosine = _moments(
      params,
      jax.random.fold_in(key, 1),
      reference,
      setting=setting,
      experience=experience,
      num_batches=num_batches,
    )
    norm = optax.tree.norm(mean)
    # Over n batches the plain difference is too small by (n − 1) / n.
    variance = (square - norm**2) * num_batches / (num_batches - 1)
    found[name] = Quality(
      noise=float(jnp.sqrt(variance) / norm),
      cosine_of_mean=float(_cosine(mean, reference)),
      cosine_of_batch=float(cosine),
      variance=float(variance),
    )
  return found


@functools.partial(
  jax.jit, static_argnames=("setting", "experience", "num_batches")
)
def _moments(
  params: decoder.Params,
  key: jax.Array,
  reference: Any = None,
  *,
  setting: program_setting.Setting,
  experience: Experience,
  num_batches: int,
) -> tuple[Any, jax.Array, jax.Array]:
  """Returns means of gradient, squared norm and cosine to the reference."""
  gradient_fn = _gradient_fn(setting, experience)

  def one(totals, key):
    gradient = gradient_fn(params, params, key)
    cosine = jnp.float32(0)
    if reference is not None:
      cosine = _cosine(gradient, reference)
    new = (gradient, optax.tree.norm(gradient, squared=True), cosine)
    return jax.tree.map(jnp.add, totals, new), None

  # Gradients are summed on the way: keeping hundreds would fill the memory.
  zeros = jax.tree.map(jnp.zeros_like, params)
  start = (zeros, jnp.float32(0), jnp.float32(0))
  totals, _ = jax.lax.scan(one, start, jax.random.split(key, num_batches))
  return jax.tree.map(lambda x: x / num_batches, totals)


@functools.partial(jax.jit, static_argnames=("setting", "experience"))
def score_share(
  params: decoder.Params,
  teacher_params: decoder.Params,
  key: jax.Array,
  *,
  setting: program_setting.Setting,
  experience: Experience,
) -> jax.Array:
  """Returns the score function's share of the norm of one batch's gradient.

  ‖score part‖ / (‖local part‖ + ‖score part‖)
  """
  weights = {
    name: 0.0 for name in _SCORE_WEIGHTS if hasattr(setting.objective, name)
  }
  if not weights:
    # All of the gradient is the score function's, or nothing of it.
    return jnp.float32(setting.objective.has_score_function)
  local = dataclasses.replace(
    setting, objective=setting.objective.model_copy(update=weights)
  )
  whole = _gradient_fn(setting, experience)(params, teacher_params, key)
  part = _gradient_fn(local, experience)(params, teacher_params, key)
  score = optax.tree.norm(optax.tree.sub(whole, part))
  return score / jnp.maximum(score + optax.tree.norm(part), 1e-30)


def _gradient_fn(setting: program_setting.Setting, experience: Experience):
  """Returns a function that samples a batch and computes its gradient."""
  gradients = build_step.gradients(
    setting.objective,
    setting.teacher,
    graphdef=setting.graphdef,
    group_size=setting.group_size,
    num_sequences=setting.num_sequences,
  )

  def gradient(params, teacher_params, key):
    batch, _, _ = experience(params, key, setting=setting)
    return gradients(params, teacher_params, batch, key)[0]

  return gradient


def _cosine(a, b) -> jax.Array:
  dot = jnp.asarray(optax.tree.vdot(a, b))
  return dot / optax.tree.norm(a) / optax.tree.norm(b)
