"""One training step against plain autodiff, and what must not change it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import distil_jax as dj
from distil_jax import config
from distil_jax.models import decoder, layers
from distil_jax.training import build_step, optimizers, train_state
from distil_jax.training.setup import train_steps
from tests import networks
from tests.networks import assert_close, distance

RATE = 0.3
SGD = optax.sgd(RATE)


@pytest.fixture(scope="module")
def network():
  return networks.network(seed=3)


@pytest.fixture(scope="module")
def batch():
  return networks.random_batch(seed=3)


@pytest.fixture(scope="module")
def teacher(network):
  return networks.random_params(network.params, seed=4)


def copy(tree):
  return jax.tree.map(jnp.copy, tree)


def state_of(params, teacher=None, optimizer=SGD):
  """A state with arrays of its own, so that it can be donated."""
  state = train_state.init_state(
    copy(params), optimizer=optimizer, keeps_teacher=False, seed=0
  )
  return state.replace(
    teacher_params=None if teacher is None else copy(teacher)
  )


def distil_step(
  network,
  *,
  optimizer=SGD,
  num_micro_batches=1,
  ema_rate=None,
  **objective,
):
  teacher = config.TeacherConfig(parameters="frozen")
  if ema_rate is not None:
    teacher = config.TeacherConfig(parameters="ema", ema_rate=ema_rate)
  return build_step.train_step(
    config.DistilConfig(**{**networks.PUBLISHED, "chunk_size": 2, **objective}),
    teacher,
    graphdef=network.graphdef,
    optimizer=optimizer,
    group_size=4,
    num_sequences=8,
    micro_batch_size=8 // num_micro_batches,
  )


# Each is compiled once for the tests that vary only its input.
@pytest.fixture(scope="module")
def plain_step(network):
  return jax.jit(distil_step(network))


@pytest.fixture(scope="module")
def adam():
  optimizer = optimizers.make_optimizer(
    optax.constant_schedule(0.1), weight_decay=0.5
  )
  return optimizer


@pytest.fixture(scope="module")
def adam_step(network, adam):
  """AdamW, and a teacher that follows by a quarter."""
  return jax.jit(distil_step(network, optimizer=adam, ema_rate=0.25))


def assert_same(tree, expected):
  jax.tree.map(np.testing.assert_array_equal, tree, expected)


@functools.partial(jax.jit, static_argnames=("graphdef", "cost"))
def dense_statistics(params, teacher, batch, *, graphdef, cost):
  """Costs and log-probabilities `[B, T]`, with all logits in memory."""
  tables = []
  for policy, ids, mask in (
    (params, batch.prompt_ids, batch.prompt_mask),
    (teacher, batch.teacher_prompt_ids, batch.teacher_prompt_mask),
  ):
    hidden = decoder.hidden_states(
      graphdef,
      policy,
      jnp.concatenate([ids, batch.completion_ids], axis=1),
      jnp.concatenate([mask, batch.completion_mask], axis=1),
    )
    before = hidden[:, ids.shape[1] - 1 : -1]
    tables.append(jax.nn.log_softmax(before @ layers.unembedding(policy)))
  student, expert = tables[0], jax.lax.stop_gradient(tables[1])
  costs = -jnp.sum(jnp.exp(expert) * student, axis=-1)
  if cost == "kl":
    costs += jnp.sum(jnp.exp(expert) * expert, axis=-1)
  chosen = jnp.take_along_axis(student, batch.completion_ids[..., None], -1)
  return costs, chosen[..., 0]


def dense_value_and_gradients(network, teacher, batch, form):
  """The surrogate by hand: its weights as numbers, then one derivative."""
  statistics = functools.partial(
    dense_statistics, graphdef=network.graphdef, cost=form["cost"]
  )
  costs, _ = statistics(network.params, teacher, batch)
  mask = np.asarray(batch.completion_mask)
  # A sequence without signal must not stand in its group's baseline.
  learned = mask * np.asarray(batch.sample_mask)[:, None]
  scores = score_weights_by_hand(np.asarray(costs), learned, form)
  shares = shares_by_hand(
    mask, np.asarray(batch.sample_mask), form["aggregation"]
  )

  def loss(params):
    costs, chosen = statistics(params, teacher, batch)
    return jnp.sum(shares * (costs + scores * chosen))

  return jax.jit(jax.value_and_grad(loss))(network.params)


def shares_by_hand(mask, sample_mask, aggregation):
  """What each token counts in the average over the batch. `[B, T]`."""
  shares = np.zeros(mask.shape, np.float32)
  num_tokens = mask[sample_mask == 1].sum()
  for row in np.flatnonzero(sample_mask):
    size = mask[row].sum()
    if aggregation == "token_mean":
      shares[row, :size] = 1 / num_tokens
    else:
      shares[row, :size] = 1 / size / len(mask)
  return shares


def score_weights_by_hand(costs, mask, form):
  """future_weight (R - b) with loops over sequences and tokens."""
  size, _ = mask.shape
  lengths = mask.sum(axis=1)
  later = np.zeros(costs.shape)
  for row in range(size):
    for t in range(lengths[row] - 1):
      discounts = form["discount"] ** np.arange(lengths[row] - t - 1)
      later[row, t] = np.sum(discounts * costs[row, t + 1 : lengths[row]])
      if form["normalize"]:
        later[row, t] /= discounts.sum()
  credited = lengths - 1 if form["terminal_neutral"] else lengths
  weights = np.zeros(costs.shape, np.float32)
  for row in range(size):
    first = row - row % 4
    for t in range(credited[row]):
      others = [
        later[other, t]
        for other in range(first, first + 4)
        if other != row and t < credited[other]
      ]
      has_baseline = form["baseline"] and others
      baseline = np.mean(others) if has_baseline else 0.0
      weights[row, t] = form["future_weight"] * (later[row, t] - baseline)
  return weights


PLAIN = {  # the defaults
  "cost": "cross_entropy",
  "future_weight": 1.0,
  "normalize": True,
  "discount": 1.0,
  "baseline": None,
  "terminal_neutral": False,
  "aggregation": "token_mean",
}
OTHERWISE = {
  "cost": "kl",
  "future_weight": 0.7,
  "normalize": False,
  "discount": 0.9,
  "baseline": "leave_one_out",
  "terminal_neutral": True,
  "aggregation": "sequence_mean",
}


@pytest.mark.parametrize("form", [PLAIN, OTHERWISE], ids=["plain", "otherwise"])
def test_a_step_is_that_of_plain_autodiff(
  network, teacher, batch, form, plain_step
):
  loss, gradients = dense_value_and_gradients(network, teacher, batch, form)
  expected = jax.tree.map(lambda p, g: p - RATE * g, network.params, gradients)
  step = plain_step
  if form != PLAIN:
    step = jax.jit(distil_step(network, **form))
  state, metrics = step(state_of(network.params, teacher), batch)
  np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-5)
  norm = np.sqrt(sum(np.sum(np.square(g)) for g in jax.tree.leaves(gradients)))
  np.testing.assert_allclose(metrics["gradient_norm"], norm, rtol=1e-5)
  assert distance(expected, network.params) > 1e-2
  assert_close(state.params, expected)
  assert int(state.step) == 1


def test_a_supervised_step_is_that_of_plain_autodiff(network, batch):
  mask = np.asarray(batch.completion_mask)
  shares = shares_by_hand(mask, np.asarray(batch.sample_mask), "token_mean")

  def loss(params):
    _, chosen = dense_statistics(
      params, params, batch, graphdef=network.graphdef, cost="kl"
    )
    return -jnp.sum(shares * chosen)

  value, gradients = jax.jit(jax.value_and_grad(loss))(network.params)
  step = build_step.train_step(
    config.SFTConfig(chunk_size=2),
    config.TeacherConfig(),
    graphdef=network.graphdef,
    optimizer=SGD,
    group_size=1,
    num_sequences=8,
  )
  nothing = jnp.zeros((8, 0), jnp.int32)
  demonstrations = batch.replace(
    teacher_prompt_ids=nothing, teacher_prompt_mask=nothing
  )
  state, metrics = jax.jit(step)(state_of(network.params), demonstrations)
  np.testing.assert_allclose(metrics["loss"], value, rtol=1e-5)
  expected = jax.tree.map(lambda p, g: p - RATE * g, network.params, gradients)
  assert_close(state.params, expected)


@pytest.mark.parametrize(
  ("baseline", "aggregation", "sizes"),
  [
    # Sizes that split groups of four, and one that keeps them whole.
    ("leave_one_out", "token_mean", (1, 2, 4)),
    ("leave_one_out", "sequence_mean", (2,)),
    (None, "sequence_mean", (1,)),
  ],
)
def test_micro_batches_change_nothing(
  network, teacher, batch, baseline, aggregation, sizes
):
  policy = dj.Policy(network.config, network.graphdef, network.params, None)

  def run(size):
    settings = config.parse(
      {
        "rollout": {"num_problems": 2, "group_size": 4},
        "objective": {
          **networks.PUBLISHED,
          "kind": "distil",
          "baseline": baseline,
          "aggregation": aggregation,
          "normalize": False,
        },
        "optimizer": {"micro_batch_size": size},
        "teacher": {"parameters": "frozen"},
      }
    )
    step = jax.jit(train_steps.build_train_step(settings, policy, SGD))
    return step(state_of(network.params, teacher), batch)

  state, metrics = run(None)
  assert distance(state.params, network.params) > 1e-2
  for size in sizes:
    other, same = run(size)
    assert_close(other.params, state.params)
    assert_close(same, metrics)


def test_padding_and_sequences_without_signal_change_nothing(
  network, teacher, batch, plain_step
):
  state, metrics = plain_step(state_of(network.params, teacher), batch)
  dirty = networks.with_garbage(batch, seed=8)
  silent = batch.sample_mask[:, None] == 0
  other = networks.random_batch(seed=9)
  dirty = dirty.replace(
    completion_ids=jnp.where(
      silent, other.completion_ids, dirty.completion_ids
    ),
    completion_mask=jnp.where(silent, 1, dirty.completion_mask),
    prompt_ids=jnp.where(silent, other.prompt_ids, dirty.prompt_ids),
  )
  assert (dirty.completion_ids != batch.completion_ids).any()
  again, same = plain_step(state_of(network.params, teacher), dirty)
  assert_same(again.params, state.params)
  assert_same(same, metrics)
  real = batch.replace(completion_ids=batch.completion_ids.at[0, 0].add(1))
  moved, _ = plain_step(state_of(network.params, teacher), real)
  assert distance(moved.params, state.params) > 1e-4


def test_a_batch_without_signal_teaches_nothing(
  network, teacher, batch, plain_step
):
  silent = batch.replace(sample_mask=jnp.zeros(8, jnp.int32))
  state, metrics = plain_step(state_of(network.params, teacher), silent)
  assert_same(state.params, network.params)
  assert int(state.step) == 1
  for name, value in metrics.items():
    assert float(value) == 0.0, name


def test_without_signal_only_weight_decay_moves(
  network, teacher, batch, adam, adam_step
):
  state = state_of(network.params, teacher, adam)
  silent = batch.replace(sample_mask=jnp.zeros(8, jnp.int32))
  state, _ = adam_step(state, silent)
  expected = jax.tree.map(lambda p: p * (1 - 0.1 * 0.5), network.params)
  assert_close(state.params, expected, atol=1e-6)


def test_an_ema_teacher_follows_by_its_rate(
  network, teacher, batch, adam, adam_step
):
  state = state_of(network.params, teacher, adam)
  expected = teacher
  for _ in range(2):
    state, _ = adam_step(state, batch)
    expected = jax.tree.map(
      lambda t, p: 0.75 * t + 0.25 * p, expected, state.params
    )
    assert_close(state.teacher_params, expected, atol=1e-6)


def test_a_frozen_teacher_stays_and_a_current_one_follows(
  network, batch, plain_step
):
  start = network.params
  frozen, _ = plain_step(state_of(start, start), batch)
  current, _ = plain_step(state_of(start), batch)
  # The first step has the same teacher: nothing flows through its parameters.
  assert_close(current.params, frozen.params, atol=1e-6)
  assert current.teacher_params is None
  frozen_again, _ = plain_step(frozen, batch)
  assert_same(frozen_again.teacher_params, start)
  current_again, _ = plain_step(current, batch)
  fresh, _ = plain_step(state_of(current.params, current.params), batch)
  assert_close(current_again.params, fresh.params, atol=1e-6)
  assert distance(current_again.params, frozen_again.params) > 1e-3


def test_a_donated_state_lives_and_the_step_compiles_once(network, batch):
  init = functools.partial(
    train_state.init_state, optimizer=SGD, keeps_teacher=True, seed=0
  )
  step = jax.jit(distil_step(network), donate_argnums=0)
  for begin in (init, jax.jit(init)):
    state = begin(copy(network.params))
    for number in range(3):
      given = state
      state, metrics = step(given, batch)
      assert int(state.step) == number + 1
      assert np.isfinite(metrics["loss"])
      assert all(p.is_deleted() for p in jax.tree.leaves(given.params))
    assert_same(state.teacher_params, network.params)
    assert distance(state.params, network.params) > 1e-2
  assert step._cache_size() == 1


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf])
def test_numbers_that_fail_leave_the_state(
  network, teacher, batch, adam, adam_step, bad
):
  state, _ = adam_step(state_of(network.params, teacher, adam), batch)
  broken = {**teacher, "unembedding": teacher["unembedding"].at[0, 0].set(bad)}
  state = state.replace(teacher_params=broken)
  after, metrics = adam_step(state, batch)
  assert not np.isfinite(metrics["loss"])
  assert int(after.step) == 1
  assert_same(after, state)


def test_warm_up_and_cosine_by_hand():
  schedule = optimizers.make_schedule(
    learning_rate=2.0, warmup_steps=4, schedule="cosine", num_steps=10
  )
  rates = [float(schedule(step)) for step in range(11)]
  np.testing.assert_allclose(rates[:5], [0.5, 1.0, 1.5, 2.0, 2.0], rtol=1e-6)
  falling = [1 + np.cos(np.pi * n / 6) for n in range(7)]
  np.testing.assert_allclose(rates[4:], falling, atol=1e-6)


@pytest.mark.parametrize(
  ("warmup_steps", "expected"),
  [(0, [2.0, 2.0, 2.0]), (1, [2.0, 2.0, 2.0]), (2, [1.0, 2.0, 2.0])],
)
def test_warm_up_to_a_constant(warmup_steps, expected):
  schedule = optimizers.make_schedule(
    learning_rate=2.0, warmup_steps=warmup_steps
  )
  np.testing.assert_allclose([schedule(n) for n in range(3)], expected)


def test_cosine_needs_the_number_of_steps():
  with pytest.raises(ValueError, match="num_steps"):
    optimizers.make_schedule(learning_rate=1.0, schedule="cosine")


def adam_moves(gradients, **settings):
  """What each of a row of scalar gradients moves a parameter by."""
  schedule = optimizers.make_schedule(
    learning_rate=settings.pop("learning_rate"),
    warmup_steps=settings.pop("warmup_steps", 0),
  )
  optimizer = optimizers.make_optimizer(schedule, weight_decay=0.0, **settings)
  param = {"w": jnp.float32(0.0)}
  state = optimizer.init(param)
  moves = []
  for gradient in gradients:
    updates, state = optimizer.update(
      {"w": jnp.float32(gradient)}, state, param
    )
    moves.append(float(updates["w"]))
  return moves


def test_the_optimizer_follows_its_schedule():
  """Under a constant gradient Adam moves by the learning rate."""
  moves = adam_moves([1.0] * 4, learning_rate=0.4, warmup_steps=4)
  np.testing.assert_allclose(moves, [-0.1, -0.2, -0.3, -0.4], rtol=1e-4)


def test_gradients_are_clipped_before_the_moments():
  clipped = adam_moves([5.0, 1.0], learning_rate=0.4, max_gradient_norm=1.0)
  np.testing.assert_allclose(clipped, [-0.4, -0.4], rtol=1e-4)
  free = adam_moves([5.0, 1.0], learning_rate=0.4, max_gradient_norm=None)
  # Moments after both: m = (.9 * .5 + .1) / .19, v = (.999 * .025 + .001) /
  # .001999, with betas .9 and .999.
  second = -0.4 * (0.55 / 0.19) / np.sqrt(0.025975 / 0.001999)
  np.testing.assert_allclose(free, [-0.4, second], rtol=1e-4)


def test_bfloat16_parameters_have_float32_moments(batch):
  half = networks.network(
    seed=3, param_dtype="bfloat16", compute_dtype="bfloat16"
  )
  optimizer = optimizers.make_optimizer(optax.constant_schedule(0.05))
  state = train_state.init_state(
    half.params, optimizer=optimizer, keeps_teacher=True, seed=0
  )
  step = jax.jit(
    distil_step(half, optimizer=optimizer, ema_rate=0.5, chunk_size=None)
  )
  after, metrics = step(state, batch)
  jax.tree.map(
    lambda a, b: np.testing.assert_equal(
      (a.dtype, a.shape), (b.dtype, b.shape)
    ),
    after,
    state,
  )
  for tree in (after.params, after.teacher_params):
    assert {p.dtype for p in jax.tree.leaves(tree)} == {jnp.dtype("bfloat16")}
  adam = optax.tree_utils.tree_get(after.opt_state, "mu")
  square = optax.tree_utils.tree_get(after.opt_state, "nu")
  for moments in (adam, square):
    assert {m.dtype for m in jax.tree.leaves(moments)} == {jnp.dtype("float32")}
  assert np.isfinite(metrics["loss"])
  assert distance(after.params, half.params) > 1e-2


def test_a_bfloat16_teacher_like_its_student_stays(network, batch):
  half = jax.tree.map(lambda p: p.astype(jnp.bfloat16), network.params)
  still = optax.sgd(0.0)
  step = jax.jit(distil_step(network, optimizer=still, ema_rate=0.002))
  state = state_of(half, half, still)
  for _ in range(3):
    state, _ = step(state, batch)
  assert_same(state.teacher_params, half)


@pytest.mark.parametrize("wrap", [jax.jit, jax.checkpoint])
@pytest.mark.parametrize("kind", ["distil", "grpo"])
def test_a_loss_may_stand_inside_a_transformation(
  network, teacher, batch, wrap, kind
):
  objective = (
    config.DistilConfig(chunk_size=2)
    if kind == "distil"
    else config.GRPOConfig()
  )
  built = build_step.train_step(
    objective,
    config.TeacherConfig(),
    graphdef=network.graphdef,
    optimizer=SGD,
    group_size=4,
    num_sequences=8,
  ).keywords["objective"]
  prepared = built.prepare_fn(batch)

  def loss(params, batch):
    return built.loss_fn(params, teacher, batch)[0]

  expected = jax.jit(jax.grad(loss))(network.params, prepared)
  inner = jax.jit(jax.grad(wrap(loss)))(network.params, prepared)
  assert distance(expected, jax.tree.map(np.zeros_like, expected)) > 1e-3
  assert_close(inner, expected)
