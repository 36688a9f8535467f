"""Runs whose teacher is behind a server: ours, in this process."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from distil_jax import config
from distil_jax.analysis.teacher_check import gather
from distil_jax.generation.policy import Policy, load_policy
from distil_jax.generation.serving.worker import Worker
from distil_jax.training import trainer
from distil_jax.training.remote_teacher.asking import TeacherServerError
from distil_jax.training.setup import teacher_servers
from distil_jax.types import BatchStats, TrainBatch
from tests import networks
from tests.served import MODEL, served
from tests.training import test_teacher_models

pytestmark = pytest.mark.usefixtures("one_width")
NUM_TOKENS = 405  # of the tokenizer; the student's vocabulary is padded
OBJECTIVE = {"kind": "distil", **networks.PUBLISHED}
KEY = "TEACHER_SERVER_KEY"


@pytest.fixture(scope="module")
def student(tokenizer, tmp_path_factory):
  folder = tmp_path_factory.mktemp("student")
  return test_teacher_models.save(folder, tokenizer, vocab_size=416)


@pytest.fixture(scope="module")
def tokenizer():
  return load_policy("embedded:calculator").tokenizer


@pytest.fixture(scope="module")
def teacher(tokenizer, tmp_path_factory):
  """The folder of a network whose distributions are far from uniform."""
  small = {**test_teacher_models.SMALL, "vocab_size": NUM_TOKENS}
  network = networks.network(**small)
  folder = tmp_path_factory.mktemp("teacher")
  made = Policy(network.config, network.graphdef, network.params, tokenizer)
  made.save(folder)
  return str(folder)


@pytest.fixture(scope="module")
def worker(teacher):
  with Worker(load_policy(teacher), max_batch=2) as made:
    yield made


@pytest.fixture
def server(worker):
  with served(worker) as made:
    yield made


def settings(student, server, directory="unused", **changed):
  """A small run; `changed` are settings of `teacher.server` or of others."""
  own = {k: v for k, v in changed.items() if "__" not in k}
  section = {
    "url": f"http://127.0.0.1:{server.server_port}/v1",
    "model": MODEL,
    "max_retries": 0,
    # What the server batches is a matter of time, and of rounding.
    "max_concurrency": 1,
    **own,
  }
  others = {
    "teacher__model": None,
    "teacher__server": section,
    "teacher__access": "top_k",
    "teacher__top_k": 4,
    "objective__kind": "distil",
    "train__run_directory": str(directory),
    "train__num_steps": 2,
    **{f"objective__{k}": v for k, v in OBJECTIVE.items()},
    **{k: v for k, v in changed.items() if "__" in k},
  }
  if others["objective__kind"] != "distil":
    others = {
      k: v
      for k, v in others.items()
      if not k.startswith("objective__") or k.endswith("kind")
    }
  tree = test_teacher_models.settings(student).model_dump()
  tree["objective"] = {}
  for key, value in others.items():
    section, name = key.split("__")
    tree[section][name] = value
  return config.parse(tree)


def train(trial):
  """Trains; returns the metrics of each step without times."""
  trainer.Trainer(trial).train()
  path = trial.run_directory / "metrics.jsonl"
  return [
    {
      k: v
      for k, v in json.loads(x).items()
      if not k.startswith(("time/", "memory/"))
    }
    for x in path.read_text().splitlines()
  ]


def params_of(trial, student):
  directory = trial.run_directory
  return test_teacher_models.last_params(directory, student)[0]


def test_a_list_of_all_tokens_teaches_as_the_model_itself(
  student, teacher, server, tmp_path
):
  all_tokens = {"teacher__top_k": NUM_TOKENS, "checkpoint__every": 9}
  remote = settings(student, server, tmp_path / "remote", **all_tokens)
  local = settings(
    student,
    server,
    tmp_path / "local",
    teacher__server=None,
    teacher__access="probabilities",
    teacher__model={"directory": teacher},
  )
  found, expected = train(remote), train(local)
  for line, other in zip(found, expected, strict=True):
    assert line["teacher/unanswered"] == 0
    # One request a sample that has something to read.
    num_samples = round(line["signal_fraction"] * 16)
    assert line["teacher/requests"] == num_samples > 0
    for name, value in other.items():
      if name not in ("rollout/programs", "update/padding"):
        assert line[name] == pytest.approx(value, rel=2e-4, abs=1e-5), name
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4),
    params_of(remote, student),
    params_of(local, student),
  )
  # Nothing was sampled for it: the server allows scoring alone.
  assert {body["max_tokens"] for body in server.bodies} == {0}

  # A run that loses access goes on later, with another address and patience.
  cut = settings(student, server, tmp_path / "cut", **all_tokens)
  made = trainer.Trainer(cut)
  report = made.report

  def report_and_expire(step, *arguments):
    report(step, *arguments)
    message = {"error": {"message": "expired"}}
    server.spoil = lambda path, body: (401, message)

  made.report = report_and_expire
  with pytest.raises(TeacherServerError, match="status 401: expired; restore"):
    made.train()
  server.spoil = None
  again = {**all_tokens, "timeout": 60.0, "max_retries": 1}
  resumed = settings(student, server, tmp_path / "cut", **again)
  assert train(resumed) == found
  jax.tree.map(
    np.testing.assert_array_equal,
    params_of(remote, student),
    params_of(resumed, student),
  )
  other = {**all_tokens, "protocol": "echo"}
  with pytest.raises(config.ConfigError, match=r"server\.protocol: None"):
    train(settings(student, server, tmp_path / "cut", **other))


def asked(student, server, **changed):
  """A run's teacher, after the check before its start."""
  trial = settings(student, server, **changed)
  policy = load_policy(student)
  ask = teacher_servers.build_remote_teacher(trial, policy)
  assert ask is not None
  teacher_servers.check_server(trial, ask)
  return ask


def lists_of(student, server, **changed):
  """The lists of one fixed batch, as a run asks for them."""
  ask = asked(student, server, **changed)
  return ask(3, *batch_of(ask))


def batch_of(ask):
  """A batch of two sequences with a signal and one without, and tools."""
  state = np.random.default_rng(0)
  tokenizer = ask.asking.vocabulary.tokenizer
  ids = state.integers(5, 400, (3, 8)).astype(np.int32)
  mask = np.ones((3, 8), np.int32)
  mask[1, 3:] = 0
  prompt = tokenizer.encode_messages([{"role": "user", "content": "1 + 2"}])
  prompts = np.tile(np.asarray(prompt, np.int32), (3, 1))
  batch = TrainBatch(
    prompt_ids=prompts,
    prompt_mask=np.ones_like(prompts),
    teacher_prompt_ids=prompts,
    teacher_prompt_mask=np.ones_like(prompts),
    completion_ids=ids,
    completion_mask=mask,
    sample_mask=np.asarray([1, 1, 0], np.int32),
    rewards=np.zeros(3, np.float32),
    old_log_probs=np.zeros((3, 8), np.float32),
    student_mask=mask * np.asarray([1, 1, 0, 1, 1, 1, 1, 1], np.int32),
  )
  stats = BatchStats(
    teacher_prompts=[],
    teacher_prompt_ids=prompts,
    teacher_prompt_mask=np.ones_like(prompts),
  )
  return batch, stats


def test_every_protocol_finds_the_same_lists(student, server):
  batch, stats = lists_of(student, server)
  assert stats.server_counts == {"unanswered": 0, "requests": 2, "retries": 0}
  assert batch.teacher_weights is None
  is_asked = np.asarray(batch.student_tokens[:2]) == 1
  ids = batch.teacher_candidate_ids[:2][is_asked]
  log_probs = batch.teacher_candidate_log_probs[:2][is_asked]
  own = np.asarray(batch.teacher_log_probs)[:2][is_asked]
  # A token that is listed is as likely by itself.
  is_own = ids == np.asarray(batch.completion_ids[:2])[is_asked][:, None]
  np.testing.assert_array_equal(
    own[is_own.any(1)], log_probs[is_own], err_msg="own"
  )
  assert (own <= log_probs[:, 0]).all()
  assert (own < 0).all()
  assert (np.diff(log_probs, axis=1) <= 0).all()
  assert len(np.unique(ids)) > 4
  for changed in (
    {"protocol": "echo"},
    {"protocol": "next_token"},
    {"sends": "text", "protocol": "next_token"},
  ):
    other, stats = lists_of(student, server, **changed)
    if changed.get("sends") == "text":
      # The tokens of the first are not those of its text.
      assert stats.server_counts["unanswered"] >= 1
      assert not other.sample_mask[0]
      continue
    assert stats.server_counts["unanswered"] == 0
    np.testing.assert_array_equal(
      other.teacher_candidate_ids[:2][is_asked], ids
    )
    np.testing.assert_allclose(
      other.teacher_candidate_log_probs[:2][is_asked], log_probs, atol=1e-4
    )
    if changed["protocol"] == "next_token":
      assert other.teacher_log_probs is None
    else:
      np.testing.assert_allclose(
        other.teacher_log_probs[:2][is_asked], own, atol=1e-4
      )


def test_some_states_are_drawn_and_weighted(student, server):
  batch, _ = lists_of(student, server, protocol="next_token", max_states=2)
  weights, own = batch.teacher_weights, np.asarray(batch.student_tokens)
  # Of 7 tokens and of 2, two each; what a tool wrote is none of them.
  assert sorted(weights[0][weights[0] > 0]) == [3.5, 3.5]
  assert sorted(weights[1][weights[1] > 0]) == [1.0, 1.0]
  assert not weights[own == 0].any()
  assert not weights[2].any()
  again, _ = lists_of(student, server, protocol="next_token", max_states=2)
  np.testing.assert_array_equal(again.teacher_weights, weights)
  drawn = np.zeros(8)
  ask = asked(student, server, protocol="next_token", max_states=2)
  batch, stats = batch_of(ask)
  for step in range(400):
    question = ask._question(step, batch, stats, 0, 0)
    drawn[question.places] += 3.5
  # Each token's weight is 1 on average, as if all had been asked.
  np.testing.assert_allclose(drawn[own[0] == 1] / 400, 1, atol=0.25)


def test_each_turn_is_asked_with_its_own_prompt(student, server):
  """The second sample's second turn is one whose teacher is told nothing."""
  ask = asked(student, server)
  batch, stats = batch_of(ask)
  other = batch.teacher_prompt_ids[:, ::-1]
  numbers = np.zeros((3, 8), np.int32)
  numbers[0, 3:] = 1
  numbers[1, 1:] = -1
  found, counted = ask(
    3,
    batch.replace(
      turn_numbers=numbers,
      later_prompt_ids=other[:, None],
      later_prompt_mask=np.ones_like(other)[:, None],
    ),
    stats,
  )
  assert counted.server_counts["requests"] == 3
  first, _ = ask(3, batch, stats)
  second, _ = ask(
    3, batch, dataclasses.replace(stats, teacher_prompt_ids=other)
  )
  own = np.asarray(batch.student_tokens) == 1
  for number, expected in ((0, first), (1, second)):
    is_its = own & (numbers == number)
    np.testing.assert_array_equal(
      found.teacher_candidate_ids[is_its],
      expected.teacher_candidate_ids[is_its],
    )
  assert (
    first.teacher_candidate_ids[0, 3:] != second.teacher_candidate_ids[0, 3:]
  ).any()
  assert not found.teacher_candidate_log_probs[numbers == -1].any()


def test_samples_come_from_the_teacher(student, server):
  changed = {"teacher__access": "samples", "teacher__num_samples": 16}
  batch, stats = lists_of(student, server, **changed)
  assert stats.server_counts["requests"] == 9  # one for each token
  again, _ = lists_of(student, server, **changed)
  np.testing.assert_array_equal(
    again.teacher_candidate_ids, batch.teacher_candidate_ids
  )
  top, _ = lists_of(student, server, teacher__top_k=405)
  is_asked = np.asarray(batch.student_tokens[:2]) == 1
  probs = np.zeros((is_asked.sum(), NUM_TOKENS))
  np.put_along_axis(
    probs,
    top.teacher_candidate_ids[:2][is_asked],
    np.exp(top.teacher_candidate_log_probs[:2][is_asked]),
    1,
  )
  ids = batch.teacher_candidate_ids[:2][is_asked]
  likely = np.take_along_axis(probs, ids, 1).mean()
  assert likely == pytest.approx((probs**2).sum(1).mean(), rel=0.4)


@pytest.mark.parametrize("kind", ["distil", "sdpo", "minillm"])
def test_a_run_learns_from_short_lists(student, server, tmp_path, kind):
  changed = {}
  if kind == "distil":
    changed = {"teacher__access": "samples", "teacher__num_samples": 2}
    changed |= {"max_states": 1}
  trial = settings(
    student,
    server,
    tmp_path / "run",
    objective__kind=kind,
    train__num_steps=1,
    **changed,
  )
  (line,) = train(trial)
  assert np.isfinite(line["loss"])
  assert line["gradient_norm"] > 0
  assert line["teacher/requests"] == round(line["signal_fraction"] * 16)


def test_what_is_not_answered_teaches_nothing(student, server, capsys):
  ask = asked(student, server, max_lost_steps=2, max_concurrency=4)
  batch, stats = batch_of(ask)
  last = int(batch.completion_ids[1, 2])

  def fails_for_the_second(path, body):
    del path
    return (500, {}) if body["prompt"][-1] == last else None

  server.spoil = fails_for_the_second
  found, counted = ask(0, batch, stats)
  assert found.sample_mask.tolist() == [1, 0, 0]
  assert counted.server_counts["unanswered"] == 1
  assert "step 1: the teacher's server did not answer 1 of 2 samples" in (
    capsys.readouterr().err
  )
  wrong = [None, {"9999": {"logprob": -1.0}}]
  for answer in (
    (500, {}),
    (400, {"error": {"message": "too long"}}),
    (200, {"choices": [{"prompt_logprobs": wrong}]}),
  ):
    server.spoil = lambda path, body, answer=answer: answer
    ask._num_lost_steps = 0
    found, counted = ask(1, batch, stats)
    assert not found.sample_mask.any()
    assert counted.server_counts["unanswered"] == 2
  with pytest.raises(TeacherServerError, match="of the last 2 steps was answe"):
    ask(2, batch, stats)


@pytest.mark.parametrize(
  ("spoiled", "changed", "text"),
  [
    (None, {"model": "other"}, "model=other is not at .* which has tiny"),
    ((401, {}), {}, "wants a key: put it into an environment variable"),
    ((403, {}), {"api_key_variable": KEY}, "the key in .* is wrong, expired"),
    ((404, {}), {}, "the address mostly ends in /v1"),
    ((500, {}), {}, "start the server, or correct the address"),
    ((200, []), {}, "which has none; choose one of these"),
    (None, {"teacher__max_prompt_length": 504}, "longer than the 512 tok"),
  ],
)
def test_a_run_does_not_begin_with_a_server_that_will_not_answer(
  student, server, monkeypatch, spoiled, changed, text
):
  monkeypatch.setenv(KEY, "secret")
  if spoiled:
    server.spoil = lambda path, body: spoiled
  with pytest.raises(config.ConfigError, match=text):
    asked(student, server, **changed)


def test_nothing_is_written_before_the_server_has_answered(
  student, server, tmp_path
):
  trial = settings(student, server, tmp_path / "run", model="other")
  made = trainer.Trainer(trial)
  with pytest.raises(config.ConfigError, match="model=other is not at"):
    made.train()
  assert not trial.run_directory.exists()


@pytest.mark.parametrize(
  ("answer", "text"),
  [
    ((400, {"error": {"message": "at most 2"}}), "at most 2; .* lower teacher"),
    ((200, {"choices": [{"text": "4"}]}), "protocol to echo or next_token"),
  ],
)
def test_a_run_does_not_begin_with_answers_that_it_cannot_use(
  student, server, answer, text
):
  def spoil(path, body):
    del body
    return answer if path.endswith("completions") else None

  server.spoil = spoil
  with pytest.raises(config.ConfigError, match=text):
    asked(student, server)


def test_a_key_is_read_from_the_environment_alone(student, worker, monkeypatch):
  with served(worker, api_key="right") as server:
    monkeypatch.delenv(KEY, raising=False)
    with pytest.raises(config.ConfigError, match=f"{KEY}: there is no such"):
      asked(student, server, api_key_variable=KEY)
    monkeypatch.setenv(KEY, "right")
    asked(student, server, api_key_variable=KEY)


@pytest.mark.parametrize(
  ("changed", "text"),
  [
    ({"url": "localhost:8000"}, "must begin with http:// or https://"),
    ({"url": "http://me:key@host/v1"}, "hold no key"),
    ({"teacher__access": "probabilities"}, "set access=top_k, or samples"),
    ({"teacher__parameters": "ema"}, "frozen, or server=null"),
    ({"teacher__model": {"directory": "x"}}, "are two teachers"),
    ({"max_states": 3}, "max_states=null, or server.protocol=next_token"),
    (
      {"teacher__access": "samples", "protocol": "echo"},
      "server.protocol=next_token",
    ),
    (
      {
        "teacher__access": "samples",
        "objective__local_cost": "reverse_kl",
      },
      "local_cost=forward_cross_",
    ),
  ],
)
def test_settings_that_a_server_cannot_serve_are_refused(
  student, server, changed, text
):
  with pytest.raises(config.ConfigError, match=text):
    settings(student, server, **changed)


def test_what_needs_probabilities_says_so(student, server):
  trial = settings(student, server)
  with pytest.raises(config.ConfigError, match="does not send; check a small"):
    gather.check_has_teacher(trial)
