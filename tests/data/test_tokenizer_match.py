"""Two tokenizers are the same if every id means the same to both."""

import dataclasses
import json

import pytest

from distil_jax.data import tokenizer as tokenizers
from distil_jax.data import tokenizer_match

TEXTS = ["What is it?", "It is 12."]


@pytest.fixture(scope="module")
def tokenizer():
  return tokenizers.train(TEXTS, vocab_size=290)


@pytest.fixture
def saved(tokenizer, tmp_path):
  tokenizer.save(tmp_path)
  return tmp_path


def changed(directory, change, name="tokenizer.json"):
  """The saved tokenizer after a change of one of its files."""
  path = directory / name
  content = json.loads(path.read_text())
  change(content)
  path.write_text(json.dumps(content))
  return tokenizers.Tokenizer.load(directory)


def test_a_copy_is_the_same(tokenizer, saved):
  copy = tokenizers.Tokenizer.load(saved)
  assert tokenizer_match.difference(tokenizer, copy) is None
  assert tokenizer_match.is_template_shared(tokenizer, copy)


def test_the_first_id_that_differs_is_named_with_both_texts(tokenizer, saved):
  def swap(content):
    vocabulary = content["model"]["vocab"]
    texts = {token: text for text, token in vocabulary.items()}
    vocabulary[texts[20]], vocabulary[texts[9]] = 9, 20

  texts = {i: x for x, i in tokenizer.backend.get_vocab().items()}
  said = tokenizer_match.difference(tokenizer, changed(saved, swap))
  assert said == (
    f"id 9 is {texts[9]!r} for the student and {texts[20]!r} for the teacher"
  )


def test_a_longer_vocabulary_is_another(tokenizer, saved):
  count = tokenizer.vocab_size

  def add(content):
    token = {**content["added_tokens"][0], "id": count, "content": "<more>"}
    content["added_tokens"].append({**token, "special": False})

  longer = changed(saved, add)
  said = tokenizer_match.difference(tokenizer, longer)
  assert said == (
    f"id {count} is no token for the student and '<more>' for the teacher"
  )
  said = tokenizer_match.difference(longer, tokenizer)
  assert said == (
    f"id {count} is '<more>' for the student and no token for the teacher"
  )


def test_special_tokens_and_ends_are_compared(tokenizer):
  start = tokenizer.backend.convert_tokens_to_ids(tokenizers.START)
  other = dataclasses.replace(tokenizer, eos_ids=(start,))
  assert tokenizer_match.difference(tokenizer, other) == (
    "id 2 ('<|im_end|>') ends the student's completions, but the teacher's end "
    "with 1 ('<|im_start|>')"
  )
  # More ends than the student has, in any order, disturb nobody.
  more = dataclasses.replace(tokenizer, eos_ids=(start, *tokenizer.eos_ids))
  assert tokenizer_match.difference(tokenizer, more) is None
  # Padding is masked.
  padded = dataclasses.replace(tokenizer, pad_id=1)
  assert tokenizer_match.difference(tokenizer, padded) is None


def test_a_special_token_of_one_alone_is_named(tokenizer, saved):
  def add(content):
    word = next(x for x, i in content["model"]["vocab"].items() if i == 30)
    token = {**content["added_tokens"][0], "id": 30, "content": word}
    content["added_tokens"].append(token)

  special = changed(saved, add)
  said = tokenizer_match.difference(tokenizer, special)
  assert said is not None
  assert said.startswith("id 30 (")
  assert said.endswith(") is a special token for the teacher alone")
  said = tokenizer_match.difference(special, tokenizer)
  assert said is not None
  assert said.endswith("for the student alone")


@pytest.mark.parametrize(
  "template",
  [
    tokenizers.CHAT_TEMPLATE.replace("assistant\\n'", "assistant\\n<think>'"),
    # Refuses what the other writes.
    tokenizers.CHAT_TEMPLATE.replace("['system', 'user'", "['user'"),
  ],
)
def test_templates_are_compared_by_what_they_write(tokenizer, saved, template):
  (saved / "chat_template.jinja").write_text(template)
  other = tokenizers.Tokenizer.load(saved)
  assert tokenizer_match.difference(tokenizer, other) is None
  assert not tokenizer_match.is_template_shared(tokenizer, other)
  assert tokenizer_match.is_template_shared(other, other)
