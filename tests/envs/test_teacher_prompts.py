import pytest

from distil_jax import envs
from tests import teacher_prompts


def test_every_environment_has_a_page():
  pages = {path.stem for path in teacher_prompts.FOLDER.glob("*.txt")}
  assert pages == set(envs.ENVIRONMENTS) == set(teacher_prompts.CASES)


@pytest.mark.parametrize("kind", teacher_prompts.CASES)
def test_a_teacher_reads_what_stands_on_the_page(kind):
  path = teacher_prompts.FOLDER / f"{kind}.txt"
  assert teacher_prompts.pages()[kind] == path.read_text(encoding="utf-8")
