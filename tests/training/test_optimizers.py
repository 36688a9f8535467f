"""Optimizers against formulas in numpy, schedules, decays and groups."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from distil_jax import config
from distil_jax.models import decoder, lora
from distil_jax.models.decoder_config import LoRA
from distil_jax.training import low_precision, optimizers, parameter_groups
from distil_jax.training.setup import steps as setup_step
from tests import networks

RATE, DECAY = 0.02, 0.3
KINDS = ("adamw", "adafactor", "lion", "muon")
# An update at random, in these shapes, at each of three steps.
SHAPES = {
  "embedding": (5, 4),
  "layers": {"gate": (2, 4, 6), "query": (2, 4, 2, 3), "mlp_norm": (2, 4)},
}


def is_shape(x):
  return isinstance(x, tuple)


def draw(seed, scale=1.0):
  rng = np.random.default_rng(seed)
  return jax.tree.map(
    lambda s: (scale * rng.normal(size=s)).astype(np.float32),
    SHAPES,
    is_leaf=is_shape,
  )


def built(kind, params, **settings):
  """The optimizer of a config, which must not clip."""
  section = {
    "kind": kind,
    "learning_rate": RATE,
    "weight_decay": DECAY,
    "max_gradient_norm": None,
    **settings,
  }
  if kind == "adafactor":
    section.setdefault("min_dim_size_to_factor", 2)
  model = {"param_dtype": str(jax.tree.leaves(params)[0].dtype)}
  found = config.parse({"optimizer": section, "model": model})
  return setup_step.build_optimizer(found, params)[0]


def run(optimizer, params, gradients):
  """Parameters after each gradient."""
  init, update = jax.jit(optimizer.init), jax.jit(optimizer.update)
  follow = jax.jit(low_precision.next_params)
  state, found = init(params), []
  for gradient in gradients:
    updates, state = update(gradient, state, params)
    params = follow(params, updates, state)
    found.append(params)
  return found


def leaf(tree, name):
  return tree.get(name, tree["layers"].get(name))


def adam_by_hand(gradients):
  mean = square = 0.0
  for n, g in enumerate(gradients, 1):
    mean = 0.9 * mean + 0.1 * g
    square = 0.999 * square + 0.001 * g**2
    yield mean / (1 - 0.9**n) / (np.sqrt(square / (1 - 0.999**n)) + 1e-8)


def lion_by_hand(gradients):
  momentum = 0.0
  for g in gradients:
    yield np.sign(0.9 * momentum + 0.1 * g)
    momentum = 0.99 * momentum + 0.01 * g


def adafactor_by_hand(gradients):
  """The paper's outer product, over the two longest axes."""
  shape = gradients[0].shape
  *_, short, long = np.argsort(shape, kind="stable") if len(shape) > 1 else "  "
  rows = columns = whole = 0.0
  for n, g in enumerate(gradients, 1):
    share = 1 - n**-0.8
    square = g.astype(np.float64) ** 2 + 1e-30
    if len(shape) > 1:
      rows = share * rows + (1 - share) * square.mean(long, keepdims=True)
      columns = share * columns + (1 - share) * square.mean(
        short, keepdims=True
      )
      estimate = rows * columns / rows.mean(short, keepdims=True)
    else:
      estimate = whole = share * whole + (1 - share) * square
    update = g / np.sqrt(estimate)
    yield update / max(1.0, np.sqrt(np.mean(update**2)))


def muon_by_hand(gradients, num_rows):
  """Each layer alone, as a matrix of so many rows."""
  momentum = 0.0
  for n, g in enumerate(gradients, 1):
    momentum = 0.95 * momentum + 0.05 * g
    ahead = 0.95 * momentum / (1 - 0.95 ** (n + 1))
    ahead = ahead + 0.05 * g / (1 - 0.95**n)
    found = []
    for layer in ahead.astype(np.float64):
      x = layer.reshape(num_rows, -1)
      size = np.sqrt(max(x.shape))
      x = x / np.linalg.norm(x)
      for _ in range(5):
        # On singular values: 3.4445 s - 4.775 s^3 + 2.0315 s^5.
        left, values, right = np.linalg.svd(x, full_matrices=False)
        values = 3.4445 * values - 4.775 * values**3 + 2.0315 * values**5
        x = left * values @ right
      found.append(0.2 * size * x.reshape(layer.shape))
    yield np.stack(found)


BY_HAND = {
  "adamw": adam_by_hand,
  "lion": lion_by_hand,
  "adafactor": adafactor_by_hand,
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("decay", ["matrices", "all"])
def test_three_updates_by_hand(kind, decay):
  params, gradients = draw(0), [draw(seed) for seed in (1, 2, 3)]
  found = run(built(kind, params, decay=decay), params, gradients)

  def directions(name, rows):
    if kind == "muon" and name in ("gate", "query"):
      return muon_by_hand(rows, num_rows=4)
    return BY_HAND.get(kind, adam_by_hand)(rows)

  for name in ("embedding", "gate", "query", "mlp_norm"):
    decayed = decay == "all" or name in ("gate", "query")
    expected = leaf(params, name).astype(np.float64)
    rows = [leaf(g, name) for g in gradients]
    for step, direction in enumerate(directions(name, rows)):
      expected = expected - RATE * (direction + DECAY * decayed * expected)
      np.testing.assert_allclose(
        leaf(found[step], name), expected, rtol=2e-5, atol=2e-6, err_msg=name
      )


def test_adamw_is_that_of_optax_state_and_all():
  params, gradients = draw(0), [draw(1), draw(2)]
  plain = {"optimizer": {"learning_rate": RATE}}
  default, _ = setup_step.build_optimizer(config.parse(plain), params)
  plain["optimizer"]["decay"] = "all"
  ours, _ = setup_step.build_optimizer(config.parse(plain), params)
  theirs = optax.chain(
    optax.clip_by_global_norm(1.0),
    optax.adamw(lambda _: RATE, weight_decay=0.01),
  )
  assert jax.tree.structure(ours.init(params)) == jax.tree.structure(
    theirs.init(params)
  )
  # A run may change between them.
  assert jax.tree.structure(default.init(params)) == jax.tree.structure(
    ours.init(params)
  )
  jax.tree.map(
    np.testing.assert_array_equal,
    run(ours, params, gradients),
    run(theirs, params, gradients),
  )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_learns(kind, dtype):
  """A network of two layers without bends imitates another."""
  goal = jax.tree.map(jnp.asarray, draw(5, 0.5))
  params = jax.tree.map(lambda x: jnp.asarray(x, dtype), draw(6, 0.5))
  optimizer = built(kind, params, weight_decay=0.0, learning_rate=0.03)

  def outputs(params):
    full = jax.tree.map(lambda p: p.astype(jnp.float32), params)
    first, second = full["layers"]["gate"]
    return full["embedding"] @ (first @ second.T)

  def loss(params):
    return jnp.mean((outputs(params) - outputs(goal)) ** 2)

  @jax.jit
  def train(params):
    def step(carry, _):
      params, state = carry
      value, gradient = jax.value_and_grad(loss)(params)
      gradient = jax.tree.map(lambda g: g.astype(jnp.float32), gradient)
      updates, state = optimizer.update(gradient, state, params)
      return (low_precision.next_params(params, updates, state), state), value

    return jax.lax.scan(step, (params, optimizer.init(params)), length=100)[1]

  values = train(params)
  assert float(values[-1]) < 0.05 * float(values[0])


def rates(num_steps, **settings):
  schedule = jax.jit(optimizers.make_schedule(num_steps=num_steps, **settings))
  return np.asarray([schedule(n) for n in range(num_steps + 3)])


HIGH, LOW = np.float32(0.3), np.float32(0.07)


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
@pytest.mark.parametrize("warmup_steps", [0, 4])
def test_schedules_that_fall_are_exact_at_both_ends(schedule, warmup_steps):
  settings = {
    "learning_rate": 0.3,
    "final_learning_rate": 0.07,
    "warmup_steps": warmup_steps,
    "schedule": schedule,
  }
  for decay_steps, end in ((None, 10), (3, warmup_steps + 3)):
    found = rates(10, decay_steps=decay_steps, **settings)
    np.testing.assert_allclose(found[warmup_steps], HIGH, rtol=2e-7)
    np.testing.assert_array_equal(found[end:], LOW)
    share = np.arange(end - warmup_steps) / (end - warmup_steps)
    if schedule == "cosine":
      share = (1 - np.cos(np.pi * share)) / 2
    expected = 0.3 + (0.07 - 0.3) * share
    np.testing.assert_allclose(found[warmup_steps:end], expected, rtol=1e-6)
  if warmup_steps:
    expected = [0.075, 0.15, 0.225, 0.3]
    np.testing.assert_allclose(found[:4], expected, rtol=1e-6)


def test_wsd_warms_up_stays_and_falls():
  found = rates(
    12,
    learning_rate=0.3,
    final_learning_rate=0.07,
    warmup_steps=2,
    decay_steps=4,
    schedule="wsd",
  )
  np.testing.assert_allclose(found[:2], [0.15, 0.3], rtol=1e-6)
  np.testing.assert_array_equal(found[2:8], HIGH)
  np.testing.assert_allclose(found[8:12], 0.3 - 0.23 / 4 * np.arange(4), 1e-6)
  np.testing.assert_array_equal(found[12:], LOW)


def test_matrices_of_a_network_are_found_by_their_axes():
  params = decoder.make(networks.config_of())[1]
  found = parameter_groups.matrices(params)
  sides = {name: x and tuple(x) for name, x in found["layers"].items()}
  assert sides == {
    "attention_norm": None,
    "query": ((1,), (2, 3)),
    "key": ((1,), (2, 3)),
    "value": ((1,), (2, 3)),
    "query_norm": None,
    "key_norm": None,
    "output": ((1, 2), (3,)),
    "mlp_norm": None,
    "gate": ((1,), (2,)),
    "up": ((1,), (2,)),
    "down": ((1,), (2,)),
  }
  assert found["embedding"] is found["unembedding"] is found["norm"] is None
  decays = parameter_groups.weight_decays(
    params, (), weight_decay=0.5, only_matrices=True
  )
  assert decays["unembedding"] == 0.5
  assert decays["embedding"] == decays["norm"] == 0
  for name, axes in sides.items():
    assert decays["layers"][name] == (0.5 if axes else 0)


def test_experts_are_matrices_and_biases_are_not():
  shapes = {
    "expert_down": (2, 3, 4, 5),
    "router": (2, 5, 3),
    "query_bias": (2, 4, 6),
    "output_bias": (2, 5),
  }
  params = {"layers": {k: np.zeros(v) for k, v in shapes.items()}}
  found = parameter_groups.matrices(params)["layers"]
  assert {name: x and tuple(x) for name, x in found.items()} == {
    "expert_down": ((2,), (3,)),
    "router": ((1,), (2,)),
    "query_bias": None,
    "output_bias": None,
  }


def test_both_matrices_of_an_adapter_are_matrices():
  names = ("query", "output", "gate", "down")
  network = networks.config_of(lora=LoRA(rank=2, alpha=4, targets=names))
  _, adapters = lora.split(decoder.make(network)[1])
  found = parameter_groups.matrices(adapters)["layers"]
  assert {name: x and tuple(x) for name, x in found.items()} == {
    "query_lora_a": ((1,), (2,)),
    "query_lora_b": ((1,), (2, 3)),
    "output_lora_a": ((1, 2), (3,)),
    "output_lora_b": ((1,), (2,)),
    "gate_lora_a": ((1,), (2,)),
    "gate_lora_b": ((1,), (2,)),
    "down_lora_a": ((1,), (2,)),
    "down_lora_b": ((1,), (2,)),
  }


def test_groups_have_rates_and_decays_of_their_own():
  params, gradient = draw(0), draw(1)
  groups = [
    {"match": ["embedding"], "learning_rate_scale": 0},
    {"match": r".*_norm", "weight_decay": 2.0},
    {"match": r"layers\..*", "learning_rate_scale": 0.5, "weight_decay": 0.0},
  ]
  (found,) = run(built("adamw", params, groups=groups), params, [gradient])
  np.testing.assert_array_equal(found["embedding"], params["embedding"])
  for name, scale, decay in (
    ("mlp_norm", 1.0, 2.0),
    ("gate", 0.5, 0.0),
    ("query", 0.5, 0.0),
  ):
    param = params["layers"][name]
    move = np.sign(gradient["layers"][name]) + decay * param
    np.testing.assert_allclose(
      found["layers"][name], param - RATE * scale * move, rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize(
  ("groups", "said"),
  [
    ([{"match": ["embeding"]}], r"groups\[0\].match='embeding' names no"),
    ([{"match": "gate"}], r"groups\[0\].match='gate' names no parameter"),
    ([{"match": ".*"}, {"match": ["embedding"]}], r"groups\[1\].match='embed"),
    ([{"match": ["embedding", "x"]}], r"'x' .* embedding, layers.gate, "),
  ],
)
def test_groups_without_parameters_are_refused(groups, said):
  with pytest.raises(config.ConfigError, match=said):
    built("adamw", draw(0), groups=groups)


@pytest.mark.parametrize(
  ("settings", "said"),
  [
    ("kind: lion, epsilon: 1e-6", "optimizer.epsilon: a setting of kind=adamw"),
    ("kind: adafactor, beta1: 0.9", "optimizer.beta1: a setting of kind=adam"),
    ("momentum: 0.9", "optimizer.momentum: a setting of kind=muon, not of"),
    ("kind: adamw_8bit", "optimizer.kind: no kind 'adamw_8bit'; did you mean"),
    ("decay_steps: 5", "decay_steps=5 is not used with schedule=constant"),
    ("final_learning_rate: 1e-6", "final_learning_rate=1e-06 is not used with"),
    ("schedule: wsd", "schedule=wsd needs decay_steps"),
    (
      "schedule: wsd, decay_steps: 90, warmup_steps: 11",
      "optimizer.warmup_steps=11 and optimizer.decay_steps=90 are more than "
      "train.num_steps=100",
    ),
    (
      "schedule: linear, final_learning_rate: 1",
      "final_learning_rate=1.0 is above learning_rate=1e-05",
    ),
    ("stochastic_rounding: true", "stochastic_rounding=true needs master_d"),
    (
      "stochastic_rounding: true, master_dtype: null",
      "rounds to bfloat16, but model.param_dtype=float32",
    ),
    ("groups: [{match: '['}]", "optimizer.groups.0.match: is no regular"),
    ("groups: [{match: []}]", "optimizer.groups.0.match"),
  ],
)
def test_settings_that_are_not_used_are_refused(tmp_path, settings, said):
  path = tmp_path / "run.yaml"
  path.write_text(f"optimizer: {{{settings}}}")
  with pytest.raises(config.ConfigError) as error:
    config.load(path)
  assert said in str(error.value)
