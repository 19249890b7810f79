"""Ctrl-C at random moments of a training run: what became of the work?

  python benchmarks/interrupts.py --tries=8 --after=15 -- \
      --config=configs/debug.py --config.steps=100000

Each try trains in an empty workdir of its own, gets one SIGINT between 0 and
`after` seconds after its start, or that long after its first step
(--from_first_step), and must end within `limit` seconds: by saving the step
it was at (status 0), or, before the first step, at once (status 130).
"""

import argparse
import pathlib
import random
import signal
import subprocess
import sys
import tempfile
import time


def attempt(arguments, root, wait, from_first_step, limit):
  """Seconds it took, status, newest step on disk, last line of the run."""
  log = root.parent / f"{root.name}.log"
  with open(log, "w") as out:
    process = subprocess.Popen(
      [sys.executable, "-m", "unifluid_jax.main", *arguments,
       f"--workdir={root}"],
      stdout=out, stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip
    while from_first_step and "ETA" not in log.read_text():
      if process.poll() is not None:
        raise SystemExit(log.read_text())
      time.sleep(0.05)
    time.sleep(wait)
    process.send_signal(signal.SIGINT)
    begin = time.monotonic()
    try:
      process.wait(limit)
    except subprocess.TimeoutExpired:
      process.kill()
      process.wait()
  seconds = time.monotonic() - begin
  steps = [int(x.name) for x in root.glob("checkpoints/*") if x.name.isdigit()]
  text = log.read_text().strip()
  notes = " TRACEBACK" * ("Traceback" in text) + " IGNORED" * (
    "Exception ignored" in text
  )
  last = text.splitlines()[-1] if text else ""
  return seconds, process.returncode, max(steps, default=None), last + notes


def main():
  """Prints a line per try and the counts."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--tries", type=int, default=8)
  parser.add_argument("--after", type=float, default=15, help="seconds")
  parser.add_argument("--limit", type=float, default=60, help="seconds")
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--from_first_step", action="store_true")
  parser.add_argument("arguments", nargs="*", help="of unifluid_jax.main")
  flags = parser.parse_args()
  draw = random.Random(flags.seed)
  saved = left = 0
  with tempfile.TemporaryDirectory() as root:
    for i in range(flags.tries):
      wait = draw.uniform(0, flags.after)
      seconds, status, step, last = attempt(
        flags.arguments, pathlib.Path(root) / str(i), wait,
        flags.from_first_step, flags.limit,
      )  # fmt: skip
      saved += status == 0 and step is not None
      left += status == 130
      print(f"{wait:5.1f} s: status {status} after {seconds:.1f} s, "
            f"saved {step}: {last[:100]}", flush=True)  # fmt: skip
  print(f"{saved} saved, {left} left before their first step, "
        f"{flags.tries - saved - left} neither")  # fmt: skip


if __name__ == "__main__":
  main()
