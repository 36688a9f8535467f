"""A base model can do what its family says, and no more."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distil_jax.analysis.comparison import (
  base_models,
  compiled_trial,
  problem_families,
)
from tests.analysis.comparison import tiny


def test_it_comes_near_its_targets(trained_base):
  _, excess, _ = trained_base
  assert excess.shape == (250,)
  assert excess[0] > 0.5
  assert excess[-20:].mean() < 0.05


def test_it_says_how_far_it_is(trained_base):
  _, excess, reports = trained_base
  steps, means = zip(*reports, strict=True)
  assert steps == (*range(20, 250, 20), 250)
  np.testing.assert_allclose(means[0], excess[:20].mean(), rtol=1e-6)
  np.testing.assert_allclose(means[-1], excess[240:].mean(), rtol=1e-6)


def test_how_often_it_says_so_changes_nothing(trained_base):
  params, excess, _ = trained_base
  again, again_excess = base_models.train(
    jax.random.key(0), tiny.PLAN, steps_between=250
  )
  np.testing.assert_array_equal(excess, again_excess)
  jax.tree.map(np.testing.assert_array_equal, params, again)


SETTINGS = {"base_steps": 250, "network": {"width": 32}}


def test_a_base_comes_back_with_its_settings(base, tmp_path):
  folder = tmp_path / "base"
  assert not base_models.is_saved(folder)
  base_models.save(folder, base, tiny.PLAN, SETTINGS)
  assert base_models.is_saved(folder)
  found = base_models.load(folder, tiny.PLAN)
  jax.tree.map(np.testing.assert_array_equal, found, base)
  assert base_models.differences(folder, SETTINGS) == []
  changed = {**SETTINGS, "base_steps": 300, "network": {"width": 8}}
  assert base_models.differences(folder, changed) == [
    "base_steps=250 then, 300 now",
    "network={'width': 32} then, {'width': 8} now",
  ]
  # Kept before settings were.
  (folder / "base.json").unlink()
  assert base_models.differences(folder, changed) == []


def test_a_base_that_is_half_written_is_not_kept(base, tmp_path):
  (tmp_path / "model.safetensors").mkdir()  # where the weights are to go
  with pytest.raises(OSError, match=r"model\.safetensors"):
    base_models.save(tmp_path, base, tiny.PLAN, SETTINGS)
  assert (tmp_path / "base.json").is_file()
  assert not base_models.is_saved(tmp_path)


def test_the_number_of_parameters(base):
  num = base_models.num_params(width=32, num_layers=1, num_heads=2)
  assert num == sum(leaf.size for leaf in jax.tree.leaves(base))


def test_its_student_is_as_unsure_as_the_family_says(base):
  """.25 of route 0, right with .6, and .75 of route 1, right with .1."""
  problems = problem_families.make_problems(tiny.FAMILY, jax.random.key(5), 512)
  sampled = jax.jit(
    lambda params, prompts: compiled_trial.sample(
      params,
      problems,
      prompts,
      jax.random.key(6),
      setting=tiny.setting(),
      group_size=4,
    )
  )(base, problem_families.prompts(problems))
  ids = sampled.completion_ids.reshape(512, 4, -1)
  mask = sampled.completion_mask.reshape(512, 4, -1)
  rewards = np.asarray(problem_families.judge(tiny.FAMILY, problems, ids, mask))
  is_first = np.asarray(ids[..., 0] == problem_families.ROUTES[0])
  np.testing.assert_allclose(is_first.mean(), 0.25, atol=0.05)
  np.testing.assert_allclose(rewards[is_first].mean(), 0.6, atol=0.08)
  np.testing.assert_allclose(rewards[~is_first].mean(), 0.1, atol=0.04)


def test_its_teacher_reads_feedback(base):
  accuracy = jax.jit(
    lambda params: compiled_trial.teacher_accuracy(
      params, jax.random.key(7), setting=tiny.setting(), num_problems=256
    )
  )(base)
  assert accuracy > 0.95


def test_demonstrations_without_feedback_hide_it():
  demonstrations = jax.jit(base_models._demonstrations, static_argnums=(0, 2))
  prompts, mask, ids, ids_mask, targets = demonstrations(
    tiny.FAMILY, jax.random.key(0), 64
  )
  # A hint of two digits behind its marker, then the problem and ASK.
  is_told = np.asarray(mask[:, 0]) == 1
  assert 0.5 < is_told.mean() < 0.9
  np.testing.assert_array_equal(
    mask[~is_told], [[0, 0, 0, 1, 1]] * sum(~is_told)
  )
  np.testing.assert_array_equal(mask[is_told], 1)
  assert np.all(np.asarray(prompts[:, 0]) == problem_families.HINT)
  # Told, the digit is certain; else as likely as the route's accuracy.
  digits = np.asarray(jnp.max(targets[:, 1], axis=-1))
  np.testing.assert_allclose(digits[is_told], 0.998, rtol=1e-5)
  first = np.asarray(ids[:, 0]) == problem_families.ROUTES[0]
  np.testing.assert_allclose(digits[~is_told & first], 0.6, rtol=1e-5)
  np.testing.assert_allclose(digits[~is_told & ~first], 0.1, rtol=1e-5)
  np.testing.assert_array_equal(ids_mask, 1)
