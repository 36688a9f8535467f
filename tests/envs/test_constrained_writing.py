import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distil_jax import config, envs
from distil_jax.data import teacher_prompts
from distil_jax.envs import base, constrained_writing_rules, contract
from distil_jax.envs import constrained_writing_words as word_lists
from distil_jax.types import Status

ROW = {"topic": "the sea", "words": ["lamp", "road"]}
RIGHT = "A lamp lit the road to the sea."


def make(**settings):
  return envs.make_environment("constrained_writing", **settings)


def judge(text, row=ROW, **settings):
  made = make(**settings)
  return made.judge(made.problem(row), text)


@pytest.mark.parametrize(
  "text",
  [
    RIGHT,
    "  A lamp lit the road to the sea.\n",
    "A LAMP lit the Road to the sea!",
    "Is there a lamp on the road, or only the sea?",
    "The road was dark; no lamp was lit, and nothing moved…",
    '"A lamp lit the road to the sea."',
    "“A lamp lit the road to the sea.”",
    "A **lamp** lit the *road* to the sea.",
    '"Run!" said the boy with the lamp, and the road was empty.',
    'The boy with the lamp said, "This road is long."',
    "Mr. Hall carried a lamp 3.5 miles along the road.",
    "A lamp, e.g. of oil, lit the road to the sea.",
    "A lamp lit the road, the road lit the sea.",
    "<think>lamp and road\nit is.</think>\nA lamp lit the road to the sea.",
    "lamp, road...</think>A lamp lit the road to the sea.",
    "A lamp (not a new one) lit the road: it was his.",
    "I know that that lamp had had its place by the road.",
    "The rain-soaked road didn't need my lamp.",
  ],
)
def test_one_sentence_with_the_words_is_right(text):
  verdict = judge(text)
  assert (verdict.reward, verdict.status) == (1.0, Status.CORRECT), verdict
  assert verdict.feedback == ""
  assert verdict.details["broken"] == []


@pytest.mark.parametrize(
  ("text", "feedback"),
  [
    # Words that are missing, or only seem to be there.
    ("A lamp lit the way to the sea.", 'The word "road" is missing.'),
    (
      "A lamp lit the roads to the sea.",
      'The word "road" is missing ("roads" is another word).',
    ),
    (
      "A lamp lit the road's end at the sea.",
      'The word "road" is missing ("road\'s" is another word).',
    ),
    (
      "A lamp lit the road-side by the sea.",
      'The word "road" is missing ("road-side" is another word).',
    ),
    (
      "A lamp lit the way abroad to the sea.",
      'The word "road" is missing ("abroad" is another word).',
    ),
    ("A lamp lit the r o a d to the sea.", 'The word "road" is missing.'),
    ("A lamp lit the rо\u0430d to the sea.", 'The word "road" is missing.'),
    (
      'A lamp lit the "road" to the sea.',
      'The word "road" is in quotation marks; use it without them.',
    ),
    (
      "A ‘lamp’ lit the road to the sea.",
      'The word "lamp" is in quotation marks; use it without them.',
    ),
    # No sentence, or none that is finished.
    ("", "There is no sentence."),
    ("...", "There is no sentence."),
    ('""', "There is no sentence."),
    (
      "<think>A lamp lit the road to the sea.",
      "The thought is never closed, so no sentence follows it.",
    ),
    (
      "A lamp lit the road to the",
      "The sentence is not finished: it must end with a full stop, a question "
      "mark or an exclamation mark.",
    ),
    (
      "a lamp lit the road to the sea.",
      "The sentence must begin with a capital letter.",
    ),
    (
      "- A lamp lit the road to the sea.",
      "The sentence must begin with a capital letter.",
    ),
    # Lists and repetitions.
    ("Lamp, road, sea.", "This is a list of words, not a sentence."),
    ("The lamp and the road.", "This is a list of words, not a sentence."),
    (
      "Lamp, road, apple, river, candle, stone.",
      "This is a list of words, not a sentence.",
    ),
    (
      "The lamp lamp lit the road to the sea.",
      'The word "lamp" is written twice in a row.',
    ),
    (
      "A lamp, a lamp, a lamp lit the road to the sea.",
      'The word "lamp" is written 3 times.',
    ),
    # More than one sentence.
    (
      "A lamp was lit by the sea. The road was dark.",
      "There are 2 sentences; write exactly one.",
    ),
    (
      "A lamp was lit by the sea.The road was dark.",
      "There are 2 sentences; write exactly one.",
    ),
    (
      "A lamp was lit! It was on the road? Yes.",
      "There are 3 sentences; write exactly one.",
    ),
    (
      "It was here... a lamp lit the road to the sea.",
      "There are 2 sentences; write exactly one.",
    ),
    (
      "A lamp was lit by the sea.\nThe road was dark.",
      "There are several lines; write the sentence and nothing else.",
    ),
    (
      "Sure!\n\nA lamp lit the road to the sea.",
      "There are several lines; write the sentence and nothing else.",
    ),
    # The question, and talk about the words.
    (
      "Write one sentence about the sea with the words lamp and road.",
      'The sentence speaks of "words"; use the words to say something about '
      "the topic.",
    ),
    (
      "Here is a sentence with a lamp on a road.",
      'The sentence speaks of "sentence"; use the words to say something '
      "about the topic.",
    ),
    (
      "It is a lamp and a road at the sea " + "now " * 250 + ".",
      "The text has 1036 characters; write one sentence.",
    ),
  ],
)
def test_what_is_wrong_is_named(text, feedback):
  verdict = judge(text)
  assert verdict.reward == 0.0
  assert verdict.feedback == feedback
  is_form = verdict.details["broken"] == ["form"]
  assert verdict.status is (Status.UNPARSABLE if is_form else Status.WRONG)


def test_the_word_that_is_asked_for_may_be_a_word_about_language():
  row = {"topic": "school", "words": ["sentence"]}
  assert judge("The judge read the sentence to us.", row).reward == 1.0


@pytest.mark.parametrize(
  ("settings", "row", "right", "wrong", "feedback"),
  [
    (
      {"in_order": True},
      ROW,
      RIGHT,
      "The road to the sea had a lamp.",
      "The order of the words must be lamp and road.",
    ),
    (
      {"ends_with_word": True},
      ROW,
      'By the sea a lamp said: "This is the road."',
      RIGHT,
      'The last word must be "road".',
    ),
    (
      {},
      {**ROW, "forbidden_letter": "i"},
      "A lamp was on the road to the sea.",
      "I saw a lamp on the road by the sea.",
      'The letter "i" is not allowed: it is in "i".',
    ),
    (
      {"length": [6, 8]},
      ROW,
      RIGHT,
      "A lamp lit the long dark road to the sea.",
      "The sentence has 10 words; it must have between 6 and 8 words.",
    ),
    (
      {"length": [8, 8]},
      ROW,
      RIGHT,
      "A lamp lit the road to us.",
      "The sentence has 7 words; it must have exactly 8 words.",
    ),
  ],
)
def test_each_rule_can_be_kept_and_broken(
  settings, row, right, wrong, feedback
):
  made = make(**settings)
  problem = made.problem(row)
  assert made.judge(problem, right).reward == 1.0, made.judge(problem, right)
  verdict = made.judge(problem, wrong)
  assert (verdict.reward, verdict.feedback) == (0.0, feedback)
  assert verdict.status is Status.WRONG
  silent = make(**settings, feedback=False)
  assert silent.judge(problem, wrong).feedback == ""


def test_partial_credit_is_the_share_of_rules_and_none_without_a_sentence():
  settings = {"in_order": True, "length": [5, 9], "partial_credit": True}
  text = "The road to the sea was dark."
  # The words, their order and the length are four rules; two are kept.
  verdict = judge(text, **settings)
  assert verdict.reward == 0.5
  assert verdict.details["broken"] == ["word:lamp", "order"]
  assert verdict.feedback == (
    'The word "lamp" is missing. The order of the words must be lamp and road.'
  )
  assert judge(RIGHT, **settings).reward == 1.0
  assert judge("The road, the lamp.", **settings).reward == 0.0
  settings["partial_credit"] = False
  assert judge(text, **settings).reward == 0.0


def test_several_faults_are_all_named():
  verdict = judge("the road was dark. it was late")
  assert verdict.feedback == (
    "There are 2 sentences; write exactly one. The sentence is not finished: "
    "it must end with a full stop, a question mark or an exclamation mark. The "
    "sentence must begin with a capital letter. "
    'The word "lamp" is missing.'
  )
  assert verdict.status is Status.UNPARSABLE


def test_a_problem_asks_for_all_of_its_rules():
  made = make(
    num_words=[3, 3],
    in_order=True,
    ends_with_word=True,
    forbid_letter=True,
    length=[8, 12],
  )
  row = {"topic": "art", "words": ["a", "b", "c"], "forbidden_letter": "z"}
  (message,) = made.problem(row).messages
  assert message["content"] == (
    "Write one sentence about art with the words a, b and c. Use the words in "
    'this order. The last word of the sentence must be "c". Do not use the '
    'letter "z". The sentence must have between 8 and 12 words.'
  )
  one = make().problem({"topic": "art", "words": ["a"], "system": "Be short."})
  assert [m["content"] for m in one.messages] == [
    "Be short.",
    "Write one sentence about art with the word a.",
  ]


def test_the_splits_share_neither_topics_nor_words():
  assert len(set(word_lists.WORDS)) == len(word_lists.WORDS)
  assert len(set(word_lists.TOPICS)) == len(word_lists.TOPICS)
  for part_of, whole in (
    (word_lists.topics_of, word_lists.TOPICS),
    (word_lists.words_of, word_lists.WORDS),
  ):
    train, held_out = part_of("train"), part_of("evaluation")
    assert not set(train) & set(held_out)
    assert len(train) + len(held_out) == len(whole)
    assert len(held_out) == len(whole) // 3
  named = {
    split: {
      token
      for text in (*word_lists.topics_of(split), *word_lists.words_of(split))
      for token in constrained_writing_rules.words_of(text)
    }
    for split in ("train", "evaluation")
  }
  # A held-out word is in no topic to train on either, nor the other way.
  shared = named["train"] & named["evaluation"]
  assert shared <= {"a", "an", "the", "to"}
  topic_words = set(
    constrained_writing_rules.words_of(" ".join(word_lists.TOPICS))
  )
  assert not topic_words & set(word_lists.WORDS)


def test_problems_depend_on_seed_index_and_split_alone():
  made = make(num_words=[1, 4], forbid_letter=True)
  for split in ("train", "evaluation"):
    problems = [made.generate(i, split) for i in (5, 0, 300)]
    again = [made.generate(i, split) for i in (300, 0, 5)]
    assert again[::-1] == problems
    for problem in problems:
      rules = problem.details["rules"]
      assert problem.details["topic"] in word_lists.topics_of(split)
      assert set(rules["words"]) <= set(word_lists.words_of(split))
      assert 1 <= len(set(rules["words"])) <= 4
      assert rules["forbidden_letter"] not in "".join(rules["words"])
  other = make(num_words=[1, 4], forbid_letter=True, seed=1)
  assert other.generate(0, "train") != made.generate(0, "train")
  with pytest.raises(ValueError, match="split='test' must be"):
    made.generate(0, "test")


@pytest.mark.parametrize(
  "settings",
  [
    {},
    {"num_words": [1, 1]},
    {"num_words": [6, 8]},
    {"num_words": [20, 20], "in_order": True, "ends_with_word": True},
  ],
)
def test_without_letter_and_length_every_problem_has_a_right_reference(
  settings,
):
  made = make(**settings)
  for index in range(40):
    problem = made.generate(index, "evaluation")
    assert problem.solution is not None
    assert made.judge(problem, problem.solution).reward == 1.0


def test_a_reference_is_right_or_missing():
  made = make(forbid_letter=True, length=[8, 16])
  problems = [made.generate(i, "train") for i in range(200)]
  references = [p for p in problems if p.solution is not None]
  assert 0 < len(references) < len(problems)
  for problem in references:
    assert made.judge(problem, problem.solution or "").reward == 1.0


def test_a_demonstration_is_a_reference():
  made = make(forbid_letter=True)
  for index in range(5):
    shown = made.demonstration(index, teacher_prompts.teacher_prompt)
    assert shown == made.demonstration(index, teacher_prompts.teacher_prompt)
    assert shown.solution.endswith(".")
  with pytest.raises(ValueError, match=r"no reference sentence .* length"):
    make(length=[30, 40]).demonstration(0, teacher_prompts.teacher_prompt)


@pytest.mark.parametrize(
  ("row", "message"),
  [
    ({"words": ["a"]}, "the row has no topic"),
    ({"topic": " ", "words": ["a"]}, "the row has no topic"),
    ({"topic": 3, "words": ["a"]}, "topic must be a string, got int"),
    ({"topic": "art"}, "words must be a list of words, got None"),
    ({"topic": "art", "words": "a b"}, "words must be a list .* got 'a b'"),
    ({"topic": "art", "words": []}, "words must be a list of words, got"),
    ({"topic": "art", "words": ["two words"]}, "'two words', which is no sin"),
    ({"topic": "art", "words": ["Road"]}, "'Road', which is no single word"),
    ({"topic": "art", "words": [3]}, "words has 3, which is no single word"),
    ({"topic": "art", "words": ["a", "a"]}, "words names a word twice"),
    ({**ROW, "forbidden_letter": "xy"}, "'xy' must be one small letter"),
    ({**ROW, "forbidden_letter": "R"}, "'R' must be one small letter"),
    ({**ROW, "forbidden_letter": "r"}, "'r' stands in one of the words"),
    ({**ROW, "solution": "A lamp."}, "solution 'A lamp.' breaks the rules"),
  ],
)
def test_a_malformed_row_is_refused(row, message):
  with pytest.raises(ValueError, match=message):
    make().problem(row)


@pytest.mark.parametrize(
  ("settings", "message"),
  [
    ({"num_words": [3, 2]}, r"num_words=\[3, 2\] must be \[fewest, most\]"),
    ({"num_words": [0, 2]}, "num_words"),
    ({"num_words": [2, 21]}, "num_words"),
    ({"length": [9, 8]}, r"length=\[9, 8\] must be \[fewest, most\]"),
    ({"length": [2, 4]}, r"length=\[2, 4\] leaves no room .* at least 5 words"),
    ({"num_word": [2, 2]}, "num_word"),
  ],
)
def test_settings_that_cannot_be_are_refused(settings, message):
  section = {"kind": "constrained_writing", **settings}
  with pytest.raises(config.ConfigError, match=message):
    config.parse({"environment": section})


def test_it_keeps_the_contract_with_every_rule():
  made = make(in_order=True, ends_with_word=True, length=[5, 9])
  contract.check(
    made,
    [{**ROW, "forbidden_letter": "q", "solution": "A lamp lit the dark road."}],
    [RIGHT, "A lamp. " * 1000, ". " * 500, '"' * 900, "a.b" * 300],
  )
  assert isinstance(made, base.Generator)


@given(
  st.lists(
    st.sampled_from(
      ["lamp", "road", "the", "is", " ", " ", ".", "!", '"', "\n", "<think>"]
    )
    | st.text(max_size=3)
  ).map("".join)
)
def test_whatever_it_says_there_is_a_verdict(text):
  verdict = judge(text, partial_credit=True)
  assert 0 <= verdict.reward <= 1
  assert (verdict.reward == 1) == (verdict.status is Status.CORRECT)
  assert bool(verdict.feedback) == (verdict.status is not Status.CORRECT)
  json.dumps(dict(verdict.details))
