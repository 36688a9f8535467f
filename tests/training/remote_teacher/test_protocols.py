"""Requests for lists, and answers in the forms of several servers."""

import math

import pytest

from distil_jax.training.remote_teacher.protocols import (
  AnswerError,
  Asking,
  List,
  Vocabulary,
)
from tests import networks

IDS = [5, 6, 7]
# The last number is that of the token that was sent, listed or not.
LISTS = [List([6, 9], [-0.5, -1.5], -0.5), List([9, 8], [-0.25, -2.0], -3.0)]
# Lists alone, of a state that no token follows.
STATE = List([6, 9], [-0.5, -1.5])


@pytest.fixture(scope="module")
def vocabulary():
  tokenizer = networks.policy().tokenizer
  return Vocabulary(tokenizer, tokenizer.vocab_size)


@pytest.fixture
def asking(vocabulary):
  def make(protocol="prompt_logprobs", kind="top_k", size=2, **changed):
    return Asking(protocol, kind, size, "m", vocabulary, **changed)

  return make


def answer(**choice):
  return {"choices": [choice]}


def entry(logprob, **others):
  return {"logprob": logprob, **others}


def test_requests_ask_for_the_teacher_s_own_distribution(asking):
  plain = {
    "model": "m",
    "temperature": 1.0,
    "top_p": 1.0,
    "top_k": -1,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
  }
  assert asking().of_sequence(IDS) == {
    **plain,
    "prompt": IDS,
    "max_tokens": 1,
    "prompt_logprobs": 2,
  }
  echo = asking("echo", scored_tokens=0, extra={"min_p": None, "x": 1})
  assert echo.of_sequence(IDS) == {
    **{k: v for k, v in plain.items() if k != "min_p"},
    "prompt": IDS,
    "max_tokens": 0,
    "echo": True,
    "logprobs": 2,
    "return_tokens_as_token_ids": True,
    "x": 1,
  }
  asked = asking("next_token", "samples", 4).of_state(IDS, seed=3)
  assert (asked["n"], asked["seed"], asked["max_tokens"]) == (4, 3, 1)


def test_text_is_sent_if_it_is_read_back_as_its_tokens(asking, vocabulary):
  made = asking(sends_text=True)
  ids = vocabulary.tokenizer.encode_messages([{"role": "user", "content": "a"}])
  text = made.of_sequence(ids)["prompt"]
  assert text == "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n"
  what = vocabulary.tokenizer.encode("What")
  letters = [vocabulary.tokenizer.encode(x)[0] for x in "What"]
  assert made.of_sequence(what)["prompt"] == "What"
  with pytest.raises(AnswerError, match="not read back as its tokens"):
    made.of_sequence(letters)  # the same text, and other tokens


def test_prompt_logprobs_are_read_by_ids(asking):
  found = asking().read_sequence(
    answer(
      prompt_logprobs=[
        None,
        {"9": entry(-1.5), "6": entry(-0.5)},
        # The token itself comes beside the most probable ones.
        {"8": entry(-2.0), "7": entry(-3.0), "9": entry(-0.25)},
      ]
    ),
    IDS,
  )
  assert found == LISTS


def test_an_echo_is_read_by_ids_or_by_texts(asking, vocabulary):
  named = {i: vocabulary.text(i) for i in (5, 6, 7, 8, 9)}
  for names in ({i: f"token_id:{i}" for i in named}, named):
    top = [None, {names[6]: -0.5, names[9]: -1.5}]
    top.append({names[9]: -0.25, names[8]: -2.0, "no such text": -5.0})
    tokens = [names[i] for i in IDS]
    listed = {
      "tokens": [*tokens, "?"],
      "top_logprobs": [*top, None],
      "token_logprobs": [None, -0.5, -3.0, -1.0],
    }
    assert asking("echo").read_sequence(answer(logprobs=listed), IDS) == LISTS


def test_a_state_is_read_in_both_forms(asking, vocabulary):
  made = asking("next_token")
  top = {vocabulary.text(9): -1.5, "token_id:6": -0.5}
  assert made.read_state(answer(logprobs={"top_logprobs": [top]})) == STATE
  entries = [
    {"id": 6, "token": vocabulary.text(6), "logprob": -0.5},
    {"token": vocabulary.text(9), "logprob": -1.5},
  ]
  content = {"content": [{"id": 6, "logprob": -0.5, "top_logprobs": entries}]}
  assert made.read_state(answer(logprobs=content)) == STATE


def test_samples_are_read_by_ids_or_clear_texts(asking, vocabulary):
  made = asking("next_token", "samples", 5)
  text = vocabulary.text(9)
  choices = [
    {"token_ids": [6]},
    {"logprobs": {"content": [{"id": 7, "token": "?"}]}},
    {"logprobs": {"tokens": ["token_id:8"]}, "text": "?"},
    {"text": text, "finish_reason": "length"},
    {"text": "", "finish_reason": "stop"},
  ]
  ids, log_probs, _ = made.read_state({"choices": choices})
  assert ids == [6, 7, 8, 9, vocabulary.tokenizer.eos_ids[0]]
  assert log_probs == [-math.log(5)] * 5
  choices[0] = {"text": "two of them", "finish_reason": "length"}
  with pytest.raises(AnswerError, match="not that of one token"):
    made.read_state({"choices": choices})


GOOD_ENTRIES = [None, {"6": entry(-1.0)}, {"7": entry(-1.0)}]


@pytest.mark.parametrize(
  ("found", "text"),
  [
    (None, "does not have 1 choices"),
    ({"choices": []}, "does not have 1 choices"),
    ({"choices": ["?"]}, "a choice is no object"),
    (answer(text="4"), "set teacher.server.protocol to echo or next_token"),
    (
      answer(prompt_logprobs=GOOD_ENTRIES[:2]),
      "3 tokens were sent, but 2 have prompt_logprobs",
    ),
    (
      answer(prompt_logprobs=[None, {"7": entry(-1)}, {"7": entry(-1)}]),
      "do not have the token 6 that was sent",
    ),
    (
      answer(prompt_logprobs=[None, {"6": entry(-1), "9999": entry(-2)}, {}]),
      "a token 9999, but the student's ids are 0 to .* another vocabulary",
    ),
    (
      answer(prompt_logprobs=[None, {"6": entry(-1), "a": entry(-2)}, {}]),
      "'a' is no token id",
    ),
    (
      answer(prompt_logprobs=[None, {"6": entry(0.5)}, {}]),
      "0.5 is no log-probability",
    ),
    (
      answer(prompt_logprobs=[None, {"6": entry(math.nan)}, {}]),
      "nan is no log-probability",
    ),
    (
      answer(prompt_logprobs=[None, {"6": {}}, {}]),
      "None is no log-probability",
    ),
  ],
)
def test_another_answer_is_refused(asking, found, text):
  with pytest.raises(AnswerError, match=text):
    asking().read_sequence(found, IDS)


@pytest.mark.parametrize(
  ("listed", "text"),
  [
    (None, "no logprobs of the prompt"),
    ({"tokens": ["a"], "top_logprobs": [None]}, "3 tokens were sent, but 1"),
    (
      {
        "tokens": ["token_id:5", "token_id:6", "token_id:8"],
        "top_logprobs": [None, {}, {}],
      },
      "the token 7 was sent and 'token_id:8' came back",
    ),
    (
      {
        "tokens": ["token_id:5", "token_id:6", "token_id:7"],
        "top_logprobs": [None, {"no such text": -1.0}, {}],
        "token_logprobs": [None, -1.0, -1.0],
      },
      "no token of a list is one of the student's",
    ),
    (
      {
        "tokens": ["token_id:5", "token_id:6", "token_id:7"],
        "top_logprobs": [None, {}, {}],
      },
      "the tokens of the prompt have no token_logprobs",
    ),
    (
      {
        "tokens": ["token_id:5", "token_id:6", "token_id:7"],
        "top_logprobs": [None, {"token_id:6": -1.0}, {}],
        "token_logprobs": [None, None, -1.0],
      },
      "None is no log-probability",
    ),
  ],
)
def test_another_echo_is_refused(asking, listed, text):
  with pytest.raises(AnswerError, match=text):
    asking("echo").read_sequence(answer(logprobs=listed), IDS)


def test_an_id_with_another_text_is_another_vocabulary(asking, vocabulary):
  own = vocabulary.text(6)
  for said in (own, own + " ", "", None, "\ufffd"):
    entries = [None, {"6": entry(-1.0, decoded_token=said)}]
    asking().check_texts(answer(prompt_logprobs=entries))
  entries = [None, {"6": entry(-1.0, decoded_token="other")}]
  with pytest.raises(AnswerError, match=r"token 6 is .* and 'other' to the"):
    asking().check_texts(answer(prompt_logprobs=entries))
  content = [{"top_logprobs": [{"id": 6, "token": "other"}]}]
  with pytest.raises(AnswerError, match="serve a model with the student's"):
    asking().check_texts(answer(logprobs={"content": content}))
