"""Each family is trained, resumed on another mesh, planned and exported.

`tests/models/test_families.py` samples each with a shared cache, and compares
its devices; a run of one of them is in `test_trainer.py`.
"""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from distil_jax import config as configs
from distil_jax.data import tokenizer as tokenizers
from distil_jax.generation.policy import Policy, load_policy
from distil_jax.models import decoder
from distil_jax.models.families import FAMILIES
from distil_jax.planning import hardware, memory, planner
from distil_jax.training import resume
from distil_jax.training.logging.progress import Progress
from distil_jax.training.setup import meshes, steps, train_steps
from tests import networks

WINDOW = {"sliding_window": 6}
# What only some families have.
TRAITS = {
  "gemma3_text": WINDOW,
  "mistral": WINDOW,
  "olmo3": WINDOW,
  "qwen3_moe": {"num_experts": 4, "num_experts_per_token": 2},
}
BEFORE, AFTER = {"data": 4, "fsdp": 1, "tensor": 2}, {"fsdp": 4, "tensor": 2}


@functools.cache
def tokenizer():
  return tokenizers.train(["What is it?"], vocab_size=300)


def settings(folder, family, mesh):
  return configs.parse(
    {
      "model": {
        "directory": str(folder / "model"),
        "create": {
          "family": family,
          "vocab_size": 300,
          "width": 16,
          "num_layers": 1,
          "num_heads": 2,
          "num_kv_heads": 2,
          "head_size": 8,
          "mlp_size": 32,
          **TRAITS.get(family, {}),
        },
        "remat": "none",
      },
      "rollout": {
        "num_problems": 4,
        "group_size": 2,
        "max_prompt_length": 4,
        "max_completion_length": 5,
      },
      "objective": {"kind": "grpo"},
      "optimizer": {"learning_rate": 1e-2},
      "mesh": mesh,
      "train": {"num_steps": 2, "run_directory": str(folder / "run")},
      "evaluation": {"num_problems": 4},
    }
  )


class Run:
  """The parts of a run on some mesh, with a new policy."""

  def __init__(self, config):
    self.config = config
    self.mesh = meshes.build_mesh(config)
    network = planner.load_network(config, None)
    graphdef, template = decoder.make(network)
    params = networks.random_params(template, seed=0)
    self.policy = Policy(network, graphdef, params, tokenizer())
    self.optimizer, _ = steps.build_optimizer(config, params)
    self.template = steps.build_state_template(
      config, params, self.optimizer, self.mesh
    )
    self.step_fn = train_steps.build_host_step(
      config, self.policy, self.optimizer, self.template
    )

  def first_state(self):
    params = jax.device_put(
      self.policy.params, decoder.shardings(self.mesh, self.policy.params)
    )
    return steps.build_first_state(
      self.config, params, self.optimizer, self.template
    )

  def step(self, state):
    batch = jax.tree.map(np.asarray, networks.random_batch())
    with jax.set_mesh(self.mesh):
      state, metrics = self.step_fn(state, batch)
    return state, {name: float(value) for name, value in metrics.items()}


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_it_goes_on_elsewhere_and_is_exported(family, tmp_path):
  first = Run(settings(tmp_path, family, BEFORE))
  state, before = first.step(first.first_state())
  assert before["gradient_norm"] > 1e-2
  with resume.open_folder(first.config, dict) as saved:
    notes = resume.RunNotes(0.0, 0, {})
    resume.save_state(first.config, saved, state, notes)
  expected = jax.tree.map(np.asarray, state.params)
  _, uninterrupted = first.step(state)

  second = Run(settings(tmp_path, family, AFTER))
  with resume.open_folder(second.config, dict) as saved:
    state, _ = resume.resume_state(
      second.config, saved, second.template, Progress(None)
    )
  jax.tree.map(np.testing.assert_array_equal, state.params, expected)
  check_plan(second, state)
  state, resumed = second.step(state)
  assert state.step == 2
  assert resumed == pytest.approx(uninterrupted, rel=1e-4, abs=1e-5)

  trained = dataclasses.replace(second.policy, params=state.params)
  trained.save(tmp_path / "out")
  exported = load_policy(tmp_path / "out")
  assert exported.config.family == family
  jax.tree.map(np.testing.assert_array_equal, exported.params, state.params)


def check_plan(run, state):
  """What a plan says of the state is what the run has of it on a device."""
  found = hardware.find_hardware(None)
  parts = planner.Planner(
    run.config, found, run.policy.config, Progress(None)
  ).parts
  assert parts["parameters"] == memory.tree_bytes(state.params)
  assert parts["optimizer"] == memory.tree_bytes(state.opt_state)
