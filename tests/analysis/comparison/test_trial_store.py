"""Which learning rate is chosen, and what is read back from the disk."""

import json

import pytest

from distil_jax.analysis.comparison import record_settings, results, trial_store
from distil_jax.analysis.comparison.trial_record import Trial
from tests.analysis.comparison.made_up import GRID
from tests.analysis.comparison.made_up import tuned_comparison as comparison
from tests.paths import ROOT


def tuned(finals, *, curves=None, family="sparse", arm="grpo", first=1000):
  """Trials whose final accuracies are given for each rate."""
  done = {}
  for rate, values in finals.items():
    for i, value in enumerate(values):
      levels = curves[rate] if curves else [value, value]
      trial = Trial(family, arm, i % 2, first + i, rate)
      done[trial] = {
        "after": {"avg": value},
        "curve": [{"avg": level} for level in levels],
      }
  return done


def chosen(done, arm="grpo", family="sparse"):
  return results.chosen_rate(comparison(), family, arm, done)


def test_the_best_final_accuracy_is_chosen():
  assert chosen(tuned({3e-4: [0.5, 0.9], 1e-3: [0.6, 0.6], 3e-3: [0, 1]})) == (
    3e-4
  )


def test_the_earlier_curve_decides_between_equals():
  # .694 and .686 are both .69.
  finals = {3e-4: [0.694, 0.694], 1e-3: [0.686, 0.686], 3e-3: [0.6, 0.6]}
  curves = {3e-4: [0.1, 0.7], 1e-3: [0.5, 0.7], 3e-3: [0.9, 0.9]}
  assert chosen(tuned(finals, curves=curves)) == 1e-3


def test_the_middle_decides_where_nothing_was_learned():
  assert chosen(tuned({rate: [0.0, 0.0] for rate in GRID})) == 1e-3


def test_no_rate_before_all_tuning_trials_are_there():
  done = tuned({3e-4: [0.5, 0.5], 1e-3: [0.6, 0.6], 3e-3: [0.7]})
  assert chosen(done) is None
  assert chosen({}) is None


def test_reported_seeds_other_arms_and_families_have_no_say():
  done = tuned({3e-4: [0.7, 0.7], 1e-3: [0.6, 0.6], 3e-3: [0.5, 0.5]})
  loud = {rate: [1.0, 1.0] for rate in (1e-3, 3e-3)}
  done |= tuned(loud, first=0)
  done |= tuned(loud, arm="fixed")
  done |= tuned(loud, family="early")
  assert chosen(done) == 3e-4


def test_a_grid_of_one_needs_no_trials():
  assert chosen({}, arm="fixed") == 5e-4


def test_an_ablation_takes_over_its_models_rate():
  done = tuned({3e-4: [0.1, 0.1], 1e-3: [0.2, 0.2], 3e-3: [0.3, 0.3]})
  done |= tuned({3e-4: [0.9, 0.9]}, arm="longer")
  assert chosen(done, arm="longer") == 3e-3


def test_seeds_of_tuning_and_report_are_apart():
  assert Trial("f", "a", 0, 1000, 1e-3).is_tuning
  assert not Trial("f", "a", 0, 999, 1e-3).is_tuning


@pytest.fixture
def folder(tmp_path):
  (tmp_path / "trials").mkdir()
  return tmp_path


def line(seed):
  return json.dumps(
    {
      "family": "sparse",
      "arm": "grpo",
      "base": 1,
      "seed": seed,
      "learning_rate": 3e-4,
      "value": seed / 3,
      **dict.fromkeys(trial_store._REQUIRED),
    }
  )


def test_trials_are_read_from_all_families(folder):
  (folder / "trials/a.jsonl").write_text(f"{line(0)}\n{line(1)}\n")
  (folder / "trials/b.jsonl").write_text(f"{line(2)}\n")
  done = trial_store.read_trials(folder)
  assert {trial.seed: r["value"] for trial, r in done.items()} == {
    0: 0,
    1: 1 / 3,
    2: 2 / 3,
  }
  assert Trial("sparse", "grpo", 1, 2, 3e-4) in done


def test_a_line_that_is_cut_off_does_not_count(folder):
  """Killed while writing, or another process is writing it now."""
  whole = f"{line(0)}\n{line(1)}"
  for length in (len(whole) - 9, len(whole)):
    (folder / "trials/a.jsonl").write_text(whole[:length])
    assert [trial.seed for trial in trial_store.read_trials(folder)] == [0]


@pytest.mark.parametrize("bad", ["", line(1)[:30], "[1]", '{"family": "a"}'])
def test_another_line_that_is_no_record_is_refused(folder, bad):
  (folder / "trials/a.jsonl").write_text(f"{line(0)}\n{bad}\n{line(2)}\n")
  with pytest.raises(ValueError, match=r"a\.jsonl:2 is not the record"):
    trial_store.read_trials(folder)


def test_no_folder_no_trials(tmp_path):
  assert trial_store.read_trials(tmp_path / "nowhere") == {}


TRIAL = Trial("sparse", "grpo", 0, 0, 3e-4)


def ran(**changed):
  """A record as it was written with these settings."""
  made = comparison(**changed)
  return {
    "settings": json.loads(json.dumps(record_settings.settings_of(made, TRIAL)))
  }


def refusal(record, **now):
  with pytest.raises(ValueError, match="other settings") as error:
    record_settings.check_same(comparison(**now), TRIAL, record)
  return str(error.value)


def test_a_trial_with_other_settings_is_refused():
  record = ran(families={"sparse": {"num_steps": 80}, "early": {}})
  message = refusal(record, pass_at=[1, 2])
  for words in (
    "sparse.jsonl",
    "choose another run_directory",
    "run.num_steps: 80 then, 100 now",
    "pass_at: [1, 4, 16, 64] then, [1, 2] now",
  ):
    assert words in message
  record_settings.check_same(
    comparison(
      families={"sparse": {"num_steps": 80, "seeds": 9}, "early": {}},
      seeds=7,
      learning_rates=[1.0],
    ),
    TRIAL,
    record,
  )


def test_a_setting_that_came_later_had_its_default():
  record = ran()
  del record["settings"]["run"]["base_batch_size"]
  del record["settings"]["arm"]["objective"]["clip_low"]
  record_settings.check_same(comparison(), TRIAL, record)
  changed = {"sparse": {"base_batch_size": 64}, "early": {}}
  message = refusal(record, families=changed)
  assert "run.base_batch_size: 128 then, 64 now" in message
  assert "clip_low" not in message
  # One that is gone is another trial.
  record["settings"]["run"]["old"] = 1
  assert "run.old: 1 then, None now" in refusal(record)


def test_only_what_the_report_counts_must_have_the_same_settings():
  other = ran(families={"sparse": {"num_steps": 80}, "early": {}})
  made = comparison()
  for trial in (
    Trial("gone", "grpo", 0, 0, 3e-4),
    Trial("sparse", "gone", 0, 0, 3e-4),
    Trial("sparse", "grpo", 0, 0, 2e-4),
  ):
    record_settings.check_counted(made, {TRIAL: ran(), trial: other})
  with pytest.raises(ValueError, match="num_steps"):
    record_settings.check_counted(made, {TRIAL: other})


def test_trials_of_bases_that_are_not_planned_do_not_count():
  done = tuned({3e-4: [0.5, 0.5], 1e-3: [0.6, 0.6], 3e-3: [0.7, 0.7]})
  made = comparison(num_bases=1)  # the second tuning seed was on base 1
  assert results.chosen_rate(made, "sparse", "grpo", done) is None
  other = ran(families={"sparse": {"num_steps": 80}, "early": {}})
  record_settings.check_counted(
    made, {Trial("sparse", "grpo", 1, 1, 3e-4): other}
  )


def test_an_edited_training_config_is_another_trial(tmp_path):
  path = tmp_path / "sums.yaml"
  text = (ROOT / "configs/calculator/small_batches.yaml").read_text()
  path.write_text(text)
  made = comparison(families={"sums": {"config": str(path)}, "early": {}})
  trial = Trial("sums", "grpo", 0, 0, 3e-4)
  record = {"settings": record_settings.settings_of(made, trial)}
  record_settings.check_same(made, trial, record)
  path.write_text(text.replace("group_size: 8", "group_size: 4"))
  with pytest.raises(ValueError, match=r"config\.rollout\.group_size: 8 then"):
    record_settings.check_same(made, trial, record)


def test_what_is_appended_is_read(tmp_path):
  path = trial_store.file_of(tmp_path, "sparse")
  trial_store.append(path, json.loads(line(0)))
  trial_store.append(path, json.loads(line(1)))
  with path.open("a") as file:
    file.write(line(2)[:30])
  trial_store.repair(path)
  trial_store.append(path, json.loads(line(3)))
  assert [t.seed for t in trial_store.read_trials(tmp_path)] == [0, 1, 3]
