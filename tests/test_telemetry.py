"""Rows of a run that was killed, its goodput, its progress line."""

import time

import pytest

from unifluid_jax.core import jsonl, telemetry


def test_rows_of_steps_that_were_taken_again_are_superseded(tmp_path):
  path = tmp_path / "metrics.jsonl"
  steps = [1, 10, 20, 30, 21, 25, 30, 40]  # killed after 30, resumed from 20
  jsonl.append(path, [{"step": s, "at": i} for i, s in enumerate(steps)])
  rows = telemetry.read_metrics(path)
  assert [(r["step"], r["at"]) for r in rows] == [
    (1, 0), (10, 1), (20, 2), (21, 4), (25, 5), (30, 6), (40, 7)
  ]  # fmt: skip


def test_goodput_counts_restarts_lost_steps_and_compilation():
  goodput = telemetry.Goodput([], step=0, now=100.0)
  assert goodput.add(seconds=15.0, now=115.0)[0] == 0  # it compiles
  share, saved = goodput.add(seconds=30.0, now=150.0)
  assert share == pytest.approx(30 / 50)
  share, lost = goodput.add(seconds=20.0, now=170.0)
  assert share == pytest.approx(50 / 70)
  # Killed; the second window was saved, the third was not.
  rows = [{"step": 10, **saved}, {"step": 20, **lost}]
  again = telemetry.Goodput(rows, step=10, now=180.0)
  assert again.add(seconds=9.0, now=190.0)[0] == pytest.approx(30 / 90)
  share, _ = again.add(seconds=10.0, now=200.0)
  assert share == pytest.approx(40 / 100)


def test_goodput_of_a_run_that_has_no_counters_begins_now():
  old = [{"step": 10, "loss": 1.0}]
  goodput = telemetry.Goodput(old, step=10, now=0.0)
  goodput.add(1.0, 1.0)
  assert goodput.add(1.0, 2.0)[0] == pytest.approx(1 / 2)


def test_a_pause_is_no_steps_time(monkeypatch):
  now = iter([0.0, 10.0, 17.0, 20.0]).__next__
  monkeypatch.setattr(time, "monotonic", now)
  progress = telemetry.Progress("train", 0, 8)
  with progress.paused():
    pass
  assert progress.line(1)[1] == pytest.approx(20 - 7)


def test_speeds_are_shown_as_far_as_they_are_known():
  row = {"loss": 1.0, "tokens_per_second": 12345.6, "goodput": 0.934}
  assert telemetry.speeds(row) == "12,346 tokens/s  goodput 93 %"
  assert "MFU 45 %" in telemetry.speeds(row | {"mfu": 0.449})
  assert telemetry.speeds({"loss": 1.0}) == ""


def test_progress_is_reported_every_twenty_seconds_and_at_the_end(monkeypatch):
  seconds, lines = [0.0], []
  monkeypatch.setattr(time, "monotonic", lambda: seconds[0])
  progress = telemetry.Progress("drawn", 0, 5)
  for step, now in enumerate([1.0, 20.0, 21.5, 30.0, 31.0], 1):
    seconds[0] = now
    progress.report(step, lines.append)
  assert [line.split()[1] for line in lines] == ["1/5", "3/5", "5/5"]
