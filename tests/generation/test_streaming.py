"""Answers that come piece by piece, and clients that do not wait for them."""

import contextlib
import http.client
import json
import socket
import threading
from concurrent.futures import Future

import pytest

from distil_jax.generation.serving.http_server import Server
from distil_jax.generation.serving.jobs import Sampled, SampleJob
from distil_jax.generation.serving.routes import Service
from distil_jax.generation.serving.streams import TextStream
from distil_jax.generation.serving.worker import Worker
from distil_jax.types import StopReason
from tests import networks
from tests.served import MODEL, served

QUESTION = [{"role": "user", "content": "What is it?"}]
USAGE = {"include_usage": True}


@pytest.fixture(scope="module")
def policy():
  return networks.policy()


@pytest.fixture(scope="module")
def worker(policy):
  with Worker(policy, max_batch=4) as made:
    yield made


@pytest.fixture(scope="module")
def server(worker):
  with served(worker) as made:
    yield made


def streamed(server, path, body):
  """Returns the events of an answer, and the whole answer to the same."""
  link = http.client.HTTPConnection("127.0.0.1", server.server_port)
  with contextlib.closing(link):
    data = json.dumps({**body, "stream": True, "stream_options": USAGE})
    link.request("POST", path, data)
    response = link.getresponse()
    assert response.status == 200
    assert response.headers["Content-Type"].startswith("text/event-stream")
    lines = response.read().decode().split("\n\n")
    # The connection goes on.
    link.request("GET", "/health")
    assert link.getresponse().status == 200
  assert lines[-2:] == ["data: [DONE]", ""]
  events = [json.loads(line.removeprefix("data: ")) for line in lines[:-2]]
  status, whole = server.send(path, body)
  assert status == 200
  assert {(e["model"], e["id"]) for e in events} == {(MODEL, events[0]["id"])}
  assert events[-1]["choices"] == []
  assert events[-1]["usage"] == whole["usage"]
  assert {e["usage"] for e in events[:-1]} == {None}
  return [e["choices"][0] for e in events[:-1]], whole


def test_pieces_are_those_of_the_whole_answer(server):
  body = {
    "prompt": [[5, 6, 7], [12, 13]],
    "n": 2,
    "max_tokens": 24,
    "seed": 3,
    "echo": True,
    "return_token_ids": True,
  }
  pieces, whole = streamed(server, "/v1/completions", body)
  for choice in whole["choices"]:
    own = [x for x in pieces if x["index"] == choice["index"]]
    assert "".join(x["text"] for x in own) == choice["text"]
    assert own[0]["prompt_token_ids"] == choice["prompt_token_ids"]
    ids = [x.get("token_ids", []) for x in own]
    assert [x for some in ids for x in some] == choice["token_ids"]
    assert max(map(len, ids)) <= 4  # as they are sampled, not at the end
    reasons = [x["finish_reason"] for x in own]
    assert reasons == [None] * (len(own) - 1) + [choice["finish_reason"]]


def test_a_reply_begins_with_its_role(server):
  body = {"messages": QUESTION, "max_tokens": 24, "seed": 1}
  pieces, whole = streamed(server, "/v1/chat/completions", body)
  first, *rest = (x["delta"] for x in pieces)
  assert first == {"role": "assistant", "content": ""}
  assert not any("role" in x for x in rest)
  text = "".join(x.get("content", "") for x in rest)
  assert text == whole["choices"][0]["message"]["content"]


@pytest.mark.parametrize(
  "more", [{"max_tokens": 3}, {"max_tokens": 0, "echo": True}], ids=str
)
def test_what_is_scored_comes_when_it_is_scored(server, more):
  body = {"prompt": [5, 6, 7], "seed": 1, "logprobs": 2, **more}
  (piece,), whole = streamed(server, "/v1/completions", body)
  assert piece == whole["choices"][0]


def test_a_stop_string_is_never_shown(server):
  body = {"prompt": [12, 13], "max_tokens": 24, "seed": 1}
  _, whole = streamed(server, "/v1/completions", body)
  stop = whole["choices"][0]["text"][3:8]
  pieces, whole = streamed(server, "/v1/completions", {**body, "stop": stop})
  text = "".join(x["text"] for x in pieces)
  assert text == whole["choices"][0]["text"]
  assert stop not in text
  assert pieces[-1]["finish_reason"] == "stop"


def test_text_is_told_when_it_is_certain(policy):
  encode = policy.tokenizer.backend.encode
  stop = ("END", "Ea")
  ids = encode("aé ENE END b", add_special_tokens=False)
  stream = TextStream(SampleJob((1,), stop=stop), policy.tokenizer)
  told = [stream.push([token]) for token in ids]
  # Neither half of a character, nor what may begin a stop string.
  assert [x for x in told if x] == ["a", "é", " ", "EN", "E "]
  whole = Sampled(tuple(ids), StopReason.STOP_STRING)
  assert stream.end(whole) == ""
  ids = encode("aE", add_special_tokens=False)
  stream = TextStream(SampleJob((1,), stop=stop), policy.tokenizer)
  assert stream.push(ids) == "a"
  assert stream.end(Sampled(tuple(ids), StopReason.LENGTH)) == "E"


def test_who_reads_no_more_is_not_computed_for(worker, monkeypatch):
  usages = []
  sample = worker._engine.sample

  def recorded(*arguments, **more):
    rollout, usage = sample(*arguments, **more)
    usages.append(usage)
    return rollout, usage

  monkeypatch.setattr(worker._engine, "sample", recorded)
  jobs = [SampleJob((5, 6), max_tokens=24, seed=s) for s in (1, 2)]
  whole = [x.result() for x in worker.submit(jobs)]
  told, waiting = {0: 0, 1: 0}, []
  submitted = threading.Event()

  def on_tokens(job, completion, ids):
    submitted.wait()
    told[job] += len(ids)
    waiting[0].cancel()

  waiting += worker.submit(jobs, on_tokens)
  submitted.set()
  assert waiting[1].result() == whole[1]
  assert told == {0: 4, 1: len(whole[1][0].ids)}
  assert waiting[0].cancelled()
  all_tokens = sum(len(x[0].ids) for x in whole)
  assert usages[0].num_tokens == all_tokens
  assert usages[1].num_tokens == told[0] + told[1] < all_tokens


class Slow:
  """A worker that is never done, or fails at once."""

  def __init__(self, error=None):
    self.error = error
    self.has_jobs, self.is_cancelled = threading.Event(), threading.Event()

  def submit(self, jobs, on_tokens=None):
    futures = [Future() for _ in jobs]
    futures[0].add_done_callback(
      lambda future: future.cancelled() and self.is_cancelled.set()
    )
    if self.error:
      futures[0].set_exception(self.error)
    elif on_tokens:
      on_tokens(0, 0, (20,))
    self.has_jobs.set()
    return futures


@contextlib.contextmanager
def slow(policy, error=None):
  worker = Slow(error)
  worker.policy = policy
  with served(worker) as server:
    yield worker, server


@pytest.mark.parametrize("streams", [False, True])
def test_a_client_that_hangs_up_cancels_its_jobs(policy, streams):
  body = json.dumps({"prompt": [5, 6], "stream": streams})
  with slow(policy) as (worker, server):
    address = ("127.0.0.1", server.server_port)
    with socket.create_connection(address) as link:
      head = f"POST /v1/completions HTTP/1.1\r\nContent-Length: {len(body)}"
      link.sendall(f"{head}\r\n\r\n{body}".encode())
      assert worker.has_jobs.wait(60)
      if streams:
        assert link.recv(64).startswith(b"HTTP/1.1 200")
      assert not worker.is_cancelled.is_set()
    assert worker.is_cancelled.wait(60)
    server.finish_requests(60)
    assert server._num_requests == 0


def test_a_stream_that_fails_before_its_first_token_has_a_status(policy):
  with slow(policy, RuntimeError("RESOURCE_EXHAUSTED")) as (_, server):
    body = {"prompt": [5, 6], "stream": True}
    status, found = server.send("/v1/completions", body)
  assert status == 500
  assert "RESOURCE_EXHAUSTED" in found["error"]["message"]


class Breaking(Service):
  """Streams, and fails in the midst of it."""

  def __init__(self):
    pass

  def answer(self, *_):
    return 200, (x for x in ({"choices": []}, {"error": {"message": "late"}}))


@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_an_error_in_the_midst_is_the_last_event(version):
  with Server("127.0.0.1", 0, Breaking()) as server:
    thread = threading.Thread(target=server.serve_forever, args=[0.01])
    thread.start()
    address = ("127.0.0.1", server.server_port)
    with socket.create_connection(address) as link:
      link.sendall(
        f"GET / HTTP/{version}\r\nConnection: close\r\n\r\n".encode()
      )
      with link.makefile("rb") as answer:
        head, _, body = answer.read().partition(b"\r\n\r\n")
    server.shutdown()
    thread.join()
  assert (b"chunked" in head) == (version == "1.1")
  assert b'data: {"error": {"message": "late"}}\n\n' in body
  assert b"DONE" not in body
  assert body.endswith(b"0\r\n\r\n") == (version == "1.1")
