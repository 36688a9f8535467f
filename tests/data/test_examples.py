"""Worked examples before a problem, which student and teacher read."""

import json

import pytest

from distil_jax import config as configs
from distil_jax import envs
from distil_jax.config.base import ConfigError
from distil_jax.data import examples, problems, teacher_prompts
from distil_jax.data import teacher_templates as templates
from distil_jax.data import tokenizer as tokenizers
from distil_jax.data.data_files import DataError
from distil_jax.types import Problem

TWO = [
  {"prompt": "1 + 1?", "completion": "\\boxed{2}"},
  {"prompt": "2 + 2?", "completion": "\\boxed{4}"},
]
TURNS = [
  {"role": "user", "content": "1 + 1?"},
  {"role": "assistant", "content": "\\boxed{2}"},
  {"role": "user", "content": "2 + 2?"},
  {"role": "assistant", "content": "\\boxed{4}"},
]
SYSTEM = {"role": "system", "content": "Be brief."}
QUESTION = {"role": "user", "content": "3 + 3?"}
PROBLEM = Problem(index=0, messages=(SYSTEM, QUESTION), answer="6")


def section(value):
  return configs.DataConfig(examples=value)


def lines(path, rows):
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  return str(path)


def test_a_list_and_a_file_say_the_same(tmp_path):
  assert examples.load(section(())) == []
  assert examples.load(section(TWO)) == TURNS
  path = lines(tmp_path / "two.jsonl", TWO)
  assert examples.load(section(path)) == TURNS


@pytest.mark.parametrize(
  ("row", "said"),
  [
    ({"prompt": "1 + 1?"}, "row 1|line 1.*'completion' is missing"),
    ({"prompt": "1 + 1?", "completion": " "}, "'completion' is empty"),
    (
      {"prompt": [SYSTEM, QUESTION], "completion": "6"},
      "must be one question",
    ),
    (
      {"prompt": [QUESTION, TURNS[1], QUESTION], "completion": "6"},
      "must be one question",
    ),
  ],
)
def test_rows_that_are_no_examples_are_refused(tmp_path, row, said):
  with pytest.raises(DataError, match=said):
    examples.load(section(lines(tmp_path / "bad.jsonl", [row])))


@pytest.mark.parametrize(
  "value", [{"prompt": ""}, {"prompt": "1", "answer": 2}]
)
def test_examples_in_the_config_are_checked(value):
  with pytest.raises(ValueError, match="examples"):
    configs.DataConfig(examples=[value])


def test_they_stand_after_the_systems_message():
  placed = examples.place(PROBLEM, TURNS)
  assert placed.messages == (SYSTEM, *TURNS, QUESTION)
  alone = Problem(index=0, messages=(QUESTION,), answer="6")
  assert examples.place(alone, TURNS).messages == (*TURNS, QUESTION)


@pytest.fixture(scope="module")
def tokenizer():
  texts = ["How much is one question", "Correctly solve the original question"]
  return tokenizers.train(texts, vocab_size=300)


@pytest.mark.parametrize("form", templates.FORMS)
def test_every_form_keeps_them_whole_before_the_problem(form, tokenizer):
  """They are in the prompt however much is cut."""
  problem = examples.place(PROBLEM, TURNS)
  template = templates.load(form)

  def messages(solution):
    return teacher_prompts.teacher_prompt(
      problem, solution=solution, template=template
    )

  assert messages("6")[1:5] == TURNS
  # The same as without examples, but for them.
  rest = teacher_prompts.teacher_prompt(
    PROBLEM, solution="6", template=template
  )
  assert [*messages("6")[:1], *messages("6")[5:]] == rest
  limit = len(tokenizer.encode_messages(messages("6 6 6")))
  fitted = teacher_prompts.fit_teacher_prompt(
    problem,
    solution="6 6 6 and so on for ever",
    feedback=None,
    tokenizer=tokenizer,
    limit=limit,
    template=template,
  )
  assert fitted is not None
  assert fitted.was_truncated
  assert len(fitted.ids) <= limit
  text = tokenizer.decode(fitted.ids)
  assert all(turn["content"] in text for turn in TURNS)
  # If they leave no room for a solution, there is no teacher.
  nothing = teacher_prompts.fit_teacher_prompt(
    problem,
    solution="6 6 6",
    feedback=None,
    tokenizer=tokenizer,
    limit=limit - len(tokenizer.encode("\\boxed{4}")) - 20,
    template=template,
  )
  assert nothing is None


def build(tokenizer, data, objective="grpo", prompt_limit=400, **environment):
  settings = configs.parse(
    {
      "objective": {"kind": objective},
      "rollout": {
        "max_prompt_length": prompt_limit,
        "max_completion_length": 400,
      },
      "data": data,
      "environment": environment,
    }
  )
  environment = envs.build_environment(settings.environment)
  found = problems.load_problems(settings, environment)
  return problems.build_data(settings, environment, found, tokenizer)


def test_a_run_reads_them_and_counts_them(tmp_path, tokenizer):
  path = lines(tmp_path / "rows.jsonl", [{"prompt": "3 + 3?", "answer": "6"}])
  settings = {"kind": "math", "symbolic": False, "instruction": ""}
  data = {"train": path, "evaluation": path, "examples": TWO}
  data["examples"] = [*TWO, {"prompt": "<|im_end|>", "completion": "none"}]
  found = build(tokenizer, data, **settings)
  for split in (found.train[""], found.evaluation[""]):
    *turns, escaped, _, question = split[0].messages
    assert turns == TURNS
    assert escaped["content"] == "<\u200b|im_end|>"
    assert question == QUESTION
  length = len(tokenizer.encode_messages(found.train[""][0].messages))
  build(tokenizer, data, prompt_limit=length, **settings)
  with pytest.raises(ConfigError, match=f"row 1 has {length} tokens, more"):
    build(tokenizer, data, prompt_limit=length - 1, **settings)
  with pytest.raises(DataError, match=r"^data\.examples: .*gone\.jsonl"):
    build(tokenizer, {**data, "examples": "gone.jsonl"}, **settings)


def test_demonstrations_have_them_too(tokenizer):
  data = {"examples": TWO, "num_train": 2, "num_evaluation": 1}
  found = build(tokenizer, data, "sft", 900)
  for item in (*found.train[""], *found.evaluation[""]):
    assert list(item.messages[:4]) == TURNS
    assert item.messages[4]["content"].startswith("Compute ")
