import json

import pytest

from distil_jax.data import datasets
from distil_jax.data.data_files import DataError
from distil_jax.envs.multiple_choice import MultipleChoice
from distil_jax.types import Problem
from tests.paths import DATA

SCIENCE = DATA / "sciknoweval"
GOOD = {"prompt": "2 + 2?", "answer": "4"}


def read(path, fields=None, malformed="error", **kwargs):
  return datasets.read_rows(
    path, fields=fields or {}, malformed=malformed, **kwargs
  )


def numbered(*arguments, **settings):
  rows = read(*arguments, **settings).rows
  return [(row.index + 1, row.fields) for row in rows]


def write_lines(path, *rows):
  lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
  path.write_text("\n".join(lines) + "\n", encoding="utf-8")
  return path


def to_problem(row, index):
  if row["answer"] == "bad":
    raise ValueError("answer must not be 'bad'")
  message = {"role": "user", "content": row["prompt"]}
  return Problem(index=index, messages=(message,), answer=row["answer"])


def test_all_forms_of_a_file_hold_the_same_rows(tmp_path):
  pyarrow = pytest.importorskip("pyarrow")
  parquet = pytest.importorskip("pyarrow.parquet")
  rows = [
    {**GOOD, "system": None},
    {"prompt": "Grüße ✓", "answer": "5", "system": "s"},
  ]
  array = tmp_path / "array.json"
  array.write_text("\n " + json.dumps(rows, indent=2), encoding="utf-8")
  lines = write_lines(tmp_path / "lines.json", *rows)
  jsonl = write_lines(tmp_path / "lines.JSONL", *rows)
  table = tmp_path / "table.parquet"
  parquet.write_table(pyarrow.Table.from_pylist(rows), table)
  expected = [(1, rows[0]), (2, rows[1])]
  for path in (array, lines, jsonl, table):
    assert numbered(path) == expected


def test_a_byte_order_mark_is_not_part_of_the_data(tmp_path):
  path = tmp_path / "bom.json"
  path.write_bytes(b"\xef\xbb\xbf" + json.dumps([GOOD]).encode())
  assert numbered(path) == [(1, GOOD)]


def test_line_separators_inside_a_string_end_no_line(tmp_path):
  row = {"prompt": "a\u2028b\x85c\rd", "answer": "4"}
  path = tmp_path / "data.jsonl"
  text = json.dumps(row, ensure_ascii=False)
  path.write_bytes(f"{text}\r\n\r\n{text}".encode())
  assert numbered(path) == [(1, row), (3, row)]


def test_fields_are_renamed(tmp_path):
  path = write_lines(tmp_path / "data.jsonl", {"question": "q", "answer": "a"})
  fields = {"prompt": "question", "solution": "answer"}
  (row,) = numbered(path, fields)
  assert row == (
    1,
    {"question": "q", "answer": "a", "prompt": "q", "solution": "a"},
  )


def test_fields_can_be_exchanged(tmp_path):
  path = write_lines(tmp_path / "data.jsonl", {"prompt": "x", "answer": "y"})
  fields = {"prompt": "answer", "answer": "prompt"}
  assert numbered(path, fields) == [(1, {"prompt": "y", "answer": "x"})]


def test_a_renamed_field_hides_the_one_of_that_name(tmp_path):
  path = write_lines(tmp_path / "data.jsonl", {**GOOD, "target": "5"}, {**GOOD})
  with pytest.raises(DataError, match=r"line 2: field 'target'"):
    read(path, {"answer": "target"})


def test_a_field_that_no_row_has_is_an_error(tmp_path):
  path = write_lines(tmp_path / "data.jsonl", {**GOOD, "solution": "s"})
  with pytest.raises(DataError, match=r"'solutoin'.*did you mean 'solution'"):
    read(path, {"solution": "solutoin"})


MALFORMED = {
  "not JSON": ('{"prompt": "x"', "not valid JSON"),
  "too deep": ("[" * 100_000, "not valid JSON"),
  "no object": ("[1]", "expected a JSON object, got list"),
  "missing": ({"prompt": "x", "anwser": "4"}, "did you mean 'anwser'"),
  "null": ({"prompt": None, "answer": "4"}, "field 'prompt' is null"),
  "empty": ({"prompt": " \n", "answer": "4"}, "field 'prompt' is empty"),
  "number": ({"prompt": 4, "answer": "x"}, "'prompt' must be a string"),
  "surrogate": (
    '{"prompt": "x", "answer": "4", "system": "\\ud800"}',
    "field 'system' is not valid Unicode",
  ),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_row_is_an_error_or_counted(tmp_path, name):
  row, message = MALFORMED[name]
  path = write_lines(tmp_path / "data.jsonl", GOOD, "", row, GOOD)
  with pytest.raises(DataError) as caught:
    read(path)
  assert f"{path}, line 3: " in str(caught.value)
  assert message in str(caught.value)
  skipped = read(path, malformed="skip")
  assert [(r.index + 1, r.fields) for r in skipped.rows] == [
    (1, GOOD),
    (4, GOOD),
  ]
  assert skipped.num_skipped == 1


def test_invalid_utf8_names_its_line(tmp_path):
  path = tmp_path / "data.jsonl"
  good = json.dumps(GOOD).encode()
  path.write_bytes(good + b'\n{"prompt": "\xff", "answer": "4"}\n' + good)
  with pytest.raises(DataError, match=r"line 2: not valid UTF-8"):
    read(path)
  assert read(path, malformed="skip").num_skipped == 1


def test_a_broken_array_is_an_error_even_where_rows_are_skipped(tmp_path):
  path = tmp_path / "data.json"
  path.write_text(json.dumps([GOOD])[:-1], encoding="utf-8")
  with pytest.raises(DataError, match=r"data\.json: not valid JSON"):
    read(path, malformed="skip")


def test_rows_of_an_array_are_counted_as_rows(tmp_path):
  path = tmp_path / "data.json"
  path.write_text(json.dumps([GOOD, 7]), encoding="utf-8")
  with pytest.raises(DataError, match="row 2: expected a JSON object"):
    read(path)


def test_required_fields_can_be_chosen(tmp_path):
  path = write_lines(tmp_path / "data.jsonl", {"prompt": "x"})
  assert numbered(path, required=("prompt",)) == [(1, {"prompt": "x"})]


@pytest.mark.parametrize("content", ["", " \n\n", "[]"])
def test_an_empty_file_is_an_error(tmp_path, content):
  path = tmp_path / "data.json"
  path.write_text(content, encoding="utf-8")
  with pytest.raises(DataError, match="holds no rows"):
    read(path)


def test_a_file_of_malformed_rows_only_is_an_error(tmp_path):
  path = write_lines(tmp_path / "data.jsonl", "{", "}")
  with pytest.raises(DataError, match="2 malformed rows were skipped"):
    read(path, malformed="skip")


def test_files_that_cannot_be_read(tmp_path):
  with pytest.raises(DataError, match=r"no data file .*absent\.json"):
    read(tmp_path / "absent.json")
  with pytest.raises(DataError, match="holds no data file"):
    read(tmp_path)
  csv = write_lines(tmp_path / "data.tsv", GOOD)
  with pytest.raises(DataError, match=r"not '\.tsv'"):
    read(csv)


def test_a_file_that_is_no_parquet(tmp_path):
  pytest.importorskip("pyarrow")
  path = write_lines(tmp_path / "data.parquet", GOOD)
  with pytest.raises(DataError, match="cannot be read as parquet"):
    read(path)


def test_problems_keep_their_index_when_others_are_skipped(tmp_path):
  bad = {"prompt": "x", "answer": "bad"}
  path = write_lines(tmp_path / "data.jsonl", GOOD, "{", bad, GOOD, GOOD)
  problems, num_skipped = datasets.load_problems(
    path, to_problem, fields={}, malformed="skip", limit=2
  )
  assert [problem.index for problem in problems] == [0, 3]
  assert num_skipped == 2


def test_a_row_that_makes_no_problem_is_malformed(tmp_path):
  bad = {"prompt": "x", "answer": "bad"}
  path = write_lines(tmp_path / "data.jsonl", GOOD, bad)
  with pytest.raises(DataError, match=r"line 2: answer must not be"):
    datasets.load_problems(path, to_problem, fields={}, malformed="error")
  path = write_lines(tmp_path / "data.jsonl", bad)
  with pytest.raises(DataError, match="no usable rows"):
    datasets.load_problems(path, to_problem, fields={}, malformed="skip")


def test_an_environment_that_fails_names_the_row(tmp_path):
  path = write_lines(tmp_path / "data.jsonl", GOOD, {**GOOD, "prompt": "y"})

  def fails(row, index):
    return to_problem({"x": to_problem(row, index)}[row["prompt"]], index)

  for malformed in ("error", "skip"):
    with pytest.raises(
      DataError, match=r"line \d: the environment raised KeyError: "
    ):
      datasets.load_problems(path, fails, fields={}, malformed=malformed)


@pytest.mark.skipif(not SCIENCE.is_dir(), reason=f"no data in {SCIENCE}")
@pytest.mark.parametrize(
  ("name", "count"),
  [
    ("chemistry/train.json", 1890),
    ("chemistry/test.json", 210),
    ("material/train.json", 841),
    ("material/test.json", 94),
  ],
)
def test_every_row_of_sciknoweval_is_a_problem(name, count):
  problems, num_skipped = datasets.load_problems(
    SCIENCE / name, MultipleChoice().problem, fields={}, malformed="error"
  )
  assert len(problems) == count
  assert num_skipped == 0
  assert {problem.answer for problem in problems} == set("ABCD")
  assert all(len(problem.messages) == 2 for problem in problems)
