"""A base model can do what its family says, and no more."""

import jax
import jax.numpy as jnp
import numpy as np
import tiny

from distil_jax.comparison import bases, families, trials


def test_it_comes_near_its_targets(trained_base):
  _, excess = trained_base
  excess = np.asarray(excess)
  assert excess.shape == (250,)
  assert excess[0] > 0.5
  assert excess[-20:].mean() < 0.05


def test_its_student_is_as_unsure_as_the_family_says(base):
  """.25 of route 0, right with .6, and .75 of route 1, right with .1."""
  problems = families.make_problems(tiny.FAMILY, jax.random.key(5), 512)
  sampled = jax.jit(
    lambda params, prompts: trials.sample(
      params,
      problems,
      prompts,
      jax.random.key(6),
      setting=tiny.setting(),
      group_size=4,
    )
  )(base, families.prompts(problems))
  ids = sampled.completion_ids.reshape(512, 4, -1)
  mask = sampled.completion_mask.reshape(512, 4, -1)
  rewards = np.asarray(families.judge(tiny.FAMILY, problems, ids, mask))
  is_first = np.asarray(ids[..., 0] == families.ROUTES[0])
  np.testing.assert_allclose(is_first.mean(), 0.25, atol=0.05)
  np.testing.assert_allclose(rewards[is_first].mean(), 0.6, atol=0.08)
  np.testing.assert_allclose(rewards[~is_first].mean(), 0.1, atol=0.04)


def test_its_teacher_reads_feedback(base):
  accuracy = jax.jit(
    lambda params: trials.teacher_accuracy(
      params, jax.random.key(7), setting=tiny.setting(), num_problems=256
    )
  )(base)
  assert accuracy > 0.95


def test_demonstrations_without_feedback_hide_it():
  prompts, mask, ids, ids_mask, targets = bases._demonstrations(
    tiny.FAMILY, jax.random.key(0), 64
  )
  # A hint of two digits behind its marker, then the problem and ASK.
  is_told = np.asarray(mask[:, 0]) == 1
  assert 0.5 < is_told.mean() < 0.9
  np.testing.assert_array_equal(
    mask[~is_told], [[0, 0, 0, 1, 1]] * sum(~is_told)
  )
  np.testing.assert_array_equal(mask[is_told], 1)
  assert np.all(np.asarray(prompts[:, 0]) == families.HINT)
  # Told, the digit is certain; else as likely as the route's accuracy.
  digits = np.asarray(jnp.max(targets[:, 1], axis=-1))
  np.testing.assert_allclose(digits[is_told], 0.998, rtol=1e-5)
  first = np.asarray(ids[:, 0]) == families.ROUTES[0]
  np.testing.assert_allclose(digits[~is_told & first], 0.6, rtol=1e-5)
  np.testing.assert_allclose(digits[~is_told & ~first], 0.1, rtol=1e-5)
  np.testing.assert_array_equal(ids_mask, 1)
