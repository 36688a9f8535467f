"""The calculator: problems, verdicts written by hand, and demonstrations."""

import collections
import hashlib
import math
import os
import re
import subprocess
import sys

import pytest

from distil_jax import envs
from distil_jax.config.environments import CalculatorConfig
from distil_jax.envs import calculator_steps
from distil_jax.envs.calculator import Calculator
from distil_jax.types import Status
from tests import cpu_time

ROW = {"prompt": "Compute 47 + 8 - 3 + 6.", "answer": "58"}
SOLUTION = "47 + 8 = 55\n55 - 3 = 52\n52 + 6 = 58\n<answer>58</answer>"
SOLUTION_HEAD = "\n\nCorrect solution:\n\n"
FEEDBACK_HEAD = (
  "\n\nThe following is feedback from your unsuccessful earlier attempt:\n\n"
)
CLOSING = "\n\nCorrectly solve the original question."


def teacher_prompt(problem, *, solution=None, feedback=None):
  if solution is None and feedback is None:
    return problem.messages
  # An empty block would tell the model that a failure went without a reason.
  assert solution != ""
  assert feedback != ""
  text = problem.messages[-1]["content"]
  if solution is not None:
    text += SOLUTION_HEAD + solution
  if feedback is not None:
    text += FEEDBACK_HEAD + feedback
  return [{"role": "user", "content": text + CLOSING}]


def prompt_of(demonstration):
  return demonstration.messages[-1]["content"]


def steps_of(completion):
  """(left operand, operator, operand, result) of each step; and the answer."""
  *lines, last = completion.split("\n")
  steps = []
  for line in lines:
    match = re.fullmatch(r"(\d+) ([-+]) (\d+) = (\d+)", line)
    assert match, completion
    steps.append((int(match[1]), match[2], int(match[3]), int(match[4])))
  match = re.fullmatch(r"<answer>(\d+)</answer>", last)
  assert match, completion
  return steps, int(match[1])


def operations_of(prompt):
  """The first number, and (operator, operand) in order."""
  question = prompt.split("\n")[0]
  assert question.startswith("Compute ")
  assert question.endswith(".")
  first, *terms = question.removeprefix("Compute ")[:-1].split(" ")
  numbers = map(int, terms[1::2])
  return int(first), list(zip(terms[::2], numbers, strict=True))


def right_result(left, operator, operand):
  return left + operand if operator == "+" else left - operand


# Verdicts. Columns: completion, feedback, status, parsed answer, first wrong
# step, number of right steps before it.
STEP_1 = "it should be 47 + 8 = 55."
STEP_2 = "it should be 55 - 3 = 52."
STEP_3 = "it should be 52 + 6 = 58."
ANSWER = "it should be <answer>58</answer>."
ONE = "47 + 8 = 55\n"
TWO = ONE + "55 - 3 = 52\n"
THREE = TWO + "52 + 6 = 58\n"
WRONG, UNPARSABLE = Status.WRONG, Status.UNPARSABLE
VERDICTS = {
  "wrong_result": (
    ONE + "55 - 3 = 51\n51 + 6 = 57\n<answer>57</answer>",
    f"Step 2 is wrong: you wrote 55 - 3 = 51, {STEP_2}",
    (WRONG, 57, 2, 1),
  ),
  "wrong_left_operand": (
    ONE + "45 - 3 = 42\n42 + 6 = 48\n<answer>48</answer>",
    f"Step 2 is wrong: you wrote 45 - 3 = 42, {STEP_2}",
    (WRONG, 48, 2, 1),
  ),
  "wrong_operator": (
    ONE + "55 + 3 = 58\n58 + 6 = 64\n<answer>64</answer>",
    f"Step 2 is wrong: you wrote 55 + 3 = 58, {STEP_2}",
    (WRONG, 64, 2, 1),
  ),
  "wrong_operand": (
    TWO + "52 + 5 = 57\n<answer>57</answer>",
    f"Step 3 is wrong: you wrote 52 + 5 = 57, {STEP_3}",
    (WRONG, 57, 3, 2),
  ),
  "negative_result": (
    "47 + 8 = -55\n<answer>-55</answer>",
    f"Step 1 is wrong: you wrote 47 + 8 = -55, {STEP_1}",
    (WRONG, -55, 1, 0),
  ),
  "leading_zero_in_a_step": (
    "047 + 8 = 55\n<answer>5</answer>",
    f"Step 1 is wrong: you wrote 047 + 8 = 55, {STEP_1}",
    (WRONG, 5, 1, 0),
  ),
  "missing_step": (
    TWO + "<answer>52</answer>",
    f"Step 3 is missing: {STEP_3}",
    (WRONG, 52, 3, 2),
  ),
  "all_steps_missing": (
    "<answer>57</answer>",
    f"Step 1 is missing: {STEP_1}",
    (WRONG, 57, 1, 0),
  ),
  "steps_after_the_answer": (
    "<answer>57</answer>\n" + THREE,
    f"Step 1 is missing: {STEP_1}",
    (WRONG, 57, 1, 0),
  ),
  "extra_step": (
    THREE + "58 + 1 = 59\n<answer>59</answer>",
    f"Step 4 is extra: {ANSWER}",
    (WRONG, 59, 4, 3),
  ),
  "extra_words": (
    THREE + "so it is\n<answer>59</answer>",
    f"Step 4 is extra: {ANSWER}",
    (WRONG, 59, 4, 3),
  ),
  "gibberish_line": (
    ONE + "the total drops\n<answer>58.0</answer>",
    f"Step 2 cannot be read: {STEP_2}",
    (UNPARSABLE, None, 2, 1),
  ),
  "half_a_step": (
    TWO + "52 + 6 =",
    f"Step 3 cannot be read: {STEP_3}",
    (UNPARSABLE, None, 3, 2),
  ),
  "unspaced_step": (
    "47+8=55\n<answer>1</answer>",
    f"Step 1 cannot be read: {STEP_1}",
    (WRONG, 1, 1, 0),
  ),
  "unicode_digits": (
    "４７ + ８ = ５５\n<answer>５８</answer>",
    f"Step 1 cannot be read: {STEP_1}",
    (UNPARSABLE, None, 1, 0),
  ),
  "answer_differs": (
    THREE + "<answer>57</answer>",
    f"The answer is wrong: you wrote <answer>57</answer>, {ANSWER}",
    (WRONG, 57, None, 3),
  ),
  "last_answer_counts": (
    THREE + "<answer>58</answer>\n<answer>57</answer>",
    f"The answer is wrong: you wrote <answer>57</answer>, {ANSWER}",
    (WRONG, 57, None, 3),
  ),
  "no_answer": (
    THREE,
    f"The answer is missing: {ANSWER}",
    (UNPARSABLE, None, None, 3),
  ),
  "unclosed_answer": (
    THREE + "<answer>58",
    f"The answer is missing: {ANSWER}",
    (UNPARSABLE, None, None, 3),
  ),
  "closed_before_opened": (
    THREE + "</answer>58<answer>",
    f"Step 4 is extra: {ANSWER}",
    (UNPARSABLE, None, 4, 3),
  ),
  "answer_in_words": (
    THREE + "<answer>fifty-eight</answer>",
    f"The answer cannot be read: {ANSWER}",
    (UNPARSABLE, None, None, 3),
  ),
  "empty_answer": (
    THREE + "<answer></answer>",
    f"The answer cannot be read: {ANSWER}",
    (UNPARSABLE, None, None, 3),
  ),
  "last_answer_in_words": (
    THREE + "<answer>58</answer><answer>?</answer>",
    f"The answer cannot be read: {ANSWER}",
    (UNPARSABLE, None, None, 3),
  ),
  "empty": (
    "",
    f"Step 1 is missing: {STEP_1}",
    (UNPARSABLE, None, 1, 0),
  ),
  "blank": (
    " \n\n\t\n",
    f"Step 1 is missing: {STEP_1}",
    (UNPARSABLE, None, 1, 0),
  ),
}


@pytest.mark.parametrize("case", VERDICTS)
def test_feedback_names_the_first_fault(case):
  completion, feedback, (status, parsed, first_wrong, num_right) = VERDICTS[
    case
  ]
  verdict = Calculator().judge(Calculator().problem(ROW), completion)
  assert verdict.feedback == feedback
  assert verdict.status == status
  assert verdict.reward == 0
  assert verdict.details == {
    "parsed": parsed,
    "first_wrong_step": first_wrong,
    "num_right_steps": num_right,
  }


@pytest.mark.parametrize(
  ("completion", "first_wrong", "num_right"),
  [
    (SOLUTION, None, 3),
    (f"\r\n  {SOLUTION}\r\n\r\n".replace("\n", "\r\n\n"), None, 3),
    (SOLUTION.replace("58</", " 058\n</"), None, 3),
    (SOLUTION.replace("\n<", " <") + " and so on", None, 3),
    (SOLUTION + "\n<answer>", None, 3),
    ("<answer>57</answer><answer>58</answer>", 1, 0),
    (ONE + "55 - 3 = 51\n51 + 7 = 58\n<answer>58</answer>", 2, 1),
    (THREE + "58 + 0 = 58\n<answer>58</answer>", 4, 3),
  ],
)
def test_only_the_answer_decides_the_reward(completion, first_wrong, num_right):
  verdict = Calculator().judge(Calculator().problem(ROW), completion)
  assert verdict.reward == 1
  assert verdict.status == Status.CORRECT
  assert verdict.feedback == ""
  assert verdict.details == {
    "parsed": 58,
    "first_wrong_step": first_wrong,
    "num_right_steps": num_right,
  }


@pytest.mark.parametrize(
  "completion",
  [
    "9" * 1_000_000,
    "\n" * 1_000_000,
    "<answer>" * 125_000,
    "</answer>" * 110_000,
    "<answer></answer>" * 60_000,
    "<answer>" + "9" * 1_000_000 + "</answer>",
    "<answer>" + " " * 1_000_000 + "</answer>",
    "47 + 8 = " + "5" * 1_000_000,
    "1 + 1 = 2\n" * 100_000,
    "\ud800\x00" * 500_000,
  ],
  ids=range(10),
)
def test_hostile_completions_are_judged_fast(completion):
  problem = Calculator().problem(ROW)
  with cpu_time.at_most(1):
    verdict = Calculator().judge(problem, completion)
  assert verdict.status == Status.UNPARSABLE
  assert len(verdict.feedback) < 200


def test_reads_a_row():
  problem = Calculator().problem({**ROW, "system": "Be brief."}, index=7)
  assert problem.index == 7
  assert problem.messages == (
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Compute 47 + 8 - 3 + 6."},
  )
  assert problem.answer == "58"
  assert problem.solution == SOLUTION
  other = Calculator().problem({**ROW, "system": None, "solution": "It is 58."})
  assert other.messages == ({"role": "user", "content": ROW["prompt"]},)
  assert other.solution == "It is 58."


@pytest.mark.parametrize(
  ("row", "message"),
  [
    ({"answer": "58"}, "'prompt' must be a string, got None"),
    ({**ROW, "answer": 58}, "'answer' must be a string, got 58"),
    ({**ROW, "solution": 58}, "'solution' must be a string"),
    ({**ROW, "prompt": "What is 47 + 8?"}, "What is 47"),
    ({**ROW, "prompt": "Compute 47."}, "of the form"),
    ({**ROW, "prompt": "Compute 47 * 8."}, "of the form"),
    ({**ROW, "prompt": "Compute 47 - 0."}, "of the form"),
    ({**ROW, "prompt": "Compute ٤٧ + ٨."}, "of the form"),
    ({**ROW, "prompt": "Compute " + "9" * 5000 + " + 1."}, "of the form"),
    ({**ROW, "prompt": "Compute 97 + 8 - 47."}, "is 105 after step 1"),
    ({**ROW, "prompt": "Compute 7 - 8 + 59."}, "is -1 after step 1"),
    ({**ROW, "answer": "57"}, "should be '58'"),
  ],
)
def test_refuses_a_row_that_does_not_fit(row, message):
  with pytest.raises(ValueError, match=re.escape(message)):
    Calculator().problem(row)


@pytest.mark.parametrize(
  ("settings", "message"),
  [
    ({"num_steps": (4, 3)}, "num_steps=[4, 3] must be [fewest, most]"),
    ({"num_steps": (0, 3)}, "num_steps.0=0: "),
    ({"slip_rate": 1.0}, "slip_rate=1.0: "),
    ({"slip_rate": -0.1}, "slip_rate=-0.1: "),
  ],
)
def test_refuses_settings(settings, message):
  with pytest.raises(ValueError, match=re.escape(message)):
    envs.make_environment("calculator", **settings)


def test_refuses_an_unknown_split():
  with pytest.raises(ValueError, match="split='test'"):
    Calculator().generate(0, "test")


def test_generated_problems_are_what_they_say():
  environment = Calculator(CalculatorConfig(num_steps=(2, 5)))
  counts, firsts = collections.Counter(), set()
  for index in range(1000):
    problem = environment.generate(index, "train")
    assert problem.index == index
    (message,) = problem.messages
    assert message["role"] == "user"
    total, operations = operations_of(message["content"])
    firsts.add(total)
    counts[len(operations)] += 1
    steps, answer = steps_of(problem.solution)
    for step, (operator, operand) in zip(steps, operations, strict=True):
      assert step[:3] == (total, operator, operand)
      total = right_result(*step[:3])
      assert step[3] == total
      assert 0 <= total <= 99
      assert 1 <= operand <= 9
    assert answer == total == int(problem.answer)
    assert (
      environment.problem(
        {"prompt": message["content"], "answer": problem.answer}, index
      )
      == problem
    )
    assert environment.judge(problem, problem.solution).reward == 1
  assert firsts == set(range(100))
  assert sorted(counts) == [2, 3, 4, 5]
  assert min(counts.values()) > 190  # of 250; five standard deviations are 68


@pytest.mark.parametrize("num_steps", [(1, 1), (3, 4)])
def test_splits_have_no_problem_in_common(num_steps):
  # With one step there are some 1700 problems in all, so that indices repeat
  # them; and the split must not depend on the seed.
  held_out, seen = set(), set()
  for seed in (0, 1):
    environment = Calculator(CalculatorConfig(num_steps=num_steps, seed=seed))
    for index in range(2000):
      held_out.add(prompt_of(environment.generate(index, "evaluation")))
      seen.add(prompt_of(environment.generate(index, "train")))
      demonstration = environment.demonstration(index, teacher_prompt)
      seen.add(prompt_of(demonstration).split("\n")[0])
  assert not held_out & seen
  assert len(held_out) > 100


def test_seed_index_and_split_each_matter():
  texts = {
    prompt_of(Calculator(CalculatorConfig(seed=seed)).generate(index, split))
    for seed in (0, 1)
    for index in (0, 1)
    for split in ("train", "evaluation")
  }
  assert len(texts) == 8


DIGEST = """
import hashlib
from distil_jax.config import CalculatorConfig
from distil_jax.envs.calculator import Calculator

def teacher_prompt(problem, *, solution=None, feedback=None):
  return [{"role": "user", "content": repr((solution, feedback))}]

environment = Calculator(CalculatorConfig(seed=3))
texts = []
for index in ORDER:
  texts.append((
    index,
    repr(environment.generate(index, "train")),
    repr(environment.generate(index, "evaluation")),
    repr(environment.demonstration(index, teacher_prompt)),
  ))
DIGEST = hashlib.sha256(repr(sorted(texts)).encode()).hexdigest()
"""


def test_a_fresh_process_makes_the_same():
  # In another order and with other string hashes.
  variables = {"hashlib": hashlib, "ORDER": range(50)}
  exec(DIGEST, variables)
  result = subprocess.run(
    [
      sys.executable,
      "-c",
      f"ORDER = reversed(range(50))\n{DIGEST}\nprint(DIGEST)",
    ],
    env={
      **os.environ,
      "PYTHONHASHSEED": "12345",
      "PYTHONPATH": os.pathsep.join(sys.path),
    },
    capture_output=True,
    text=True,
    check=True,
  )
  assert result.stdout.strip() == variables["DIGEST"]


NUM_DEMONSTRATIONS = 6000


@pytest.fixture(scope="module")
def demonstrations():
  environment = Calculator()
  return [
    environment.demonstration(index, teacher_prompt)
    for index in range(NUM_DEMONSTRATIONS)
  ]


def blocks_of(demonstration):
  """The reference solution and the feedback in the prompt, None if absent."""
  text = prompt_of(demonstration)
  solution = feedback = None
  if text.endswith(CLOSING):
    text = text.removesuffix(CLOSING)
    text, _, feedback = text.partition(FEEDBACK_HEAD)
    text, _, solution = text.partition(SOLUTION_HEAD)
  assert re.fullmatch(r"Compute [-+ 0-9]+\.", text)
  return solution or None, feedback or None


def is_within_bounds(count, total, rate):
  """Five standard deviations of a binomial count."""
  return abs(count - rate * total) < 5 * math.sqrt(total * rate * (1 - rate))


def test_mixture_has_its_shares(demonstrations):
  kinds = collections.Counter()
  prefixed = collections.Counter()
  for demonstration in demonstrations:
    solution, feedback = blocks_of(demonstration)
    kind = (solution is not None, feedback is not None)
    kinds[kind] += 1
    prefixed[kind] += bool(demonstration.prefix)
  shares = {
    (False, False): (0.4, 0.25),
    (True, False): (0.25, 0.5),
    (False, True): (0.35, 0.5),
  }
  assert kinds.keys() == shares.keys()
  for kind, (share, prefix_share) in shares.items():
    assert is_within_bounds(kinds[kind], NUM_DEMONSTRATIONS, share)
    assert is_within_bounds(prefixed[kind], kinds[kind], prefix_share)


def test_every_demonstration_is_a_completion_of_its_problem(demonstrations):
  for demonstration in demonstrations:
    total, operations = operations_of(prompt_of(demonstration))
    assert demonstration.solution
    completion = demonstration.prefix + demonstration.solution
    steps, answer = steps_of(completion)
    for step, (operator, operand) in zip(steps, operations, strict=True):
      assert step[:3] == (total, operator, operand)
      total = step[3]
      assert 0 <= total <= 99
      slip = total - right_result(*step[:3])
      assert slip in (0, 1, -1, 2, -2, 10, -10)
    assert answer == total


def test_without_blocks_steps_slip_at_the_slip_rate(demonstrations):
  slips = collections.Counter()
  for demonstration in demonstrations:
    if blocks_of(demonstration) == (None, None) and not demonstration.prefix:
      for step in steps_of(demonstration.solution)[0]:
        slips[step[3] - right_result(*step[:3])] += 1
  num_steps = slips.total()
  assert num_steps > 4000
  assert is_within_bounds(num_steps - slips[0], num_steps, 0.25)
  # Of each size some, though near the ends of the range not every one fits.
  for slip in (1, -1, 2, -2, 10, -10):
    assert slips[slip] > 0.03 * num_steps


def test_after_a_prefix_slips_go_on_at_the_slip_rate(demonstrations):
  num_slips = num_steps = 0
  for demonstration in demonstrations:
    if blocks_of(demonstration) == (None, None) and demonstration.prefix:
      steps, _ = steps_of(demonstration.prefix + demonstration.solution)
      # The line under way may have been begun wrongly.
      for step in steps[demonstration.prefix.count("\n") + 1 :]:
        num_steps += 1
        num_slips += step[3] != right_result(*step[:3])
  assert num_steps > 500
  assert is_within_bounds(num_slips, num_steps, 0.25)


def test_what_the_page_tells_is_worked_without_slips(demonstrations):
  num_untouched = num_slipped_totals = num_forced = 0
  for demonstration in demonstrations:
    solution, feedback = blocks_of(demonstration)
    if solution is None and feedback is None:
      continue
    prefix = demonstration.prefix
    steps, _ = steps_of(prefix + demonstration.solution)
    if not prefix:
      num_untouched += 1
    num_finished = prefix.count("\n")
    num_slipped_totals += any(
      step[3] != right_result(*step[:3]) for step in steps[:num_finished]
    )
    if solution is None:
      named = re.match(r"Step (\d+)", feedback)
      steps = steps[: int(named[1])] if named else steps
    for number, step in enumerate(steps):
      right = right_result(*step[:3])
      if number < num_finished or step[3] == right:
        continue
      # Only a line whose written digits rule out the right result is excused.
      assert number == num_finished
      begun = prefix.split("\n")[-1].partition(" = ")[2]
      assert begun
      assert str(step[3]).startswith(begun)
      assert not str(right).startswith(begun)
      num_forced += 1
  assert num_untouched > 1000
  assert num_slipped_totals > 300
  assert num_forced > 100


def test_solution_block_is_the_reference(demonstrations):
  num_blocks = 0
  for demonstration in demonstrations:
    solution, _ = blocks_of(demonstration)
    if solution is None:
      continue
    num_blocks += 1
    if not demonstration.prefix:
      assert demonstration.solution == solution
    steps, _ = steps_of(solution)
    assert all(step[3] == right_result(*step[:3]) for step in steps)
  assert num_blocks > 1000


def test_feedback_block_tells_the_first_fault_of_the_attempt(demonstrations):
  forms = collections.Counter()
  for demonstration in demonstrations:
    _, feedback = blocks_of(demonstration)
    if feedback is None:
      continue
    named = re.fullmatch(
      r"(Step \d|The answer) (is wrong|cannot be read|is missing): "
      r"(you wrote (.+), )?it should be (.+)\.",
      feedback,
    )
    assert named, feedback
    forms[named[2]] += 1
    prefix = demonstration.prefix
    if not prefix:
      assert named[5] in demonstration.solution.split("\n")
      assert named[4] not in demonstration.solution.split("\n")
    elif named[2] == "is wrong":
      # The prefix is the attempt's: if it comes so far, it is wrong there.
      number = int(named[1].removeprefix("Step "))
      lines = prefix.split("\n")
      if len(lines) >= number:
        assert named[4].startswith(lines[number - 1])
  assert forms["is wrong"] > 0.7 * forms.total()
  assert forms["is missing"] > 0
  assert forms["cannot be read"] > 0


def test_prefixes_end_next_to_a_digit(demonstrations):
  # There every tokenizer that takes digits one by one has a token boundary.
  for demonstration in demonstrations:
    if demonstration.prefix:
      edge = demonstration.prefix[-1] + demonstration.solution[0]
      assert re.search("[0-9]", edge), demonstration


def test_prefixes_end_before_at_and_after_the_slip(demonstrations):
  places = collections.Counter()
  for demonstration in demonstrations:
    solution, _ = blocks_of(demonstration)
    prefix = demonstration.prefix
    if solution is None or not prefix:
      continue
    if not solution.startswith(prefix):
      places["after"] += 1
    elif re.search(r"= \d?$", prefix):
      places["before a digit of a result"] += 1
    elif prefix.endswith("\n"):
      places["end of a line"] += 1
    else:
      places["elsewhere"] += 1
  assert len(places) == 4
  assert places["after"] > 0.6 * places.total()
  assert places["before a digit of a result"] > 0.05 * places.total()


@pytest.mark.parametrize(
  ("prefix", "solution"),
  [
    ("", SOLUTION),
    ("47 + 8 = ", "55\n55 - 3 = 52\n52 + 6 = 58\n<answer>58</answer>"),
    # 5 can still become 55.
    ("47 + 8 = 5", "5\n55 - 3 = 52\n52 + 6 = 58\n<answer>58</answer>"),
    # 4 cannot; 45 is the only slip that begins so.
    ("47 + 8 = 4", "5\n45 - 3 = 42\n42 + 6 = 48\n<answer>48</answer>"),
    # A slipped total is believed.
    ("47 + 8 = 54", "\n54 - 3 = 51\n51 + 6 = 57\n<answer>57</answer>"),
    ("47 + 8 = 54\n5", "4 - 3 = 51\n51 + 6 = 57\n<answer>57</answer>"),
    ("47 + 8 = 54\n54 - 3 = 5", "1\n51 + 6 = 57\n<answer>57</answer>"),
    ("47 + 8 = 54\n54 - 3 = 53\n", "53 + 6 = 59\n<answer>59</answer>"),
    (ONE + "55 - 3 = 50\n50 + 6 = 5", "6\n<answer>56</answer>"),
    (ONE + "55 - 3 = 50\n50 + 6 = 56\n", "<answer>56</answer>"),
    (ONE + "55 - 3 = 50\n50 + 6 = 56\n<answer>5", "6</answer>"),
  ],
)
def test_expert_goes_on_from_what_is_written(prefix, solution):
  problem = Calculator().problem(ROW)
  rng = Calculator()._random("test", 0)
  text = calculator_steps.continue_steps(
    rng, problem.details["totals"], prefix, [0.0] * 3
  )
  assert text == solution


def test_expert_finishes_the_smallest_slip_that_begins_so():
  # 38 + 2 = 40, and 3 is written: 39 and 38 begin so, and 30.
  problem = Calculator().problem(
    {"prompt": "Compute 38 + 2 + 1.", "answer": "41"}
  )
  rng = Calculator()._random("test", 0)
  totals = problem.details["totals"]
  text = calculator_steps.continue_steps(rng, totals, "38 + 2 = 3", [0.0] * 2)
  assert text == "9\n39 + 1 = 40\n<answer>40</answer>"


def test_a_careful_base_never_slips():
  environment = Calculator(CalculatorConfig(slip_rate=0.0))
  for index in range(300):
    demonstration = environment.demonstration(index, teacher_prompt)
    if not demonstration.prefix:
      steps, _ = steps_of(demonstration.solution)
      assert all(step[3] == right_result(*step[:3]) for step in steps)
