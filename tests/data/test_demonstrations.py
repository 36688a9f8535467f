"""Demonstrations are measured before a run begins."""

import dataclasses

import pytest

from distil_jax import config
from distil_jax.config.environments import CalculatorConfig
from distil_jax.data import demonstrations, problems
from distil_jax.data import tokenizer as tokenizers
from distil_jax.envs.calculator import Calculator
from distil_jax.types import Demonstration, Problem

SHORT, LONG = "yes", "yes " * 30


@pytest.fixture(scope="module")
def tokenizer():
  return tokenizers.train(["a question"], vocab_size=300)


def build(tokenizer, solutions, *, prompt="why?", environment=None, **data):
  made = [
    Problem(i, ({"role": "user", "content": prompt},), "", solution=solution)
    for i, solution in enumerate(solutions)
  ]
  settings = config.parse(
    {
      "objective": {"kind": "sft"},
      "data": {"train": "rows.jsonl", **data},
      "rollout": {"max_prompt_length": 40, "max_completion_length": 20},
    }
  )
  split = problems.Problems(
    train={"": made},
    evaluation={"": [Problem(0, ({"role": "user", "content": "why?"},), "")]},
    num_skipped=0,
  )
  return problems.build_data(settings, environment, split, tokenizer)


def test_a_long_solution_is_named_before_the_run(tokenizer):
  length = len(tokenizer.encode(LONG)) + 1
  with pytest.raises(config.ConfigError) as caught:
    build(tokenizer, [SHORT, SHORT, LONG])
  said = f"row 3 is too long: its solution and its end token have {length} "
  for text in (said, "max_completion_length=20", "data.long_solutions=drop"):
    assert text in str(caught.value)


def test_the_end_token_counts(tokenizer):
  solution = "y" * 20
  assert len(tokenizer.encode(solution)) == 20
  with pytest.raises(config.ConfigError, match="have 21 tokens"):
    build(tokenizer, [solution])


def test_a_demonstration_ends_as_the_template_does(tokenizer):
  base = dataclasses.replace(tokenizer, eos_ids=(0, *tokenizer.eos_ids))
  demonstration = Demonstration(
    0, ({"role": "user", "content": "why?"},), SHORT
  )
  _, completion = demonstrations.encode(demonstration, base)
  assert base.decode(completion, skip_special=False) == f"{SHORT}<|im_end|>"


def test_long_rows_are_dropped_and_counted(tokenizer):
  data = build(tokenizer, [LONG, SHORT, LONG, SHORT], long_solutions="drop")
  assert [x.index for x in data.train[""]] == [1, 3]
  assert data.num_dropped == 2
  with pytest.raises(config.ConfigError, match="none of the 1 demonstrations"):
    build(tokenizer, [LONG], long_solutions="drop")


def test_a_long_prompt_has_a_setting_of_its_own(tokenizer):
  with pytest.raises(config.ConfigError, match=r"data\.long_prompts=drop"):
    build(tokenizer, [SHORT], prompt=LONG, long_solutions="drop")


def test_generated_demonstrations_are_checked_too(tokenizer, monkeypatch):
  def demonstration(_, index, **__):
    messages = ({"role": "user", "content": "why?"},)
    return Demonstration(index, messages, LONG if index == 9 else SHORT)

  environment = Calculator(CalculatorConfig())
  monkeypatch.setattr(Calculator, "demonstration", demonstration)
  rows = [SHORT] * 5000
  with pytest.raises(config.ConfigError, match="row 10 is too long"):
    build(tokenizer, rows, train="generated", environment=environment)
