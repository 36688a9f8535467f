import pytest

from distil_jax import envs
from distil_jax.data import teacher_templates
from tests import teacher_prompts


def test_every_environment_has_a_page():
  pages = {path.stem for path in teacher_prompts.FOLDER.glob("*.txt")}
  assert pages == set(envs.ENVIRONMENTS) == set(teacher_prompts.CASES)


@pytest.mark.parametrize("kind", teacher_prompts.CASES)
def test_a_teacher_reads_what_stands_on_the_page(kind):
  path = teacher_prompts.FOLDER / f"{kind}.txt"
  assert teacher_prompts.pages()[kind] == path.read_text(encoding="utf-8")


def test_every_form_has_a_page():
  pages = {path.stem for path in teacher_prompts.FORMS_FOLDER.glob("*.txt")}
  assert pages == set(teacher_templates.FORMS)


@pytest.mark.parametrize("form", teacher_templates.FORMS)
def test_a_form_with_examples_reads_as_on_its_page(form):
  path = teacher_prompts.FORMS_FOLDER / f"{form}.txt"
  assert teacher_prompts.form_pages()[form] == path.read_text(encoding="utf-8")
