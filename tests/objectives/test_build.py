"""Every objective and every teacher through the same step."""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from distil_jax import config
from distil_jax.models import decoder, layers, sharding
from distil_jax.objectives import teachers
from distil_jax.ops.divergences import Divergence
from distil_jax.training import build_step, optimizers, train_state
from tests import networks, references
from tests.networks import assert_close, distance

GROUP_SIZE, NUM_SEQUENCES = 4, 8
RATE = 0.3
SGD = optax.sgd(RATE)
FROZEN = config.TeacherConfig(parameters="frozen")


def distil(**settings):
  """DistIL as published, but for the settings that are given."""
  return config.DistilConfig(**{**networks.PUBLISHED, **settings})


REWARDED = distil(
  local_cost="reverse_kl",
  cost="kl",
  future_weight=4.0,
  baseline="leave_one_out",
  terminal_neutral=True,
  reward_weight=1.0,
  failure_weighted=True,
  top_k=6,
  temperature=0.7,
)
KINDS = {
  "distil": distil(baseline="batch_mean", differential=True),
  "rewarded": REWARDED,
  "sdpo": config.SDPOConfig(top_k=6),
  "opsd": config.OPSDConfig(top_k=6, token_clip=0.02, temperature=1.1),
  "minillm": config.MiniLLMConfig(),
  "grpo": config.GRPOConfig(kl_weight=0.1, normalize_std=True),
}


@pytest.fixture(scope="module")
def network():
  return networks.network(seed=3, num_layers=1)


@pytest.fixture(scope="module")
def batch():
  return networks.random_batch(seed=3)


@pytest.fixture(scope="module")
def teacher(network):
  return networks.random_params(network.params, seed=4)


def state_of(params, teacher=None, optimizer=SGD):
  """A state with a teacher of its own."""
  state = train_state.init_state(
    params, optimizer=optimizer, keeps_teacher=False, seed=0
  )
  return state.replace(teacher_params=teacher)


def recipe_step(network, objective, teacher=FROZEN, **settings):
  defaults = {
    "graphdef": network.graphdef,
    "optimizer": SGD,
    "group_size": GROUP_SIZE,
    "num_sequences": NUM_SEQUENCES,
  }
  return build_step.train_step(objective, teacher, **defaults | settings)


def gradients_of(network, objective, teacher=FROZEN, **settings):
  made = build_step.gradients(
    objective,
    teacher,
    graphdef=network.graphdef,
    group_size=GROUP_SIZE,
    num_sequences=NUM_SEQUENCES,
    **settings,
  )
  return jax.jit(made)


def logits(params, graphdef, batch, ids, mask):
  """`[B, T, V]`: all of them in memory."""
  hidden = decoder.hidden_states(
    graphdef,
    params,
    jnp.concatenate([ids, batch.completion_ids], axis=1),
    jnp.concatenate([mask, batch.completion_mask], axis=1),
  )
  return hidden[:, ids.shape[1] - 1 : -1] @ layers.unembedding(params)


def student_logits(params, graphdef, batch):
  return logits(params, graphdef, batch, batch.prompt_ids, batch.prompt_mask)


def teacher_logits(params, graphdef, batch):
  return logits(
    params,
    graphdef,
    batch,
    batch.teacher_prompt_ids,
    batch.teacher_prompt_mask,
  )


def chosen_log_probs(logits, batch):
  table = jax.nn.log_softmax(logits)
  return jnp.take_along_axis(table, batch.completion_ids[..., None], -1)[..., 0]


def rewarded(student, teacher, batch, old_log_probs=None):
  """`REWARDED` from logits, group quantities by a loop over members."""
  rewards = np.asarray(batch.rewards)
  advantages, failures = np.zeros((2, len(rewards)), np.float32)
  for i in range(len(rewards)):
    first = i - i % GROUP_SIZE
    group = rewards[first : first + GROUP_SIZE]
    others = np.delete(group, i - first)
    advantages[i] = (rewards[i] - others.mean()) / (group.std() + 1e-6)
    failures[i] = 1 - others.mean()
  return references.distil(
    student,
    teacher,
    batch.completion_ids,
    batch.completion_mask,
    local_cost="reverse_kl",
    cost="kl",
    future_weight=4.0,
    baseline="leave_one_out",
    group_size=GROUP_SIZE,
    terminal_neutral=True,
    advantages=jnp.asarray(advantages),
    reward_weight=1.0,
    failure_weights=jnp.asarray(failures),
    top_k=6,
    temperature=0.7,
    old_log_probs=old_log_probs,
    importance_clip=None if old_log_probs is None else 2.0,
    sample_mask=batch.sample_mask,
  )


def from_logits(kind, student, teacher, reference, batch):
  """The same objective by its reference form."""
  ids, mask = batch.completion_ids, batch.completion_mask
  fed = (student, teacher, ids, mask)
  shared = {"sample_mask": batch.sample_mask}
  match kind:
    case "distil":
      # The batch's mean cost of a token, from a first look at the costs.
      local = references.distil(*fed, **shared)
      taught = mask * batch.sample_mask[:, None]
      average = jnp.sum(local.costs * taught) / jnp.sum(taught)
      return references.distil(
        *fed,
        baseline="batch_mean",
        average_cost=jax.lax.stop_gradient(average),
        **shared,
      )
    case "rewarded":
      return rewarded(student, teacher, batch)
    case "sdpo":
      return references.sdpo(*fed, alpha=0.5, top_k=6, **shared)
    case "opsd":
      return references.opsd(
        *fed, beta=0.5, top_k=6, token_clip=0.02, temperature=1.1, **shared
      )
    case "minillm":
      return references.minillm(*fed, **shared)
    case "grpo":
      chosen = chosen_log_probs(student, batch)
      return references.grpo(
        chosen,
        jax.lax.stop_gradient(chosen),
        batch.rewards,
        mask,
        group_size=GROUP_SIZE,
        normalize_std=True,
        reference_log_probs=chosen_log_probs(reference, batch),
        kl_weight=0.1,
      )


@dataclasses.dataclass(frozen=True)
class Forward:
  """Dense logits, and what turns a gradient by the student's into one by its
  parameters; each compiled once."""

  score: Callable[..., jax.Array]
  expert: Callable[..., jax.Array]
  pull_back: Callable[..., jax.Array]


@pytest.fixture(scope="module")
def forward(network, batch):
  fixed = {"graphdef": network.graphdef, "batch": batch}
  score = jax.jit(functools.partial(student_logits, **fixed))

  @jax.jit
  def pull_back(params, gradient):
    return jax.vjp(score, params)[1](gradient)[0]

  return Forward(
    score=score,
    expert=jax.jit(functools.partial(teacher_logits, **fixed)),
    pull_back=pull_back,
  )


def reference_gradient(forward, params, loss):
  """Value and gradient of a loss of the student's dense logits."""
  value, by_logits = jax.jit(jax.value_and_grad(loss))(forward.score(params))
  gradient = forward.pull_back(params, by_logits)
  return value, jax.tree.map(np.asarray, gradient)


def descended(params, gradient):
  """Parameters after a step of plain gradient descent."""
  return jax.tree.map(
    lambda p, g: np.asarray(p) - np.float32(RATE) * g, params, gradient
  )


@pytest.fixture(scope="module")
def mesh():
  # Parameters and sequences are cut in two, either way.
  return sharding.make_mesh(1, 2, 2, devices=jax.devices()[:4])


@pytest.mark.parametrize("kind", KINDS)
def test_each_objective_learns_as_its_reference_form(
  network, teacher, batch, forward, mesh, kind
):
  """Sharded, in micro-batches that split groups, against plain logits."""
  expert, reference = forward.expert(teacher), forward.score(teacher)

  def loss(student):
    return from_logits(kind, student, expert, reference, batch).value

  value, gradient = reference_gradient(forward, network.params, loss)
  step = recipe_step(network, KINDS[kind], micro_batch_size=2)
  start = state_of(network.params, teacher)
  with jax.set_mesh(mesh):
    places = train_state.state_shardings(start, mesh, SGD)
    step = jax.jit(step, out_shardings=(places, None))
    placed = sharding.put_batch(mesh, batch)
    state, metrics = step(jax.device_put(start, places), placed)
    further, later_metrics = step(state, placed)
  np.testing.assert_allclose(metrics["loss"], value, rtol=1e-5)
  assert min(np.abs(g).max() for g in jax.tree.leaves(gradient)) > 1e-3
  assert_close(state.params, descended(network.params, gradient))
  assert (int(state.step), int(further.step)) == (1, 2)
  assert all(np.isfinite(x) for x in later_metrics.values())
  assert metrics.keys() == later_metrics.keys()


@pytest.mark.parametrize("kind", ["rewarded", "grpo"])
def test_mini_batches_are_updates_one_after_the_other(
  network, teacher, batch, forward, kind
):
  expert = forward.expert(teacher)
  # At 0.3 the second update makes 1e-4 of a rounding of the parameters.
  rate = 0.05

  def value_of(student, batch, half):
    part = jax.tree.map(lambda x: np.asarray(x)[half], batch)
    if kind == "rewarded":
      return rewarded(student, expert[half], part, part.old_log_probs).value
    return references.grpo(
      chosen_log_probs(student, part),
      part.old_log_probs,
      part.rewards,
      part.completion_mask,
      group_size=GROUP_SIZE,
    ).value

  def run_by_hand(batch):
    """Plain gradient descent on one half, then the other."""
    params = network.params
    for half in (slice(0, 4), slice(4, 8)):
      _, gradient = reference_gradient(
        forward, params, lambda x, h=half: value_of(x[h], batch, h)
      )
      params = jax.tree.map(lambda p, g: p - rate * g, params, gradient)
    return params

  sgd = optax.sgd(rate)
  step = jax.jit(
    recipe_step(
      network,
      REWARDED if kind == "rewarded" else config.GRPOConfig(),
      config.TeacherConfig(parameters="ema", ema_rate=0.25),
      mini_batch_size=4,
      micro_batch_size=2,
      optimizer=sgd,
    )
  )
  own = chosen_log_probs(forward.score(network.params), batch)
  sampled = batch.replace(old_log_probs=own * batch.completion_mask)
  for given in (sampled, batch):
    state, metrics = step(state_of(network.params, teacher, sgd), given)
    assert_close(state.params, run_by_hand(given))
    assert int(state.step) == 1
    if kind == "rewarded":  # the teacher moves once, to the last of the two
      moved = jax.tree.map(
        lambda t, p: 0.75 * np.asarray(t) + 0.25 * np.asarray(p),
        teacher,
        state.params,
      )
      assert_close(state.teacher_params, moved, atol=1e-6)
    assert abs(float(metrics["importance"]) - 1) > 1e-3


def test_a_ratio_is_one_where_the_student_has_just_sampled(
  network, teacher, batch, forward
):
  """Groups that all failed move nothing: the second half is on policy too."""
  own = chosen_log_probs(forward.score(network.params), batch)
  still = batch.replace(
    old_log_probs=own * batch.completion_mask, rewards=jnp.zeros(8)
  )
  step = jax.jit(recipe_step(network, config.GRPOConfig(), mini_batch_size=4))
  state, metrics = step(state_of(network.params, teacher), still)
  np.testing.assert_allclose(metrics["importance"], 1.0, rtol=1e-5)
  assert float(metrics["importance_clipped"]) == 0
  assert_close(state.params, network.params, atol=0)


def test_a_rate_counts_training_steps():
  rate = optimizers.make_schedule(learning_rate=0.4, warmup_steps=2)
  optimizer = optimizers.make_optimizer(
    rate, weight_decay=0.0, updates_per_step=3
  )
  assert [float(rate(n)) for n in range(3)] == pytest.approx([0.2, 0.4, 0.4])
  param, moves = {"w": np.float32(0)}, []
  state = optimizer.init(param)
  update = jax.jit(optimizer.update)
  for _ in range(6):
    updates, state = update({"w": np.float32(1)}, state, param)
    moves.append(-float(updates["w"]))
  np.testing.assert_allclose(moves, [0.2] * 3 + [0.4] * 3, rtol=1e-4)


def listening(access, **settings):
  return config.TeacherConfig(parameters="frozen", access=access, **settings)


LOCAL = distil(future_weight=0.0)


def test_a_list_of_all_tokens_is_the_distribution(
  network, teacher, batch, forward
):
  settings = {"local_cost": "reverse_kl", "cost": "kl", "temperature": 0.7}
  expert = forward.expert(teacher)

  def loss(student):
    return references.distil(
      student,
      expert,
      batch.completion_ids,
      batch.completion_mask,
      sample_mask=batch.sample_mask,
      **settings,
    ).value

  value, expected = reference_gradient(forward, network.params, loss)
  listed = gradients_of(
    network,
    distil(tail=False, chunk_size=2, **settings),
    listening("top_k", top_k=networks.VOCAB_SIZE),
    micro_batch_size=2,
  )
  gradient, same, _ = listed(network.params, teacher, batch, jax.random.key(0))
  np.testing.assert_allclose(same, value, rtol=1e-5)
  assert_close(gradient, expected)


@pytest.mark.parametrize("kind", ["sdpo", "minillm"])
def test_every_objective_takes_lists(network, teacher, batch, kind):
  objective = config.SDPOConfig(alpha=0.3)
  if kind == "minillm":
    objective = config.MiniLLMConfig()
  found, few, expected = (
    gradients_of(network, objective, asked)(
      network.params, teacher, batch, jax.random.key(0)
    )
    for asked in (
      listening("top_k", top_k=networks.VOCAB_SIZE),
      listening("top_k", top_k=2),
      FROZEN,
    )
  )
  np.testing.assert_allclose(found[1], expected[1], rtol=1e-5)
  assert_close(found[0], expected[0])
  for name, value in expected[2].items():
    np.testing.assert_allclose(
      found[2][name], value, rtol=1e-4, atol=1e-5, err_msg=name
    )
  if kind == "sdpo":  # on fewer cells two distributions are not farther apart
    assert 0.1 * expected[2]["cost"] < few[2]["cost"] < expected[2]["cost"]
  else:  # the tokens that were sampled are known whatever is listed
    np.testing.assert_allclose(
      few[2]["cost"], expected[2]["cost"], rtol=1e-5, atol=1e-6
    )


def test_minillm_needs_to_know_the_students_own_tokens(network, teacher, batch):
  lists = jnp.zeros((*batch.completion_ids.shape, 1), int)
  listed = batch.replace(
    teacher_candidate_ids=lists,
    teacher_candidate_log_probs=lists.astype(jnp.float32),
  )
  learn = gradients_of(network, config.MiniLLMConfig(), listening("top_k"))
  with pytest.raises(ValueError, match="give teacher_log_probs in the batch"):
    learn(network.params, teacher, listed, jax.random.key(0))


def test_samples_of_a_teacher_come_close_to_its_distribution(
  network, teacher, batch, forward, mesh
):
  expert = forward.expert(teacher)

  def loss(student):
    return references.distil(
      student,
      expert,
      batch.completion_ids,
      batch.completion_mask,
      future_weight=0.0,
      sample_mask=batch.sample_mask,
    ).value

  value, expected = reference_gradient(forward, network.params, loss)

  def sampler(num_samples, size):
    listen = listening("samples", num_samples=num_samples)
    made = gradients_of(network, LOCAL, listen, micro_batch_size=size)

    def sample(seed=0, given=batch):
      key = jax.random.key(seed)
      return made(network.params, teacher, given, key)[:2]

    return sample

  def error_of(gradient):
    def norm(tree):
      return np.sqrt(sum(np.sum(x**2) for x in jax.tree.leaves(tree)))

    error = jax.tree.map(lambda x, y: np.asarray(x) - y, gradient, expected)
    return norm(error) / norm(expected)

  sample = sampler(2, 8)
  few, _ = sample()
  many, cost = sampler(2048, 4)()
  # It falls with the root of the number of samples, here by 32.
  assert 10 * error_of(many) < error_of(few)
  assert error_of(many) < 0.05
  np.testing.assert_allclose(cost, value, rtol=0.02)
  # How the batch is cut, also over devices, does not change what the teacher
  # says; the key does.
  with jax.set_mesh(mesh):
    placed = sharding.put_batch(mesh, batch)
    assert_close(sampler(2, 2)(given=placed)[0], few)
  assert distance(sample(seed=1)[0], few) > 1e-2


def test_what_an_outside_expert_has_said_is_learned_word_for_word(
  network, teacher, batch
):
  """With the student's own tokens listed, DistIL is supervised learning."""
  listed = batch.replace(
    teacher_candidate_ids=batch.completion_ids[..., None],
    teacher_candidate_log_probs=jnp.zeros((*batch.completion_ids.shape, 1)),
  )
  key = jax.random.key(0)
  listen = gradients_of(network, LOCAL, listening("samples"))
  copy = gradients_of(network, config.SFTConfig())
  ours, theirs = (
    made(network.params, teacher, given, key)
    for made, given in ((listen, listed), (copy, batch))
  )
  assert_close(ours[:2], theirs[:2])


def test_an_expert_s_words_are_not_passed_over(network, teacher, batch):
  listed = batch.replace(
    teacher_candidate_ids=batch.completion_ids[..., None],
    teacher_candidate_log_probs=jnp.zeros((*batch.completion_ids.shape, 1)),
  )
  with pytest.raises(ValueError, match=r"set teacher\.access"):
    gradients_of(network, LOCAL)(
      network.params, teacher, listed, jax.random.key(0)
    )


def test_a_trust_region_lies_between_frozen_and_current(
  network, teacher, batch, forward
):
  initial, own = forward.expert(teacher), forward.expert(network.params)
  costs = jax.jit(
    lambda rate: (
      teachers.dense_statistics(
        network.params,
        teacher,
        batch,
        network=teachers.Network(
          network.graphdef, chunk_size=2, trust_region_rate=rate
        ),
        divergence=Divergence(),
      )
      .statistics()
      .costs
    )
  )
  student = jax.nn.log_softmax(forward.score(network.params))
  for rate in (0.0, 0.3, 1.0):
    labels = jax.nn.softmax((1 - rate) * initial + rate * own)
    expected = -jnp.sum(labels * student, axis=-1)
    mask = batch.completion_mask * batch.sample_mask[:, None]
    assert_close(mask * costs(rate), mask * expected)


def test_nothing_flows_into_a_trust_region(network, teacher, batch, forward):
  rate = 0.3
  labels = jax.nn.softmax(
    (1 - rate) * forward.expert(teacher) + rate * forward.expert(network.params)
  )
  mask = batch.completion_mask * batch.sample_mask[:, None]

  def loss(student):
    costs = -jnp.sum(labels * jax.nn.log_softmax(student), axis=-1)
    return jnp.sum(mask * costs) / jnp.sum(mask)

  _, expected = reference_gradient(forward, network.params, loss)
  near = config.TeacherConfig(parameters="trust_region", trust_region_rate=rate)
  gradient, _, _ = gradients_of(network, LOCAL, near)(
    network.params, teacher, batch, jax.random.key(0)
  )
  assert_close(gradient, expected)


def with_an_untaught_word(batch):
  """A word that only teachers without a say read, and rows of theirs."""
  word = networks.VOCAB_SIZE - 1
  ids = batch.teacher_prompt_ids
  silent = batch.sample_mask[:, None] == 0
  return word, batch.replace(
    completion_ids=jnp.minimum(batch.completion_ids, word - 1),
    prompt_ids=jnp.minimum(batch.prompt_ids, word - 1),
    teacher_prompt_ids=jnp.where(silent, word, jnp.minimum(ids, word - 1)),
  )


@pytest.mark.parametrize(
  ("access", "chunk_size"), [("probabilities", 2), ("top_k", None)]
)
def test_a_teacher_that_has_no_say_may_be_broken(
  network, teacher, batch, access, chunk_size
):
  word, batch = with_an_untaught_word(batch)
  settings = {"local_cost": "forward_cross_entropy", "chunk_size": chunk_size}
  learn = gradients_of(
    network, distil(**settings), listening(access, top_k=3), micro_batch_size=4
  )
  broken = {
    **teacher,
    "embedding": teacher["embedding"].at[word].set(jnp.nan),
  }
  key = jax.random.key(0)
  gradient, value, _ = learn(network.params, teacher, batch, key)
  same, also, metrics = learn(network.params, broken, batch, key)
  np.testing.assert_array_equal(also, value)
  assert_close((same, also), (gradient, value), atol=0)
  assert all(np.isfinite(x).all() for x in jax.tree.leaves(same))
  assert all(np.isfinite(x) for x in metrics.values())


def test_who_needs_a_teacher_and_who_keeps_one():
  moving, current = (
    config.TeacherConfig(parameters=name) for name in ("ema", "current")
  )
  for objective, is_asked, is_kept in (
    (config.DistilConfig(), True, True),
    (config.MiniLLMConfig(), True, True),
    (config.GRPOConfig(), False, False),
    (config.GRPOConfig(kl_weight=0.1), False, True),
    (config.SFTConfig(), False, False),
  ):
    assert objective.needs_teacher == is_asked
    assert objective.keeps_teacher(moving) == is_kept
  assert not config.SDPOConfig().keeps_teacher(current)


@pytest.mark.parametrize(
  ("sizes", "said"),
  [
    ({"mini_batch_size": 6}, "group_size=4 does not divide mini_batch_size=6"),
    ({"num_sequences": 12, "mini_batch_size": 8}, "num_sequences=12"),
    ({"micro_batch_size": 3}, "micro_batch_size=3"),
  ],
)
def test_sizes_that_do_not_divide_are_named(network, sizes, said):
  with pytest.raises(ValueError, match=said):
    recipe_step(network, config.SDPOConfig(), **sizes)


def test_a_teacher_that_cannot_tell_is_refused(network):
  with pytest.raises(config.ConfigError, match="kind=sdpo: needs"):
    recipe_step(network, config.SDPOConfig(), listening("samples"))


def test_a_step_stands_in_a_scan_with_a_rate_that_is_traced(
  network, teacher, batch
):
  def run(rate):
    step = recipe_step(network, LOCAL, optimizer=optax.sgd(rate))
    state = state_of(network.params, teacher)

    def body(state, _):
      return step(state, batch)

    return jax.lax.scan(body, state, None, length=2)

  state, metrics = jax.jit(run)(jnp.float32(RATE))
  assert int(state.step) == 2
  first, second = metrics["loss"]
  assert second < first
  frozen, _ = jax.jit(run)(jnp.float32(0.0))
  assert_close(frozen.params, network.params, atol=0)
