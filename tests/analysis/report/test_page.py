"""The page of runs: what it shows, and that no text in it can do harm."""

import html.parser
import json
import re
import shutil

import pytest

from distil_jax.analysis.report import groups, markup, page, rollout_browser
from distil_jax.training.logging.tables import ReportError
from tests.analysis.report import made_up_runs

_VOID = {"meta", "path", "rect", "input", "br"}


class Reader(html.parser.HTMLParser):
  """Reads a page strictly: what is opened is closed, in order."""

  def __init__(self, text):
    super().__init__()
    self.open, self.ids, self.tags, self.addresses = [], [], [], []
    self.scripts, self.words = [], []
    self.feed(text)
    self.close()
    assert not self.open

  def handle_starttag(self, tag, attrs):
    values = dict(attrs)
    self.tags.append(tag)
    if "id" in values:
      self.ids.append(values["id"])
    self.addresses += [values[x] for x in ("src", "href") if x in values]
    if tag == "script":
      self.scripts.append([values, ""])
    if tag not in _VOID:
      self.open.append(tag)

  def handle_startendtag(self, tag, attrs):
    self.tags.append(tag)

  def handle_endtag(self, tag):
    assert self.open.pop() == tag

  def handle_data(self, data):
    if self.open[-1:] == ["script"]:
      self.scripts[-1][1] += data
    else:
      self.words.append(data)

  def rollouts(self):
    (data,) = [text for x, text in self.scripts if x.get("id") == "data"]
    return json.loads(data)


@pytest.fixture(scope="module")
def several(runs_folder):
  text = page.to_page(page.read_runs([runs_folder]))
  return text, Reader(text)


def test_page_loads_nothing_and_is_well_formed(several):
  text, found = several
  assert len(found.ids) == len(set(found.ids))
  assert all(address.startswith("#") for address in found.addresses)
  assert {x.removeprefix("#") for x in found.addresses} <= set(found.ids)
  assert not re.search(r"https?://|@import|url\(", text)
  # The policy names the one program of the page, so that no other runs.
  (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', text)
  assert "default-src 'none'" in policy
  assert "script-src 'sha256-" in policy
  programs = [text for values, text in found.scripts if not values]
  assert len(programs) == 1
  assert page._policy(programs[0]) == policy


def test_runs_are_grouped_by_the_settings_that_differ(runs_folder, several):
  runs = page.read_runs([runs_folder])
  assert groups.differing(runs) == ["optimizer.learning_rate"]
  found = groups.group_runs(runs)
  assert [group.label for group in found] == [
    "learning_rate=1e-05",
    "learning_rate=3e-05",
  ]
  assert [len(group.runs) for group in found] == [2, 2]
  text, read = several
  assert text.count('class="band') >= 4  # seeds of each group as a band
  words = " ".join(read.words)
  for part in ("learning_rate=3e-05", "stopped", "finished", "±", "sampling"):
    assert part in words


def test_settings_of_other_kinds_say_nothing_of_their_own():
  def settings(**values):
    return {"objective.kind": "distil", "train.seed": 0} | {
      key.replace("__", "."): value for key, value in values.items()
    }

  class Run:
    def __init__(self, **values):
      self.settings = settings(**values)
      self.name = "run"

  runs = [
    Run(objective__top_k=8),
    Run(objective__kind="grpo", objective__clip=0.2, train__seed=1),
  ]
  assert groups.differing(runs) == ["objective.kind"]


def test_no_text_of_a_run_becomes_markup(tmp_path):
  folder = made_up_runs.write_run(
    tmp_path / "<img src=x>", completion=made_up_runs.HOSTILE
  )
  text = page.to_page(page.read_runs([folder]))
  found = Reader(text)
  assert "img" not in found.tags
  assert "<b>x</b>" not in text
  assert "\x00" not in text
  assert "\x1b" not in text
  assert "\u202e" not in text
  shown = found.rollouts()[0]
  for completion in (shown["completion"], "".join(shown["tokens"]["text"])):
    assert completion.startswith("</script><b>x</b>␀␛[31m⟨U+202E⟩txt 😀 שלום ")
    assert completion.endswith("&amp; <!--")
  text.encode("utf-8")


def test_failures_come_first_with_feedback_and_tokens(several):
  rollouts = several[1].rollouts()
  rewards = [x["reward"] for x in rollouts]
  assert rewards == sorted(rewards)
  assert len(rewards) == 4 * 2 * 4
  first = rollouts[0]
  assert first["status"] == "wrong"
  assert first["feedback"] == "7 * 2 is 14, not 15."
  assert first["teacher_prompt"].endswith("7 * 2 is 14.")
  tokens = first["tokens"]
  assert tokens["teacher_choices"][0] == [["14", 0.9], ["15", 0.05]]
  sizes = {len(values) for values in tokens.values()}
  assert sizes == {first["num_tokens"]}


def test_size_is_bounded():
  records = [
    {"kind": "training", "step": step, "reward": reward, "step_number": step}
    for step in range(1, 101)
    for reward in (1.0, 0.0, 0.5)
  ]
  chosen = rollout_browser.choose(records, 150)
  assert len(chosen) == 150
  # Of each step the worst, before the second worst of any.
  assert {x["step"] for x in chosen} == set(range(1, 101))
  assert [x["reward"] for x in chosen].count(0.0) == 100
  long = rollout_browser._cut("x" * 10**6)
  assert len(long) < 13_000
  assert "988,000 characters left out" in long


def test_a_run_that_has_just_begun_has_a_page(tmp_path):
  folder = made_up_runs.write_run(
    tmp_path / "run", num_steps=1, is_finished=False
  )
  for name in ("metrics.jsonl", "evaluations.jsonl"):
    (folder / name).unlink()
  shutil.rmtree(folder / "rollouts")
  words = " ".join(Reader(page.to_page(page.read_runs([folder]))).words)
  assert "None were recorded" in words


def test_what_is_no_run_is_refused(tmp_path):
  with pytest.raises(ReportError, match="is no run folder and holds none"):
    page.read_runs([tmp_path])


@pytest.mark.parametrize(
  ("value", "text"), [(0.000123, "0.000123"), (12345.6, "12,346"), (0, "0")]
)
def test_numbers_have_the_digits_that_count(value, text):
  assert markup.number(value) == text
