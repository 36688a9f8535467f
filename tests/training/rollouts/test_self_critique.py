"""The policy on its own completions, with a real network."""

import dataclasses
import json
import zlib

import jax
import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from distil_jax import config
from distil_jax.config.environments import SelfEvaluationConfig
from distil_jax.envs.judge_pool import JudgePool
from distil_jax.envs.self_evaluation import SelfEvaluation
from distil_jax.generation import engine
from distil_jax.generation.generate import generate
from distil_jax.models import sharding
from distil_jax.training import batch_builder, trainer
from distil_jax.training.logging import step_metrics
from distil_jax.training.rollouts import rollout_worker, self_critique
from distil_jax.types import Problem, Status, Verdict
from tests import networks, rollout_workers

GROUP_SIZE, LENGTH, PROMPT_LENGTH = 2, 6, 48
RUBRIC = "Q: {problem}\nA: {completion}\nBad?"
PROBLEMS = [
  Problem(
    index=i, messages=({"role": "user", "content": f"What is {i}?"},), answer=""
  )
  for i in range(8)
]


class CheckSum:
  """Right and wrong by a check sum of problem and completion."""

  def problem(self, row, index=0):
    raise NotImplementedError("these problems come from no file")

  def judge(self, problem, completion):
    is_right = zlib.crc32(f"{problem.index}{completion}".encode()) % 3 == 0
    status = Status.CORRECT if is_right else Status.WRONG
    return Verdict(float(is_right), "", status)


class Wrong(CheckSum):
  def judge(self, problem, completion):
    return Verdict(0.0, "", Status.WRONG)


class Right(CheckSum):
  def judge(self, problem, completion):
    return Verdict(1.0, "", Status.CORRECT)


@pytest.fixture(scope="module")
def mesh():
  return sharding.make_mesh(1, 1, 1, devices=jax.devices()[:1])


@pytest.fixture(scope="module")
def policy(mesh):
  return networks.policy(mesh)


@pytest.fixture(scope="module")
def critic_of(policy, mesh):
  def make(environment, temperature=1.0):
    judges = JudgePool(environment)
    sampling = {"temperature": temperature}
    worker = rollout_workers.make(
      policy,
      judges,
      mesh,
      group_size=GROUP_SIZE,
      max_prompt_length=24,
      max_completion_length=5,
      **sampling,
    )
    critic = rollout_workers.make(
      policy,
      judges,
      mesh,
      group_size=1,
      max_prompt_length=PROMPT_LENGTH,
      max_completion_length=LENGTH,
      **sampling,
    )
    return worker, self_critique.SelfCritic(
      worker,
      critic,
      environment,
      policy.tokenizer,
      max_prompt_length=PROMPT_LENGTH,
      max_length=LENGTH,
    )

  return make


@pytest.fixture(scope="module")
def critic(critic_of):
  return critic_of(
    SelfEvaluation(SelfEvaluationConfig(rubric=RUBRIC), CheckSum())
  )


@pytest.fixture(scope="module")
def experience(critic, policy):
  _, act = critic
  return act(policy.params, PROBLEMS, jax.random.key(1))


def by_row(experience):
  """Completion and feedback of each row, by problem and member."""
  return {
    (experience.problems[i // GROUP_SIZE].index, i % GROUP_SIZE): (
      experience.completions[i],
      verdict.feedback,
    )
    for i, verdict in enumerate(experience.verdicts)
  }


def test_every_failure_has_a_critique_and_no_success_has_one(experience):
  is_wrong = [v.status is Status.WRONG for v in experience.verdicts]
  assert 0 < sum(is_wrong) < len(is_wrong)
  for wrong, verdict in zip(is_wrong, experience.verdicts, strict=True):
    assert ("has_critique" in verdict.details) == wrong
  counts = experience.critiques
  assert set(counts) == set(self_critique.COUNTS)
  assert counts["asked"] == sum(is_wrong)
  assert counts["no_room"] == counts["prompt_cut"] == 0
  readable = [v for v in experience.verdicts if v.details.get("has_critique")]
  assert readable
  assert all(verdict.feedback for verdict in readable)
  assert counts["unreadable"] == sum(is_wrong) - len(readable)
  assert sum(is_wrong) <= counts["tokens"] <= LENGTH * sum(is_wrong)


def test_the_rollout_is_that_of_the_actor_alone(critic, policy, experience):
  worker, _ = critic
  alone = worker(policy.params, PROBLEMS, jax.random.key(1))
  assert alone.completions == experience.completions
  assert alone.critiques is None
  for name in ("completion_ids", "log_probs", "stop_reasons"):
    np.testing.assert_array_equal(
      getattr(alone.rollout, name), getattr(experience.rollout, name)
    )
  rewards = [verdict.reward for verdict in alone.verdicts]
  assert rewards == [verdict.reward for verdict in experience.verdicts]


def test_a_critique_depends_on_its_own_row_alone(critic, policy, experience):
  _, act = critic
  mixed = [PROBLEMS[i] for i in (5, 2, 7, 0, 6, 1, 4, 3)]
  again = act(policy.params, mixed, jax.random.key(1))
  assert by_row(again) == by_row(experience)


def test_critiques_of_equal_attempts_differ(critic_of, policy):
  # The same prompt in every row but for the problem's place and name.
  same = [dataclasses.replace(PROBLEMS[0], index=i) for i in range(8)]
  environment = SelfEvaluation(
    SelfEvaluationConfig(rubric="{problem}{completion}"), Wrong()
  )
  object.__setattr__(
    environment, "critique_prompt", lambda *_: PROBLEMS[0].messages
  )
  _, act = critic_of(environment)
  found = act(policy.params, same, jax.random.key(1))
  texts = {verdict.feedback for verdict in found.verdicts}
  assert len(texts) > GROUP_SIZE * len(same) // 2
  other = act(policy.params, same, jax.random.key(2))
  assert other.completions != found.completions
  assert {verdict.feedback for verdict in other.verdicts} != texts


def test_steps_with_other_numbers_of_failures_share_their_programs(
  critic, policy, experience
):
  _, act = critic
  keys = [jax.random.key(seed) for seed in (5, 6, 7)]
  asked = {
    act(policy.params, PROBLEMS, key).critiques["asked"] for key in keys
  } | {experience.critiques["asked"]}
  assert len(asked) > 1
  # All rows begin every step; slots are given up as in any rollout.
  shapes = act._critic._engine._programs
  (num_parts,) = {parts for parts, *_ in shapes}
  assert max(num_parts * rows for *_, rows in shapes) == 16
  widths = engine.ladder(16 // num_parts)
  assert {width for _, width, *_ in shapes} <= set(widths)
  programs = [
    engine._start,
    engine._advance,
    engine._resize,
    engine._finish,
    engine._look,
  ]
  sizes = [program._cache_size() for program in programs]
  for key in keys:
    act(policy.params, PROBLEMS, key)
  assert [program._cache_size() for program in programs] == sizes


def test_where_nobody_fails_nothing_is_sampled(critic_of, policy):
  _, act = critic_of(
    SelfEvaluation(SelfEvaluationConfig(rubric=RUBRIC), Right())
  )
  act._critic = None
  found = act(policy.params, PROBLEMS, jax.random.key(1))
  assert not any(found.critiques.values())


def test_where_there_is_no_room_nothing_is_asked(critic_of, policy):
  rubric = RUBRIC + " Say it in words. " * 5
  _, act = critic_of(
    SelfEvaluation(SelfEvaluationConfig(rubric=rubric), Wrong())
  )
  found = act(policy.params, PROBLEMS, jax.random.key(1))
  assert found.critiques["no_room"] == len(found.verdicts)
  assert found.critiques["asked"] == 0
  assert {verdict.feedback for verdict in found.verdicts} == {""}


def test_the_metrics_are_shares_and_a_length(experience):
  counts = dict.fromkeys(self_critique.COUNTS, 0) | {
    "asked": 8,
    "no_room": 4,
    "prompt_cut": 2,
    "unreadable": 1,
    "cut_off": 6,
    "tokens": 40,
  }
  found = step_metrics.critique_metrics(
    dataclasses.replace(experience, critiques=counts)
  )
  assert found == {
    "critique/asked": 0.5,
    "critique/no_room": 0.25,
    "critique/prompt_cut": 0.25,
    "critique/unreadable": 0.125,
    "critique/cut_off": 0.75,
    "critique/length": 5.0,
  }
  none = dataclasses.replace(experience, critiques=None)
  assert step_metrics.critique_metrics(none) == {}


def fit(tokenizer, completion, limit):
  return self_critique.fit_critique_prompt(
    lambda text: [{"role": "user", "content": f"What is it: {text}. Bad?"}],
    completion,
    encode=tokenizer.encode_messages,
    encode_text=tokenizer.encode,
    decode=tokenizer.decode,
    limit=limit,
  )


def test_of_what_is_too_long_the_middle_is_left_out(policy):
  tokenizer = policy.tokenizer
  short = fit(tokenizer, "abcdef", 60)
  assert not short.was_cut
  empty = len(fit(tokenizer, self_critique.LEFT_OUT, 200).ids)
  found = fit(tokenizer, "a" * 50 + "b" * 50, empty + 7)
  assert found.was_cut
  assert len(found.ids) == empty + 7
  text = tokenizer.decode(found.ids)
  assert f"What is it: aaaa{self_critique.LEFT_OUT}bbb. Bad?" in text
  assert fit(tokenizer, "a" * 100, empty - 1).ids == []
  nothing = self_critique.fit_critique_prompt(
    lambda text: None, "a", encode=len, encode_text=len, decode=len, limit=1
  )
  assert nothing is None


@given(
  completion=st.text(max_size=200),
  limit=st.integers(min_value=1, max_value=150),
)
def test_whatever_is_cut_the_rest_stays_whole_and_fits(
  policy, completion, limit
):
  tokenizer = policy.tokenizer
  found = fit(tokenizer, completion, limit)
  assert len(found.ids) <= limit
  if found.ids:
    text = tokenizer.decode(found.ids)
    assert "What is it: " in text
    assert ". Bad?" in text
    assert found.was_cut == (len(fit(tokenizer, completion, 10**6).ids) > limit)
    assert not found.was_cut or self_critique.LEFT_OUT in text
  else:
    assert len(fit(tokenizer, self_critique.LEFT_OUT, 10**6).ids) > limit


def test_a_critique_is_what_the_policy_says_to_the_prompt(critic_of, policy):
  _, act = critic_of(
    SelfEvaluation(SelfEvaluationConfig(rubric=RUBRIC), Wrong()),
    temperature=0.0,
  )
  found = act(policy.params, PROBLEMS, jax.random.key(1))
  for row in (0, 11):
    question = PROBLEMS[row // GROUP_SIZE].messages[0]["content"]
    asked = f"Q: {question}\nA: {found.completions[row]}\nBad?"
    said = generate(
      policy,
      [asked],
      jax.random.key(9),
      max_completion_length=LENGTH,
      temperature=0.0,
    )
    (text,) = policy.texts(said.completion_ids, said.completion_mask)
    assert found.verdicts[row].feedback == text.strip()


def test_the_teacher_reads_the_critique(experience, policy):
  settings = batch_builder.TeacherSettings(
    solution="none",
    feedback="always",
    success_threshold=1.0,
    max_prompt_length=200,
  )
  _, stats = batch_builder.from_experience(
    experience, policy.tokenizer, settings
  )
  count = 0
  for verdict, prompt in zip(
    experience.verdicts, stats.teacher_prompts, strict=True
  ):
    if verdict.feedback:
      count += 1
      assert f"attempt:\n\n{verdict.feedback}\n\nCorrectly" in prompt
  assert count


CONFIG = """
model:
  directory: model
  create: {num_layers: 1, width: 16, num_heads: 1, num_kv_heads: 1}
data: {train: rows.jsonl, evaluation: rows.jsonl}
rollout: {num_problems: 8, group_size: 2, max_completion_length: 4}
train: {num_steps: 1, run_directory: run}
evaluation: {num_samples: 2, pass_at: [1], num_problems: 8}  # as in training
logging: {tensorboard: false, rollouts_every: 1, token_values: false}
environment:
  kind: self_evaluation
  rubric: "{problem} {completion} <verdict>correct</verdict>?"
  critique: {max_length: 4, max_prompt_length: 128}
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
  rows = [{"prompt": f"Spell {n}.", "answer": str(n)} for n in range(8)]
  (tmp_path / "rows.jsonl").write_text(
    "\n".join(map(json.dumps, rows)), encoding="utf-8"
  )
  (tmp_path / "own.yaml").write_text(CONFIG, encoding="utf-8")
  monkeypatch.chdir(tmp_path)
  return tmp_path


def test_a_policy_that_rewards_itself_goes_through_all_stations(folder, capsys):
  made = trainer.Trainer(config.load("own.yaml"))
  # There is no other reward to evaluate by.
  assert isinstance(made.evaluation_workers[""], self_critique.SelfCritic)
  made.train()
  assert "the policy rewards itself" in capsys.readouterr().err
  metrics = json.loads((folder / "run/metrics.jsonl").read_text())
  assert metrics["critique/asked"] == 1.0
  assert metrics["critique/no_room"] == 0.0
  # A random network never writes the tags.
  assert metrics["critique/unreadable"] == metrics["verdict/unparsable"] == 1.0
  assert 0 < metrics["critique/length"] <= 4
  written = yaml.safe_load((folder / "run/config.yaml").read_text())
  assert written["environment"]["of"] is None
  assert config.load("run/config.yaml").environment == made.config.environment


@pytest.mark.usefixtures("folder")
def test_what_does_not_go_together_is_refused():
  for changes, message in (
    (["environment.rubric=x"], "no placeholder {problem}"),
    (["environment.critique.max_length=4000"], "max_position_embeddings"),
  ):
    loaded = config.load("own.yaml", changes)
    with pytest.raises(ValueError, match=message):
      trainer.Trainer(loaded)
  loaded = config.load("own.yaml", ["environment.of={kind: math}"])
  made = trainer.Trainer(loaded)
  assert isinstance(made.rollout_worker, self_critique.SelfCritic)
  # Evaluation needs no critique: nobody would read it.
  assert isinstance(made.evaluation_workers[""], rollout_worker.RolloutWorker)
