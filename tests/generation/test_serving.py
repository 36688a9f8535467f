"""The server of completions and log-probabilities, asked over HTTP."""

import concurrent.futures

import jax
import numpy as np
import pytest

import distil_jax as dj
from distil_jax.cli import main
from distil_jax.config.base import ConfigError
from distil_jax.generation import engine
from distil_jax.generation.policy import logits
from distil_jax.generation.serving import scoring
from distil_jax.generation.serving.jobs import Closed, SampleJob, ScoreJob
from distil_jax.generation.serving.worker import Worker
from tests import networks
from tests.served import MODEL, served

LENGTH = 64  # positions of the network
# Prompts of several lengths, as many as a batch has no round number of.
PROMPTS = [[5, 6, 7, 8, 9, 10, 11], [12, 13], [30, 40, 50, 60, 70]]
QUESTION = [{"role": "user", "content": "What is it?"}]


@pytest.fixture(scope="module")
def policy():
  return networks.policy()


@pytest.fixture(scope="module")
def worker(policy):
  with Worker(policy, max_batch=4) as made:
    yield made


@pytest.fixture(scope="module")
def send(worker):
  with served(worker) as server:
    yield server.send


def complete(send, **body):
  status, found = send("/v1/completions", {"model": MODEL, **body})
  assert status == 200, found
  return found


def dense(policy, ids):
  """Log-probabilities of every token after each place of one sequence."""
  row = np.asarray([ids])
  found = logits(policy, row, np.ones_like(row))
  return np.asarray(jax.nn.log_softmax(found[0], axis=-1))


def test_it_says_what_it_serves(send):
  assert send("/health") == (200, {"status": "ok"})
  status, found = send("/v1/models?x=1")
  assert status == 200
  assert [x["id"] for x in found["data"]] == [MODEL]
  assert found["data"][0]["max_model_len"] == LENGTH
  for name in (MODEL, "t%69ny"):
    assert send(f"/v1/models/{name}") == (200, found["data"][0])
  status, found = send("/v1/models/other")
  assert (status, found["error"]["code"]) == (404, "model_not_found")


def test_prompts_are_scored_as_all_logits_say(send, policy):
  found = complete(
    send,
    prompt=PROMPTS,
    max_tokens=0,
    echo=True,
    logprobs=3,
    prompt_logprobs=2,
    return_tokens_as_token_ids=True,
  )
  assert found["usage"]["completion_tokens"] == 0
  for ids, choice in zip(PROMPTS, found["choices"], strict=True):
    expected = dense(policy, ids)[:-1]
    own = np.take_along_axis(expected, np.asarray(ids[1:])[:, None], 1)[:, 0]
    listed = choice["logprobs"]
    assert listed["tokens"] == [f"token_id:{i}" for i in ids]
    assert listed["token_logprobs"][0] is listed["top_logprobs"][0] is None
    np.testing.assert_allclose(listed["token_logprobs"][1:], own, atol=1e-5)
    best = np.argsort(-expected, axis=1)
    assert choice["prompt_logprobs"][0] is None
    for place, token in enumerate(ids[1:]):
      tokens = dict.fromkeys([*best[place, :3].tolist(), token])
      entries = listed["top_logprobs"][place + 1]
      assert list(entries) == [f"token_id:{i}" for i in tokens]
      np.testing.assert_allclose(
        list(entries.values()), expected[place][list(tokens)], atol=1e-5
      )
      entries = choice["prompt_logprobs"][place + 1]
      assert list(entries) == [
        str(i) for i in dict.fromkeys([token, *best[place, :2].tolist()])
      ]
      for key, entry in entries.items():
        value = expected[place][int(key)]
        assert entry["logprob"] == pytest.approx(value, abs=1e-5)
        assert entry["rank"] == 1 + (expected[place] > value).sum()
        text = policy.tokenizer.decode([int(key)], skip_special=False)
        assert entry["decoded_token"] == text


def test_a_seed_gives_what_generate_gives(send, policy):
  ids = np.asarray([PROMPTS[0]])
  expected = dj.generate(
    policy,
    (ids, np.ones_like(ids)),
    jax.random.key(7),
    group_size=3,
    max_completion_length=4,
    temperature=0.7,
    top_p=0.9,
  )
  body = {
    "n": 3,
    "max_tokens": 4,
    "temperature": 0.7,
    "top_p": 0.9,
    "seed": 7,
    "logprobs": 1,
    "return_token_ids": True,
  }
  # The other prompt of the request changes nothing.
  found = complete(send, prompt=[PROMPTS[0], PROMPTS[2]], **body)
  assert len(found["choices"]) == 6
  for i, choice in enumerate(found["choices"][:3]):
    counts = np.asarray(expected.completion_mask[i]) == 1
    ids = np.asarray(expected.completion_ids[i])[counts].tolist()
    assert choice["token_ids"] == ids
    assert choice["prompt_token_ids"] == PROMPTS[0]
    assert choice["text"] == policy.tokenizer.decode(ids)
    # What was sampled has the log-probabilities that the sampler recorded.
    np.testing.assert_allclose(
      choice["logprobs"]["token_logprobs"],
      np.asarray(expected.log_probs[i])[counts],
      atol=1e-5,
    )
  alone = complete(send, prompt=PROMPTS[0], **body)
  assert alone["choices"] == found["choices"][:3]


def test_a_stop_string_ends_a_text_before_it(send):
  body = {"prompt": PROMPTS[1], "max_tokens": 16, "seed": 1}
  text = complete(send, **body)["choices"][0]["text"]
  stop = text[2:4]
  (choice,) = complete(send, **body, stop=[stop])["choices"]
  assert choice["finish_reason"] == "stop"
  assert choice["text"] == text[: text.index(stop)]


def test_a_conversation_is_the_prompt_of_its_template(send, policy):
  body = {"max_tokens": 3, "temperature": 0, "return_token_ids": True}
  ids = policy.tokenizer.encode_messages(QUESTION)
  (expected,) = complete(send, prompt=ids, logprobs=2, **body)["choices"]
  parts = [{"type": "text", "text": QUESTION[0]["content"]}]
  for content in (QUESTION[0]["content"], parts):
    status, found = send(
      "/v1/chat/completions",
      {
        "messages": [{"role": "user", "content": content}],
        "logprobs": True,
        "top_logprobs": 2,
        **body,
      },
    )
    assert status == 200, found
    (choice,) = found["choices"]
    assert found["prompt_token_ids"] == ids
    assert choice["token_ids"] == expected["token_ids"]
    assert choice["message"] == {
      "role": "assistant",
      "content": expected["text"],
    }
    content = choice["logprobs"]["content"]
    assert [x["logprob"] for x in content] == (
      expected["logprobs"]["token_logprobs"]
    )
    assert [len(x["top_logprobs"]) for x in content] == [2, 2, 2]
    assert content[0]["top_logprobs"][0]["logprob"] == content[0]["logprob"]


def test_other_requests_of_these_sizes_compile_nothing(send):
  programs = (engine._start, engine._advance, engine._finish, scoring.score)

  def ask(seed, lengths):
    rng = np.random.default_rng(seed)
    prompts = [rng.integers(5, 200, length).tolist() for length in lengths]
    body = {"prompt": prompts, "logprobs": 2, "seed": seed}
    complete(send, max_tokens=3, temperature=0.5 + seed, **body)
    complete(send, max_tokens=0, echo=True, **body)

  # A row that fills up a batch ends early, which the engine makes use of.
  ask(0, (3, 9, 16))
  ask(0, (3, 9, 16, 5))
  sizes = [program._cache_size() for program in programs]
  ask(1, (15, 2, 1, 7))
  ask(2, (4, 16, 11))
  assert [program._cache_size() for program in programs] == sizes


def test_many_clients_get_their_own_answers(send, policy):
  def ask(token):
    return complete(
      send, prompt=[token, token + 1], max_tokens=0, echo=True, logprobs=0
    )["choices"][0]["logprobs"]["token_logprobs"][1]

  tokens = range(5, 25)
  with concurrent.futures.ThreadPoolExecutor(8) as pool:
    found = list(pool.map(ask, tokens))
  expected = [dense(policy, [i, i + 1])[0, i + 1] for i in tokens]
  np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize(
  ("body", "param", "text"),
  [
    ({}, "prompt", "prompt must be a text"),
    ({"prompt": []}, "prompt", "prompt must be a text"),
    ({"prompt": [[]]}, "prompt", r"a list of token ids, got \[\]"),
    ({"prompt": ["a", [1.5]]}, "prompt", "a list of token ids"),
    ({"prompt": [5, 9999]}, "prompt", "a token 9999, but the ids of tiny"),
    ({"prompt": "a", "n": 0}, "n", "n=0 must be a whole number from 1"),
    ({"prompt": "a", "max_tokens": 0}, "max_tokens", "without echo=true"),
    ({"prompt": "a", "max_tokens": True}, "max_tokens", "whole number"),
    ({"prompt": "a", "temperature": "1"}, "temperature", "must be a number"),
    ({"prompt": "a", "temperature": 1e-9}, "temperature", "at least 1e-6"),
    ({"prompt": "a", "top_p": 0}, "top_p", "must be above 0"),
    ({"prompt": "a", "stop": [""]}, "stop", "stop must be a text"),
    ({"prompt": "a", "echo": 1}, "echo", "echo=1 must be true or false"),
    ({"prompt": "a", "logprobs": 9999}, "logprobs", "from 0 to"),
    ({"prompt": "a", "stream": 1}, "stream", "stream=1 must be true or false"),
    ({"prompt": "a", "stream_options": {}}, "stream_options", "stream=true"),
    (
      {"prompt": "a", "stream": True, "stream_options": {"usage": True}},
      "stream_options",
      "has include_usage, not 'usage'",
    ),
    (
      {"prompt": "a", "stream": True, "stream_options": {"include_usage": 1}},
      "stream_options",
      "include_usage=1 must be true or false",
    ),
    ({"prompt": "a", "temprature": 1}, "temprature", "is not supported"),
    ({"prompt": ["a"] * 2, "n": 1024}, "n", "more than the 1024 completions"),
    ({"prompt": ["a"] * 1025}, "prompt", "1025 prompts are more than"),
    ({"prompt": "a", "temperature": 10**400}, "temperature", "must be a numb"),
    ({"prompt": "a", "temperature": float("nan")}, "temperature", "=nan must"),
    ({"prompt": "a", "n": "9" * 999}, "n", "^.{,150}$"),
    ({"prompt": "a", "add_special_tokens": "no"}, "add_special_tokens", "true"),
    ({"prompt": "a\ud800"}, "prompt", "half of a surrogate pair at char.* 1"),
    ({"prompt": "a", "stop": ["\ud800"]}, "stop", "half of a surrogate pair"),
  ],
)
def test_what_is_wrong_with_a_request_is_said(send, body, param, text):
  status, found = send("/v1/completions", body)
  assert (status, found["error"]["param"]) == (400, param), found
  assert found["error"]["type"] == "invalid_request_error"
  with pytest.raises(ValueError, match=text):
    raise ValueError(found["error"]["message"])


def test_what_asks_for_nothing_is_ignored(send):
  neutral = {
    "stream": False,
    "tool_choice": "none",
    "logit_bias": {},
    "suffix": None,
    "user": "me",
  }
  complete(send, prompt=[5, 6], max_tokens=0, echo=True, **neutral)


@pytest.mark.parametrize(
  ("path", "body", "status", "text"),
  [
    ("/v1/completions", {"model": "x", "prompt": "a"}, 404, "no model 'x'"),
    ("/v1/completions", {"prompt": [5] * 64}, 400, "longer than the 64"),
    ("/v1/completions", "{", 400, "the body is no JSON"),
    ("/v1/completions", "[1]", 400, "must be a JSON object"),
    ("/v1/completions", "[" * 100_000, 400, "the body is no JSON"),
    ("/v1/completions", None, 405, "GET /v1/completions is not served"),
    ("/v1/embeddings", {}, 404, "POST /v1/embeddings is not served"),
    ("/v1/chat/completions", {}, 400, "messages must be a list"),
    ("/v1/chat/completions", {"messages": [{}]}, 400, "with role and content"),
    (
      "/v1/chat/completions",
      {"messages": [{"role": "pirate", "content": "a"}]},
      400,
      "cannot render messages of pirate",
    ),
    (
      "/v1/chat/completions",
      {"messages": QUESTION, "top_logprobs": 1},
      400,
      "needs logprobs=true",
    ),
    (
      "/v1/chat/completions",
      {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
      400,
      "parts with a text",
    ),
  ],
)
def test_statuses_tell_mistakes_apart(send, path, body, status, text):
  found, answer = send(path, body)
  assert found == status, answer
  assert text in answer["error"]["message"]


@pytest.mark.parametrize(
  ("settings", "text"),
  [
    (False, "must be an object"),
    ({"chat_template": "{{ 1 }}"}, "which chat_template is not; leave it out"),
    ({"tokenize": False}, "which tokenize is not; leave it out"),
    ({"tools": 5}, "the chat template cannot render messages of user"),
    ({"continue_final_message": True}, "the chat template cannot render"),
  ],
)
def test_only_variables_of_the_chat_template_are_set(send, settings, text):
  body = {"messages": QUESTION, "chat_template_kwargs": settings}
  status, found = send("/v1/chat/completions", body)
  assert status == 400, found
  assert text in found["error"]["message"]


def test_a_key_is_asked_for(worker):
  with served(worker, api_key="right") as server:
    send = server.send
    assert send("/health")[0] == 200
    assert send("/v1/models")[0] == 401
    for key, status in (("wrong", 401), ("right", 200)):
      headers = {"Authorization": f"Bearer {key}"}
      assert send("/v1/models", headers=headers)[0] == status


def test_a_failure_is_the_batch_s_own(send, monkeypatch):
  def fail(*_, **__):
    raise RuntimeError("RESOURCE_EXHAUSTED")

  monkeypatch.setattr(scoring, "score", fail)
  body = {"prompt": [5, 6], "max_tokens": 0, "echo": True, "logprobs": 1}
  status, found = send("/v1/completions", body)
  assert status == 500
  assert found["error"]["type"] == "server_error"
  assert "RESOURCE_EXHAUSTED" in found["error"]["message"]
  monkeypatch.undo()
  complete(send, **body)


def test_a_closed_worker_refuses_what_waits(policy):
  closed = Worker(policy)
  jobs = [ScoreJob((5, 6)), SampleJob((5,))]
  waiting = closed.submit(jobs)
  with pytest.raises(RuntimeError, match="cannot join"):
    closed.close()  # the thread has not begun
  for future in (*waiting, *closed.submit(jobs)):
    with pytest.raises(Closed, match="stopping"):
      future.result()
  with served(closed) as server:
    body = {"prompt": [5, 6], "max_tokens": 1}
    assert server.send("/v1/completions", body)[0] == 503


@pytest.mark.parametrize(
  ("arguments", "text"),
  [
    (["embedded:calculator", "train.seed=1"], "is a setting of a run"),
    (["embedded:calculator", "--base"], "--base is for a run"),
    (["embedded:calculator", "--step", "1"], "--step is for a run"),
    (["configs/science/smoke.yaml", "--dtype", "bfloat16"], "is for a model"),
    (["embedded:calculator", "--api-key-variable", "NO_KEY_HERE"], "no such"),
  ],
)
def test_the_command_refuses_what_says_nothing(arguments, text):
  parsed = main.parse_arguments(["serve", *arguments])
  with pytest.raises(ConfigError, match=text):
    parsed.run(parsed)
