"""Ctrl-C, as processes get it."""

import signal
import subprocess
import sys
import time

import pytest

from unifluid_jax.core import interrupt

START = """
import gc, sys, threading, time
from unifluid_jax import interrupt
interrupt.listen()
"""


def run(code):
  """A process that has printed its first line."""
  process = subprocess.Popen(
    [sys.executable, "-c", START + code], text=True,
    stdout=subprocess.PIPE, stderr=subprocess.PIPE,
  )  # fmt: skip
  assert process.stdout.readline() == "ready\n"
  return process


def interrupted(process):
  process.send_signal(signal.SIGINT)
  out, err = process.communicate(timeout=20)
  return process.returncode, out, err


BUSY = {
  "waiting": "print('ready', flush=True); time.sleep(30)",
  # Raising there is printed and dropped.
  "collecting": """
gc.callbacks.append(lambda *_: time.sleep(0.2))
print('ready', flush=True)
while True: gc.collect()
""",
  # No instruction of Python's runs, as when XLA compiles.
  "in C": """
import hashlib
print('ready', flush=True)
hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)
""",
}


@pytest.mark.parametrize("code", BUSY.values(), ids=BUSY)
def test_a_command_ends_at_once_with_one_line_and_status_130(code):
  process = run(code)
  begin = time.monotonic()
  assert interrupted(process) == (130, "", "interrupted\n")
  assert time.monotonic() - begin < 5


def test_cleanups_run_and_workers_end(tmp_path):
  code = f"""
import multiprocessing
if __name__ == "__main__":
  note = lambda: open({str(tmp_path / "cleaned")!r}, "w").close()
  context = multiprocessing.get_context("fork")
  worker = context.Process(target=time.sleep, args=(60,), daemon=True)
  worker.start()
  with interrupt.cleanup(note):
    print("ready", flush=True)
    time.sleep(30)
"""
  # The worker holds the same stdout: it is read to its end, so both ended.
  assert interrupted(run(code))[0] == 130
  assert (tmp_path / "cleaned").exists()


def test_caught_once_then_left():
  code = """
count = 0
def catch():
  global count
  count += 1
  print("caught", flush=True)
  return count < 2
with interrupt.caught_by(catch):
  print("ready", flush=True)
  time.sleep(30)
"""
  process = run(code)
  process.send_signal(signal.SIGINT)
  assert process.stdout.readline() == "caught\n"
  assert interrupted(process) == (130, "caught\n", "interrupted\n")


def test_an_ignored_interrupt_stays_ignored():
  """Jobs that scripts start in the background."""
  code = f"import signal; signal.signal(signal.SIGINT, signal.SIG_IGN){START}"
  process = subprocess.Popen(
    [sys.executable, "-c", code + "print('ready', flush=True); time.sleep(1)"],
    stdout=subprocess.PIPE, text=True,
  )  # fmt: skip
  process.stdout.readline()
  process.send_signal(signal.SIGINT)
  assert process.wait(timeout=20) == 0


def test_in_a_notebook_it_raises_as_ever():
  for catch in (False, True):
    with interrupt.caught_by(lambda catch=catch: catch):
      if catch:
        signal.raise_signal(signal.SIGINT)
      else:
        with pytest.raises(KeyboardInterrupt):
          signal.raise_signal(signal.SIGINT)
  assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_imports_of_a_command_are_covered():
  """JAX's imports swallow a KeyboardInterrupt now and then."""
  code = """
import sys
sys.argv = ["-m"]
import signal, unifluid_jax
print(signal.getsignal(signal.SIGINT) is signal.default_int_handler)
"""
  done = subprocess.run(
    [sys.executable, "-c", code], capture_output=True, text=True, check=True
  )
  assert done.stdout == "False\n"
  assert interrupt.STATUS == 130


def test_a_command_that_runs_another_waits_until_that_has_saved(tmp_path):
  saved = tmp_path / "saved"
  child = f"""
import signal, sys, time
def save(*_):
  time.sleep(0.3)
  open({str(saved)!r}, "w").close()
  sys.exit(0)
signal.signal(signal.SIGTERM, save)
print("ready", flush=True)
time.sleep(30)
"""
  code = f"""
try:
  interrupt.call([sys.executable, "-c", {child!r}])
except KeyboardInterrupt:
  interrupt.leave()
"""
  assert interrupted(run(code)) == (130, "", "interrupted\n")
  assert saved.exists()


WORKERS = """
import multiprocessing, os
def work(number):
  interrupt.ignore(number, 1)
  print('ready', flush=True)
  time.sleep(60)
if __name__ == "__main__":
  context = multiprocessing.get_context("spawn")
  context.Process(target=work, args=(0,)).start()
  time.sleep(60)
"""


def test_workers_of_a_killed_process_leave(tmp_path):
  """They hold the output, which a reader waits for the end of."""
  file = tmp_path / "killed.py"
  file.write_text(START + WORKERS)
  process = subprocess.Popen(
    [sys.executable, str(file)], text=True, stdout=subprocess.PIPE
  )
  assert process.stdout.readline() == "ready\n"
  process.kill()
  begin = time.monotonic()
  assert process.stdout.read() == ""
  assert time.monotonic() - begin < 20
