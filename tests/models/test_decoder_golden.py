"""Logits against those that transformers computes, on random weights.

`tests/golden/make_golden.py` says what the files hold and makes them again.
"""

import json
import shutil

import numpy as np
import pytest
import tokenizers
import transformers

import distil_jax as dj
from tests.paths import GOLDEN

CASES = sorted(path.parent.name for path in GOLDEN.glob("*/golden.npz"))


def write_tokenizer(directory, vocab_size):
  """A policy has a tokenizer; this one names each id and is not used."""
  words = {f"word{number}": number for number in range(vocab_size)}
  model = tokenizers.models.WordLevel(words, unk_token="word0")
  tokenizer = transformers.PreTrainedTokenizerFast(
    tokenizer_object=tokenizers.Tokenizer(model),
    pad_token="word0",
    eos_token="word1",
  )
  tokenizer.chat_template = "{{ messages[0]['content'] }}"
  tokenizer.save_pretrained(directory)


def largest_difference(name, directory, **changed):
  """Largest absolute difference of logits over the tokens that count.

  Args:
    name: the case.
    directory: where a copy of it may be written.
    **changed: settings of its `config.json` to replace.
  """
  shutil.copytree(GOLDEN / name, directory, dirs_exist_ok=True)
  config = json.loads((directory / "config.json").read_text())
  write_tokenizer(directory, config["vocab_size"])
  (directory / "config.json").write_text(json.dumps({**config, **changed}))

  golden = np.load(GOLDEN / name / "golden.npz")
  mask, columns, theirs = (golden[k] for k in ("mask", "columns", "logits"))
  policy = dj.load_policy(directory, dtype="float32")
  ours = np.asarray(dj.logits(policy, golden["token_ids"], mask))[:, columns]
  assert ours.shape == theirs.shape
  return np.abs(ours - theirs)[mask[:, columns] == 1].max()


def test_all_cases_are_there():
  assert len(CASES) == 4


@pytest.mark.parametrize("name", CASES)
def test_logits_are_those_of_transformers(name, tmp_path):
  assert largest_difference(name, tmp_path) < 1e-4


@pytest.mark.parametrize(
  ("name", "changed"),
  [
    ("tied_left_padded", {"rope_theta": 10100.0}),
    (
      "long_positions",
      {"rope_parameters": {"rope_type": "default", "rope_theta": 1010000.0}},
    ),
    ("untied_bfloat16_both_sides", {"rms_norm_eps": 0.0101}),
  ],
)
def test_a_setting_one_percent_wrong_is_seen(name, changed, tmp_path):
  assert largest_difference(name, tmp_path, **changed) > 1e-3
