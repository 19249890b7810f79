"""Rows that are added, torn, and read again; on disks and object stores."""

import logging

import pytest

from unifluid_jax.core import files, jsonl

A, B, C = ({"step": i, "x": i / 2} for i in (1, 2, 3))


def test_rows_are_added_and_read(tmp_path):
  path = tmp_path / "new" / "metrics.jsonl"
  assert jsonl.read(path) == [] and not jsonl.exists(path)
  jsonl.append(path, [A, B])
  jsonl.append(path, [])
  jsonl.append(path, [C])
  assert jsonl.read(path) == [A, B, C] and jsonl.exists(path)


@pytest.mark.parametrize(
  "torn", [b'{"step": 9, "lo', b"\0\0\0", b"7", b'{"x": 1}', b'{"step": \xff'],
)  # fmt: skip
def test_a_torn_line_is_named_and_swallows_no_row(tmp_path, torn, caplog):
  path = tmp_path / "metrics.jsonl"
  jsonl.append(path, [A])
  with path.open("ab") as f:
    f.write(torn)
  with caplog.at_level(logging.WARNING):
    assert jsonl.read(path) == [A]
    jsonl.append(path, [B])
    assert jsonl.read(path) == [A, B]
  assert f"{path}:2: dropped a torn line" in caplog.text


def test_a_row_that_lacks_only_its_newline_is_whole(tmp_path):
  path = tmp_path / "metrics.jsonl"
  path.write_text('{"step": 1, "x": 0.5}')
  jsonl.append(path, [B])
  assert jsonl.read(path) == [A, B]


def test_on_object_stores_each_addition_is_an_object(gcs):
  path = f"{gcs}/run/metrics_eval.jsonl"
  assert jsonl.read(path) == [] and not jsonl.exists(path)
  for rows in ([A, B], [], [C]):
    jsonl.append(path, rows)
  assert jsonl.read(path) == [A, B, C] and jsonl.exists(path)
  assert len(list(files.path(f"{gcs}/run/metrics_eval").iterdir())) == 2


def test_a_run_that_was_copied_goes_on_in_order(tmp_path, gcs):
  here, there = tmp_path / "metrics.jsonl", f"{gcs}/copied/metrics.jsonl"
  jsonl.append(there, [A])
  (tmp_path / "metrics").mkdir()
  (part,) = files.path(f"{gcs}/copied/metrics").iterdir()
  (tmp_path / "metrics" / part.name).write_bytes(part.read_bytes())
  jsonl.append(here, [B])
  assert jsonl.read(here) == [A, B]
  files.write(f"{gcs}/back/metrics.jsonl", here.read_bytes())
  jsonl.append(f"{gcs}/back/metrics.jsonl", [C])
  assert jsonl.read(f"{gcs}/back/metrics.jsonl") == [B, C]
