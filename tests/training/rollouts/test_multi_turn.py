"""Episodes with a real network: who says what, and what a turn depends on."""

import dataclasses
import itertools
import time
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distil_jax.config.environments import JudgingConfig
from distil_jax.data import shared_prefixes
from distil_jax.data import tokenizer as tokenizers
from distil_jax.envs.judge_pool import JudgePool
from distil_jax.generation import engine
from distil_jax.generation.policy import Policy
from distil_jax.models import decoder, sharding
from distil_jax.models import decoder_config as models_config
from distil_jax.training.rollouts import experience as rollouts_experience
from distil_jax.training.rollouts import multi_turn, reply_pool, tool_pool
from distil_jax.types import (
  Problem,
  Reply,
  Rollout,
  Status,
  StopReason,
  Verdict,
)
from tests import cpu_time, networks, rollout_workers

GROUP_SIZE, LENGTH, PROMPT_LENGTH = 2, 60, 24
MAX_TURNS, MAX_OUTPUT_TOKENS = 3, 12
PROBLEMS = [
  Problem(index=i, messages=({"role": "user", "content": f"{i}?"},), answer="")
  for i in range(4)
]


class Echo:
  """Judges nothing; its feedback is what it was shown."""

  def problem(self, row, index=0):
    raise NotImplementedError("these problems come from no file")

  def judge(self, problem, completion):
    return Verdict(0.0, completion, Status.WRONG)


def is_asked(text):
  """Whether a turn asks for the tool: two in three do."""
  return zlib.crc32(text.encode()) % 3 > 0


def words(problem, turns, outputs):
  """A tool whose words depend on all that it is given."""
  assert len(outputs) == len(turns) - 1
  if not is_asked(turns[-1]):
    return None
  seen = f"{problem.index} {list(turns)} {list(outputs)}"
  return str(zlib.crc32(seen.encode()) % 10 ** (len(turns) + 1))


class Speaking(Echo):
  """Has a word of its own after each turn, and a verdict on it."""

  max_turns = MAX_TURNS

  def reply(self, problem, turns, replies):
    earlier = [reply.message for reply in replies]
    word = words(problem, turns, earlier)
    verdict = Verdict(len(turns) / 10, f"of {turns[-1]}", Status.WRONG)
    # One problem's turns are judged at the end alone.
    return Reply(word, None if problem.index == 3 else verdict)


@pytest.fixture(scope="module", autouse=True)
def few_programs():
  """One width of slots and one of prompts: they compile for long."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(engine, "ladder", lambda width: [width])
    patch.setattr(shared_prefixes, "_NUM_WIDTHS", 1)
    yield


@pytest.fixture(scope="module")
def policy():
  tokenizer = tokenizers.train(["What is it?"], vocab_size=300)
  # So many ends that turns are short.
  tokenizer = dataclasses.replace(
    tokenizer, eos_ids=(*tokenizer.eos_ids, *range(40, 70))
  )
  config = models_config.DecoderConfig(
    vocab_size=tokenizer.vocab_size,
    width=16,
    num_layers=1,
    num_heads=2,
    num_kv_heads=1,
    head_size=8,
    mlp_size=16,
    rope_theta=1e4,
    tie_embeddings=False,
    max_positions=128,
  )
  graphdef, template = decoder.make(config)
  params = networks.random_params(template, seed=0)
  return Policy(config, graphdef, params, tokenizer)


@pytest.fixture(scope="module")
def mesh():
  return sharding.make_mesh(fsdp=2, devices=jax.devices()[:2])


def make(policy, mesh, tool=words, *, warnings=None, seconds=60.0, **settings):
  made = None
  if tool is not None:
    made = tool_pool.ToolPool(
      tool,
      policy.tokenizer,
      max_turns=MAX_TURNS,
      max_output_tokens=MAX_OUTPUT_TOKENS,
      seconds=seconds,
      warn=pytest.fail if warnings is None else warnings.append,
    )
  defaults = {
    "group_size": GROUP_SIZE,
    "max_prompt_length": PROMPT_LENGTH,
    "max_completion_length": LENGTH,
    "stop": ("z", "Z"),
    # Half of the rows: others wait, and turns of several numbers meet.
    "num_slots": 4,
    "partner": made,
  }
  judges = settings.pop("judges", None) or JudgePool(Echo())
  return rollout_workers.make(policy, judges, mesh, **defaults | settings)


def make_speaking(policy, mesh, environment, *, warnings=None, **settings):
  judges = JudgePool(
    environment,
    JudgingConfig(**settings),
    warn=pytest.fail if warnings is None else warnings.append,
  )
  partner = reply_pool.ReplyPool(
    judges,
    policy.tokenizer,
    max_turns=environment.max_turns,
    max_reply_length=MAX_OUTPUT_TOKENS,
  )
  return make(policy, mesh, None, partner=partner, judges=judges)


def play(worker, policy, problems=PROBLEMS, seed=0, **settings):
  return worker(policy.params, problems, jax.random.key(seed), **settings)


@pytest.fixture(scope="module")
def played(policy, mesh):
  return play(make(policy, mesh), policy)


def runs(experience, row):
  """The tokens of a row, cut where the student's begin and end."""
  rolled = experience.rollout
  length = rolled.completion_mask[row].sum()
  ids, own = rolled.completion_ids[row, :length], rolled.student_mask[row]
  cuts = np.flatnonzero(np.diff(own[:length])) + 1
  return [part.tolist() for part in np.split(ids, cuts)]


def log_probs_after(policy, experience):
  """Of the training pass over whole rows, all tokens. `[B, T, V]`."""
  rolled = experience.rollout
  ids, mask = (
    np.concatenate([np.repeat(prompt, GROUP_SIZE, axis=0), completion], axis=1)
    for prompt, completion in (
      (rolled.prompt_ids, rolled.completion_ids),
      (rolled.prompt_mask, rolled.completion_mask),
    )
  )
  table = networks.full_log_probs(
    policy.params, jnp.asarray(ids), jnp.asarray(mask), graphdef=policy.graphdef
  )
  return np.asarray(table)[:, PROMPT_LENGTH - 1 : -1]


def assert_same_rows(experience, rows, expected, expected_rows):
  for name in (
    "completion_ids",
    "completion_mask",
    "student_mask",
    "stop_reasons",
  ):
    np.testing.assert_array_equal(
      getattr(experience.rollout, name)[rows],
      getattr(expected.rollout, name)[expected_rows],
      err_msg=name,
    )
  for name in ("log_probs", "behavior_log_probs"):
    np.testing.assert_allclose(
      getattr(experience.rollout, name)[rows],
      getattr(expected.rollout, name)[expected_rows],
      atol=2e-5,
    )


def test_turns_and_outputs_take_turns(policy, played):
  tokenizer, rolled = policy.tokenizer, played.rollout
  before, after = tokenizer.tokens_around(("tool", "user"))
  counts = []
  for row in range(len(PROBLEMS) * GROUP_SIZE):
    mask = rolled.completion_mask[row]
    assert (np.diff(mask) <= 0).all()
    assert (rolled.student_mask[row] <= mask).all()
    student, tool = runs(played, row)[::2], runs(played, row)[1::2]
    said = [tokenizer.decode(ids) for ids in student]
    assert played.completions[row] == said[-1]
    assert played.verdicts[row].feedback == said[-1]
    roles = [message["role"] for message in played.earlier[row]]
    assert roles == ["student", "tool"] * len(tool)
    shown = [message["content"] for message in played.earlier[row]]
    assert shown[::2] == said[:-1]
    for i, ids in enumerate(tool):
      ended = student[i][-1] in tokenizer.eos_ids
      # The student's own end is not said twice.
      expected = [*before[ended:], *tokenizer.encode(shown[2 * i + 1]), *after]
      assert ids == expected
      problem = PROBLEMS[row // GROUP_SIZE]
      answer = words(problem, said[: i + 1], shown[1 : 2 * i : 2])
      assert answer == shown[2 * i + 1]
    counts.append(len(student))
    if rolled.stop_reasons[row] != StopReason.LENGTH:
      is_last = len(student) == MAX_TURNS
      assert is_last or not is_asked(said[-1])
  assert min(counts) == 1
  assert max(counts) == MAX_TURNS
  np.testing.assert_array_equal(played.lengths, rolled.student_mask.sum(axis=1))
  assert played.usage.num_tokens == rolled.student_mask.sum()
  by_turn = played.episode_values
  np.testing.assert_array_equal(by_turn["tools/turns"], counts)
  np.testing.assert_array_equal(by_turn["tools/calls"], np.subtract(counts, 1))
  is_tool = rolled.completion_mask - rolled.student_mask
  np.testing.assert_array_equal(by_turn["tools/tokens"], is_tool.sum(axis=1))
  assert not by_turn["tools/failed"].any()


def test_an_environment_that_speaks_judges_each_turn(policy, mesh, played):
  """What it says is shown as a tool's output is, so the tokens are the same."""
  spoken = play(make_speaking(policy, mesh, Speaking()), policy)
  assert_same_rows(spoken, slice(None), played, slice(None))
  assert spoken.completions == played.completions
  for row in range(len(PROBLEMS) * GROUP_SIZE):
    turns = spoken.turns_of(row)
    texts = [m["content"] for m in spoken.earlier[row]]
    assert texts == [m["content"] for m in played.earlier[row]]
    assert [text for text, _ in turns] == [*texts[::2], spoken.completions[row]]
    roles = {m["role"] for m in spoken.earlier[row]}
    assert roles <= {"student", "environment"}
    if row // GROUP_SIZE == 3:
      assert [v for _, v in turns[:-1]] == [None] * (len(turns) - 1)
      assert turns[-1][1].feedback == turns[-1][0]  # what `judge` says
      continue
    for number, (text, verdict) in enumerate(turns, start=1):
      assert verdict.reward == number / 10
      assert verdict.feedback == f"of {text}"
    # Tokens are numbered by the turn that they belong to.
    numbers = spoken.turn_numbers[row]
    own = spoken.rollout.student_mask[row] == 1
    counts = np.bincount(numbers[own], minlength=len(turns))
    assert counts.tolist() == [len(ids) for ids in runs(spoken, row)[::2]]
  values = spoken.episode_values
  counts = [len(spoken.turns_of(row)) for row in range(8)]
  np.testing.assert_array_equal(values["conversation/turns"], counts)
  np.testing.assert_array_equal(
    values["conversation/tokens"], played.episode_values["tools/tokens"]
  )
  firsts = np.repeat([0.1, 0.1, 0.1, 0.0], GROUP_SIZE)
  # Without a verdict on its own, the first turn is the last.
  firsts[np.equal(counts, 1) & (np.arange(8) >= 6)] = 0.0
  np.testing.assert_allclose(values["conversation/first_reward"], firsts)


def test_an_environment_that_fails_ends_its_conversation(policy, mesh):
  warnings = []

  class Broken(Speaking):
    def reply(self, problem, turns, replies):
      if problem.index == 1:
        time.sleep(3)
      if problem.index == 2 and len(turns) == 2:
        return "no reply"
      return Reply("1", Verdict(0.5, "", Status.WRONG))

  found = play(
    make_speaking(policy, mesh, Broken(), warnings=warnings, seconds=0.5),
    policy,
  )
  statuses = [verdict.status for verdict in found.verdicts]
  assert statuses[2:4] == [Status.TIMEOUT] * 2
  assert statuses[6:] == [Status.WRONG] * 2
  for row in (4, 5):
    num_turns = len(found.turns_of(row))
    is_broken = num_turns == 2
    assert statuses[row] == (Status.CRASHED if is_broken else Status.WRONG)
  assert Status.CRASHED in statuses
  assert [found.earlier[row] for row in (2, 3)] == [[], []]
  assert len(warnings) == 2
  # It is asked about the last turn too, and what it says then is not shown.
  last = [len(found.turns_of(row)) for row in (0, 1, 6, 7)]
  assert max(last) == MAX_TURNS


def test_the_sampler_is_the_scorer_across_turns(policy, played):
  rolled = played.rollout
  table = log_probs_after(policy, played)
  own = np.take_along_axis(table, rolled.completion_ids[..., None], -1)[..., 0]
  own = np.where(rolled.student_mask == 1, own, 0.0)
  np.testing.assert_allclose(rolled.log_probs, own, atol=1e-4)
  np.testing.assert_allclose(rolled.behavior_log_probs, own, atol=1e-4)


def test_greedy_turns_are_what_is_most_probable_then(policy, mesh):
  greedy = play(make(policy, mesh, temperature=0.0), policy)
  assert (greedy.rollout.student_mask < greedy.rollout.completion_mask).any()
  best = log_probs_after(policy, greedy).argmax(axis=-1)
  is_own = greedy.rollout.student_mask == 1
  np.testing.assert_array_equal(
    best[is_own], greedy.rollout.completion_ids[is_own]
  )


def test_who_else_goes_on_changes_nothing(policy, mesh, played):
  first = slice(0, GROUP_SIZE)

  def only_for_the_first(problem, turns, outputs):
    return words(problem, turns, outputs) if problem.index == 0 else None

  alone = play(make(policy, mesh, only_for_the_first), policy)
  assert_same_rows(alone, first, played, first)
  assert len(runs(alone, 0)) + len(runs(alone, 1)) > 2
  turned = play(make(policy, mesh), policy, PROBLEMS[::-1])
  for i in range(len(PROBLEMS)):
    there = slice((3 - i) * GROUP_SIZE, (4 - i) * GROUP_SIZE)
    here = slice(i * GROUP_SIZE, (i + 1) * GROUP_SIZE)
    assert_same_rows(turned, there, played, here)


def test_each_turn_has_noise_of_its_own(policy, mesh):
  """Where all tokens are as good, the noise alone decides."""
  noise = make(policy, mesh, lambda *_: "1", stop=(), temperature=1e6)
  first, later = [], []
  for seed in range(4):
    found = play(noise, policy, seed=seed)
    for row in range(8):
      turns = runs(found, row)[::2]
      for before, after in itertools.combinations(turns, 2):
        first.append(before[0])
        later.append(after[0])
  assert len(later) > 40
  assert np.mean(np.equal(first, later)) < 0.2


def test_a_tool_that_has_nothing_to_say_changes_nothing(policy, mesh):
  silent = play(make(policy, mesh, lambda *_: None), policy)
  plain = play(make(policy, mesh, None), policy)
  assert plain.rollout.student_mask is None
  assert plain.earlier is None
  assert plain.episode_values == {}
  np.testing.assert_array_equal(
    silent.rollout.student_mask, plain.rollout.completion_mask
  )
  whole = dataclasses.replace(
    plain,
    rollout=plain.rollout.replace(student_mask=silent.rollout.student_mask),
  )
  assert_same_rows(silent, slice(None), whole, slice(None))
  assert silent.completions == plain.completions
  assert silent.earlier == [[]] * 8


def test_what_does_not_fit_ends_the_episode(policy, mesh):
  """An output comes whole or not at all."""
  found = play(
    make(policy, mesh, lambda *_: "123456789"),
    policy,
  )
  whole = play(make(policy, mesh, None), policy)
  is_cut = found.is_cut_off
  assert is_cut.any()
  for row in np.flatnonzero(is_cut):
    parts = runs(found, row)
    assert len(parts) % 2  # a tool has not the last word
    if len(parts) == 1 and not whole.is_cut_off[row]:
      # Its turn stays as it was, end and all.
      np.testing.assert_array_equal(
        found.rollout.completion_ids[row], whole.rollout.completion_ids[row]
      )
  bridge = len(policy.tokenizer.tokens_around(("tool", "user"))[1]) + 9
  assert any(len(runs(found, row)) > 1 for row in range(8))
  for row in range(8):
    for part in runs(found, row)[1::2]:
      assert len(part) > bridge


@pytest.mark.parametrize("num_spare", [0, 1])
def test_an_output_needs_a_token_after_it(policy, num_spare):
  """By hand: a turn of three tokens, an output, and what is left."""
  tokenizer, end = policy.tokenizer, policy.tokenizer.eos_ids[0]
  speaking = tool_pool.ToolPool(
    lambda *_: "1", tokenizer, max_turns=2, max_output_tokens=MAX_OUTPUT_TOKENS
  )
  shown = speaking.between_turns("1", last_id=end)
  length = 3 + len(shown) + num_spare
  over = []
  played = multi_turn.Episodes(
    speaking,
    tokenizer,
    PROBLEMS[:1],
    np.array([[0, 7, 8]], np.int32),
    np.array([[0, 1, 1]], np.int32),
    group_size=1,
    max_completion_length=length,
    on_episode_end=lambda row, text, verdict: over.append((row, text)),
  )
  said = np.array([80, 81, end], np.int32)
  ids = np.pad(said, (0, length - 3))[None]
  log_probs = np.where(ids > 0, -2.0, 0.0).astype(np.float32)
  played.on_finished([0])(0, said)
  turn = rollout_of(ids, log_probs, StopReason.EOS)
  played.add_turns([0], turn)
  going_on = played.add_replies()
  rolled = played.rollout()
  np.testing.assert_array_equal(
    rolled.student_mask[0], [1] * 3 + [0] * (length - 3)
  )
  np.testing.assert_array_equal(rolled.log_probs[0, :3], -2.0)
  if not num_spare:
    assert going_on == []
    assert over == [(0, tokenizer.decode(said))]
    assert rolled.stop_reasons[0] == StopReason.LENGTH
    assert rolled.completion_mask.sum() == 3
    return
  assert going_on == [0]
  assert over == []
  turns = played.turns([0], 2)
  np.testing.assert_array_equal(turns.max_lengths, [1, 1])  # and a stand-in
  expected = [7, 8, *said, *shown]
  assert turns.prompt_ids[0][turns.prompt_mask[0] == 1].tolist() == expected
  assert turns.numbers == [1]


def rollout_of(ids, log_probs, stop_reason):
  """A turn as the engine gives it, of one row."""
  mask = (log_probs < 0).astype(np.int32)
  nothing = np.zeros((1, 0), np.int32)
  return Rollout(
    prompt_ids=nothing,
    prompt_mask=nothing,
    completion_ids=ids,
    completion_mask=mask,
    log_probs=log_probs,
    behavior_log_probs=log_probs,
    stop_reasons=np.array([stop_reason], np.int32),
  )


def test_a_failing_tool_costs_its_output_and_is_told_of_once(policy, mesh):
  warnings = []

  def broken(problem, turns, outputs):
    if problem.index == 1:
      time.sleep(3)
    if problem.index == 2:
      return 3
    return 1 / 0 if problem.index == 3 else None

  found = play(
    make(policy, mesh, broken, warnings=warnings, seconds=0.3), policy
  )
  said = {
    row // GROUP_SIZE: [m["content"] for m in found.earlier[row][1::2]]
    for row in range(8)
  }
  assert said[0] == []
  for i in (1, 2, 3):
    assert set(said[i]) <= {rollouts_experience.FAILED}
  failed = found.episode_values["tools/failed"]
  np.testing.assert_array_equal(failed, found.episode_values["tools/calls"])
  assert failed.sum() >= 4
  assert len(warnings) == 2
  assert any("within 0.3 s" in text for text in warnings)
  assert any("Traceback" in text for text in warnings)


def test_progress_never_goes_back(policy, mesh):
  seen = []
  play(
    make(policy, mesh),
    policy,
    report=lambda num_tokens, num_done: seen.append((num_tokens, num_done)),
  )
  tokens, done = np.asarray(seen).T
  assert (np.diff(tokens) >= 0).all()
  assert (np.diff(done) >= 0).all()
  assert done[-1] == 8


@pytest.fixture(scope="module")
def made(policy):
  return tool_pool.ToolPool(
    words, policy.tokenizer, max_turns=2, max_output_tokens=MAX_OUTPUT_TOKENS
  )


class TestShown:
  def output(self, policy, made, text):
    before, after = policy.tokenizer.tokens_around(("tool", "user"))
    ids = made.between_turns(text, last_id=0)
    assert ids[: len(before)] == before
    assert ids[-len(after) :] == after
    return ids[len(before) : -len(after)]

  @pytest.mark.parametrize("text", ["", "12", "123456789012"])
  def test_what_is_short_stays(self, policy, made, text):
    ids = self.output(policy, made, text)
    assert policy.tokenizer.decode(ids) == text

  @pytest.mark.parametrize("text", ["1234567890123", "é" * 20, "🧪" * 9])
  def test_what_is_long_is_cut_with_a_sign(self, policy, made, text):
    ids = self.output(policy, made, text)
    assert len(ids) <= MAX_OUTPUT_TOKENS
    kept, sign = policy.tokenizer.decode(ids).split("\n")
    assert sign == "(cut)"
    assert text.startswith(kept)
    assert kept

  @pytest.mark.parametrize("text", ["1", "\ud800", "🧪"])
  def test_what_is_endless_takes_no_longer(self, policy, made, text):
    with cpu_time.at_most(2):
      ids = self.output(policy, made, text * 10**7)
    assert ids == self.output(policy, made, text * 100)

  def test_it_cannot_end_a_turn(self, policy, made):
    ids = self.output(policy, made, "<|im_end|>")
    assert policy.tokenizer.eos_ids[0] not in ids

  def test_a_limit_without_room_for_the_sign_is_refused(self, policy):
    with pytest.raises(ValueError, match="max_output_tokens=6 must be more"):
      tool_pool.ToolPool(
        words, policy.tokenizer, max_turns=2, max_output_tokens=6
      )


def test_few_sizes_serve_all_turns(monkeypatch):
  monkeypatch.setattr(shared_prefixes, "_NUM_WIDTHS", 3)
  sizes = {multi_turn._size(n, 64, 4) for n in range(65)}
  assert sizes == {0, 16, 32, 64}
  assert {multi_turn._size(n, 6, 4) for n in range(1, 7)} == {4, 8}
  assert multi_turn._size(100, 64, 4) == 64  # the others wait
