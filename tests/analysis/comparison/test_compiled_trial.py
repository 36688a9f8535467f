"""What a trial learns from, and how its steps go on."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from distil_jax import config as configs
from distil_jax.analysis.comparison import compiled_trial, problem_families
from distil_jax.models import decoder, layers
from distil_jax.objectives import scoring
from distil_jax.ops import fused_statistics
from tests.analysis.comparison import tiny

KEY = jax.random.key(3)
G = 4
SIBLING = dataclasses.replace(tiny.FAMILY, feedback="sibling")
NOISY = dataclasses.replace(tiny.FAMILY, wrong_feedback=0.5)
MOVING = configs.TeacherConfig(
  parameters="ema",
  ema_rate=0.1,
  guard=configs.GuardConfig(action="freeze", num_problems=64),
)
RATE = np.float32(1e-3)


def grouped(batch):
  """Completions with PAD after their end, `[P, G, T]`."""
  ids = np.where(
    batch.completion_mask, batch.completion_ids, problem_families.PAD
  )
  return ids.reshape(-1, G, ids.shape[-1])


def differ(a, b):
  pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
  return any(np.any(x != y) for x, y in pairs)


@jax.jit
def scored(params, batch):
  setting = tiny.setting()
  hidden = scoring.completion_hidden_states(
    params,
    batch.prompt_ids,
    batch.prompt_mask,
    batch.completion_ids,
    batch.completion_mask,
    graphdef=setting.graphdef,
  )
  return fused_statistics.token_log_probs(
    hidden, layers.unembedding(params), batch.completion_ids
  )[0]


def test_a_batch_of_rollouts(base):
  batch, rewards, problems = tiny.experience(base, KEY, setting=tiny.setting())
  assert 0.05 < rewards.mean() < 0.95
  np.testing.assert_array_equal(
    rewards,
    problem_families.judge(
      tiny.FAMILY,
      problems,
      jnp.asarray(grouped(batch)),
      batch.completion_mask.reshape(-1, G, 3),
    ),
  )
  np.testing.assert_array_equal(batch.rewards, rewards.reshape(-1))
  digits = np.repeat(problems.digits, G, axis=0)
  np.testing.assert_array_equal(batch.prompt_ids[:, :1], digits)
  # Both references stand in the teacher's prompt, then the problem.
  hints, _ = problem_families.hints(tiny.FAMILY, problems)
  np.testing.assert_array_equal(
    batch.teacher_prompt_ids[:, 1:3], np.repeat(hints, G, axis=0)
  )
  np.testing.assert_array_equal(batch.teacher_prompt_ids[:, 3:4], digits)
  np.testing.assert_array_equal(batch.sample_mask, 1)
  log_probs = jnp.where(batch.completion_mask, scored(base, batch), 0.0)
  np.testing.assert_allclose(batch.old_log_probs, log_probs, atol=1e-5)


def test_a_sibling_is_the_first_other_success(base):
  batch, rewards, _ = tiny.experience(
    base, KEY, setting=tiny.setting(family=SIBLING)
  )
  completions = grouped(batch)
  shown = np.asarray(batch.teacher_prompt_ids)[:, 1:4].reshape(-1, G, 3)
  signal = np.asarray(batch.sample_mask).reshape(-1, G)
  seen = set()
  for p, g in np.ndindex(*rewards.shape):
    others = [i for i in range(G) if i != g and rewards[p, i] == 1]
    assert signal[p, g] == bool(others)
    if others:
      np.testing.assert_array_equal(shown[p, g], completions[p, others[0]])
    seen.add((len(others), int(rewards[p, g])))
  # Lone successes, failures without any, and choices between two were there.
  assert {(0, 1), (0, 0), (1, 0)} <= seen
  assert any(count > 1 for count, _ in seen)


def test_wrong_feedback_is_a_whole_groups(base):
  setting = tiny.setting(family=NOISY, num_problems=64)
  batch, rewards, problems = tiny.experience(base, KEY, setting=setting)
  hints, _ = problem_families.hints(NOISY, problems)
  hints = np.asarray(hints)
  shown = np.asarray(batch.teacher_prompt_ids)[:, 1:3].reshape(-1, G, 2)
  np.testing.assert_array_equal(shown, np.repeat(shown[:, :1], G, axis=1))
  is_own = (shown[:, 0] == hints).all(axis=1)
  is_last = (shown[:, 0] == np.roll(hints, 1, axis=0)).all(axis=1)
  assert np.all(is_own | is_last)
  assert 0.3 < is_own.mean() < 0.7
  # The problem itself, and its verdict, stay right.
  np.testing.assert_array_equal(
    batch.prompt_ids[::G, :1], batch.teacher_prompt_ids[::G, 3:4]
  )
  np.testing.assert_array_equal(batch.prompt_ids[::G, :1], problems.digits)
  np.testing.assert_array_equal(
    rewards,
    problem_families.judge(
      NOISY,
      problems,
      jnp.asarray(grouped(batch)),
      batch.completion_mask.reshape(-1, G, 3),
    ),
  )


def test_demonstrations_have_the_teachers_habits(base):
  setting = tiny.setting(configs.SFTConfig(), num_problems=64)
  batch, _, problems = tiny.experience(base, KEY, setting=setting)
  completions = grouped(batch)
  rewards = problem_families.judge(
    tiny.FAMILY,
    problems,
    jnp.asarray(completions),
    batch.completion_mask.reshape(-1, G, 3),
  )
  np.testing.assert_array_equal(rewards, 1)
  share = np.mean(completions[..., 0] == problem_families.ROUTES[0])
  assert 0.15 < share < 0.35
  assert batch.teacher_prompt_ids.shape == (64 * G, 0)


def test_problems_depend_on_the_key_alone(base):
  """Every arm of a seed sees the same problems and the same noise."""
  _, _, problems = tiny.experience(base, KEY, setting=tiny.setting())
  _, _, same = tiny.experience(base, KEY, setting=tiny.setting(family=SIBLING))
  jax.tree.map(np.testing.assert_array_equal, problems, same)
  _, _, other = tiny.experience(base, jax.random.key(4), setting=tiny.setting())
  assert np.any(problems.index != other.index)


@pytest.fixture(scope="module")
def moved(base):
  """Trains the guarded setting; starts afresh at every call."""
  setting = tiny.setting(teacher=MOVING)

  def run(*, rate=RATE, seed=0, blocks=(6,), spoiled=None):
    state, history = compiled_trial.init_state(setting, base, seed), []
    for number, num_steps in enumerate(blocks):
      if number and spoiled is not None:
        state = state.replace(teacher_params=jax.tree.map(jnp.copy, spoiled))
      state, metrics = compiled_trial.train(
        state, rate, setting=setting, num_steps=num_steps
      )
      history.append(metrics)
    return state, history

  return run


def test_a_seed_decides_everything(moved):
  (state, history), (again, same) = moved(), moved()
  jax.tree.map(np.testing.assert_array_equal, state, again)
  jax.tree.map(np.testing.assert_array_equal, history, same)
  other, _ = moved(seed=1)
  assert differ(state.params, other.params)


def test_blocks_do_not_matter(moved):
  whole, _ = moved(blocks=(6, 6))
  cut, _ = moved(blocks=(12,))
  assert whole.step == cut.step == 12
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
    whole.params,
    cut.params,
  )


def test_the_learning_rate_is_no_part_of_the_program(moved, base):
  moved()
  programs = compiled_trial.train._cache_size()
  still, _ = moved(rate=np.float32(0))
  far, _ = moved(rate=np.float32(3e-3))
  assert compiled_trial.train._cache_size() == programs
  jax.tree.map(np.testing.assert_array_equal, still.params, base)
  assert differ(far.params, base)


@pytest.mark.parametrize("mini_batch_size", [None, 16])
def test_a_learning_rate_that_decays_ends_at_zero(base, mini_batch_size):
  setting = tiny.setting(decay_steps=12, mini_batch_size=mini_batch_size)
  state = compiled_trial.init_state(setting, base, 0)
  params = [base]
  for _ in range(13):
    state, _ = compiled_trial.train(state, RATE, setting=setting, num_steps=1)
    params.append(jax.tree.map(np.asarray, state.params))
  # Steps are counted from 0: the twelfth is still above it, the next is not.
  assert all(differ(*pair) for pair in itertools.pairwise(params[:13]))
  jax.tree.map(np.testing.assert_array_equal, params[12], params[13])


def test_a_spoiled_teacher_is_held(moved, base):
  spoiled = decoder.init(tiny.NETWORK, jax.random.key(9))
  rate = np.float32(0)  # the student stays where it is
  state, (good, bad) = moved(rate=rate, blocks=(6, 6), spoiled=spoiled)
  assert good["guard"] == 0
  assert bad["guard"] == 1
  # One step before the first look at it; from then on it does not move.
  expected = optax.incremental_update(base, spoiled, 0.1)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
    state.teacher_params,
    expected,
  )


def test_held_out_problems_are_the_same_for_all(base):
  key = jax.random.key(11)
  setting = dataclasses.replace(tiny.setting(), objective=None, teacher=None)
  values = compiled_trial.evaluate(
    base,
    base,
    key,
    setting=setting,
    num_problems=256,
    num_samples=4,
  )
  rewards = compiled_trial.held_out_rewards(
    base,
    key,
    setting=setting,
    num_problems=256,
    num_samples=4,
  )
  assert rewards.shape == (256, 4)
  np.testing.assert_allclose(values["avg"], rewards.mean(), rtol=1e-6)
  np.testing.assert_allclose(values["length"], 3.0, atol=0.05)
  np.testing.assert_allclose(values["good_route"], 0.25, atol=0.05)
  assert values["p_eos"] < 0.02
  assert values["teacher"] > 0.95
  # The route, then the digit of a code or a guess, then the certain end.
  expected = (0.562 + 0.25 * 1.552 + 0.75 * 2.303) / 3
  np.testing.assert_allclose(values["entropy"], expected, atol=0.06)
