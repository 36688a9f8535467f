"""Micro-batches by length learn what the whole batch does in one program."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from distil_jax import config
from distil_jax.data import length_buckets
from distil_jax.models import lora, sharding
from distil_jax.models.decoder_config import LoRA
from distil_jax.training import (
  build_step,
  host_step,
  length_step,
  micro_batches,
  optimizers,
  train_state,
  trimming,
)
from tests import networks
from tests.networks import assert_close, distance

SGD = optax.sgd(0.3)
FROZEN = config.TeacherConfig(parameters="frozen")
CURRENT = config.TeacherConfig(parameters="current")
# Three rows of 12 columns, and twice three of 11, of which one is filled.
NUM_TOKENS = 36


@pytest.fixture(autouse=True)
def two_sizes(monkeypatch):
  monkeypatch.setattr(length_buckets, "SMALLEST", 4)
  monkeypatch.setattr(micro_batches, "_SHARES", (1,))


@pytest.fixture(scope="module")
def network():
  return networks.network(seed=3, num_layers=1)


@pytest.fixture(scope="module")
def one_device():
  return sharding.make_mesh(devices=jax.devices()[:1])


def batch_of(seed=3):
  return jax.tree.map(np.asarray, networks.random_batch(seed))


@dataclasses.dataclass(frozen=True)
class Case:
  """What is learned, and how a step is cut."""

  objective: config.ObjectiveConfig
  teacher: config.TeacherConfig = FROZEN
  optimizer: optax.GradientTransformation = SGD
  num_mini_batches: int = 1
  num_tokens: int = NUM_TOKENS

  def state(self, network, mesh):
    """The state before the step, with a teacher of its own if it keeps one."""
    base, params = None, network.params
    if network.config.lora is not None:
      base, params = lora.split(params)
    state = train_state.init_state(
      params,
      optimizer=self.optimizer,
      keeps_teacher=self.objective.keeps_teacher(self.teacher),
      seed=0,
      base_params=base,
    )
    if state.teacher_params is not None:
      state = state.replace(
        teacher_params=networks.random_params(params, seed=4)
      )
    places = train_state.state_shardings(state, mesh, self.optimizer)
    return jax.device_put(state, places), places

  def steps(self, network, mesh):
    """Both steps; neither donates the state that it is given."""
    parts = {"graphdef": network.graphdef, "group_size": 4}
    _, places = self.state(network, mesh)
    whole = build_step.train_step(
      self.objective,
      self.teacher,
      optimizer=self.optimizer,
      num_sequences=8,
      mini_batch_size=8 // self.num_mini_batches,
      **parts,
    )
    by_length = length_step.LengthStep(
      build_step.objective_by_length(
        self.objective,
        self.teacher,
        is_off_policy=self.num_mini_batches > 1,
        **parts,
      ),
      self.optimizer,
      places,
      micro_batches.Sizes(
        self.num_tokens,
        sharding.batch_size_multiple(mesh),
        multiple=mesh.shape["context"],
      ),
      num_mini_batches=self.num_mini_batches,
      ema_rate=build_step.ema_rate(self.objective, self.teacher),
    )

    def run_by_length(state, batch):
      return by_length(jax.tree.map(jnp.copy, state), batch)

    whole = jax.jit(whole, out_shardings=(places, None))
    return host_step.whole_batch(whole, mesh), run_by_length


def assert_same_step(case, network, mesh, batch=None, steps=None):
  with jax.set_mesh(mesh):
    steps = steps or case.steps(network, mesh)
    before, _ = case.state(network, mesh)
    batch = trimming.Trimmer()(batch_of() if batch is None else batch)
    expected, found = (run(before, batch) for run in steps)
  assert distance(found[0].params, before.params) > 1e-3
  # Params, teacher, moments and step.
  assert_close(
    found[0].replace(key=None, base_params=None),
    expected[0].replace(key=None, base_params=None),
  )
  assert_close(found[1], expected[1])
  return found[2]


LISTED = config.DistilConfig(
  local_cost="forward_cross_entropy", cost="cross_entropy", baseline=None
)
SAMPLES = config.TeacherConfig(
  parameters="frozen", access="samples", num_samples=3
)
CASES = {
  "groups are compared": Case(
    config.DistilConfig(
      baseline="leave_one_out", reward_weight=0.5, failure_weighted=True
    )
  ),
  "trust region": Case(
    config.SDPOConfig(), config.TeacherConfig(parameters="trust_region")
  ),
  "minillm": Case(config.MiniLLMConfig(), CURRENT),
}


@pytest.mark.parametrize("kind", CASES)
def test_every_objective_learns_the_same(network, one_device, kind):
  read = assert_same_step(CASES[kind], network, one_device)
  shapes = [rows.completion_ids.shape for rows in read]
  assert shapes == [(3, 5), (3, 4), (3, 4)]


def test_two_updates_or_none(network, one_device):
  """A loss that is not finite, in the second update, leaves the state."""
  case = Case(config.GRPOConfig(kl_weight=0.1), num_mini_batches=2)
  steps = case.steps(network, one_device)
  assert_same_step(case, network, one_device, steps=steps)
  with jax.set_mesh(one_device):
    before, _ = case.state(network, one_device)
    batch = trimming.Trimmer()(batch_of())
    rewards = np.where(np.arange(8) < 4, batch.rewards, np.nan)
    found, metrics, _ = steps[1](before, batch.replace(rewards=rewards))
  assert not np.isfinite(metrics["loss"])
  jax.tree.map(np.testing.assert_array_equal, found, before)


def test_devices_share_micro_batches(network):
  """Cut by rows, along time and by vocabulary; a teacher that follows."""
  optimizer = optimizers.make_optimizer(optax.constant_schedule(0.1))
  case = Case(
    config.DistilConfig(baseline="batch_mean"),
    config.TeacherConfig(parameters="ema", ema_rate=0.25),
    optimizer,
    num_tokens=60,
  )
  # Limits that leave room for widths that the devices can share.
  batch = jax.tree.map(
    lambda x: np.pad(x, [(0, 0), (0, 3)]) if x.ndim > 1 else x, batch_of()
  )
  empty = np.zeros((8, 3), np.int32)
  batch = batch.replace(
    **{
      name: np.hstack([empty, getattr(batch, name)[:, :-3]])
      for name in ("prompt_ids", "prompt_mask")
    },
    **{
      name: np.hstack([empty, getattr(batch, name)[:, :-3]])
      for name in ("teacher_prompt_ids", "teacher_prompt_mask")
    },
  )
  mesh = sharding.make_mesh(fsdp=2, context=2, tensor=2)
  read = assert_same_step(case, network, mesh, batch)
  assert [rows.completion_ids.shape for rows in read] == [(4, 6), (4, 4)]


def test_adapters_learn_from_samples_of_the_teacher(one_device):
  adapted = networks.network(
    seed=3, num_layers=1, lora=LoRA(2, 4.0, ("query", "down"))
  )
  assert_same_step(Case(LISTED, SAMPLES), adapted, one_device)


def test_experts_are_loaded_by_what_counts_alone(one_device):
  mixture = networks.network(
    seed=3, num_layers=1, num_experts=4, num_experts_per_token=2
  )
  assert_same_step(Case(config.SFTConfig()), mixture, one_device)
