import copy
import dataclasses
import json
import pickle
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distil_jax import envs
from distil_jax.config.environments import ReasoningGymConfig
from distil_jax.data import teacher_prompts
from distil_jax.envs import (
  base,
  completion_text,
  contract,
  process_pool,
  reasoning_gym,
  reasoning_gym_worker,
  restricted_eval,
)
from distil_jax.types import Status

# Seconds of a loaded machine, where nothing is to be late.
ENVIRONMENT = reasoning_gym.ReasoningGym(
  ReasoningGymConfig(
    task="chain_sum",
    settings={"max_terms": 3, "max_digits": 2},
    seconds=60.0,
  )
)
# The process knows all tasks, whichever environment asks it.
WORKER = ENVIRONMENT._workers
PROBLEM = ENVIRONMENT.generate(0, "train")


def changed(**fields):
  """The environment with other settings, but the same process."""
  made = copy.copy(ENVIRONMENT)
  config = ENVIRONMENT.config.model_copy(update=fields)
  object.__setattr__(made, "config", config)
  return made


def ask(do, task="chain_sum", task_settings=None, **more):
  question = {"do": do, "task": task, "settings": task_settings or {}, **more}
  return WORKER.ask(question, 60.0)


def make(task, index=0, split="train", seed=0, **task_settings):
  return ask("make", task, task_settings, seed=seed, index=index, split=split)


def score(task, made, text, **task_settings):
  entry = {"number": made["number"], "digest": made["digest"]}
  return ask("score", task, task_settings, entry=entry, answer=text)


def judge(text, problem=PROBLEM, environment=ENVIRONMENT):
  return environment.judge(problem, text)


def test_a_problem_asks_says_how_to_answer_and_has_its_answer_in_tags():
  (message,) = PROBLEM.messages
  assert message["role"] == "user"
  question, instruction = message["content"].split("\n\n")
  assert question.startswith("State the final answer to the following arith")
  assert instruction == ENVIRONMENT.config.instruction
  assert PROBLEM.solution == f"<answer>{PROBLEM.answer}</answer>"
  assert eval(question.partition(": ")[2].removesuffix("=")) == int(
    PROBLEM.answer
  )
  plain = changed(instruction="")
  assert plain.generate(0, "train").messages[0]["content"] == question


def test_the_answer_in_the_last_tags_counts():
  right = f"<answer>{PROBLEM.answer}</answer>"
  assert judge(right).reward == 1.0
  assert judge(f"<answer>1</answer> no, <answer>\n{PROBLEM.answer} </answer>.")
  assert judge(f"{right} or <answer>no</answer>").status is Status.WRONG
  verdict = judge(right)
  assert (verdict.status, verdict.feedback) == (Status.CORRECT, "")
  assert verdict.details == {"parsed": PROBLEM.answer}


@pytest.mark.parametrize(
  ("text", "fault"),
  [
    (PROBLEM.answer, "no answer was found between <answer> and </answer>"),
    ("<answer>5", "no answer was found"),
    ("</answer>5<answer>", "no answer was found"),
    ("<answer> \n</answer>", "nothing stands between"),
    (f"<answer>{'9' * 10_001}</answer>", "the answer has 10001 characters"),
  ],
)
def test_what_cannot_be_read_is_said(text, fault):
  verdict = judge(text)
  assert (verdict.reward, verdict.status) == (0.0, Status.UNPARSABLE)
  assert verdict.feedback.startswith(f"The format is wrong: {fault}")


def test_a_wrong_answer_is_named_and_the_right_one_only_where_asked():
  wrong = str(int(PROBLEM.answer) + 1)
  verdict = judge(f"<answer>{wrong}</answer>")
  assert verdict.feedback == f"{wrong} is not the correct answer."
  revealing = changed(reveal_answer=True)
  verdict = judge(f"<answer>{wrong}</answer>", environment=revealing)
  assert verdict.feedback.endswith(f"The correct answer is {PROBLEM.answer}.")
  silent = changed(feedback=False)
  assert judge(f"<answer>{wrong}</answer>", environment=silent).feedback == ""


def test_a_scorer_may_give_a_part_and_says_so():
  verdict = judge(f"<answer>{PROBLEM.answer} apples</answer>")
  length = len(PROBLEM.answer)
  assert verdict.reward == pytest.approx(length / (length + 7))
  assert verdict.status is Status.WRONG
  assert f"; its score is {verdict.reward:.3g} of 1." in verdict.feedback


def test_problems_depend_on_seed_index_and_split_alone():
  indices = (700, 3, 0, 499, 500)
  for split in ("train", "evaluation"):
    made = [ENVIRONMENT.generate(i, split) for i in indices]
    again = [ENVIRONMENT.generate(i, split) for i in reversed(indices)]
    assert again == made[::-1]
    assert len({p.messages[0]["content"] for p in made}) == len(indices)
  other = make("chain_sum", seed=1)["question"]
  assert other not in PROBLEM.messages[0]["content"]
  with pytest.raises(ValueError, match="split='test' must be"):
    ENVIRONMENT.generate(0, "test")  # type: ignore[arg-type]


def test_the_splits_have_no_question_in_common_even_where_there_are_few():
  few = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}
  found = {
    split: {make("chain_sum", i, split, **few)["question"] for i in range(300)}
    for split in ("train", "evaluation")
  }
  # 200 there are, half of them for each.
  assert (
    50 < min(map(len, found.values())) <= max(map(len, found.values())) < 150
  )
  assert not found["train"] & found["evaluation"]


def test_a_task_with_one_question_has_none_for_one_of_the_splits():
  only = {"n": 4, "min_remove": 4, "max_remove": 4}
  said = [make("n_queens", 0, s, **only) for s in ("train", "evaluation")]
  assert sum("error" in x for x in said) == 1, said
  error = next(x["error"] for x in said if "error" in x)
  assert error.endswith("among 64: the task has too few")


# Tasks that pass an answer to `eval`, that hold as many problems as their size
# says, that go through sets, and that have no single answer.
TASKS = (
  "acre",
  "binary_matrix",
  "countdown",
  "isomorphic_strings",
  "list_functions",
  "n_queens",
  "polynomial_multiplication",
  "puzzle24",
  "ransom_note",
  "simple_integration",
  "spiral_matrix",
  "string_insertion",
  "word_ladder",
)


@pytest.mark.parametrize("task", TASKS)
def test_a_task_scores_its_own_answer_and_not_another(task):
  made = make(task, 1234, "evaluation")
  assert score(task, made, made["answer"]) == {"score": 1.0}
  assert score(task, made, "!") != {"score": 1.0}
  assert make(task, 1234, "evaluation") == made


def test_another_process_makes_the_same_problems():
  other = process_pool.Worker(reasoning_gym_worker.__name__)
  for task in ("isomorphic_strings", "ransom_note"):  # by way of sets
    question = {"do": "make", "task": task, "settings": {}}
    question |= {"seed": 5, "index": 9, "split": "train"}
    assert other.ask(question, 60.0) == WORKER.ask(question, 60.0)
  other.close()


def test_composite_mixes_tasks():
  parts = [{"name": "gcd", "weight": 3}, {"name": "lcm"}]
  asked = [make("composite", i, datasets=parts)["question"] for i in range(40)]
  num_gcd = sum("GCD" in question for question in asked)
  assert 20 < num_gcd < 40
  assert all("GCD" in q or "LCM" in q for q in asked)


@pytest.mark.parametrize(
  ("task", "task_settings", "message"),
  [
    ("chain_smu", {}, "unknown task 'chain_smu'; did you mean 'chain_sum'?"),
    ("#", {}, "unknown task '#'; known: "),
    ("gcd", {"max_number": 1}, "no setting 'max_number'; did you mean 'max_n"),
    ("gcd", {"q": 1}, "has no setting 'q'; known: min_numbers, max_numbers, "),
    ("gcd", {"seed": 1}, "seed is not a setting here; environment.seed"),
    ("gcd", {"size": 1}, "size is not a setting here"),
    ("gcd", {"max_numbers": 1}, "task gcd: max_numbers must be >= min_numbers"),
    ("gcd", {"max_numbers": "x"}, "task gcd: "),
    ("composite", {}, "task composite: Must specify at least one dataset"),
    ("composite", {"datasets": [{"name": "gdc"}]}, "did you mean 'gcd'?"),
    ("composite", {"datasets": [{"nam": "gcd"}]}, "must have a name"),
  ],
)
def test_what_a_task_cannot_be_is_refused(task, task_settings, message):
  said = ask("check", task, task_settings)
  assert said["refused"]
  assert message in said["error"]


def test_an_environment_that_cannot_be_is_refused(monkeypatch):
  with pytest.raises(ValueError, match="did you mean 'chain_sum'"):
    envs.make_environment("reasoning_gym", task="chain_smu")
  with pytest.raises(ValueError, match="scorer calls every answer right"):
    changed(task="game_of_life_halting", settings={}).__post_init__()
  with pytest.raises(ValueError, match=r"seconds=0: .* greater than 0"):
    envs.make_environment("reasoning_gym", task="gcd", seconds=0)
  with pytest.raises(ValueError, match="are no JSON"):
    envs.make_environment(
      "reasoning_gym", task="gcd", settings={"max_numbers": object()}
    )
  monkeypatch.setattr(reasoning_gym_worker, "is_installed", lambda: False)
  with pytest.raises(ValueError, match=r"distil_jax\[reasoning-gym\]"):
    envs.make_environment("reasoning_gym", task="gcd")


@pytest.fixture(scope="module")
def in_the_open():
  """A process that nothing keeps from the files but itself."""
  worker = process_pool.Worker(reasoning_gym_worker.__name__)
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(process_pool, "_isolation_prefix", lambda: ())
    worker.ask({"do": "check", "task": "gcd", "settings": {}}, 60.0)
  yield worker
  worker.close()


@pytest.mark.parametrize(
  ("task", "text"),
  [
    ("n_queens", "__import__('os').system('touch {}')"),
    ("binary_matrix", "[[open('{}', 'w')]]"),
    ("string_insertion", "[open('{}', 'w').name]"),
    ("countdown", "__import__('os').system('touch {}')"),
    ("countdown", "open('{}', 'w')"),
    ("countdown", "abs(open('{}', 'w').fileno())"),
    ("countdown", 'sympify(\'open("{}", "w")\')'),
    ("puzzle24", 'lambdify(x, \'open("{}", "w")\')(1)'),
    ("puzzle24", "[x for x in [open('{}', 'w')]]"),
    ("simple_integration", "(lambda: open('{}', 'w'))()"),
    ("polynomial_multiplication", "Symbol.__init__.__globals__['sys'] + {}"),
  ],
)
def test_an_answer_is_not_run(task, text, tmp_path, in_the_open):
  path = tmp_path / "written"
  made = make(task)
  about = {"do": "score", "task": task, "settings": {}}
  about["entry"] = {key: made[key] for key in ("number", "digest")}
  for answer, is_right in ((text.format(path), False), (made["answer"], True)):
    # The process is none the worse for it.
    said = in_the_open.ask({**about, "answer": answer}, 60.0)
    assert (said == {"score": 1.0}) == is_right
  assert not path.exists()


def test_while_an_answer_is_scored_nothing_is_written_or_started(tmp_path):
  with restricted_eval.confined():
    for event, args in (
      ("open", (str(tmp_path / "x"), "w", restricted_eval._WRITING)),
      ("os.system", (b"true",)),
      ("subprocess.Popen", ("true",)),
      ("socket.connect", (None, "host")),
    ):
      with pytest.raises(PermissionError, match=event):
        restricted_eval._audit(event, args)
    restricted_eval._audit("open", (str(tmp_path), "r", 0))
    restricted_eval._audit("os.listdir", (str(tmp_path),))
    restricted_eval._audit("import", ("json",))
  restricted_eval._audit("os.system", (b"true",))


def test_a_scorer_that_hangs_is_killed_and_one_that_raises_is_an_error():
  slow = changed(task="countdown", settings={}, seconds=1.0)
  problem = slow.generate(0, "train")
  verdict = judge("<answer>9**9**9**9</answer>", problem, slow)
  assert verdict.status is Status.TIMEOUT
  assert "could not be scored within 1 s" in verdict.feedback
  factors = changed(task="prime_factorization", settings={})
  problem = factors.generate(0, "train")
  verdict = judge("<answer>banana</answer>", problem, factors)
  assert (verdict.reward, verdict.status) == (0.0, Status.ERROR)
  assert verdict.feedback.startswith("banana could not be read as an answer")
  assert judge(problem.solution, problem, factors).reward == 1.0


def test_a_row_of_a_file_is_judged_by_the_scorer_too():
  row = {"prompt": "2 + 2 =", "answer": "4", "metadata": {"num_terms": 2}}
  problem = ENVIRONMENT.problem(row, 7)
  assert problem.messages[0]["content"].startswith("2 + 2 =\n\nPut the final")
  assert judge("<answer>+04.0</answer>", problem).reward == 1.0
  assert judge("<answer>5</answer>", problem).status is Status.WRONG
  for bad, message in (
    ({"prompt": "x"}, "no answer"),
    ({"answer": "x"}, "no prompt"),
    ({**row, "metadata": [1]}, "metadata must be a mapping, got list"),
  ):
    with pytest.raises(ValueError, match=message):
      ENVIRONMENT.problem(bad)


def test_a_score_outside_of_0_to_1_is_an_error(monkeypatch):
  class Scorer:
    scores: object = None

    def score_answer(self, text, entry):
      entry.clear()
      return self.scores

  monkeypatch.setattr(reasoning_gym_worker, "_data_set", lambda *_: Scorer())
  entry = {"question": "q", "answer": "a", "metadata": {}}
  for value, known in ((2, "a score of 2"), (None, "None"), (float("nan"), "")):
    monkeypatch.setattr(Scorer, "scores", value)
    said = reasoning_gym_worker._scored("gcd", {}, entry, "a")
    assert known in said["error"]
    assert said["is_broken"]
  assert entry["answer"] == "a"  # a scorer has a copy


def test_another_problem_than_was_asked_is_not_judged():
  details = {**PROBLEM.details, "digest": "0" * 16}
  verdict = judge(
    PROBLEM.solution, dataclasses.replace(PROBLEM, details=details)
  )
  assert (verdict.reward, verdict.status) == (0.0, Status.CRASHED)
  assert verdict.feedback == ""


def test_a_demonstration_is_the_answer_in_tags():
  made = ENVIRONMENT.demonstration(0, teacher_prompts.teacher_prompt)
  assert made.messages == PROBLEM.messages
  assert judge(made.solution).reward == 1.0
  many = changed(task="graph_color", settings={})
  assert many.generate(0, "train").solution is None
  with pytest.raises(ValueError, match="without an answer to show"):
    many.demonstration(0, teacher_prompts.teacher_prompt)


def test_it_keeps_the_contract_and_goes_to_other_processes():
  row = {"prompt": "2 + 2 =", "answer": "4"}
  contract.check(ENVIRONMENT, [row], ["<answer>4</answer>"])
  assert isinstance(ENVIRONMENT, base.Generator)
  copy = pickle.loads(pickle.dumps(ENVIRONMENT))
  assert copy == ENVIRONMENT
  problem = pickle.loads(pickle.dumps(PROBLEM))
  assert judge(PROBLEM.solution, problem, copy).reward == 1.0


@settings(deadline=None)
@given(
  st.lists(
    st.sampled_from(["<answer>", "</answer>", PROBLEM.answer, "\n", "-", "."])
    | st.text()
  ).map("".join)
)
def test_whatever_it_says_there_is_a_verdict(text):
  verdict = judge(text)
  assert 0 <= verdict.reward <= 1
  assert (verdict.reward == 1) == (verdict.status is Status.CORRECT)
  assert bool(verdict.feedback) == (verdict.status is not Status.CORRECT)
  json.dumps(dict(verdict.details))


@given(st.text("a<>/ b"), st.text())
def test_tags_are_found_as_they_were_put(inside, around):
  text = f"{around}<b>{inside}</b>"
  inner = inside.rpartition("<b>")[2].partition("</b>")[0]
  if "<b>" not in inside and "</b>" not in inside:
    assert completion_text.last_tagged(text, "b") == inner
  assert completion_text.last_tagged(
    text + "<b>", "b"
  ) == completion_text.last_tagged(text, "b")
  assert completion_text.last_tagged(around.replace("<", ""), "b") is None


def test_a_huge_completion_is_read_fast():
  begun = time.process_time()
  for text in ("<answer>" * 140_000, "</answer>" * 140_000):
    assert completion_text.last_tagged(text, "answer") is None
  assert (
    completion_text.last_tagged(
      "<answer>" * 100_000 + "</answer>" * 100_000, "answer"
    )
    == ""
  )
  assert time.process_time() - begun < 5  # not a speed, but no square of it
