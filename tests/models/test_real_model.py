"""SmolLM2-135M-Instruct answers token by token as in transformers.

`DISTIL_JAX_REAL_MODEL` names its folder; without it there is nothing to test.
`tests/golden/make_real.py` says what the golden file holds.
"""

import hashlib
import json
import os
import pathlib

import jax
import numpy as np
import pytest
import safetensors.numpy

import distil_jax as dj
from tests.paths import GOLDEN

FOLDER = os.environ.get("DISTIL_JAX_REAL_MODEL", "")
pytestmark = pytest.mark.skipif(
  not FOLDER, reason="DISTIL_JAX_REAL_MODEL names no folder"
)
NUM_TOKENS = 64


@pytest.fixture(scope="module")
def golden():
  found = json.loads((GOLDEN / "smollm2_greedy.json").read_text())
  weights = pathlib.Path(FOLDER, "model.safetensors").read_bytes()
  assert hashlib.sha256(weights).hexdigest() == found["sha256"], (
    f"{FOLDER} has other weights than those that the golden file is made of"
  )
  return found


def test_what_is_exported_is_the_same_model(golden, tmp_path):
  """Also in bfloat16, in which the weights were stored: not a bit is lost."""
  policy = dj.load_policy(FOLDER, dtype="bfloat16")
  policy.save(tmp_path)
  theirs = safetensors.numpy.load_file(
    pathlib.Path(FOLDER, "model.safetensors")
  )
  ours = safetensors.numpy.load_file(tmp_path / "model.safetensors")
  assert ours.keys() == theirs.keys()
  for name, tensor in theirs.items():
    np.testing.assert_array_equal(ours[name], tensor)
  tokenizer = dj.load_policy(tmp_path, dtype="bfloat16").tokenizer
  message = [{"role": "user", "content": golden["prompts"][0]}]
  found = tokenizer.encode_messages(message)
  assert list(found) == golden["answers"][0]["prompt_ids"]


def test_it_answers_as_in_transformers(golden):
  policy = dj.load_policy(FOLDER)
  prompts = list(golden["prompts"])
  answers = golden["answers"]
  for prompt, answer in zip(prompts, answers, strict=True):
    ids = policy.tokenizer.encode_messages(
      [{"role": "user", "content": prompt}]
    )
    assert list(ids) == answer["prompt_ids"]
  sampled = dj.generate(
    policy,
    prompts,
    jax.random.key(0),
    temperature=0.0,
    max_completion_length=NUM_TOKENS,
  )
  ids, mask = (
    np.asarray(x) for x in (sampled.completion_ids, sampled.completion_mask)
  )
  for row, counts, answer in zip(ids, mask, answers, strict=True):
    assert row[counts == 1].tolist() == answer["completion_ids"]
