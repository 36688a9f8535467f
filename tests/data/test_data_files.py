"""Rows as people have them: files, folders, patterns, tables, nested fields."""

import gzip
import json
import pathlib
import sys

import pytest

from distil_jax import config as configs
from distil_jax.data import data_files, datasets
from distil_jax.data.data_files import DataError
from distil_jax.envs import conversations
from distil_jax.envs.math import Math
from distil_jax.envs.multiple_choice import MultipleChoice

NAMES = ("a.jsonl", "b.jsonl", "c.json")
ROWS = [{"prompt": f"q{i}", "answer": str(i)} for i in range(5)]


def write(path, rows):
  text = "".join(json.dumps(row) + "\n" for row in rows)
  path.write_text(text, encoding="utf-8")
  return path


def read(source, fields=None, malformed="error", **settings):
  return datasets.read_rows(
    source, fields=fields or {}, malformed=malformed, **settings
  )


def fields_of(source, **settings):
  return [row.fields for row in read(source, **settings).rows]


@pytest.fixture
def parts(tmp_path):
  folder = tmp_path / "parts"
  folder.mkdir()
  write(folder / "b.jsonl", ROWS[2:3])
  write(folder / "a.jsonl", ROWS[:2])
  write(folder / "c.json", ROWS[3:])
  (folder / "README.md").write_text("no data")
  (folder / "below").mkdir()
  return folder


@pytest.mark.parametrize(
  "source",
  [
    lambda folder: str(folder),
    lambda folder: f"{folder}/*.json*",
    lambda folder: tuple(
      str(folder / x) for x in ("a.jsonl", "b.jsonl", "c.json")
    ),
    lambda folder: (f"{folder}/[ab].jsonl", f"{folder}/c.json"),
  ],
  ids=["folder", "pattern", "list", "patterns"],
)
def test_several_files_are_one_set(parts, source):
  rows = read(source(parts)).rows
  assert [row.fields for row in rows] == ROWS
  assert [row.index for row in rows] == list(range(5))
  assert rows[3].place == f"{parts}/c.json, line 1"


def test_the_index_does_not_depend_on_skipped_rows(parts):
  (parts / "a.jsonl").write_text(
    '{"prompt": 1}\n\n{"prompt": "q", "answer": "1"}\n'
  )
  rows = read(str(parts), malformed="skip")
  assert rows.num_skipped == 1
  # The third line of the first file; the second file begins after it.
  assert [row.index for row in rows.rows] == [2, 3, 4, 5]


@pytest.mark.parametrize(
  ("name", "said"),
  [
    ("gone.jsonl", "there is no data file"),
    ("gone-*.jsonl", "no file matches the pattern"),
    ("parts/below", "holds no data file"),
    ("parts/README.md", r"data files are \.json, .*not '\.md'"),
    (("parts/a.jsonl", "parts/*.jsonl"), "a.jsonl would be read twice"),
  ],
  ids=str,
)
def test_sources_that_cannot_be_found(parts, name, said, monkeypatch):
  monkeypatch.chdir(parts.parent)
  with pytest.raises(DataError, match=said):
    read(name)


def test_a_file_whose_name_looks_like_a_pattern(tmp_path):
  path = write(tmp_path / "a[1].jsonl", ROWS)
  assert fields_of(str(path)) == ROWS


@pytest.mark.parametrize("name", ["x.jsonl.gz", "x.json.gz", "X.JSONL.GZ"])
def test_compressed_lines(tmp_path, name):
  path = tmp_path / name
  text = "".join(json.dumps(row) + "\n" for row in ROWS)
  path.write_bytes(gzip.compress(text.encode()))
  assert fields_of(path) == ROWS
  path.write_bytes(path.read_bytes()[:-9])
  with pytest.raises(DataError, match="cannot be read"):
    read(path)
  path.write_bytes(b"no gzip")
  with pytest.raises(DataError, match="cannot be read"):
    read(path)


@pytest.mark.parametrize("compress", [bytes, gzip.compress])
def test_tables_of_text(tmp_path, compress):
  path = tmp_path / ("x.csv" if compress is bytes else "x.csv.gz")
  text = '\ufeffprompt,answer\r\n"a, ""b""\nc",4\r\n\r\nq,"5"\r\n'
  path.write_bytes(compress(text.encode()))
  assert fields_of(path) == [
    {"prompt": 'a, "b"\nc', "answer": "4"},
    {"prompt": "q", "answer": "5"},
  ]


@pytest.mark.parametrize(
  ("text", "said"),
  [
    (
      "prompt,answer\nq,1\nq\n",
      "row 2: has 1 cells, but .* names 2",
    ),
    ("prompt,answer\nq,1,2\n", "row 1: has 3 cells"),
    ("prompt,prompt\nq,1\n", "two columns have the same name"),
    ('prompt,answer\n"q,1\n', "cannot be read as CSV"),
    ("prompt,answer\n", "holds no rows"),
    ("", "holds no rows"),
  ],
)
def test_broken_tables(tmp_path, text, said):
  path = tmp_path / "x.csv"
  path.write_text(text)
  with pytest.raises(DataError, match=said):
    read(path)


VERL = {
  "data_source": "openai/gsm8k",
  "prompt": [{"role": "user", "content": "What is 2 + 2?"}],
  "ability": "math",
  "reward_model": {"style": "rule", "ground_truth": "4"},
  "extra_info": {"split": "train", "index": 0, "answer": "2 + 2 = 4\n#### 4"},
}
VERL_FIELDS = {
  "answer": "reward_model.ground_truth",
  "solution": "extra_info.answer",
}


def test_rows_of_verl(tmp_path):
  pyarrow = pytest.importorskip("pyarrow")
  parquet = pytest.importorskip("pyarrow.parquet")
  path = tmp_path / "train-00000-of-00001.parquet"
  parquet.write_table(pyarrow.Table.from_pylist([VERL]), path)
  (problem,), _ = datasets.load_problems(
    f"{tmp_path}/train-*.parquet",
    Math().problem,
    fields=VERL_FIELDS,
    malformed="error",
  )
  assert problem.messages[-1]["content"].startswith("What is 2 + 2?")
  assert problem.answer == "4"
  assert problem.solution == "2 + 2 = 4\n#### 4"


@pytest.mark.parametrize(
  ("fields", "said"),
  [
    ({"answer": "reward_model.truth"}, "'reward_model.truth', but no row has"),
    ({"answer": "reward_model.style.x"}, "no row has that field"),
    ({"answer": "prompt.1.content"}, "no row has that field"),
    ({"answer": "reward"}, "did you mean 'reward_model'"),
  ],
)
def test_nested_fields_that_are_not_there(tmp_path, fields, said):
  path = write(tmp_path / "x.jsonl", [VERL])
  with pytest.raises(DataError, match=said):
    read(path, fields=fields, required=("prompt",))


def test_a_field_whose_name_has_a_point(tmp_path):
  path = write(tmp_path / "x.jsonl", [{"a.b": "q", "a": {"b": "no"}}])
  fields = {"prompt": "a.b", "answer": "a.b"}
  assert fields_of(path, fields=fields)[0]["prompt"] == "q"


SYSTEM = {"role": "system", "content": "Be brief."}
USER = {"role": "user", "content": "Which?\n\nA: x\nB: y"}
ANSWERED = {"role": "assistant", "content": "<answer>A</answer>"}
AGAIN = {"role": "user", "content": "Sure?"}


@pytest.mark.parametrize(
  ("row", "roles", "solution"),
  [
    ({"prompt": [USER]}, ["user"], None),
    ({"prompt": [SYSTEM, USER]}, ["system", "user"], None),
    (
      {"prompt": [SYSTEM, USER, ANSWERED, AGAIN]},
      ["system", "user", "assistant", "user"],
      None,
    ),
    # OpenAI's rows for supervised learning end with what is to be said.
    (
      {"prompt": [SYSTEM, USER, ANSWERED]},
      ["system", "user"],
      ANSWERED["content"],
    ),
    ({"prompt": [USER, ANSWERED], "solution": "s"}, ["user"], "s"),
    # TRL's have prompt and completion.
    ({"prompt": [USER], "solution": [ANSWERED]}, ["user"], ANSWERED["content"]),
    (
      {
        "prompt": [
          {
            "role": "user",
            "content": [
              {"type": "text", "text": "Which?\n\nA: x"},
              {"type": "text", "text": "\nB: y"},
            ],
          }
        ]
      },
      ["user"],
      None,
    ),
  ],
)
def test_conversations(tmp_path, row, roles, solution):
  row = {"answer": "B", **row}
  path = write(tmp_path / "x.jsonl", [row])
  (problem,), _ = datasets.load_problems(
    path, MultipleChoice().problem, fields={}, malformed="error"
  )
  assert [message["role"] for message in problem.messages] == roles
  assert problem.messages[-1]["content"] in (USER["content"], "Sure?")
  assert problem.solution == solution


@pytest.mark.parametrize("fields", [{}, {"prompt": "instruction"}])
@pytest.mark.parametrize(
  ("given", "asked"),
  [("7, 3", "Sort these.\n\n7, 3"), ("", "Sort these."), (None, "Sort these.")],
)
def test_rows_of_alpaca(tmp_path, fields, given, asked):
  row = {"instruction": "Sort these.", "input": given, "output": "3, 7"}
  path = write(tmp_path / "x.jsonl", [row | {"answer": "B"}])
  (found,) = datasets.read_rows(path, fields=fields, malformed="error").rows
  assert found.fields["prompt"] == asked
  assert found.fields["solution"] == "3, 7"
  named = {"prompt": "question", "instruction": "x", "input": "y"}
  assert conversations.as_texts(named) == named


@pytest.mark.parametrize(
  ("prompt", "said"),
  [
    ([], "must end with a message of the user, but has those of: none"),
    ([SYSTEM], "those of: system"),
    ([ANSWERED], "those of: none"),
    (["q"], "each entry must be a message"),
    ([{"content": "q"}], "must have a role"),
    ([{"role": "user"}], "must have a text as content"),
    ([{"role": "user", "content": " "}], "must have a text as content"),
    (
      [{"role": "user", "content": [{"type": "image_url"}]}],
      "holds 'image_url', but only text",
    ),
    (7, "'prompt' must be a string, got int"),
  ],
)
def test_prompts_that_are_no_conversation(tmp_path, prompt, said):
  path = write(tmp_path / "x.jsonl", [{"prompt": prompt, "answer": "B"}])
  with pytest.raises(DataError, match=rf"line 1: .*{said}"):
    read(path)


def test_two_systems_are_refused(tmp_path):
  row = {"prompt": [SYSTEM, USER], "system": "Be long.", "answer": "B"}
  with pytest.raises(DataError, match="also has a field system"):
    read(write(tmp_path / "x.jsonl", [row]))


def test_a_call_at_the_end_is_the_answer(tmp_path):
  calls = [{"type": "function", "function": {"name": "f", "arguments": "{}"}}]
  said = {"role": "assistant", "content": None, "tool_calls": calls}
  path = write(tmp_path / "x.jsonl", [{"prompt": [USER, said]}])
  (row,) = read(path).rows
  assert row.fields["answer"] == calls
  assert row.fields["prompt"] == USER["content"]


def test_data_sets_of_the_hub(tmp_path, monkeypatch):
  pytest.importorskip("datasets")
  monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
  folder = tmp_path / "set"
  folder.mkdir()
  write(folder / "train.jsonl", ROWS)
  source = {"dataset": str(folder), "split": "train[1:3]"}
  section = configs.HubDatasetConfig.model_validate(source)
  rows = read(section).rows
  assert [row.fields for row in rows] == ROWS[1:3]
  assert rows[0].place.endswith("set/train[1:3], row 1")
  missing = section.model_copy(update={"split": "nowhere"})
  with pytest.raises(DataError, match=r"cannot be read: .*nowhere"):
    read(missing)


def test_without_the_library_of_data_sets(monkeypatch):
  monkeypatch.setitem(sys.modules, "datasets", None)
  source = configs.HubDatasetConfig(dataset="openai/gsm8k", split="train")
  with pytest.raises(DataError, match=r"pip install 'distil_jax\[datasets\]'"):
    read(source)


def test_the_endings_of_data_files():
  names = {kind: f"a.b{kind}" for kind in data_files.KINDS}
  for kind, name in names.items():
    assert data_files.kind_of(pathlib.Path(name.upper())) == kind
  assert data_files.kind_of(pathlib.Path("a.gz")) is None


def test_hidden_files_and_other_spellings_of_a_path(tmp_path):
  (tmp_path / "a.jsonl").write_text('{"prompt": "q", "answer": "1"}\n')
  (tmp_path / "._a.jsonl").write_text("no JSON")
  assert data_files.find(str(tmp_path)) == [tmp_path / "a.jsonl"]
  other = tmp_path / ".." / tmp_path.name / "a.jsonl"
  with pytest.raises(data_files.DataError, match="read twice"):
    data_files.find([str(tmp_path / "a.jsonl"), str(other)])


@pytest.mark.parametrize("sign", [";", "\t", "|"])
def test_a_table_with_other_separators_says_which_to_use(tmp_path, sign):
  path = tmp_path / "a.csv"
  path.write_text(f"prompt{sign}answer\nq{sign}5\n")
  with pytest.raises(data_files.DataError, match="separate columns with comma"):
    data_files.read(path)
