"""What optimizers keep: float32 masters, shards, checkpoints, bytes."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from distil_jax import config
from distil_jax.models import decoder, sharding
from distil_jax.planning import planner as planning_planner
from distil_jax.planning.results import Hardware
from distil_jax.training import (
  build_step,
  checkpoints,
  low_precision,
  run_checks,
  train_state,
)
from distil_jax.training.logging.progress import Progress
from distil_jax.training.setup import steps as setup_step
from tests import networks

BFLOAT16 = {"param_dtype": "bfloat16"}
ROUNDING = {"stochastic_rounding": True, "master_dtype": None}
KINDS = ("adamw", "adafactor", "lion", "muon")
SHAPES = {
  "embedding": (8, 16),
  "layers": {
    "gate": (2, 16, 8),
    "output": (2, 4, 6, 16),
    "mlp_norm": (2, 16),
  },
}


def draw(seed, dtype=jnp.float32):
  rng = np.random.default_rng(seed)
  return jax.tree.map(
    lambda s: jnp.asarray(0.1 * rng.normal(size=s), dtype),
    SHAPES,
    is_leaf=lambda x: isinstance(x, tuple),
  )


def settings(kind="adamw", model=None, **optimizer):
  if kind == "adafactor":
    optimizer.setdefault("min_dim_size_to_factor", 2)
  optimizer = {"kind": kind, "learning_rate": 0.01, **optimizer}
  return config.parse({"optimizer": optimizer, "model": model or {}})


def built(found, params):
  return setup_step.build_optimizer(found, params)[0]


def follower(optimizer):
  """One update, compiled: (params, state), gradient -> (params, state)."""

  @jax.jit
  def follow(carry, gradient):
    params, state = carry
    updates, state = optimizer.update(gradient, state, params)
    return low_precision.next_params(params, updates, state), state

  return follow


def assert_same(tree, expected):
  jax.tree.map(np.testing.assert_array_equal, tree, expected)


def test_masters_move_as_float32_parameters_do():
  start, gradients = draw(0, jnp.bfloat16), [draw(n) for n in range(1, 6)]
  full = jax.tree.map(lambda p: p.astype(jnp.float32), start)
  found = {}
  for name, params, changed in (
    ("float32", full, {}),
    ("master", start, {"model": BFLOAT16}),
    ("none", start, {"model": BFLOAT16, "master_dtype": None}),
  ):
    optimizer = built(settings(**changed, learning_rate=1e-6), params)
    carry, follow = (params, optimizer.init(params)), follower(optimizer)
    for gradient in gradients:
      carry = follow(carry, gradient)
    found[name] = carry
  (exact, _), (rounded, state) = found["float32"], found["master"]
  assert_same(low_precision.full_params(rounded, state), exact)
  assert_same(rounded, jax.tree.map(lambda p: p.astype(jnp.bfloat16), exact))
  assert networks.distance(exact, full) > 4e-6
  # Updates of 1e-6 are lost, but for weights near 0 that it is not small to.
  before, after = (tree["layers"]["gate"] for tree in (start, found["none"][0]))
  is_large = np.abs(np.asarray(before, np.float32)) > 1e-3
  np.testing.assert_array_equal(after[is_large], before[is_large])


def test_parameters_are_the_rounded_masters_even_where_a_sum_is_not():
  params = {"w": jnp.asarray([1.0, -3.0], jnp.bfloat16)}
  goal = np.asarray([1.2345e-30, 0.3333333], np.float32)
  state = low_precision.MasterState({"w": jnp.asarray(goal)}, None)
  updates = {"w": state.params["w"] - params["w"]}
  found = low_precision.next_params(params, updates, state)
  np.testing.assert_array_equal(found["w"], goal.astype(jnp.bfloat16))
  by_sum = optax.apply_updates(params, updates)
  assert float(by_sum["w"][0]) == 0


def test_rounding_at_random_is_exact_on_average():
  low, high = jnp.bfloat16(1.0), jnp.bfloat16(1.0078125)
  for share in (0.0, 0.25, 0.9):
    for sign in (1, -1):
      x = sign * (1 - share + share * 1.0078125)
      many = np.full(40_000, x, np.float32)
      found = np.asarray(low_precision.round_at_random(many, jax.random.key(3)))
      assert set(found.tolist()) <= {sign * float(low), sign * float(high)}
      mean = np.mean(found == sign * high)
      assert abs(mean - share) <= 5 * np.sqrt(share * (1 - share) / 40_000)
  odd = jnp.asarray([np.inf, -np.inf, np.nan, 0.0, -0.0, 3.0e38], jnp.float32)
  found = low_precision.round_at_random(odd, jax.random.key(0))
  np.testing.assert_array_equal(found[:5].astype(jnp.float32), odd[:5])
  assert found.dtype == jnp.bfloat16


def test_rounding_at_random_keeps_small_updates_on_average():
  params = {"w": jnp.ones(20_000, jnp.bfloat16)}
  optimizer = low_precision.with_stochastic_rounding(optax.sgd(1.0), seed=4)
  carry, follow = (params, optimizer.init(params)), follower(optimizer)
  gradient = {"w": np.full(20_000, -0.0078125 / 16, np.float32)}
  for _ in range(50):  # each a sixteenth of the way to the next bfloat16
    carry = follow(carry, gradient)
  moved = np.mean(np.asarray(carry[0]["w"], np.float32)) - 1
  assert moved == pytest.approx(50 / 16 * 0.0078125, rel=0.01)


CASES = [(kind, {}, {}) for kind in KINDS] + [
  ("adamw", BFLOAT16, {}),
  ("muon", BFLOAT16, {}),
  ("adamw", BFLOAT16, ROUNDING),
]


@pytest.mark.parametrize(("kind", "model", "changed"), CASES, ids=str)
def test_shards_compute_what_one_device_does(kind, model, changed):
  dtype = model.get("param_dtype", "float32")
  params, gradients = draw(0, dtype), [draw(1), draw(2)]
  found = settings(kind, model, **changed)
  optimizer = built(found, params)
  alone, follow = (params, optimizer.init(params)), follower(optimizer)
  mesh = sharding.make_mesh(data=2, fsdp=2, tensor=2)
  state = train_state.init_state(
    params, optimizer=optimizer, keeps_teacher=False, seed=0
  )
  places = train_state.state_shardings(state, mesh, optimizer)
  state = jax.device_put(state, places)
  shared = (state.params, state.opt_state)
  keep = jax.jit(follow, out_shardings=(places.params, places.opt_state))
  for gradient in gradients:
    alone = follow(alone, gradient)
    shared = keep(shared, gradient)
  if changed or dtype == "float32":
    networks.assert_close(shared, alone, atol=1e-6)
  else:
    masters = [low_precision.full_params(*x) for x in (shared, alone)]
    networks.assert_close(*masters, atol=1e-6)
  # What has the shape of a parameter is cut as the parameter is.
  cut = {
    p.shape: s.shard_shape(p.shape)
    for p, s in zip(
      jax.tree.leaves(params), jax.tree.leaves(places.params), strict=True
    )
  }
  kept = [x for x in jax.tree.leaves(shared[1]) if x.shape in cut]
  if kind == "adafactor":
    return  # a mean over columns may have the shape of another parameter
  assert kept
  for x in kept:
    assert x.addressable_shards[0].data.shape == cut[x.shape]


def test_mean_squares_by_row_and_column_are_cut_along_the_axes_that_stay():
  params = draw(0)
  optimizer = built(settings("adafactor"), params)
  mesh = sharding.make_mesh(data=1, fsdp=4, tensor=2)
  state = jax.eval_shape(
    lambda p: train_state.init_state(
      p, optimizer=optimizer, keeps_teacher=False, seed=0
    ),
    params,
  )
  places = train_state.state_shardings(state, mesh, optimizer)
  found = optax.tree_utils.tree_get(places.opt_state, "v_row")
  # Of gate [layers, embed, mlp] the mean over embed is cut along tensor.
  assert found["layers"]["gate"].spec == jax.sharding.PartitionSpec(
    None, "tensor"
  )
  assert found["layers"]["mlp_norm"].spec == jax.sharding.PartitionSpec(None)


@pytest.mark.parametrize(("kind", "model", "changed"), CASES, ids=str)
def test_restored_state_goes_on_bit_for_bit(tmp_path, kind, model, changed):
  params = draw(0, model.get("param_dtype", "float32"))
  gradients = [draw(n) for n in range(1, 4)]
  optimizer = built(settings(kind, model, **changed), params)
  carry, follow = (params, optimizer.init(params)), follower(optimizer)
  for gradient in gradients[:2]:
    carry = follow(carry, gradient)
  saved = dict(zip(("params", "opt_state"), carry, strict=True))
  with checkpoints.Checkpoints(tmp_path, keep=1) as folder:
    folder.save(2, saved, {})
  with checkpoints.Checkpoints(tmp_path) as folder:
    restored = folder.restore(2, checkpoints.template(saved))
  again = follower(optimizer)
  assert_same(
    again((restored["params"], restored["opt_state"]), gradients[2]),
    follow(carry, gradients[2]),
  )


def test_runs_go_on_with_settings_that_did_not_exist():
  now = config.parse({"model": BFLOAT16, "optimizer": {"epsilon": 1e-7}})
  saved = now.model_dump(mode="json")
  old = {"learning_rate": 1e-5, "epsilon": 1e-7, "schedule": "constant"}
  # Without the setting all parameters decayed.
  plain = config.parse({"optimizer": old | {"decay": "all"}})
  before = {**plain.model_dump(mode="json"), "optimizer": old}
  run_checks.check_same_settings(before, plain, 3)
  # What is rounded now had no copy before.
  with pytest.raises(config.ConfigError, match=r"master_dtype: None in the ch"):
    run_checks.check_same_settings({**saved, "optimizer": old}, now, 3)
  with pytest.raises(config.ConfigError, match=r"epsilon: 1e-06 in the chec"):
    run_checks.check_same_settings(
      {**saved, "optimizer": old | {"epsilon": 1e-6}}, now, 3
    )


def test_only_what_loses_updates_is_warned_about():
  def said(**optimizer):
    text = run_checks.warnings(settings(model=BFLOAT16, **optimizer))
    return any("param_dtype=bfloat16" in line for line in text)

  assert said(master_dtype=None)
  assert not said()
  assert not said(**ROUNDING)


def test_a_moving_average_of_masters_does_not_stop():
  """A student that moves by 1e-6 a step, and a teacher at a rate of 0.01."""
  network = networks.network(seed=3, param_dtype="bfloat16")
  found = settings(model=BFLOAT16, learning_rate=1e-6)
  found = found.model_copy(
    update={
      "teacher": config.TeacherConfig(parameters="ema", ema_rate=0.01),
      "objective": config.DistilConfig(chunk_size=2),
    }
  )
  optimizer = built(found, network.params)
  state = setup_step.build_train_state(found, network.params, optimizer)
  start = jax.tree.map(lambda p: p.astype(jnp.float32), state.params)
  step = jax.jit(
    build_step.train_step(
      found.objective,
      found.teacher,
      graphdef=network.graphdef,
      optimizer=optimizer,
      group_size=4,
      num_sequences=8,
    )
  )
  batch = networks.random_batch(seed=3)
  for _ in range(2):
    state, _ = step(state, batch)
  moved = jax.tree.map(
    lambda t, s: t.astype(jnp.float32) - s, state.teacher_params, start
  )
  # Most entries moved by 1e-6 twice, of which the teacher has 1 % and 2 %.
  size = float(jnp.median(jnp.abs(moved["layers"]["gate"])))
  assert size == pytest.approx(0.0299e-6, rel=0.05)
  plain = found.optimizer.model_copy(update={"master_dtype": None})
  rounded = setup_step.build_train_state(
    found.model_copy(update={"optimizer": plain}), network.params, optimizer
  )
  # The average is kept whatever the optimizer keeps.
  assert rounded.params["norm"].dtype == jnp.bfloat16
  assert rounded.teacher_params["norm"].dtype == jnp.float32


def bytes_of(kind, **changed):
  """Parts of the state of a small network on one chip."""
  network = networks.config_of(param_dtype=changed.get("dtype", "float32"))
  model = {"param_dtype": network.param_dtype}
  changed.pop("dtype", None)
  found = planning_planner.Planner(
    settings(kind, model, **changed),
    Hardware("cpu", jax.devices()[:1], None),
    network,
    Progress(1, is_shown=False),
  )
  return found.parts


def num_entries(is_matrix):
  shapes = decoder.make(networks.config_of())[1]
  vectors = {"attention_norm", "query_norm", "key_norm", "mlp_norm"}
  of_layers = sum(
    x.size for k, x in shapes["layers"].items() if k not in vectors
  )
  return (
    of_layers
    if is_matrix
    else sum(x.size for x in jax.tree.leaves(shapes)) - of_layers
  )


def test_a_plan_counts_what_each_kind_keeps():
  matrices, others = num_entries(True), num_entries(False)
  whole = matrices + others
  counts = 4 * 2  # of updates: of the moments, and of the schedule
  assert bytes_of("adamw")["optimizer"] == 8 * whole + counts
  assert bytes_of("lion")["optimizer"] == 4 * whole + counts
  # Muon's part has a count and three coefficients beside Adam's.
  assert (
    bytes_of("muon")["optimizer"] == 4 * matrices + 8 * others + counts + 16
  )
  assert bytes_of("adafactor")["optimizer"] < whole
  parts = bytes_of("lion", dtype="bfloat16")
  assert parts["parameters"] == 2 * whole
  assert parts["float32 copy of the parameters"] == 4 * whole
  assert parts["optimizer"] == 4 * whole + counts
  assert parts["teacher"] in (0, 2 * whole, 4 * whole)
  parts = bytes_of("lion", dtype="bfloat16", **ROUNDING)
  assert "float32 copy of the parameters" not in parts
  assert parts["optimizer"] == 4 * whole + counts + 8  # the key
