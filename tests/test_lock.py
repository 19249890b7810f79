"""One trainer per workdir, whoever else starts, dies or shares the disk."""

import json
import os
import shutil
import subprocess
import sys
import threading
import time

import pytest

from unifluid_jax.core import lock

HOLD = """
import sys, time
from unifluid_jax.core import lock
print("ready", flush=True)
sys.stdin.readline()
try:
  with lock.held(sys.argv[1], print):
    print("got it", flush=True)
    time.sleep(60)
except lock.LockedError as error:
  print(error, flush=True)
"""


@pytest.fixture
def holders(tmp_path):
  """Starts processes that take the lock of `tmp_path` when told to."""
  started = []

  def start(count):
    new = [
      subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
      ) for _ in range(count)
    ]  # fmt: skip
    started.extend(new)
    assert all(p.stdout.readline() == "ready\n" for p in new)
    return new

  yield start
  for process in started:
    process.kill()
    process.communicate()


def go(process):
  process.stdin.write("\n")
  process.stdin.flush()


def held(workdir, said=None):
  said = [] if said is None else said
  return lock.held(str(workdir), said.append)


def test_a_second_trainer_is_refused_by_name_of_the_first(tmp_path, holders):
  (other,) = holders(1)
  go(other)
  assert other.stdout.readline() == "got it\n"
  words = rf"process {other.pid} on \S+ since .*another --workdir"
  with pytest.raises(lock.LockedError, match=words), held(tmp_path):
    pass
  with pytest.raises(lock.LockedError, match=words):
    lock.refuse_if_held(str(tmp_path))
  other.kill()
  other.wait()
  lock.refuse_if_held(str(tmp_path))
  said = []
  with held(tmp_path, said):
    assert f"process {other.pid}" in said[0] and "is gone" in said[0]
  assert not (tmp_path / lock.NAME).exists()


def test_of_many_that_start_at_once_one_wins(tmp_path, holders):
  processes = holders(5)
  for process in processes:
    go(process)
  said = [process.stdout.readline() for process in processes]
  assert said.count("got it\n") == 1
  assert sum("is being trained by process" in line for line in said) == 4


def test_released_however_the_block_ends(tmp_path):
  for _ in range(2):
    with pytest.raises(KeyError), held(tmp_path):
      raise KeyError
  assert not list(tmp_path.iterdir())


def claim(workdir, **changes):
  """Leaves the lock file of some other holder."""
  holder = lock._this_process() | {"beat": int(time.time())} | changes
  (workdir / lock.NAME).write_text(json.dumps(holder))


OTHER_HOST = {"host": "host-b", "boot": "b", "process": 7, "token": "x"}


def test_another_host_counts_while_it_gives_signs_of_life(tmp_path):
  """Some file systems keep flock to each host."""
  claim(tmp_path, **OTHER_HOST)
  words = "process 7 on host-b"
  with pytest.raises(lock.LockedError, match=words), held(tmp_path):
    pass
  with pytest.raises(lock.LockedError, match=words):
    lock.refuse_if_held(str(tmp_path))
  old = int(time.time() - lock.STALE_SECONDS - 5)
  claim(tmp_path, **OTHER_HOST, beat=old)
  lock.refuse_if_held(str(tmp_path))
  said = []
  with held(tmp_path, said):
    assert words in said[0]


@pytest.fixture
def no_flock(monkeypatch):
  """As on an object store: only the content of the file tells."""
  monkeypatch.setattr(lock.Lock, "_acquire_kernel_lock", lambda self: False)
  monkeypatch.setattr(lock, "SETTLE_SECONDS", 0.3)


def test_without_flock_a_dead_process_is_told_from_a_living_one(
  tmp_path, no_flock
):
  claim(tmp_path, token="x")  # this very process, as if another's
  with pytest.raises(lock.LockedError), held(tmp_path):
    pass
  claim(tmp_path, token="x", started="1")  # its number, used before us
  with held(tmp_path):
    pass
  gone = subprocess.Popen(["true"])
  gone.wait()
  claim(tmp_path, token="x", process=gone.pid)
  said = []
  with held(tmp_path, said):
    assert f"process {gone.pid}" in said[0]
  claim(tmp_path, **OTHER_HOST)
  with pytest.raises(lock.LockedError), held(tmp_path):
    pass


def test_without_flock_one_of_many_wins(tmp_path, no_flock):
  barrier, won, end = threading.Barrier(4), [], threading.Event()

  def contend():
    barrier.wait()
    try:
      with held(tmp_path):
        won.append(1)
        end.wait(10)
    except lock.LockedError:
      pass

  threads = [threading.Thread(target=contend) for _ in range(4)]
  for thread in threads:
    thread.start()
  time.sleep(1.0)
  end.set()
  for thread in threads:
    thread.join()
  assert len(won) == 1


def test_without_flock_the_holder_renews_and_notices_a_loss(
  tmp_path, no_flock, monkeypatch
):
  monkeypatch.setattr(lock, "BEAT_SECONDS", 0.02)
  monkeypatch.setattr(time, "time", lambda: 1e9)
  with held(tmp_path) as mine:
    monkeypatch.setattr(time, "time", lambda: 2e9)
    deadline = time.monotonic() + 10
    while json.loads((tmp_path / lock.NAME).read_text())["beat"] != 2e9:
      assert time.monotonic() < deadline
      time.sleep(0.01)
    mine.check()
    claim(tmp_path, **OTHER_HOST)
    while mine._lost is None:
      assert time.monotonic() < deadline
      time.sleep(0.01)
    with pytest.raises(lock.LockedError, match="host-b"):
      mine.check()
  assert "host-b" in (tmp_path / lock.NAME).read_text()  # it is theirs


def test_a_torn_lock_file_is_no_reason_to_stop(tmp_path):
  (tmp_path / lock.NAME).write_text('{"host": "a')
  lock.refuse_if_held(str(tmp_path))
  with held(tmp_path):
    assert (
      json.loads((tmp_path / lock.NAME).read_text())["process"] == os.getpid()
    )


def test_a_copy_of_a_workdir_in_training_is_free(tmp_path):
  run, copy, said = tmp_path / "run", tmp_path / "copy", []
  with held(run):
    shutil.copytree(run, copy)
    with pytest.raises(lock.LockedError, match="is being trained by"):
      lock.refuse_if_held(str(run))
    lock.refuse_if_held(str(copy))
    with held(copy, said):
      pass
  assert not (copy / lock.NAME).exists() and not (run / lock.NAME).exists()


def test_a_deleted_lock_file_is_made_again_or_lost(tmp_path):
  ours, others = held(tmp_path), held(tmp_path)
  mine = ours.__enter__()
  (tmp_path / lock.NAME).unlink()
  mine.check()
  with pytest.raises(lock.LockedError, match="is being trained by"):
    with held(tmp_path):
      pass
  (tmp_path / lock.NAME).unlink()
  with others:
    with pytest.raises(lock.LockedError, match="is being trained by"):
      mine.check()
    ours.__exit__(None, None, None)
    assert (tmp_path / lock.NAME).exists()  # the other's
  assert not (tmp_path / lock.NAME).exists()
