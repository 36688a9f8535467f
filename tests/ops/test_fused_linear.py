"""Time cut into chunks: nothing changes but memory and the order of sums."""

import functools
import itertools
import types

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from distil_jax import objectives
from distil_jax.ops import (
  chunking,
  credit,
  fused_linear,
  fused_statistics,
  masking,
  token_statistics,
)
from distil_jax.ops.divergences import Divergence
from tests import formulas, references

SIZE, LENGTH, WIDTH, VOCAB_SIZE = 6, 7, 16, 11
LENGTHS = np.array([7, 3, 1, 0, 6, 4])
MASK = (np.arange(LENGTH) < LENGTHS[:, None]).astype(np.int32)
# A block of two columns: chunks of more are read and pulled block by block.
TWO_COLUMNS = 2 * SIZE * VOCAB_SIZE
DIVERGENCE = Divergence("sdpo", weight=0.3, top_k=4, temperature=1.3)


def random_inputs(seed=0, dtype=np.float64):
  """Hidden states and unembedding of student and teacher, and ids."""
  rng = np.random.default_rng(seed)
  shapes = (
    (SIZE, LENGTH, WIDTH),
    (WIDTH, VOCAB_SIZE),
    (SIZE, LENGTH, 5),
    (5, VOCAB_SIZE),
  )
  arrays = [rng.normal(0, 0.7, shape).astype(dtype) for shape in shapes]
  ids = rng.integers(0, VOCAB_SIZE, (SIZE, LENGTH)).astype(np.int32)
  return (*arrays, ids)


def assert_close(actual, expected, tolerance=1e-11):
  """Trees, relative to the largest entry of each array."""

  def check(actual, expected):
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert actual.shape == expected.shape
    error = np.max(np.abs(actual - expected))
    assert error <= tolerance * np.max(np.abs(expected)), error

  jax.tree.map(check, actual, expected)


@pytest.fixture
def in_float64():
  with jax.enable_x64(True):
    yield


def sources(student, matrix, teacher, teacher_matrix, ids):
  """What can be read of a student: beside a teacher, beside lists, alone."""
  lists = np.random.default_rng(3)
  candidates = lists.integers(0, VOCAB_SIZE, (SIZE, LENGTH, 3))
  log_probs = lists.normal(-2, 1, (SIZE, LENGTH, 3)).astype(np.float32)
  expert = token_statistics.DenseTeacher((teacher,), (teacher_matrix,))
  return {
    "compared": fused_statistics.compared(
      student, matrix, expert, ids, DIVERGENCE, MASK
    ),
    "listed": fused_statistics.compared_with_list(
      student,
      matrix,
      token_statistics.SparseTeacher(
        candidates, log_probs, "top_k", np.zeros((SIZE, LENGTH), np.float32)
      ),
      ids,
      Divergence(tail=False),
    ),
    "alone": fused_statistics.alone(student, matrix, ids),
  }


def dense_sources(student, matrix, teacher, teacher_matrix, ids):
  """The same from all logits at once, for autodiff."""
  logits = student @ matrix
  own = jax.nn.log_softmax(logits)
  lists = np.random.default_rng(3)
  candidates = lists.integers(0, VOCAB_SIZE, (SIZE, LENGTH, 3))
  log_probs = lists.normal(-2, 1, (SIZE, LENGTH, 3)).astype(np.float32)
  listed = jax.nn.log_softmax(jnp.asarray(log_probs))
  kept = jax.nn.log_softmax(jnp.take_along_axis(logits, candidates, -1))
  mine = {
    "log_probs": jnp.take_along_axis(own, ids[..., None], -1)[..., 0],
    "entropies": -jnp.sum(jnp.exp(own) * own, -1),
  }
  compared = token_statistics.from_logits(
    logits, (teacher * MASK[..., None]) @ teacher_matrix, ids, DIVERGENCE
  )
  return {
    "compared": {
      name: getattr(compared, name)
      for name in ("costs", "log_probs", "entropies", "cross_entropies")
    },
    "listed": {"costs": -jnp.sum(jnp.exp(listed) * kept, -1), **mine},
    "alone": mine,
  }


def token_losses(statistics, rows):
  """Any function of what has a gradient; 0 where the rows are."""
  losses = rows[0] * jnp.sin(statistics["log_probs"])
  losses += rows[1] * statistics["entropies"] ** 2
  if "costs" in statistics:
    losses += rows[2] * statistics["costs"]
  return losses


def as_dict(statistics):
  fields = getattr(statistics, "_asdict", lambda: vars(statistics))()
  return {
    name: fields[name]
    for name in ("costs", "log_probs", "entropies", "cross_entropies")
    if name in fields
  }


def loss_with_reports(carry, statistics, rows):
  """`token_losses` for `fused_loss`; counts what comes later."""
  losses = token_losses(as_dict(statistics), rows["weights"])
  mask = rows["mask"]
  later = carry[:, None] + jnp.cumsum(mask[:, ::-1], 1)[:, ::-1]
  reports = {"losses": losses, "later": later, "statistics": statistics}
  return losses, (carry + jnp.sum(mask, 1), reports)


WEIGHTS = tuple(np.random.default_rng(5).normal(size=(3, SIZE, LENGTH)))


@functools.cache
def dense_results():
  """Statistics, the sum of losses and its gradient, by source."""

  @jax.jit
  def run(*arrays):
    def value(student, matrix, name):
      statistics = dense_sources(student, matrix, *arrays[2:])[name]
      losses = token_losses(statistics, WEIGHTS)
      return jnp.sum(losses), (statistics, losses)

    return {
      name: jax.value_and_grad(value, (0, 1), has_aux=True)(*arrays[:2], name)
      for name in ("compared", "listed", "alone")
    }

  with jax.enable_x64(True):
    return jax.tree.map(np.asarray, run(*random_inputs()))


@pytest.mark.usefixtures("in_float64")
class TestAgainstAutodiff:
  @pytest.mark.parametrize(
    ("chunk_size", "block"),
    [
      (1, None),
      (3, None),
      (LENGTH - 1, None),
      (LENGTH, None),
      (LENGTH + 5, None),
      (None, None),
      (LENGTH - 1, 1),
      (3, TWO_COLUMNS),
      (None, TWO_COLUMNS),
    ],
  )
  def test_chunks_and_blocks_change_nothing(
    self, chunk_size, block, monkeypatch
  ):
    if block is not None:
      monkeypatch.setattr(chunking, "_BLOCK", block)
    rows = {"weights": WEIGHTS, "mask": MASK}

    @jax.jit
    def run(*arrays):
      def by_statistics(student, matrix, name):
        source = sources(student, matrix, *arrays[2:])[name]
        statistics = source.tiled(chunk_size=chunk_size).statistics()
        losses = token_losses(as_dict(statistics), WEIGHTS)
        return jnp.sum(losses), statistics

      def fused(student, matrix, name):
        source = sources(student, matrix, *arrays[2:])[name]
        return source.tiled(chunk_size=chunk_size).fused_loss(
          loss_with_reports, rows, jnp.zeros(SIZE, int)
        )

      return {
        name: [
          jax.value_and_grad(by_statistics, (0, 1), has_aux=True)(
            *arrays[:2], name
          ),
          jax.value_and_grad(fused, (0, 1), has_aux=True)(*arrays[:2], name),
          fused(*arrays[:2], name),
        ]
        for name in ("compared", "listed", "alone")
      }

    later = np.cumsum(MASK[:, ::-1], 1)[:, ::-1]
    for name, results in run(*random_inputs()).items():
      by_statistics, fused, only_value = results
      (value, (statistics, losses)), gradients = dense_results()[name]
      assert all(np.max(np.abs(x)) > 0.1 for x in gradients)
      (actual, found), actual_gradients = by_statistics
      # float32 lists
      tolerance = 1e-6 if name == "listed" else 1e-11
      near = functools.partial(assert_close, tolerance=tolerance)
      near(actual, value)
      near({k: as_dict(found)[k] for k in statistics}, statistics)
      near(actual_gradients, gradients)
      (actual, reports), actual_gradients = fused
      near(actual, value)
      near(actual_gradients, gradients)
      assert_close((actual, reports), only_value)
      assert_close(reports["statistics"], found)
      near(reports["losses"], losses)
      np.testing.assert_array_equal(reports["later"], later)

  def test_tokens_in_a_row_with_a_kind_and_a_temperature(self):
    student, matrix, teacher, teacher_matrix, ids = random_inputs(seed=1)
    # 42 tokens in chunks of 9, of which the last has three too many.
    student, teacher = (x.reshape(-1, x.shape[-1]) for x in (student, teacher))
    ids, mask = ids.ravel(), MASK.ravel()
    weights = np.stack([x.ravel() for x in WEIGHTS])
    settings = {"divergence": "reverse_kl", "temperature": 1.7}

    @jax.jit
    def run(student, matrix):
      def chunked(student, matrix):
        statistics = references.token_statistics(
          student,
          matrix,
          jnp.where(mask[:, None], teacher, jnp.nan),
          teacher_matrix,
          ids,
          mask=mask,
          chunk_size=9,
          **settings,
        )
        return jnp.sum(token_losses(as_dict(statistics), weights)), statistics

      def dense(student, matrix):
        statistics = token_statistics.from_logits(
          student @ matrix,
          (teacher * mask[:, None]) @ teacher_matrix,
          ids,
          Divergence("reverse_kl", temperature=1.7),
        )
        return jnp.sum(token_losses(as_dict(statistics), weights)), statistics

      return [
        jax.value_and_grad(total, (0, 1), has_aux=True)(student, matrix)
        for total in (chunked, dense)
      ]

    actual, expected = run(student, matrix)
    assert actual[0][1].costs.shape == ids.shape
    assert_close(actual, expected)


FUTURES = [
  {"normalize": normalize, "baseline": baseline, "terminal_neutral": neutral}
  for normalize in (False, True)
  for baseline in (None, "leave_one_out", "batch_mean")
  for neutral in (False, True)
]
FACTORS = np.random.default_rng(6).uniform(0.5, 1.5, len(FUTURES))
GROUPS = {"discount": 0.9, "group_size": 3}
# Of the local cost, and of what is to come.
COSTS = {
  "as_published": (Divergence(), {"cost": "cross_entropy"}),
  "of_two_kinds": (
    Divergence("reverse_kl", top_k=4),
    {"cost": "kl", "local_cost": "reverse_kl", "top_k": 4},
  ),
}


def credited_loss(cost, *, forgets=False):
  """All settings of `FUTURES` at once, each with its factor and its carry."""

  def loss(carry, statistics, rows):
    costs = objectives.token_costs(statistics, rows["mask"], cost=cost)
    total, carries, reports = 0.0, [], []
    for settings, factor, later in zip(FUTURES, FACTORS, carry, strict=True):
      if forgets:
        later = credit.nothing_later(SIZE, costs.dtype)
      scores, future, later = references.score_weights_before(
        costs, rows["mask"], later, **GROUPS, **settings
      )
      losses = objectives.feedback_losses(statistics, rows["mask"], scores)
      total += factor * losses
      carries.append(later)
      reports.append({"losses": losses, "future_costs": future})
    return rows["weights"] * total, (tuple(carries), reports)

  return loss


def run_credited(arrays, costs, chunk_size, **settings):
  """Value, reports and gradients in the student, by `fused_loss`."""
  divergence, distil_settings = COSTS[costs]
  student, matrix, teacher, teacher_matrix, ids = arrays
  expert = token_statistics.DenseTeacher((teacher,), (teacher_matrix,))
  rows = {"mask": jnp.asarray(MASK), "weights": token_mean()}

  def value(student, matrix):
    source = fused_statistics.compared(
      student, matrix, expert, ids, divergence, MASK
    )
    carry = credit.nothing_later(SIZE, student.dtype)
    return source.tiled(chunk_size=chunk_size).fused_loss(
      credited_loss(distil_settings["cost"], **settings),
      rows,
      (carry,) * len(FUTURES),
    )

  return jax.value_and_grad(value, (0, 1), has_aux=True)(student, matrix)


def token_mean():
  return masking.aggregation_weights(
    jnp.asarray(MASK), None, aggregation="token_mean"
  )


@functools.cache
def distilled(costs):
  """The same by `references.distil`, from all logits at once."""
  _, settings = COSTS[costs]

  @jax.jit
  def run(student, matrix, teacher, teacher_matrix, ids):
    def value(student, matrix):
      total, reports = 0.0, []
      for future, factor in zip(FUTURES, FACTORS, strict=True):
        loss = references.distil(
          student @ matrix,
          teacher @ teacher_matrix,
          ids,
          jnp.asarray(MASK),
          **settings,
          **GROUPS,
          **future,
        )
        total += factor * loss.value
        reports.append(
          {"losses": loss.token_losses, "future_costs": loss.future_costs}
        )
      return total, reports

    return jax.value_and_grad(value, (0, 1), has_aux=True)(student, matrix)

  with jax.enable_x64(True):
    return jax.tree.map(np.asarray, run(*random_inputs(seed=2)))


@pytest.mark.usefixtures("in_float64")
class TestCredit:
  @pytest.mark.parametrize(
    ("costs", "chunk_size"),
    [
      ("as_published", 1),
      ("as_published", 2),
      ("as_published", 3),
      ("as_published", None),
      ("of_two_kinds", 2),
    ],
  )
  def test_equals_distil_on_all_logits(self, costs, chunk_size):
    run = jax.jit(run_credited, static_argnums=(1, 2))
    actual = run(random_inputs(seed=2), costs, chunk_size)
    expected = distilled(costs)
    assert_close(actual, expected)
    (_, reports), gradients = expected
    assert all(np.max(np.abs(x)) > 1e-2 for x in gradients)
    # Each setting is seen, but for a last token without a baseline: nothing
    # comes after it anyway.
    losses = [
      report["losses"]
      for report, settings in zip(reports, FUTURES, strict=True)
      if settings["baseline"] or not settings["terminal_neutral"]
    ]
    for one, other in itertools.combinations(losses, 2):
      assert np.max(np.abs(one - other)) > 1e-3

  def test_a_loss_that_forgets_what_comes_later_differs(self):
    run = jax.jit(
      functools.partial(run_credited, forgets=True), static_argnums=(1, 2)
    )
    (value, _), gradients = run(random_inputs(seed=2), "as_published", 2)
    (expected, _), expected_gradients = distilled("as_published")
    assert abs(value - expected) > 1e-2 * abs(expected)
    for pair in zip(gradients, expected_gradients, strict=True):
      assert np.max(np.abs(np.subtract(*pair))) > 1e-3

  def test_the_end_of_time_comes_first(self):
    student, matrix, *_, ids = random_inputs()

    def loss(carry, statistics, rows):
      columns = jnp.broadcast_to(carry, rows["time"].shape)
      reports = {"order": columns, "time": rows["time"]}
      return 0 * statistics.log_probs, (carry + 1, reports)

    @jax.jit
    def run(time):
      source = fused_statistics.alone(student, matrix, ids)
      return source.tiled(chunk_size=2).fused_loss(loss, {"time": time}, 0)

    time = np.broadcast_to(np.arange(LENGTH), (SIZE, LENGTH))
    _, reports = run(time)
    np.testing.assert_array_equal(reports["time"], time)
    # Four chunks; the last has one column that is not there.
    np.testing.assert_array_equal(
      reports["order"], [[3, 3, 2, 2, 1, 1, 0]] * SIZE
    )


class TestStretches:
  """The functions of `credit` that are carried from chunk to chunk."""

  @pytest.mark.parametrize("discount", [1.0, 0.9, 0.1])
  @pytest.mark.parametrize("normalize", [False, True])
  def test_future_costs_of_stretches_are_those_of_the_whole(
    self, discount, normalize
  ):
    rng = np.random.default_rng(7)
    costs = np.where(MASK, rng.exponential(2, MASK.shape), np.nan)
    settings = {"discount": discount, "normalize": normalize}
    with jax.enable_x64(True):
      whole = credit.future_costs(jnp.asarray(costs), MASK, **settings)
      for cuts in ([0, 7], [0, 1, 7], [0, 3, 4, 7], range(LENGTH + 1)):
        later = credit.nothing_later(SIZE, jnp.float64)
        parts = []
        for start, end in reversed(list(itertools.pairwise(cuts))):
          part, later = credit.future_costs_before(
            jnp.asarray(costs[:, start:end]),
            MASK[:, start:end],
            later,
            **settings,
          )
          parts.insert(0, part)
        np.testing.assert_allclose(
          np.concatenate(parts, 1), whole, rtol=1e-13, err_msg=str(cuts)
        )
        # Before all of it lies its first cost, and what came after that.
        first = np.where(MASK[:, 0], costs[:, 0], 0)
        plain = credit.future_costs(
          jnp.asarray(costs), MASK, discount=discount, normalize=False
        )
        np.testing.assert_allclose(
          later.costs, first + discount * plain[:, 0], rtol=1e-13
        )
        powers = discount ** np.arange(LENGTH)
        np.testing.assert_allclose(later.counts, MASK @ powers, rtol=1e-13)

  def test_what_is_followed_in_stretches_is_so_in_the_whole(self):
    with_holes = MASK * (np.arange(LENGTH, dtype=np.int32) % 3 != 1)
    is_followed = jax.jit(credit.is_followed)
    before = jax.jit(
      functools.partial(credit.future_costs_before, discount=0.1)
    )
    for counts in (MASK, with_holes):
      whole = np.asarray(is_followed(counts))
      # All but the last token, and of holes those that lie before it.
      np.testing.assert_array_equal(
        np.sum(counts * (1 - whole), 1), counts.any(axis=1)
      )
      for size in (1, 3, LENGTH):
        later = credit.nothing_later(SIZE)
        for start in reversed(range(0, LENGTH, size)):
          mask = counts[:, start : start + size]
          np.testing.assert_array_equal(
            is_followed(mask, later), whole[:, start : start + size]
          )
          _, later = before(np.zeros(mask.shape, np.float32), mask, later)


def masked_loss(carry, statistics, rows):
  """A plain one, with credit for the token before: float32 throughout."""
  costs = masking.where_counts(statistics.costs, rows["mask"])
  scores, _, carry = references.score_weights_before(costs, rows["mask"], carry)
  losses = objectives.feedback_losses(statistics, rows["mask"], scores)
  return losses, (carry, {"costs": costs})


def fused(student, matrix, teacher, teacher_matrix, ids, mask=MASK, **settings):
  expert = token_statistics.DenseTeacher((teacher,), (teacher_matrix,))
  source = fused_statistics.compared(
    student, matrix, expert, ids, DIVERGENCE, mask
  )
  return source.tiled(**settings).fused_loss(
    masked_loss, {"mask": jnp.asarray(mask)}, credit.nothing_later(len(mask))
  )


class TestWhatGradientsSee:
  def test_scale_garbage_and_the_teacher(self):
    # One compilation: gradients of a loss, and of one three times as large.
    @jax.jit
    def run(*arrays):
      def value(*arrays, scale):
        value, reports = fused(*arrays, ids, chunk_size=3)
        return scale * value, reports

      return [
        jax.value_and_grad(
          functools.partial(value, scale=scale), range(4), has_aux=True
        )(*arrays)
        for scale in (1.0, -3.0)
      ]

    *arrays, ids = random_inputs(dtype=np.float32)
    clean = run(*arrays)
    ((value, reports), gradients), ((scaled, _), scaled_gradients) = clean
    assert_close(scaled, -3 * value, 1e-6)
    for scaled, once in zip(scaled_gradients[:2], gradients[:2], strict=True):
      assert_close(scaled, -3 * once, 1e-6)
    assert all(np.max(np.abs(x)) > 0.1 for x in gradients[:2])
    # Neither a teacher nor padding learns.
    for zeros in (*gradients[2:], *scaled_gradients[2:]):
      np.testing.assert_array_equal(zeros, 0.0)
    np.testing.assert_array_equal(gradients[0][MASK == 0], 0.0)
    np.testing.assert_array_equal(reports["costs"][MASK == 0], 0.0)
    for garbage in (np.nan, np.inf):
      dirty = list(arrays)
      dirty[2] = np.where(MASK[..., None], dirty[2], np.float32(garbage))
      jax.tree.map(np.testing.assert_array_equal, run(*dirty), clean)

  def test_reports_and_rows_are_constants(self):
    student, matrix, teacher, teacher_matrix, ids = random_inputs(
      dtype=np.float32
    )

    def reported(student, matrix):
      _, reports = fused(student, matrix, teacher, teacher_matrix, ids)
      return jnp.sum(reports["costs"])

    def weighed(weights):
      source = fused_statistics.alone(student, matrix, ids)
      return source.fused_loss(
        lambda carry, found, rows: (rows * found.log_probs, (carry, ())),
        weights,
      )[0]

    @jax.jit
    def run(student, matrix, weights):
      gradients = jax.grad(reported, (0, 1))(student, matrix)
      return (*gradients, jax.grad(weighed)(weights))

    for gradient in run(student, matrix, jnp.asarray(MASK, jnp.float32)):
      np.testing.assert_array_equal(gradient, 0.0)

  def test_a_chunk_has_a_column_at_least(self):
    with pytest.raises(ValueError, match="chunk_size=0 must be at least 1"):
      fused(*random_inputs(dtype=np.float32), chunk_size=0)

  @pytest.mark.parametrize(
    ("size", "length"),
    [
      (0, 7),
      (2, 0),
    ],
  )
  def test_nothing_at_all(self, size, length):
    def value(hidden, matrix):
      ids = jnp.zeros((size, length), int)
      found = fused_statistics.alone(hidden, matrix, ids)
      total, _ = found.fused_loss(
        lambda carry, found, rows: (rows * found.log_probs, (carry, ())),
        jnp.zeros((size, length)),
      )
      return total + jnp.sum(found.statistics().log_probs)

    value, gradients = jax.jit(jax.value_and_grad(value, (0, 1)))(
      np.zeros((size, length, WIDTH), np.float32),
      np.ones((WIDTH, VOCAB_SIZE), np.float32),
    )
    assert value == 0
    assert [x.shape for x in gradients] == [
      (size, length, WIDTH),
      (WIDTH, VOCAB_SIZE),
    ]
    np.testing.assert_array_equal(gradients[1], 0.0)


class TestPrecision:
  @pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
  def test_small_contributions_add_up(self, dtype):
    # Both words are equally likely, so the slope is half of each weight, and
    # hidden states are 1. From the end of time: 1, and then 256 times 2⁻⁹.
    length = 257
    weights = np.full((1, length), 2.0**-8, np.float32)
    weights[0, -1] = 2
    hidden = jnp.ones((1, length, 1), jnp.bfloat16)
    matrix = jnp.zeros((1, 2), dtype)

    def source(hidden, matrix):
      return fused_statistics.alone(hidden, matrix, np.zeros((1, length), int))

    @jax.jit
    def run(hidden, matrix):
      def by_fused_loss(hidden, matrix):
        return (
          source(hidden, matrix)
          .tiled(chunk_size=1)
          .fused_loss(
            lambda carry, found, rows: (rows * found.log_probs, (carry, ())),
            weights,
          )[0]
        )

      def by_statistics(hidden, matrix):
        found = source(hidden, matrix).tiled(chunk_size=1).statistics()
        return jnp.sum(weights * found.log_probs)

      return [
        jax.value_and_grad(value, (0, 1))(hidden, matrix)
        for value in (by_fused_loss, by_statistics)
      ]

    for value, (of_hidden, of_matrix) in run(hidden, matrix):
      assert value.dtype == jnp.float32
      assert (of_hidden.dtype, of_matrix.dtype) == (jnp.bfloat16, dtype)
      np.testing.assert_array_equal(np.float32(of_matrix), [[1.5, -1.5]])
    # In bfloat16 all but the first are lost.
    total = ml_dtypes.bfloat16(0)
    for weight in weights[0, ::-1]:
      total = ml_dtypes.bfloat16(total + ml_dtypes.bfloat16(weight / 2))
    assert total == 1

  def test_tied_float32_weights_train_in_bfloat16(self):
    """XLA's CPU programs lack one of the products that it could choose."""

    @jax.jit
    def of_embedding(hidden, slopes):
      hidden, slopes = (
        jnp.tanh(x).astype(jnp.bfloat16) for x in (hidden, slopes)
      )
      zeros = jnp.zeros((1, 16, 300))
      sums = fused_linear._add_outer(zeros, hidden, slopes)
      cut = types.SimpleNamespace(length=8)
      _, whole = fused_linear._finished(cut, (hidden, sums), hidden, zeros)
      return whole.T

    found = of_embedding(jnp.ones((8, 4, 16)), jnp.ones((8, 4, 300)))
    np.testing.assert_allclose(found, 32 * np.tanh(1) ** 2, rtol=1e-2)

  def test_hidden_states_in_bfloat16_and_weights_in_float32(self):
    *arrays, ids = random_inputs(dtype=np.float32)
    rounded = [x.astype(ml_dtypes.bfloat16) for x in arrays]

    @functools.partial(jax.jit, static_argnums=4)
    def run(student, matrix, teacher, teacher_matrix, chunk_size):
      return jax.value_and_grad(
        lambda *x: fused(
          *x, teacher, teacher_matrix, ids, chunk_size=chunk_size
        ),
        (0, 1),
        has_aux=True,
      )(student, matrix)

    (value, reports), gradients = run(
      rounded[0], rounded[1].astype(np.float32), *rounded[2:], 3
    )
    assert value.dtype == reports["costs"].dtype == jnp.float32
    assert [x.dtype for x in gradients] == [jnp.bfloat16, jnp.float32]
    (expected, expected_reports), references = run(
      *(x.astype(np.float32) for x in rounded), None
    )
    # Products of rounded numbers are exact in float32; slopes are rounded.
    assert_close(value, expected, 1e-5)
    assert_close(reports, expected_reports, 1e-5)
    for pair in zip(gradients, references, strict=True):
      assert_close(*map(np.float32, pair), 1e-2)


class TestLayout:
  def test_parts_of_the_batch_sum_to_the_whole(self):
    *arrays, ids = random_inputs(dtype=np.float32)
    shapes = {}

    def placed(num_shards, chunk_size):
      def place(sums):
        shapes.setdefault(num_shards, set()).add(sums.shape)
        return sums

      def by_fused_loss(student, matrix):
        value, reports = fused(
          student, matrix, *arrays[2:], ids, chunk_size=chunk_size, **where
        )
        return value, reports

      def by_statistics(student, matrix):
        found = references.token_statistics(
          student,
          matrix,
          *arrays[2:],
          ids,
          divergence=DIVERGENCE,
          chunk_size=chunk_size,
          **where,
        )
        return jnp.sum(WEIGHTS[0] * found.costs), found

      where = {
        "layout": chunking.Layout(num_shards=num_shards, shard_sums=place)
      }
      return [
        jax.value_and_grad(value, (0, 1), has_aux=True)(*arrays[:2])
        for value in (by_fused_loss, by_statistics)
      ]

    run = jax.jit(lambda: [placed(n, c) for n, c in LAYOUTS])
    # 4 do not divide 6 sequences: these are not cut.
    LAYOUTS = ((1, None), (2, 3), (6, 2), (4, 3))
    whole, *cut = run()
    for actual in cut:
      assert_close(actual, whole, 1e-5)
    assert shapes == {n: {(n, WIDTH, VOCAB_SIZE)} for n, _ in LAYOUTS if n != 4}

  @pytest.mark.parametrize("num_parts", [1, 2, 4])
  def test_a_product_in_blocks_is_the_product(self, num_parts):
    rng = np.random.default_rng(8)
    sums = rng.normal(size=(num_parts, 24, 5))
    slopes = rng.normal(size=(3, 4, 5))
    expected = sums.copy()
    hidden = rng.normal(size=(3, 4, 24))
    for part in range(num_parts):
      rows = slice(part * 4 // num_parts, (part + 1) * 4 // num_parts)
      expected[part] += np.einsum(
        "tbd,tbv->dv", hidden[:, rows], slopes[:, rows]
      )
    with jax.enable_x64(True):
      add = jax.make_jaxpr(fused_linear._add_outer)(sums, hidden, slopes)
      # One product serves where rows are many; otherwise blocks do.
      is_one = num_parts == 1
      assert any(is_product(x) for x in add.eqns) == is_one
      assert sum(map(is_product, equations(add))) == 1
      actual = fused_linear._add_outer(
        *map(jnp.asarray, (sums, hidden, slopes))
      )
    assert_close(actual, expected)


class TestMicroBatches:
  def test_two_layers_in_a_scan_equal_the_whole_batch(self):
    rng = np.random.default_rng(9)
    inputs = rng.normal(size=(SIZE, LENGTH, 4))
    *_, teacher, teacher_matrix, ids = random_inputs()
    params = {
      "layer": rng.normal(size=(4, WIDTH)),
      "matrix": rng.normal(size=(WIDTH, VOCAB_SIZE)),
    }
    # A loss may close over what belongs to a slice.
    data = (inputs, teacher, ids, MASK, rng.normal(size=SIZE))

    def loss_of(params, piece):
      inputs, teacher, ids, mask, advantages = piece

      def loss(carry, statistics, rows):
        costs = masking.where_counts(statistics.costs, rows)
        scores, _, carry = references.score_weights_before(costs, rows, carry)
        losses = objectives.feedback_losses(
          statistics, rows, scores, advantages=advantages, reward_weight=0.5
        )
        return losses, (carry, {})

      source = fused_statistics.compared(
        jnp.tanh(inputs @ params["layer"]),
        params["matrix"],
        token_statistics.DenseTeacher((teacher,), (teacher_matrix,)),
        ids,
        DIVERGENCE,
        mask,
      )
      carry = credit.nothing_later(len(mask), jnp.float64)
      return source.tiled(chunk_size=3).fused_loss(loss, mask, carry)[0]

    def dense_loss(params):
      inputs, teacher, ids, mask, advantages = map(jnp.asarray, data)
      logits = jnp.tanh(inputs @ params["layer"]) @ params["matrix"]
      statistics = token_statistics.from_logits(
        logits,
        (teacher * mask[..., None]) @ teacher_matrix,
        ids,
        DIVERGENCE,
      )
      costs = masking.where_counts(statistics.costs, mask)
      scores, _ = references.score_weights(costs, mask)
      losses = objectives.feedback_losses(
        statistics, mask, scores, advantages=advantages, reward_weight=0.5
      )
      return jnp.sum(losses)

    @jax.jit
    def run(params, data):
      def body(total, piece):
        found = jax.value_and_grad(loss_of)(params, piece)
        return jax.tree.map(jnp.add, total, found), None

      nothing = jax.tree.map(jnp.zeros_like, (jnp.zeros(()), params))
      pieces = jax.tree.map(lambda x: x.reshape(3, 2, *x.shape[1:]), data)
      total, _ = jax.lax.scan(body, nothing, pieces)
      return total, jax.value_and_grad(dense_loss)(params)

    with jax.enable_x64(True):
      actual, expected = run(params, data)
    assert all(np.max(np.abs(x)) > 0.1 for x in jax.tree.leaves(expected))
    assert_close(actual, expected)


def equations(jaxpr):
  """All of them, those of loops and calls included."""
  for equation in jaxpr.eqns:
    yield equation
    for parameter in jax.tree.leaves(list(equation.params.values())):
      if hasattr(parameter, "eqns"):
        yield from equations(parameter)


def is_product(equation, size=None):
  """A product, with an axis of that size among its operands or its result."""
  if equation.primitive.name != "dot_general":
    return False
  variables = (*equation.invars, *equation.outvars)
  return size is None or any(size in x.aval.shape for x in variables)


class TestProducts:
  """How often a loop multiplies by the unembedding, from the traced program."""

  SIZE, LENGTH, WIDTH, VOCAB_SIZE = 2, 64, 8, 97

  def per_loop(self, function, **where):
    """In each loop over time, in order; outside of all there is none."""
    shapes = (
      (self.SIZE, self.LENGTH, self.WIDTH),
      (self.WIDTH, self.VOCAB_SIZE),
    )
    arguments = [jax.ShapeDtypeStruct(x, jnp.float32) for x in shapes]
    jaxpr = jax.make_jaxpr(function)(*arguments, **where).jaxpr
    loops = [
      equation.params["jaxpr"]
      for equation in equations(jaxpr)
      if equation.primitive.name == "scan"
      and equation.params["length"] == self.LENGTH // 8
    ]
    counts = [self.count(loop) for loop in loops]
    assert sum(counts) == self.count(jaxpr)
    return [x for x in counts if x]

  def count(self, jaxpr):
    return sum(is_product(x, self.VOCAB_SIZE) for x in equations(jaxpr))

  def source(self, hidden, matrix, *, is_alone):
    ids = jnp.zeros((self.SIZE, self.LENGTH), int)
    if is_alone:
      return fused_statistics.alone(hidden, matrix, ids)
    expert = token_statistics.DenseTeacher(
      (jnp.ones((self.SIZE, self.LENGTH, 5)),),
      (jnp.ones((5, self.VOCAB_SIZE)),),
    )
    return fused_statistics.compared(hidden, matrix, expert, ids, DIVERGENCE)

  def fused(self, hidden, matrix, *, is_alone=False):
    return (
      self.source(hidden, matrix, is_alone=is_alone)
      .tiled(chunk_size=8)
      .fused_loss(
        lambda carry, found, rows: (rows * found.log_probs, (carry, {})),
        jnp.ones((self.SIZE, self.LENGTH)),
      )[0]
    )

  def summed(self, hidden, matrix, *, is_alone=False):
    source = self.source(hidden, matrix, is_alone=is_alone)
    return jnp.sum(source.tiled(chunk_size=8).statistics().log_probs)

  def test_one_pass_makes_value_and_gradient(self):
    both = jax.value_and_grad(self.fused, (0, 1))
    # Logits of both, slopes · unembeddingᵀ, hiddenᵀ · slopes.
    assert self.per_loop(both) == [4]
    assert self.per_loop(functools.partial(both, is_alone=True)) == [3]
    assert self.per_loop(self.fused) == [2]
    alone = functools.partial(self.fused, is_alone=True)
    assert self.per_loop(alone) == [1]

  def test_statistics_make_logits_again(self):
    both = jax.value_and_grad(self.summed, (0, 1))
    assert self.per_loop(both) == [2, 4]
    assert self.per_loop(functools.partial(both, is_alone=True)) == [1, 3]
    assert self.per_loop(self.summed) == [2]

  def test_blocks_make_no_more_of_them(self, monkeypatch):
    # Two columns of the eight that a chunk has.
    monkeypatch.setattr(chunking, "_BLOCK", 2 * self.SIZE * self.VOCAB_SIZE)
    both = jax.value_and_grad(self.fused, (0, 1))
    assert self.per_loop(both) == [4]


class TestMemory:
  SIZE, LENGTH, WIDTH, VOCAB_SIZE = 4, 1024, 16, 4096
  LOGITS = SIZE * LENGTH * VOCAB_SIZE * 4  # bytes: 64 MiB

  def temporaries(self, chunk_size):
    """Bytes that the compiled gradient needs besides inputs and outputs."""

    def value(*arguments):
      mask = jnp.ones((self.SIZE, self.LENGTH), jnp.int32)
      return fused(*arguments, mask=mask, chunk_size=chunk_size)[0]

    hidden = jax.ShapeDtypeStruct(
      (self.SIZE, self.LENGTH, self.WIDTH), jnp.float32
    )
    matrix = jax.ShapeDtypeStruct((self.WIDTH, self.VOCAB_SIZE), jnp.float32)
    ids = jax.ShapeDtypeStruct((self.SIZE, self.LENGTH), jnp.int32)
    gradient = jax.jit(jax.grad(value, (0, 1)))
    compiled = gradient.lower(hidden, matrix, hidden, matrix, ids).compile()
    return compiled.memory_analysis().temp_size_in_bytes

  def test_no_logits_of_all_tokens(self):
    assert self.temporaries(chunk_size=8) < self.LOGITS / 8
    # The measure sees the logits where they are.
    assert self.temporaries(chunk_size=self.LENGTH) > self.LOGITS


@pytest.mark.parametrize("chunk_size", [1, 3, 7, None])
def test_columns_that_are_not_there_have_no_loss(chunk_size):
  # Nothing but the loss itself could mask them here.
  def total(hidden):
    source = fused_statistics.alone(
      hidden, jnp.zeros((2, 4)), jnp.zeros((1, 7), int)
    )
    return source.tiled(chunk_size=chunk_size).fused_loss(
      lambda carry, found, _: (-found.log_probs, (carry, ())), ()
    )[0]

  @jax.jit
  def run(hidden):
    return *jax.value_and_grad(total)(hidden), total(hidden)

  value, gradient, only_value = run(np.zeros((1, 7, 2), np.float32))
  np.testing.assert_allclose(value, 7 * np.log(4), rtol=1e-6)
  np.testing.assert_allclose(only_value, value, rtol=1e-6)
  assert gradient.shape == (1, 7, 2)


@pytest.mark.parametrize("length", [4, 8])
@pytest.mark.parametrize("chunk_size", [3, None])
def test_rows_of_another_length_are_refused(length, chunk_size):
  ids = jnp.zeros((2, 6), int)
  source = fused_statistics.alone(jnp.zeros((2, 6, 3)), jnp.zeros((3, 5)), ids)
  with pytest.raises(AssertionError):
    source.tiled(chunk_size=chunk_size).fused_loss(
      lambda carry, found, rows: (rows * found.log_probs, (carry, ())),
      jnp.zeros((2, length)),
    )


def test_what_is_not_a_teacher_is_refused():
  hidden, matrix = jnp.zeros((2, 3, 4)), jnp.zeros((4, 7))
  ids = jnp.zeros((2, 3), int)
  run = functools.partial(references.token_statistics, hidden, matrix)
  with pytest.raises(AssertionError):  # V of 1 would broadcast
    run(hidden, jnp.zeros((4, 1)), ids)
  with pytest.raises(AssertionError):
    references.token_statistics(hidden[0], matrix, hidden, matrix, ids[0])
  with pytest.raises(AssertionError):
    run(hidden, matrix, ids + 0.5)
  with pytest.raises(ValueError, match="'sdpo' needs a weight"):
    run(hidden, matrix, ids, divergence="sdpo")
  with pytest.raises(ValueError, match="a whole number"):
    run(hidden, matrix, ids, chunk_size=2.0)
  expert = token_statistics.DenseTeacher((hidden, hidden), (matrix,))
  with pytest.raises(ValueError, match="2 hidden states and 1 unembeddings"):
    fused_statistics.compared(hidden, matrix, expert, ids, Divergence())


def test_narrow_ids_are_widened():
  logits = np.random.default_rng(0).normal(size=(1, 3, 256)).astype("f4")
  ids = np.array([[0, 200, 255]], np.uint8)
  found = jax.jit(fused_statistics.token_log_probs)(
    logits, np.eye(256, dtype=np.float32), ids
  )
  expected = [
    formulas.log_softmax(x.astype(np.float64))[i]
    for x, i in zip(logits[0], ids[0], strict=True)
  ]
  np.testing.assert_allclose(found.log_probs[0], expected, rtol=1e-5)
