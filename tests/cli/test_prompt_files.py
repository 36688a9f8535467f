"""Asking a checkpoint, as a user does: `distil-jax generate`."""

import io
import json
import sys

import jax
import pytest
import yaml

import distil_jax as dj
from distil_jax.cli import main, prompt_files
from distil_jax.generation import engine

PROMPT = "Compute 47 + 8 - 3."
SLIPS = """\
47 + 8 = 55
55 - 3 = 52
52 - 3 = 49
<answer>49</answer>"""  # what the embedded base finds most probable
GREEDY = ("--temperature", "0")


@pytest.fixture(autouse=True)
def one_width(monkeypatch):
  """So that slots are not given up: each number of them is a program."""
  monkeypatch.setattr(engine, "ladder", lambda width: [width])


@pytest.fixture
def config(tmp_path):
  """The embedded base, on the eight devices of the tests."""
  tree = {
    "rollout": {"max_completion_length": 48},
    "train": {"run_directory": str(tmp_path / "run")},
  }
  path = tmp_path / "ask.yaml"
  path.write_text(yaml.safe_dump(tree))
  return path


@pytest.fixture
def ask(config, capsys):
  """Runs the command, which must succeed; what it printed."""

  def run(*arguments):
    assert main.main(["generate", str(config), *map(str, arguments)]) == 0
    return capsys.readouterr()

  return run


@pytest.fixture
def refusal(config, capsys):
  """The one message with which the command ends."""

  def run(*arguments):
    assert main.main(["generate", str(config), *map(str, arguments)]) == 1
    out, err = capsys.readouterr()
    assert not out
    assert err.startswith("distil-jax: ")
    assert "Traceback" not in err
    return err

  return run


def lines(printed):
  return [json.loads(line) for line in printed.out.splitlines()]


def test_rows_with_an_answer_are_judged(ask, tmp_path):
  path = tmp_path / "problems.jsonl"
  rows = [{"prompt": PROMPT, "answer": "52"}, {"prompt": PROMPT}]
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  judged, plain = lines(ask("--file", path, "--json", *GREEDY))
  assert judged["completion"] == plain["completion"] == SLIPS
  assert (judged["status"], judged["reward"]) == ("wrong", 0.0)
  assert "it should be <answer>52</answer>" in judged["feedback"]
  assert "status" not in plain


def test_a_row_whose_answer_makes_no_problem_is_refused(refusal, tmp_path):
  path = tmp_path / "problems.jsonl"
  path.write_text(json.dumps({"prompt": PROMPT, "answer": ["5", "2"]}) + "\n")
  said = refusal("--file", path)
  assert "leave the answer out to ask without judging" in said


def test_one_answer_is_printed_alone(ask, tmp_path):
  printed = ask(PROMPT, *GREEDY)
  assert printed.out == SLIPS + "\n"
  base = "base model embedded:calculator"
  assert f"no checkpoint in {tmp_path / 'run'}: {base}\n" in printed.err
  assert "cut off" not in printed.err
  assert not (tmp_path / "run").exists()
  asked = ask("--base", "evaluation.temperature=0", PROMPT)
  assert asked.out == printed.out
  assert asked.err.startswith(f"{base}\n")


def test_several_answers_have_a_line_of_their_own(ask):
  printed = ask("x=1", PROMPT, *GREEDY, "--num-samples", 2, "--max-tokens", 8)
  heads = [t for t in printed.out.splitlines() if t.startswith("---")]
  assert heads == [
    f"--- prompt {prompt}, sample {sample}: length, 8 tokens"
    for prompt in (1, 2)
    for sample in (1, 2)
  ]
  assert "4 of 4 cut off after 8 tokens" in printed.err


def test_seed_decides(ask):
  # As many, and as long, as those that the test above has compiled for.
  sizes = ("--num-samples", 2, "--max-tokens", 8)
  settings = ("x=1", PROMPT, *sizes, "--temperature", 2, "--json")
  first, again, other = (
    lines(ask(*settings, "--seed", seed)) for seed in (1, 1, 2)
  )
  assert first == again
  assert first != other
  # Each sample is another, of either prompt.
  assert len({line["completion"] for line in first}) == 4


def test_json_has_what_generate_returns(ask):
  stop = ("--stop", "= 55", "--stop", "nowhere")
  (found,) = lines(ask(PROMPT, *GREEDY, *stop, "--json"))
  policy = dj.load_policy("embedded:calculator")
  rollout = dj.generate(
    policy, [PROMPT], jax.random.key(0), temperature=0.0, stop=["= 55"]
  )
  assert found == {
    "prompt": 1,
    "sample": 1,
    "messages": [{"role": "user", "content": PROMPT}],
    "completion": "47 + 8 = 55",
    "stop_reason": "stop_string",
    "num_tokens": int(rollout.completion_mask.sum()),
    "log_prob": pytest.approx(float(rollout.log_probs.sum()), abs=1e-4),
  }
  # Each of these alone leaves the most probable token only.
  for name, value in (("top-k", 1), ("top-p", 1e-6), ("min-p", 1)):
    (same,) = lines(ask(PROMPT, f"--{name}", value, *stop, "--json"))
    assert same["completion"] == found["completion"]


def test_prompts_come_from_files(ask, tmp_path, monkeypatch):
  other = "Compute 5 + 4 + 3."
  text = tmp_path / "prompts.txt"
  text.write_text(f"{PROMPT}\r\n\n{other}\n")
  rows = tmp_path / "prompts.jsonl"
  user = {"role": "user", "content": other}
  system = {"role": "system", "content": "Be right."}
  rows.write_text(
    json.dumps({"prompt": PROMPT, "answer": "52"})
    + "\n"
    + json.dumps({"messages": [system, user]})
    + "\n\n"
    + json.dumps({"prompt": other, "system": "Be right."})
  )

  def asked(*arguments):
    options = ("--max-tokens", 2, *GREEDY, "--json")
    return [x["messages"] for x in lines(ask(*arguments, *options))]

  mine = [{"role": "user", "content": PROMPT}]
  assert asked("--file", text) == [mine, [user]]
  # Longer prompts, and three of them, would be another program.
  found = prompt_files.conversations([], str(rows))
  assert list(map(list, found)) == [mine, [system, user], [system, user]]
  monkeypatch.setattr(sys, "stdin", io.StringIO(f"{other}\n"))
  assert asked(PROMPT, "--file", "-") == [mine, [user]]


@pytest.mark.parametrize(
  ("arguments", "expected"),
  [
    ([], ["no prompt", "--file"]),
    ([" "], ["prompt 1 is empty"]),
    ([PROMPT, "evalution.top_k=2"], ["evalution", "did you mean evaluation?"]),
    ([PROMPT, "evaluation.topk=2"], ["evaluation.topk", "mean top_k?"]),
    ([PROMPT, "--temperature", "-1"], ["temperature=-1.0", "0, or from 1e-6"]),
    ([PROMPT, "--top-p", "2"], ["top_p=2.0", "at most 1"]),
    ([PROMPT, "--min-p", "nan"], ["min_p=nan", "in [0, 1]"]),
    ([PROMPT, "--stop", ""], ["--stop needs"]),
    (
      [PROMPT, "--max-tokens", "4090"],
      ["16 tokens", "completions of 4090", "4096 positions", "4080"],
    ),
  ],
)
def test_what_cannot_be_asked_is_refused(refusal, arguments, expected):
  err = refusal(*arguments)
  for text in expected:
    assert text in err


@pytest.mark.parametrize(
  ("name", "content", "expected"),
  [
    ("nowhere.txt", None, "cannot be read"),
    ("nowhere.jsonl", None, "no data file"),
    ("prompts.tsv", "a", "files of prompts are .txt"),
    ("empty.txt", "\n \n", "holds no prompts"),
    ("empty.jsonl", "", "holds no rows"),
    ("latin.txt", b"caf\xe9", "cannot be read"),
    ("a.jsonl", '{"prompt": "a"}\n{"prompt"', "line 2: not valid JSON"),
    ("a.jsonl", '{"prompt": "a"}\n\n{"text": "b"}', "line 3: needs either"),
    ("a.jsonl", '{"prompt": "a", "messages": []}', "line 1: needs either"),
    ("a.jsonl", '{"prompt": 3}', "line 1: 'prompt' must be a string"),
    ("a.jsonl", '{"prompt": " "}', "line 1 is empty"),
    ("a.jsonl", '{"messages": []}', "line 1 is empty"),
    ("a.jsonl", '{"messages": "a"}', "'messages' a list"),
    ("a.jsonl", '{"messages": [{"role": "user"}]}', "'role' and 'content'"),
    (
      "a.jsonl",
      '{"messages": [{"role": "user", "content": "\\ud800"}]}',
      "line 1 is no valid Unicode",
    ),
    (
      "a.jsonl",
      '{"messages": [{"role": "robot", "content": "a"}]}',
      "unknown role robot",
    ),
  ],
)
def test_files_that_cannot_be_used_are_refused(
  refusal, tmp_path, name, content, expected
):
  path = tmp_path / name
  if isinstance(content, str):
    path.write_text(content)
  elif content is not None:
    path.write_bytes(content)
  err = refusal("--file", path)
  assert expected in err
  # A conversation that the template refuses is known by its roles.
  assert str(path) in err or "robot" in expected


@pytest.mark.parametrize(
  ("option", "value"),
  [
    ("num-samples", "0"),
    ("max-tokens", "-1"),
    ("top-k", "1.5"),
    ("top-k", "9999999999"),
    ("seed", "-1"),
    ("temperature", "hot"),
    ("topk", "1"),
  ],
)
def test_options_out_of_range_are_refused(config, capsys, option, value):
  with pytest.raises(SystemExit) as error:
    main.main(["generate", str(config), PROMPT, f"--{option}", value])
  assert error.value.code == 2
  assert option in capsys.readouterr().err


def test_checkpoint_answers_once_there_is_one(
  config, ask, refusal, tmp_path, capsys
):
  tree = yaml.safe_load(config.read_text()) | {
    "model": {
      "remat": "none",
      "directory": str(tmp_path / "model"),
      "create": {
        "vocab_size": 300,
        "width": 16,
        "num_layers": 1,
        "num_heads": 2,
        "num_kv_heads": 1,
        "head_size": 8,
        "mlp_size": 16,
      },
    },
    "data": {"num_train": 8, "num_evaluation": 8},
    "objective": {"kind": "sft"},
    "rollout": {
      "num_problems": 8,
      "group_size": 1,
      "max_prompt_length": 256,
    },
    "optimizer": {"learning_rate": 0.1},
    "evaluation": {
      "num_problems": 8,
      "num_samples": 1,
      "pass_at": [1],
      "max_completion_length": 4,
      "temperature": 0,
    },
  }
  config.write_text(yaml.safe_dump(tree))
  err = refusal(PROMPT)
  assert f"no model in {tmp_path / 'model'} yet" in err
  assert "distil-jax train" in err

  assert main.main(["train", str(config), "train.num_steps=2"]) == 0
  capsys.readouterr()
  # Who only asks needs no data.
  without_data = f"data.train={tmp_path / 'gone.jsonl'}"
  trained = ask(PROMPT, without_data, "--json")
  assert f"step 2 of {tmp_path / 'run'}\n" in trained.err
  base = ask(PROMPT, without_data, "--json", "--base")
  assert f"base model {tmp_path / 'model'}\n" in base.err
  assert lines(trained)[0]["num_tokens"] <= 4
  assert lines(trained)[0]["log_prob"] != lines(base)[0]["log_prob"]
