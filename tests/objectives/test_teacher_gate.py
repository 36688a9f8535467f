"""Costs of tokens at which the teacher is unsure count 0.

Where student and teacher are the same, every divergence is 0 and so is its
gradient. So a gated objective is the ungated one of a teacher that says, at the
gated tokens, what the student says itself.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from distil_jax import config
from distil_jax.training import build_step
from tests import networks, references
from tests.objectives import test_build

CREDIT = {
  "local_cost": "reverse_kl",
  "cost": "kl",
  "future_weight": 4.0,
  "baseline": "leave_one_out",
  "terminal_neutral": True,
}
FROZEN = config.TeacherConfig(parameters="frozen")


@pytest.fixture(scope="module")
def network():
  return networks.network(seed=3, num_layers=1)


@pytest.fixture(scope="module")
def case(network):
  """Batch, teacher, dense logits of both, and the teacher's entropies."""
  batch = networks.random_batch(seed=3)
  teacher = networks.random_params(network.params, seed=4)
  # Of this untrained teacher all entropies would be nearly the same.
  teacher = jax.tree.map(lambda x: 3 * x, teacher)
  fixed = {"graphdef": network.graphdef, "batch": batch}
  score = jax.jit(functools.partial(test_build.student_logits, **fixed))
  expert = jax.jit(functools.partial(test_build.teacher_logits, **fixed))
  expert = np.asarray(expert(teacher))
  log_probs = np.asarray(jax.nn.log_softmax(expert), np.float64)
  entropies = -(np.exp(log_probs) * log_probs).sum(-1)
  return batch, teacher, score, expert, entropies


@pytest.mark.parametrize("kind", ["credit", "credit_in_slices", "minillm"])
def test_a_gated_token_costs_nothing(network, case, kind):
  batch, teacher, score, expert, entropies = case
  counted = np.asarray(batch.completion_mask * batch.sample_mask[:, None]) > 0
  limit = float(np.median(entropies[counted]))
  is_gated = entropies > limit
  assert 0.2 < is_gated[counted].mean() < 0.8

  def loss(logits):
    own = jax.lax.stop_gradient(logits)
    fed = (
      logits,
      jnp.where(is_gated[..., None], own, expert),
      batch.completion_ids,
      batch.completion_mask,
    )
    if kind == "minillm":
      return references.minillm(*fed, sample_mask=batch.sample_mask).value
    return references.distil(
      *fed, group_size=4, sample_mask=batch.sample_mask, **CREDIT
    ).value

  logits = score(network.params)
  expected, by_logits = jax.jit(jax.value_and_grad(loss))(logits)
  (gradient,) = jax.jit(lambda x, g: jax.vjp(score, x)[1](g))(
    network.params, by_logits
  )
  objective = (
    config.MiniLLMConfig(max_teacher_entropy=limit)
    if kind == "minillm"
    else test_build.distil(**CREDIT, max_teacher_entropy=limit)
  )
  step = jax.jit(
    build_step.train_step(
      objective,
      FROZEN,
      graphdef=network.graphdef,
      optimizer=optax.sgd(1.0),
      group_size=4,
      num_sequences=8,
      # Groups in several slices have credit of a pass ahead of the loss.
      micro_batch_size=2 if kind == "credit_in_slices" else None,
    )
  )
  start = test_build.state_of(network.params, teacher, optax.sgd(1.0))
  state, metrics = step(start, batch)
  np.testing.assert_allclose(metrics["loss"], expected, rtol=2e-5, atol=1e-6)
  networks.assert_close(
    jax.tree.map(jnp.subtract, network.params, state.params), gradient, 2e-5
  )
  share = is_gated[counted].mean()
  np.testing.assert_allclose(metrics["teacher/gated"], share, rtol=1e-6)


def test_samples_of_a_teacher_tell_no_entropy():
  with pytest.raises(
    config.ConfigError, match=r"objective\.max_teacher_entropy=1\.0"
  ):
    config.parse(
      {
        "objective": {
          "kind": "distil",
          "local_cost": "forward_cross_entropy",
          "cost": "cross_entropy",
          "max_teacher_entropy": 1.0,
        },
        "teacher": {"access": "samples"},
      }
    )
