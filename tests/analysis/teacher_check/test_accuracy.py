"""Student and teacher are compared on the same problems."""

import numpy as np
import pytest

from distil_jax.analysis.teacher_check import accuracy
from distil_jax.data import tokenizer as tokenizers
from tests.training import test_batch_builder as built


def answers(student, teacher, per_problem=2):
  count = len(student)
  return accuracy.Answers(
    problem=np.arange(count) // per_problem,
    student=np.asarray(student, float),
    teacher=np.asarray(teacher) == 1,
    num_samples=count + 3,
  )


def test_by_hand():
  # Differences 1 1 | 0 -1 | 1 1: mean 1/2, sums of residuals 1, -2, 1.
  found = answers([0, 0, 1, 1, 0, 0], [1, 1, 1, 0, 1, 1])
  mean, error = accuracy._difference(found)
  assert mean == 0.5
  assert error == pytest.approx(np.sqrt(6) / 6)
  check = accuracy.check(found)
  assert check.is_ok is None  # 1.2 standard errors
  assert "83.3% of 6 held-out answers, the student 33.3%" in check.numbers
  assert "+50.0% ± 40.8%" in check.numbers


def test_samples_of_a_problem_are_not_independent():
  """The same answers, in problems of their own or all in four."""
  student, teacher = [0] * 16, [1, 1, 1, 1, 0, 0, 0, 0] * 2
  alone = accuracy._difference(answers(student, teacher, per_problem=1))
  together = accuracy._difference(answers(student, teacher, per_problem=4))
  assert alone[0] == together[0]
  assert together[1] == pytest.approx(2 * alone[1])


@pytest.mark.parametrize(
  ("student", "teacher", "is_ok"),
  [
    ([1, 0] * 8, [0, 1] * 8, False),
    ([1] * 16, [0] * 16, False),
    ([1] * 16, [1] * 16, False),
    ([1] * 8, [0] * 8, None),  # too few to say
    ([0] * 16, [1] + [0] * 15, None),  # better, but it may be chance
    ([0] * 16, [0] * 16, None),  # a random network
    ([0] * 16, [1] * 16, True),
  ],
)
def test_verdicts(student, teacher, is_ok):
  check = accuracy.check(answers(student, teacher))
  assert check.is_ok is is_ok
  assert ("teacher.template" in check.cure) == (is_ok is False) or is_ok is None


def test_without_a_teacher_there_is_nothing_to_compare():
  check = accuracy.check(answers([], []))
  assert check.is_ok is None
  assert "none of 3 held-out samples" in check.numbers


def test_the_student_counts_with_all_its_samples():
  """Not with those alone that have a teacher, which failed more often."""
  texts = [text for sample in built.SAMPLES for text in (sample[0], sample[2])]
  tokenizer = tokenizers.train(texts, vocab_size=320)
  experience = built.make_experience(tokenizer)
  np.testing.assert_allclose(accuracy._shares(experience, 1.0), [2 / 3, 0])
  np.testing.assert_allclose(accuracy._shares(experience, 0.0), [1, 1])
