"""Rollouts with few slots: the same completions, from less work."""

import contextlib
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distil_jax.generation import engine, finished_rows, prefill, random_keys
from distil_jax.generation import sampler as generation_sampler
from distil_jax.generation.engine_config import EngineConfig
from distil_jax.generation.sampling_params import SamplingParams
from distil_jax.models import decoder, sharding
from distil_jax.types import StopReason
from tests import networks

PAD, EOS = networks.PAD, (3, 11)
GROUP_SIZE, LENGTH = 2, 16
NAMES = [40, 7, 19, 7]
LENGTHS = [2, 5, 1, 3]


@pytest.fixture(scope="module")
def network():
  return networks.network(seed=2, num_layers=1)  # compiles sooner


@pytest.fixture(scope="module")
def prompts():
  return networks.random_prompts(np.random.default_rng(6), LENGTHS, 5)


@pytest.fixture(autouse=True)
def short_cache(monkeypatch):
  """So that the KV cache of these short completions has to grow."""
  monkeypatch.setattr(engine, "FIRST_CACHE_LENGTH", 8)


@pytest.fixture
def one_width(monkeypatch):
  """So that slots stay, where giving them up is not what is tested.

  Each number of slots is a program, and another dtype, mesh or shape of the
  prompts would compile all of them again.
  """
  monkeypatch.setattr(engine, "ladder", lambda width: [width])


@pytest.fixture
def whole_cache(monkeypatch):
  """So that the KV cache does not grow, where that is not what is tested."""
  monkeypatch.setattr(engine, "FIRST_CACHE_LENGTH", LENGTH)


def decode(ids):
  """A letter a token; the last ones have none, like special tokens."""
  return "".join(chr(ord("a") + i) for i in ids if i < 20)


def make(network, *, eos_ids=EOS, decode=decode, special_ids=None, **settings):
  return engine.Engine(
    network.graphdef,
    EngineConfig(**settings),
    eos_ids=eos_ids,
    pad_id=PAD,
    decode=decode,
    special_ids=special_ids,
  )


def sampling_of(**settings):
  return SamplingParams(**{"max_tokens": LENGTH, **settings})


def keys_of(names=NAMES, group_size=GROUP_SIZE, seed=0):
  key = jax.random.key(seed)
  return random_keys.sample_keys(key, random_keys.identities(names), group_size)


def sample(
  network,
  prompts,
  *,
  names=NAMES,
  group_size=GROUP_SIZE,
  sampling=None,
  stop=(),
  max_tokens=LENGTH,
  max_lengths=None,
  report=None,
  **settings,
):
  ids, mask = (jnp.asarray(x) for x in prompts)
  rolled, usage = make(network, **settings)(
    network.params,
    ids,
    mask,
    keys_of(names, group_size),
    sampling or sampling_of(stop=stop, max_tokens=max_tokens),
    max_lengths,
    **({"report": report} if report else {}),
  )
  return jax.tree.map(np.asarray, rolled), usage


def assert_same(rolled, expected):
  for name in ("completion_ids", "completion_mask", "stop_reasons"):
    np.testing.assert_array_equal(
      getattr(rolled, name), getattr(expected, name), err_msg=name
    )
  for name in ("log_probs", "behavior_log_probs"):
    np.testing.assert_allclose(
      getattr(rolled, name), getattr(expected, name), atol=2e-5
    )


SAMPLING = {
  "sampled": sampling_of(temperature=1.0),
  "greedy": sampling_of(temperature=0.0),
  "truncated": sampling_of(temperature=1.2, top_k=9, top_p=0.9, min_p=0.01),
}


def one_program(network, prompts, sampling):
  ids, mask = (jnp.asarray(x) for x in prompts)
  rolled = jax.jit(
    functools.partial(
      generation_sampler.generate,
      sampling=sampling,
      graphdef=network.graphdef,
      eos_ids=EOS,
      pad_id=PAD,
    )
  )(
    network.params,
    ids,
    mask,
    keys_of(),
  )
  return jax.tree.map(np.asarray, rolled)


@pytest.fixture(scope="module")
def plain(network, prompts):
  """Settings, and what the plain loop makes of them."""
  return [
    (sampling, one_program(network, prompts, sampling))
    for sampling in SAMPLING.values()
  ]


@pytest.mark.parametrize("num_slots", [1, 5, None])
def test_slots_change_nothing(network, prompts, plain, num_slots):
  for sampling, expected in plain:
    rolled, usage = sample(
      network, prompts, num_slots=num_slots, sampling=sampling
    )
    assert_same(rolled, expected)
    assert usage.num_tokens == expected.completion_mask.sum()
    assert {StopReason.EOS} <= set(rolled.stop_reasons)
    assert usage.num_slot_steps >= usage.num_tokens
    if num_slots == 1:
      assert usage.num_steps == usage.num_tokens == usage.num_slot_steps


@pytest.mark.usefixtures("whole_cache")
def test_company_changes_nothing(network, prompts, plain):
  """Other problems beside it, fewer samples, another order, few slots."""
  ids, mask = prompts
  order = [2, 0]
  for sampling, expected in plain:
    rolled, _ = sample(
      network,
      (ids[order], mask[order]),
      names=[NAMES[i] for i in order],
      group_size=1,
      num_slots=1,
      sampling=sampling,
    )
    by_group = expected.completion_ids.reshape(4, GROUP_SIZE, LENGTH)
    np.testing.assert_array_equal(
      rolled.completion_ids[:, None], by_group[order, :1]
    )


MESHES = {
  "data": {"data": 4, "fsdp": 1, "tensor": 1},
  "fsdp": {"data": 2, "fsdp": 2, "tensor": 1},
  "tensor": {"data": 2, "fsdp": 1, "tensor": 2},
}


def on_mesh(network, mesh):
  return jax.device_put(network.params, decoder.shardings(mesh, network.params))


@pytest.mark.parametrize("num_slots", [5])
@pytest.mark.parametrize("sizes", MESHES.values(), ids=MESHES)
def test_devices_change_nothing(network, prompts, plain, sizes, num_slots):
  devices = jax.devices()[: int(np.prod(list(sizes.values())))]
  mesh = sharding.make_mesh(**sizes, devices=devices)
  for sampling, expected in plain:
    with jax.set_mesh(mesh):
      rolled, _ = make(network, num_slots=num_slots)(
        on_mesh(network, mesh),
        *sharding.put_batch(mesh, prompts),
        keys_of(),
        sampling,
      )
    assert_same(jax.tree.map(np.asarray, rolled), expected)


@pytest.mark.usefixtures("one_width")
def test_sampling_on_another_mesh(network, prompts, plain):
  """Trained in parts, sampled whole: brought over without the host."""
  trained = sharding.make_mesh(1, 4, 2)
  sampled = sharding.make_mesh(4, 1, 2)
  params = on_mesh(network, trained)
  sampler = make(network, mesh=sampled, num_slots=4)
  with jax.set_mesh(trained):
    with jax.transfer_guard_device_to_host("disallow"):
      weights = jax.block_until_ready(sampler.weights(params))
    for sampling, expected in plain:
      rolled, _ = sampler(
        params, *sharding.put_batch(sampled, prompts), keys_of(), sampling
      )
      assert_same(jax.tree.map(np.asarray, rolled), expected)
  query = weights["layers"][0]["query"]
  assert query.addressable_shards[0].data.size == query.size // 2
  assert params["layers"]["query"].sharding.mesh == trained


def test_rows_choose_by_settings_of_their_own(network, prompts):
  """Each group as if the whole batch had its settings, in one program."""
  before = engine._advance._cache_size()
  mixed, _ = sample(
    network,
    prompts,
    sampling=sampling_of(
      temperature=[0, 1, 1.2, 0.5],
      top_k=[None, None, 9, 3],
      top_p=[1, None, 0.9, None],
      min_p=[None, 0, 0.01, 0.2],
    ),
  )
  expected = [
    {"temperature": 0},
    {"temperature": 1},
    {"temperature": 1.2, "top_k": 9, "top_p": 0.9, "min_p": 0.01},
    {"temperature": 0.5, "top_k": 3, "min_p": 0.2},
  ]
  for group, settings in enumerate(expected):
    alone, _ = sample(network, prompts, sampling=sampling_of(**settings))
    rows = slice(group * GROUP_SIZE, (group + 1) * GROUP_SIZE)
    np.testing.assert_array_equal(
      mixed.completion_ids[rows], alone.completion_ids[rows]
    )
  # Other widths may have come up; other settings have compiled nothing.
  widths = len(engine.ladder(8))
  cache_lengths = 2  # 8, 16
  assert engine._advance._cache_size() <= before + widths * cache_lengths


@pytest.mark.usefixtures("one_width")
def test_lengths_of_their_own(network, prompts):
  limits = np.arange(1, 9, dtype=np.int32).reshape(4, GROUP_SIZE)
  cut, _ = sample(network, prompts, max_lengths=limits, num_slots=5)
  whole, _ = sample(network, prompts)
  for row, limit in enumerate(limits.ravel()):
    length = min(limit, whole.completion_mask[row].sum())
    np.testing.assert_array_equal(
      cut.completion_mask[row], np.arange(LENGTH) < length
    )
    np.testing.assert_array_equal(
      cut.completion_ids[row, :length], whole.completion_ids[row, :length]
    )
    is_cut = whole.completion_mask[row].sum() > limit
    expected = StopReason.LENGTH if is_cut else whole.stop_reasons[row]
    assert cut.stop_reasons[row] == expected


def test_a_second_rollout_compiles_nothing(network, prompts):
  sampler = make(network, num_slots=5)
  ids, mask = (jnp.asarray(x) for x in prompts)
  run = functools.partial(sampler, network.params, ids, mask)
  _, first = run(keys_of(), sampling_of())
  programs = [
    engine._start,
    engine._advance,
    engine._resize,
    engine._finish,
    engine._look,
  ]
  sizes = [program._cache_size() for program in programs]
  again, usage = run(keys_of(), sampling_of())
  assert [program._cache_size() for program in programs] == sizes
  assert usage.num_programs == first.num_programs
  other, _ = run(keys_of(seed=1), sampling_of(temperature=0.5, top_k=4))
  assert (
    np.asarray(other.completion_ids) != np.asarray(again.completion_ids)
  ).any()
  # What another rollout adds is bounded by the widths and the cache lengths.
  assert len(sampler._programs) <= len(engine.ladder(5)) * 2


@pytest.mark.usefixtures("one_width")
def test_steps_from_look_to_look_are_one_program(network, prompts, monkeypatch):
  """Of one number of slots and one length of the cache."""
  monkeypatch.setattr(engine, "_STEPS", 3)
  before = engine._advance._cache_size()
  _, usage = sample(network, prompts, max_tokens=7, eos_ids=())
  assert usage.num_steps == 7
  assert engine._advance._cache_size() == before + 1


def test_the_number_of_programs_is_logarithmic():
  for width in (1, 2, 7, 64, 1000):
    steps = engine.ladder(width)
    assert steps[0] == width
    assert steps[-1] == 1
    assert len(steps) <= 2 * np.log2(width) + 2
    assert all(
      below >= 0.5 * above for above, below in itertools.pairwise(steps)
    )


@pytest.mark.usefixtures("whole_cache")
@pytest.mark.parametrize("draw", ["exponential", "bimodal", "uniform"])
def test_few_slots_are_busy(network, draw):
  """Long tails: nine slot-steps of ten give a token that counts."""
  rng = np.random.default_rng(1)
  count = 64
  lengths = {
    "exponential": rng.exponential(3, count),
    "bimodal": np.where(rng.random(count) < 0.1, 16, rng.integers(1, 4, count)),
    "uniform": rng.integers(1, 17, count),
  }[draw]
  lengths = np.clip(lengths, 1, LENGTH).astype(np.int32)
  prompts = networks.random_prompts(rng, [3] * 16, 3)
  settings = {
    "names": list(range(16)),
    "max_lengths": lengths.reshape(16, 4),
    "group_size": 4,
    "eos_ids": (),
  }
  rolled, usage = sample(network, prompts, num_slots=8, **settings)
  np.testing.assert_array_equal(rolled.completion_mask.sum(axis=1), lengths)
  assert usage.num_tokens == lengths.sum()
  assert usage.slot_efficiency > 0.9
  # The plain loop computes every row until the longest is done.
  assert lengths.sum() / (count * lengths.max()) < 0.6


@pytest.mark.usefixtures("whole_cache")
def test_memory_grows_with_prompts_and_completions(network):
  """P·S + P·G·T columns of keys and values; no prompt is there twice."""
  config = network.config
  column = 2 * 4 * config.num_layers * config.num_kv_heads * config.head_size

  def num_columns(P, S, G, T):
    prompts = networks.random_prompts(np.random.default_rng(0), [S] * P, S)
    _, usage = sample(
      network,
      prompts,
      names=list(range(P)),
      group_size=G,
      max_tokens=T,
      eos_ids=(),
    )
    return usage.cache_bytes / column

  for P, S, G, T in [
    (4, 5, 2, 16),
    (4, 17, 2, 16),
    (4, 5, 4, 16),
    (2, 5, 2, 8),
  ]:
    # The last token of a prompt stands with the completion.
    assert num_columns(P, S, G, T) == P * (S - 1) + P * G * T


class TestStopStrings:
  def test_text_ends_where_it_first_contains_one(self, network, prompts):
    whole, _ = sample(network, prompts, eos_ids=())
    texts = [decode(row) for row in whole.completion_ids]
    string = texts[0][9:11]
    cut, usage = sample(network, prompts, eos_ids=(), stop=(string,))
    hits = 0
    for row, text in enumerate(texts):
      length = cut.completion_mask[row].sum()
      np.testing.assert_array_equal(
        cut.completion_ids[row, :length], whole.completion_ids[row, :length]
      )
      if string not in text:
        assert length == LENGTH
        assert cut.stop_reasons[row] == StopReason.LENGTH
        continue
      hits += 1
      assert cut.stop_reasons[row] == StopReason.STOP_STRING
      kept = cut.completion_ids[row, :length]
      assert string in decode(kept)
      assert string not in decode(kept[:-1])
      np.testing.assert_array_equal(cut.completion_ids[row, length:], PAD)
      np.testing.assert_array_equal(cut.log_probs[row, length:], 0)
    assert 0 < hits < len(texts)
    assert usage.num_tokens == cut.completion_mask.sum()

  def test_one_that_means_a_token_ends_at_that_token(self, network, prompts):
    """Special tokens have no text; a string before one still comes first."""
    whole, _ = sample(network, prompts, eos_ids=())
    special = {"<|end|>": 21}
    cut, _ = sample(
      network, prompts, eos_ids=(), stop=("<|end|>", "a"), special_ids=special
    )
    reasons = set()
    for row, ids in enumerate(whole.completion_ids):
      places = np.flatnonzero((ids == 21) | (ids == 0))
      length = cut.completion_mask[row].sum()
      assert length == (places[0] + 1 if places.size else LENGTH)
      if places.size:
        assert cut.stop_reasons[row] == StopReason.STOP_STRING
        reasons.add(int(ids[places[0]]))
    assert reasons == {0, 21}

  def test_slots_change_nothing(self, network, prompts):
    settings = {"stop": ("ab", "q", "rs")}
    expected, _ = sample(network, prompts, **settings)
    assert {StopReason.STOP_STRING, StopReason.EOS} <= set(
      expected.stop_reasons
    )
    for num_slots in (1, 5):
      rolled, _ = sample(network, prompts, num_slots=num_slots, **settings)
      assert_same(rolled, expected)

  def test_a_string_over_many_tokens_and_looks(
    self, network, prompts, monkeypatch
  ):
    whole, _ = sample(network, prompts, eos_ids=())
    string = decode(whole.completion_ids[5])[3:14]
    for steps in (1, 2, 16):
      monkeypatch.setattr(engine, "_STEPS_WITH_STOP", steps)
      cut, _ = sample(network, prompts, eos_ids=(), stop=(string,))
      assert cut.stop_reasons[5] == StopReason.STOP_STRING
      length = cut.completion_mask[5].sum()
      assert decode(cut.completion_ids[5, :length]).endswith(string)

  def test_it_comes_before_an_end_that_came_in_the_same_look(
    self, network, prompts
  ):
    """A row that ended is cut too, if the string came earlier."""
    ended, _ = sample(network, prompts)
    row = int(np.argmax(ended.completion_mask.sum(axis=1) > 2))
    text = decode(ended.completion_ids[row])
    cut, _ = sample(network, prompts, stop=(text[0],))
    assert cut.completion_mask[row].sum() < ended.completion_mask[row].sum()
    assert cut.stop_reasons[row] == StopReason.STOP_STRING


class TestEdges:
  @pytest.mark.usefixtures("one_width")
  def test_everyone_ends_at_the_first_token(self, network, prompts):
    everything = tuple(range(networks.VOCAB_SIZE))
    rolled, usage = sample(network, prompts, eos_ids=everything, num_slots=5)
    np.testing.assert_array_equal(rolled.completion_mask.sum(axis=1), 1)
    np.testing.assert_array_equal(rolled.stop_reasons, StopReason.EOS)
    assert usage.num_tokens == 8

  def test_all_at_once(self, network, prompts):
    rolled, usage = sample(network, prompts, eos_ids=())
    np.testing.assert_array_equal(rolled.completion_mask, 1)
    np.testing.assert_array_equal(rolled.stop_reasons, StopReason.LENGTH)
    assert usage.num_steps == LENGTH
    assert usage.slot_efficiency == 1

  def test_one_row_of_one_token(self, network, prompts):
    one = tuple(x[2:3] for x in prompts)
    rolled, usage = sample(network, one, names=[19], group_size=1, max_tokens=1)
    assert rolled.completion_ids.shape == (1, 1)
    assert usage.num_tokens == usage.num_slot_steps == 1

  @pytest.mark.usefixtures("one_width")
  def test_a_prompt_of_one_column(self, network, prompts):
    ids, mask = prompts
    narrow = (ids[2:3, -1:], mask[2:3, -1:])
    rolled, _ = sample(network, narrow, names=[19])
    # The same prompt beside longer ones.
    whole, _ = sample(network, prompts)
    rows = slice(2 * GROUP_SIZE, 3 * GROUP_SIZE)
    assert_same(rolled, jax.tree.map(lambda x: x[rows], whole))

  @pytest.mark.parametrize(
    ("settings", "said"),
    [
      ({"num_slots": 0}, "num_slots=0"),
      ({"cache_dtype": "int8"}, "cache_dtype='int8' must be a type"),
      ({"cache_dtype": "foo"}, "cache_dtype='foo' must be a type"),
    ],
    ids=str,
  )
  def test_unusable_settings(self, settings, said):
    with pytest.raises(ValueError, match=said):
      EngineConfig(**settings)

  def test_stop_strings_need_text(self, network, prompts):
    with pytest.raises(ValueError, match="needs decode"):
      sample(network, prompts, stop=("a",), decode=None)
    with pytest.raises(ValueError, match="cannot be found on the device"):
      one_program(network, prompts, sampling_of(stop=("a",)))

  @pytest.mark.parametrize(
    ("settings", "said"),
    [
      ({"temperature": -1}, "temperature=-1 must be 0, or"),
      ({"temperature": [1, float("nan")]}, "temperature=nan must be 0, or"),
      ({"temperature": 1e38}, r"temperature=1e\+38 must be 0, or"),
      ({"temperature": "1"}, "temperature=1 must be 0, or"),
      ({"top_k": 0}, "top_k=0 must be a whole number"),
      ({"top_k": 2.5}, "top_k=2.5 must be a whole number"),
      ({"top_p": [0.5, 0]}, "top_p=0 must be above 0"),
      ({"min_p": 1.5}, "min_p=1.5 must be in"),
      ({"stop": "ab"}, "must be a list of strings"),
      ({"stop": ("a", 3)}, "must be a list of strings"),
      ({"stop": ("",)}, "none empty"),
      ({"max_tokens": 0}, "max_tokens=0 must be a positive"),
    ],
    ids=str,
  )
  def test_unusable_sampling_params(self, settings, said):
    with pytest.raises(ValueError, match=said):
      SamplingParams(**settings)


def test_lengths_that_do_not_fit_are_refused(network, prompts):
  with pytest.raises(ValueError, match="from 1 to 17 must be in"):
    sample(network, prompts, max_lengths=np.asarray([[1, 17]] * 4))
  with pytest.raises(ValueError, match="max_lengths from 0"):
    sample(network, prompts, max_lengths=0)


@pytest.mark.usefixtures("one_width")
def test_other_generators_draw_each_row_by_its_own_key(network, prompts):
  ids, mask = (jnp.asarray(x) for x in prompts)
  rolled = [
    make(network, num_slots=num_slots)(
      network.params,
      ids,
      mask,
      random_keys.sample_keys(
        jax.random.key(3, impl="rbg"),
        random_keys.identities(NAMES),
        GROUP_SIZE,
      ),
      sampling_of(),
    )[0].completion_ids
    for num_slots in (5, None)
  ]
  np.testing.assert_array_equal(*rolled)


@pytest.mark.usefixtures("one_width")
def test_with_64_bits_it_samples_the_same(network, prompts):
  expected, _ = sample(network, prompts, num_slots=5)
  with jax.enable_x64(True):
    rolled, _ = sample(network, prompts, num_slots=5)
  assert_same(rolled, expected)


def test_progress_is_reported(network, prompts, monkeypatch):
  monkeypatch.setattr(engine, "_STEPS", 4)
  reported = []
  _, usage = sample(
    network,
    prompts,
    num_slots=5,
    report=lambda num_tokens, num_done: reported.append((num_tokens, num_done)),
  )
  assert len(reported) > 2
  assert reported == sorted(reported)
  assert reported[-1] == (usage.num_tokens, 8)


def finished_rows_of(
  network, prompts, monkeypatch, mesh=None, stop=(), **settings
):
  """Returns each row's tokens as reported, when, and the rollout itself."""
  monkeypatch.setattr(engine, "_STEPS", 4)
  monkeypatch.setattr(finished_rows, "_ROWS_AT_ONCE", 2)
  reported, tokens = [], []
  sampler = make(network, **settings)

  def on_finished(row, ids):
    reported.append((row, ids.tolist(), tokens[-1]))

  params = network.params if mesh is None else on_mesh(network, mesh)
  put = sharding.put_batch if mesh else lambda _, x: map(jnp.asarray, x)
  with jax.set_mesh(mesh) if mesh else contextlib.nullcontext():
    rolled, _ = sampler(
      params,
      *put(mesh, prompts),
      keys_of(),
      sampling_of(stop=stop),
      report=lambda num_tokens, _: tokens.append(num_tokens),
      on_finished=on_finished,
    )
  return reported, tokens, jax.tree.map(np.asarray, rolled)


@pytest.mark.parametrize(
  "settings",
  [{}, {"num_slots": 5}, {"stop": ("ab", "q", "rs")}],
  ids=["all at once", "few slots", "stop strings"],
)
@pytest.mark.parametrize("is_cut", [False, True], ids=["whole", "by device"])
def test_each_row_is_reported_once_as_it_ends(
  network, prompts, monkeypatch, settings, is_cut
):
  mesh = None
  if is_cut:
    monkeypatch.setattr(engine, "ladder", lambda width: [width])
    mesh = sharding.make_mesh(2, 1, 2, devices=jax.devices()[:4])
  reported, tokens, rolled = finished_rows_of(
    network, prompts, monkeypatch, mesh, **settings
  )
  expected, _ = sample(network, prompts, **settings)
  assert_same(rolled, expected)
  assert sorted(row for row, *_ in reported) == list(range(8))
  for row, ids, _ in reported:
    length = rolled.completion_mask[row].sum()
    assert ids == rolled.completion_ids[row, :length].tolist()
  # The first are reported before the last token is sampled.
  assert reported[0][2] < tokens[-1]


def test_reporting_rows_compiles_nothing_new(network, prompts, monkeypatch):
  finished_rows_of(network, prompts, monkeypatch, num_slots=5)
  programs = [
    finished_rows._gather,
    finished_rows._none_reported,
    engine._look,
    engine._advance,
  ]
  sizes = [program._cache_size() for program in programs]
  finished_rows_of(network, prompts, monkeypatch, num_slots=5)
  assert [program._cache_size() for program in programs] == sizes


def test_prompts_are_read_a_few_at_a_time(network, prompts, monkeypatch):
  expected, _ = sample(network, prompts)
  engine._start.clear_cache()  # it is read while a program is traced
  monkeypatch.setattr(prefill, "_PREFILL_TOKENS", 8)
  before = engine._start._cache_size()
  rolled, _ = sample(network, prompts)
  assert engine._start._cache_size() == before + 1
  engine._start.clear_cache()
  assert_same(rolled, expected)
