"""Each form of the teacher's prompt, by hand."""

import pytest

from distil_jax import config as configs
from distil_jax.config import teacher as teacher_config
from distil_jax.data import teacher_prompts, teacher_templates
from distil_jax.data import tokenizer as tokenizer_lib
from distil_jax.types import Problem

SYSTEM = {"role": "system", "content": "Be brief."}
QUESTION = {"role": "user", "content": "How much is 2 + 2?"}
PROBLEM = Problem(index=0, messages=(SYSTEM, QUESTION), answer="4")
TOLD = {"solution": "<think>x</think>4", "feedback": "No.", "attempt": "5"}
BLOCK = "\n\nCorrect solution:\n\n4"
HEADING = (
  "\n\nThe following is feedback from your unsuccessful earlier attempt:\n\nNo."
)


def said(*pairs):
  return [{"role": role, "content": content} for role, content in pairs]


def written(form, problem=PROBLEM, **told):
  return teacher_prompts.teacher_prompt(
    problem, template=teacher_templates.load(form), **told
  )


def test_the_config_knows_all_forms():
  assert tuple(teacher_templates.FORMS) == teacher_config.TEMPLATE_FORMS


@pytest.mark.parametrize(
  ("form", "names", "expected"),
  [
    (
      "turn",
      ["solution"],
      [
        ("system", "Be brief."),
        ("user", "How much is 2 + 2?"),
        ("assistant", "4"),
        ("user", "How much is 2 + 2?"),
      ],
    ),
    (
      "turn",
      ["solution", "feedback", "attempt"],
      [
        ("system", "Be brief."),
        ("user", "How much is 2 + 2?"),
        ("assistant", "4"),
        ("user", f"How much is 2 + 2?{HEADING}"),
      ],
    ),
    (
      "turn",
      ["feedback", "attempt"],
      [("system", "Be brief."), ("user", f"How much is 2 + 2?{HEADING}")],
    ),
    (
      "system",
      ["solution", "feedback"],
      [
        ("system", f"Be brief.{BLOCK}{HEADING}"),
        ("user", "How much is 2 + 2?"),
      ],
    ),
    (
      "critique",
      ["feedback", "attempt"],
      [
        ("system", "Be brief."),
        ("user", "How much is 2 + 2?"),
        ("assistant", "5"),
        (
          "user",
          "That is not right.\n\nNo.\n\nHere is the question again.\n\n"
          "How much is 2 + 2?",
        ),
      ],
    ),
    (
      "critique",
      ["solution"],
      [
        ("system", "Be brief."),
        (
          "user",
          "Correct solution:\n\n4\n\nHere is the question again.\n\n"
          "How much is 2 + 2?",
        ),
      ],
    ),
  ],
)
def test_forms(form, names, expected):
  told = {name: TOLD[name] for name in names}
  assert written(form, **told) == said(*expected)


def test_a_system_that_is_not_there_yet():
  problem = Problem(index=0, messages=(QUESTION,), answer="4")
  found = written("system", problem, solution="4")
  assert found == said(("system", BLOCK.strip()), ("user", QUESTION["content"]))


@pytest.mark.parametrize("form", teacher_templates.FORMS)
def test_nothing_told_is_the_students_prompt(form):
  assert written(form, attempt="5") == list(PROBLEM.messages)
  assert written(form, solution=" \n", feedback="") == list(PROBLEM.messages)


@pytest.mark.parametrize("form", ["block", "turn", "critique"])
def test_a_problem_without_a_question(form):
  with pytest.raises(ValueError, match="problem 0 has no user message"):
    written(form, Problem(index=0, messages=(SYSTEM,), answer=""), solution="4")


@pytest.fixture
def own(tmp_path):
  def write(text):
    path = tmp_path / "teacher.jinja"
    path.write_text(text)
    return str(path)

  return write


def test_a_template_of_ones_own(own):
  path = own(
    "{{ problem }}\n"
    "{% if solution %}\n\nOne way: {{ solution }}\n{% endif %}\n"
    "{% if feedback %}\n\nNot: {{ attempt }}, for: {{ feedback }}{% endif %}"
  )
  assert written(path, **TOLD)[1]["content"] == (
    "How much is 2 + 2?\n\nOne way: 4\n\nNot: 5, for: No."
  )
  assert written(path, **TOLD)[0] == SYSTEM
  assert "Not" not in written(path, solution="4")[1]["content"]


@pytest.mark.parametrize(
  ("text", "message"),
  [
    ("{{ problem }} {{ hint }}", "'hint' is undefined; the variables are"),
    (
      "{{ problem }}{{ solution }}{% if feedback == '' %}{{ his }}{% endif %}",
      "'his' is undefined; the variables are",
    ),
    ("{{ problem", "is no Jinja template"),
    ("{{ solution }}", "leaves out the problem"),
    ("{{ problem }} {{ attempt }}", "leaves out both solution and feedback"),
    (
      "{% if solution %}{{ problem }}{{ solution }}{% endif %}",
      "out the problem",
    ),
    ("{{ problem.__class__.__mro__ }}{{ solution }}", "unsafe|undefined"),
    ("{{ ''.join(solution.__init__.__globals__) }}", "unsafe|undefined"),
    ("{{ problem + 1 }}{{ solution }}", "cannot be rendered: TypeError"),
    ("{{ problem }}{{ solution }}{{ 1 / 0 }}", "rendered: ZeroDivision"),
    ("{% include 'x' %}", "cannot be rendered"),
    ("{{ problem }}{{ range(1000000000) }}", "cannot be rendered: Overflow"),
    (
      "{% macro f() %}{{ f() }}{% endmacro %}{{ problem }}{{ f() }}",
      "cannot be rendered: RecursionError",
    ),
    # These would run for hours.
    (
      "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}"
      "{% endfor %}{{ problem }}{{ solution }}",
      "its loops take more than 100000 steps",
    ),
    (
      "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}"
      "{% endmacro %}{{ problem }}{{ f(99) }}",
      "its loops take more than 100000 steps",
    ),
    ("{{ problem }}{{ 9 ** 9 ** 9 }}", r"\*\* is not possible"),
  ],
)
def test_templates_that_cannot_be_used(own, text, message):
  with pytest.raises(ValueError, match=message):
    teacher_templates.load(own(text))


def test_a_template_may_have_loops(own):
  path = own(
    "{{ problem }}{% for line in feedback.splitlines() if line %}\n"
    "{{ loop.index }}. {{ line }}\n{% else %}{{ solution }}{% endfor %}"
  )
  for _ in range(2):  # steps are counted anew
    found = written(path, feedback="No.\n\nNot 5.")[1]["content"]
    assert found == f"{QUESTION['content']}1. No.\n2. Not 5.\n"


def test_a_template_that_is_not_there():
  with pytest.raises(ValueError, match=r"gone\.jinja cannot be read.*block"):
    teacher_templates.load("gone.jinja")


@pytest.mark.parametrize("name", ["trun", "own.txt", ""])
def test_unknown_forms_are_refused_by_the_config(name):
  with pytest.raises(ValueError, match=r"no form .*block, turn, system"):
    configs.TeacherConfig(template=name)


@pytest.fixture(scope="module")
def tokenizer():
  texts = ["How much is 2 + 2? Here is the question again."] * 5
  return tokenizer_lib.train(texts, vocab_size=300)


LONG = {
  "solution": "zwei plus zwei. " * 8,
  "feedback": "Schritt eins. " * 8,
  "attempt": "fünf, weil. " * 8,
}


@pytest.mark.parametrize("form", teacher_templates.FORMS)
def test_every_form_is_cut_to_its_limit(form, tokenizer):
  """The feedback first, then the attempt; question and ending always stay."""
  template = teacher_templates.load(form)
  ending = tokenizer.decode(
    tokenizer.encode_messages(
      template(PROBLEM, teacher_templates.Told(solution="z"))
    ),
    skip_special=False,
  )[-40:]

  def fit(limit):
    return teacher_prompts.fit_teacher_prompt(
      PROBLEM, tokenizer=tokenizer, limit=limit, template=template, **LONG
    )

  full = len(
    tokenizer.encode_messages(template(PROBLEM, teacher_templates.Told(**LONG)))
  )
  assert not fit(full).was_truncated
  kept_before = (-1, -1, -1)
  for limit in range(0, full, 3):
    fitted = fit(limit)
    if fitted is None:
      assert kept_before == (-1, -1, -1)
      continue
    assert len(fitted.ids) <= limit
    assert fitted.was_truncated
    text = tokenizer.decode(fitted.ids, skip_special=False)
    assert QUESTION["content"] in text
    assert text.endswith(ending[-20:])
    kept = tuple(
      text.count(LONG[name].split()[0])
      for name in ("solution", "attempt", "feedback")
    )
    assert kept >= kept_before
    assert fitted.has_solution or not kept[0]
    assert fitted.has_feedback or not kept[2]
    kept_before = kept


def test_a_template_that_shows_nothing_of_what_is_told_teaches_nothing(
  own, tokenizer
):
  template = teacher_templates.load(
    own("{{ problem }} Not: {{ attempt }}, for: {{ feedback }}")
  )

  def fit(solution, feedback):
    return teacher_prompts.fit_teacher_prompt(
      PROBLEM,
      solution=solution,
      feedback=feedback,
      attempt="5",
      tokenizer=tokenizer,
      limit=500,
      template=template,
    )

  assert fit("4", None) is None
  assert fit("4", "No.") is not None
  assert fit(None, "No.") is not None
