"""What teachers read, to be read in review.

There is one page for each environment, and one for each form of the prompt,
with worked examples before the problem.

python tests/teacher_prompts.py     # from the root; writes the pages anew
"""

import functools

from distil_jax import envs
from distil_jax.config.data import DataConfig
from distil_jax.data import examples, teacher_prompts, teacher_templates
from distil_jax.envs import base
from tests.paths import GOLDEN

FOLDER = GOLDEN / "teacher_prompts"
FORMS_FOLDER = GOLDEN / "teacher_forms"
# Of each environment a row, or the number of a problem that it makes; a
# completion that fails; and one that does not.
CASES = {
  "calculator": (3, "3 + 8 = 12\n12 + 3 = 15\n<answer>15</answer>", None),
  "code": (
    {
      "prompt": 'def double(x):\n  """Twice x."""\n',
      "entry_point": "double",
      "canonical_solution": "  return 2 * x\n",
      "test": "def check(f):\n  assert f(0) == 0\n  assert f(3) == 6\n",
    },
    "```python\ndef double(x):\n  print(x)\n  return x + x * 0\n```",
    "```python\ndef double(x):\n  return x + x\n```",
  ),
  "constrained_writing": (
    {"topic": "the sea", "words": ["lamp", "road"]},
    "The sea lay beside the roads. It was dark.",
    "A lamp lit the road to the sea.",
  ),
  "guess_number": (
    {"smallest": 37, "largest": 52, "number": 41},
    "50",
    "41",
  ),
  "math": (
    {
      "prompt": "Two hens lay 3 eggs a day each. How many in a week?",
      "answer": "2 * 3 = <<2*3=6>>6 a day, 6 * 7 = <<6*7=42>>42.\n#### 42",
    },
    "2 + 3 = 5, and 5 * 7 = 35: \\boxed{35}",
    "2 * 3 = 6, and 6 * 7 = 42: \\boxed{42}",
  ),
  "multiple_choice": (
    {
      "prompt": "Which is a noble gas?\n\nA: argon\nB: oxygen",
      "answer": "A",
      "system": "Answer with a letter between <answer> and </answer>.",
    },
    "<answer>B</answer>",
    "Its shell is full.\n<answer>A</answer>",
  ),
  "reasoning_gym": (
    3,
    "8 + 2 = 10, and 10 - 8 = 3.\n<answer>3</answer>",
    "8 + 2 = 10, 10 - 8 = 2, and 2 + 0 = 2.\n<answer>2</answer>",
  ),
  "self_evaluation": (
    {
      "prompt": "Two hens lay 3 eggs a day each. How many in a week?",
      "answer": "2 * 3 = <<2*3=6>>6 a day, 6 * 7 = <<6*7=42>>42.\n#### 42",
    },
    "2 + 3 = 5, and 5 * 7 = 35: \\boxed{35}",
    "2 * 3 = 6, and 6 * 7 = 42: \\boxed{42}",
  ),
  "tool_calls": (
    {
      "prompt": "You have: search(query, page).\nFind the second page on cats.",
      "answer": [
        {"Action": "search", "Action_Input": {"query": "cats", "page": 2}}
      ],
    },
    'Action: search\nAction Input: {"query": "cats", "page": "2"}',
    'Action: search\nAction Input: {"query": "cats", "page": 2}',
  ),
}
SETTINGS = {
  "reasoning_gym": {"task": "chain_sum"},
  "self_evaluation": {"of": {"kind": "math"}, "keep_feedback": True},
}
CRITIQUES = {
  "self_evaluation": (
    "<think>7 days, 6 eggs a day.</think>\nThe first step adds 2 and 3, but "
    "each of the hens lays 3 eggs: multiply them."
  )
}


@functools.cache
def pages() -> dict[str, str]:
  """Text of each page: with a sibling's solution, and with feedback."""
  found = {}
  for kind, (row, failure, solution) in CASES.items():
    environment = envs.make_environment(kind, **SETTINGS.get(kind, {}))
    if isinstance(row, int):
      assert isinstance(environment, base.Generator)
      problem = environment.generate(row, "train")
    else:
      problem = environment.problem(row)
    verdict = environment.judge(problem, failure)
    assert verdict.reward == 0.0
    parts = [("a failed attempt", failure)]
    if solution is not None:
      assert environment.judge(problem, solution).reward == 1.0
      messages = teacher_prompts.teacher_prompt(problem, solution=solution)
      parts.append(("with a solution", _text(messages)))
    if isinstance(environment, base.SelfJudged):
      asked = environment.critique_prompt(problem, failure, verdict)
      parts.append(("what the critic is asked", _text(asked)))
      parts.append(("a critique", CRITIQUES[kind]))
      verdict = environment.with_critique(verdict, CRITIQUES[kind])
    messages = teacher_prompts.teacher_prompt(
      problem, feedback=verdict.feedback
    )
    parts.append(("with feedback", _text(messages)))
    found[kind] = "\n".join(f"==== {what}\n{text}\n" for what, text in parts)
  return found


@functools.cache
def form_pages() -> dict[str, str]:
  """Text of each form's page, of the problem and the attempts of `math`."""
  row, failure, solution = CASES["math"]
  environment = envs.make_environment("math")
  shown = {"prompt": "How much is 2 + 2?", "completion": "\\boxed{4}"}
  problem = examples.place(
    environment.problem({**row, "system": "Be brief."}),
    examples.load(DataConfig.model_validate({"examples": [shown]})),
  )
  feedback = environment.judge(problem, failure).feedback
  found = {}
  for form, template in teacher_templates.FORMS.items():
    parts = [
      (what, teacher_prompts.teacher_prompt(problem, template=template, **told))
      for what, told in (
        ("with a solution", {"solution": solution}),
        ("with feedback", {"feedback": feedback, "attempt": failure}),
        (
          "with both",
          {"solution": solution, "feedback": feedback, "attempt": failure},
        ),
      )
    ]
    found[form] = "\n".join(f"==== {what}\n{_text(m)}\n" for what, m in parts)
  return found


def _text(messages) -> str:
  return "\n".join(f"-- {m['role']}\n{m['content']}" for m in messages)


if __name__ == "__main__":
  for folder, written in ((FOLDER, pages()), (FORMS_FOLDER, form_pages())):
    folder.mkdir(exist_ok=True)
    for name, page in written.items():
      (folder / f"{name}.txt").write_text(page, encoding="utf-8")
