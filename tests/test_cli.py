"""Entry points: help, wrong flags, errors of users; all in one process."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from absl import flags

from unifluid_jax.core import cli

REPO = Path(__file__).parent.parent
MODULES = (
  "main", "evaluate", "generate", "prepare", "encode", "compile",
  "experiments", "weights", "demo", "instruct", "export",
)  # fmt: skip
# Runs `python -m unifluid_jax.MODULE ARGS` for each call that stdin lists and
# prints what it wrote and how it left; flags are forgotten between calls.
DRIVER = """
import contextlib, io, json, runpy, sys, traceback
from absl import flags
from absl.testing import flagsaver
from unifluid_jax.core import cli
shared, results = set(flags.FLAGS), []
for module, args in json.load(sys.stdin):
  said = io.StringIO()
  sys.argv = [module, *args]
  with flagsaver.as_parsed(), contextlib.redirect_stdout(said):
    with contextlib.redirect_stderr(said):
      try:
        runpy.run_module(f"unifluid_jax.{module}", None, "__main__", True)
        status = 0
      except SystemExit as leave:
        status = leave.code
        if isinstance(status, str):
          status = said.write(status + "\\n") and 1
      except BaseException:
        traceback.print_exc(file=said)
        status = -1
  results.append((status or 0, said.getvalue()))
  for name in set(flags.FLAGS) - shared:
    delattr(flags.FLAGS, name)
json.dump(results, sys.stdout)
"""

MAIN = ["--config=debug", "--workdir=run"]
WRONG = [
  ("main", ["--workdir=run"], "--config is missing; --help shows examples"),
  ("main", ["--config=debug"], "--workdir is missing"),
  ("main", ["--config=shaps", "--workdir=run"],
   "no configuration 'shaps': did you mean shapes? Shipped: aesthetic, debug"),
  ("main", ["--config=no/such.py", "--workdir=run"], "'no/such.py'"),
  ("main", ["--config=folder.py", "--workdir=run"], ": is a directory"),
  ("main", ["--config=broken.py", "--workdir=run"],
   "broken.py, line 3: ZeroDivisionError: division by zero"),
  ("main", ["--config=syntax.py", "--workdir=run"], "syntax.py, line 2: "),
  ("main", ["--config=empty.py", "--workdir=run"], "empty.py: AttributeError"),
  ("main", ["--config=none.py", "--workdir=run"], "returned NoneType"),
  ("main", ["--config=debug:t2j_only", "--workdir=run"],
   "--config=debug:t2j_only: unknown config argument 't2j_only'"),
  ("main", [*MAIN, "--config.optm.lr=1"], "did you mean --config.optim.lr?"),
  ("main", [*MAIN, "--config.optim.lrr=1"], "did you mean --config.optim.lr?"),
  ("main", [*MAIN, "--config.zzzz=1"], "no key --config.zzzz: known: accum"),
  ("main", [*MAIN, "--config.optim.lr=abc"], "lr=abc: not a number"),
  ("main", [*MAIN, "--config.steps=1.5"], "--config.steps=1.5: not an integer"),
  ("main", [*MAIN, "--config.data.world=5"], "--config.data.world=5: "),
  ("main", ["--config.steps=1", "--workdir=run"], "--config is missing"),
  ("main", [*MAIN, "--wrkdir=x"], "unknown flag --wrkdir: did you mean --work"),
  ("main", [*MAIN, "--num_processes=two"], "--num_processes=two: not an integ"),
  ("main", [*MAIN, "extra", "words"], "unknown arguments: extra words"),
  ("experiments", ["table1", "table2"], "unknown arguments: table2"),
  ("experiments", ["table1", "--config=shaps"], "did you mean shapes?"),
  ("demo", ["--config.steps=5"], "write a file for --config"),
  ("demo", ["--config.zzzz=5"], "write a file for --config"),
  ("demo", ["--vae_config=shaps"], "did you mean shapes?"),
  ("weights", ["--to=x"], "--from is missing"),
  ("weights", ["--from=gemma:x", "--to=x", "--dtype=int8"], "--dtype=int8: "),
  ("prepare", ["--config=debug", "--config.text.prompt=a"], "not an integer"),
  ("encode", ["--config=debug", "--batch=many"], "--batch=many: not an"),
  ("compile", ["--config=debug"], "--topology is missing"),
  ("evaluate", [], "--config is missing"),
  ("main", [*MAIN, "--config.text.tokenizer=/nowhere.model"], "/nowhere.model"),
  ("evaluate", ["--config=debug", "--workdir=/nowhere", "--once"],
   "no complete checkpoint under"),
  ("evaluate", ["--suite=transfers"], "root"),
  ("evaluate", ["--compare=/nowhere,/no"], "--out is missing"),
  ("evaluate", ["--compare=/nowhere,/no", "--out=x.html"],
   "evaluate this run first"),
  ("generate", ["--workdir=/nowhere", "--prompt=a"],
   "no complete checkpoint under /nowhere/checkpoints"),
  ("generate", ["--workdir=/nowhere"], "nothing to do"),
  ("export", ["--to=x"], "name the run: python -m unifluid_jax.export RUN"),
  ("export", ["run"], "--to is missing"),
  ("export", ["run", "more", "--to=x"], "unknown arguments: more"),
  ("export", ["/nowhere", "--to=x"], "no complete checkpoint under /nowhere"),
  ("export", ["run", "--to=x", "--push=me"], "--push=me: give OWNER/NAME"),
  ("generate", ["--workdir=run", "--prompt=a", "--cfg=high"],
   "--cfg=high: not a number"),
  ("generate", ["--workdir=run", "--prompt=a", "--order=up"], "--order=up: "),
  ("generate", ["--workdir=file", "--prompt=a"], "file"),
  ("instruct", ["--from=coco:x.json"], "--to is missing"),
  ("instruct", ["--to=run"], "write FORMAT:PATH, FORMAT one of array_record"),
  ("instruct", ["--to=run", "--from=coco:no.json"], "change --from.path"),
  ("instruct", ["--to=run", "--held_out=2"], "use count >= 1, 0 <= held_out"),
  ("instruct", ["--to=run", "--form=replies"], "reads --replies=FILE and what"),
  ("instruct", ["--to=run", "--form=replies", "--replies=file"],
   "no run/requests.jsonl: make it with --form=requests first"),
]  # fmt: skip
FINE = [("prepare", ["--config=mine/own.py"])]


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
  """(status, text) of every call, made in a directory without a checkout."""
  where = tmp_path_factory.mktemp("elsewhere")
  (where / "folder.py").mkdir()
  (where / "file").write_text("")
  (where / "broken.py").write_text("def get_config():\n\n  return 1 / 0\n")
  (where / "syntax.py").write_text("a = 1\nb = = 2\n")
  (where / "empty.py").write_text("")
  (where / "none.py").write_text("def get_config():\n  pass\n")
  # A user's file, beside a package of the same name as ours.
  (where / "configs").mkdir()
  (where / "configs" / "__init__.py").write_text("")
  (where / "mine").mkdir()
  (where / "mine" / "own.py").write_text(
    "from configs import debug\nfrom configs.base import base\n"
    "def get_config():\n  base()\n  c = debug.get_config()\n"
    "  c.name = 'my_own'\n  return c\n"
  )
  calls = [(m, ["--help"]) for m in MODULES]
  calls += [(module, args) for module, args, _ in WRONG]
  calls += FINE
  done = subprocess.run(
    [sys.executable, "-c", DRIVER], input=json.dumps(calls), cwd=where,
    env=dict(os.environ, PYTHONPATH=str(REPO)), text=True, check=True,
    capture_output=True,
  )  # fmt: skip
  found = json.loads(done.stdout)
  assert not (where / "run").exists()  # nothing is written before the checks
  return dict(zip(((m, *a) for m, a in calls), found, strict=True))


@pytest.mark.parametrize("module", MODULES)
def test_help_is_readable(outcomes, module):
  status, text = outcomes[module, "--help"]
  assert status == 0
  lines = text.splitlines()
  assert max(map(len, lines)) <= 80
  assert "absl" not in text and "jax_" not in text  # no library's flags
  example = f"python -m unifluid_jax.{module} "
  assert any(x.startswith(f"  {example}") or x.endswith(f"  {example}".rstrip())
             for x in lines)  # fmt: skip
  # Examples keep their line breaks: what is continued goes on below.
  for line, below in zip(lines, lines[1:], strict=False):
    if line.endswith("\\"):
      assert below.startswith("      ") and "\\ " not in line
  assert lines.index("flags:") > 3 and "  --[no]compilation_cache" in lines


def test_help_names_every_flag_of_its_own(outcomes):
  _, text = outcomes["generate", "--help"]
  for flag in ("--prompt=TEXT", "--samples=INT", "--cfg=NUMBER", "--workdir"):
    assert f"  {flag}" in text
  _, text = outcomes["main", "--help"]
  assert "--config=FILE" in text and "--config.KEY=VALUE" in text
  # Of a file that is handed on, no value can be set.
  _, text = outcomes["demo", "--help"]
  assert "--config=FILE" in text and "--config.KEY" not in text
  _, text = outcomes["weights", "--help"]
  assert "One of: float32, bfloat16." in text
  _, text = outcomes["evaluate", "--help"]
  assert " \\\n      --workdir=runs/shapes\n" in text


@pytest.mark.parametrize("module, args, words", WRONG)
def test_wrong_calls_get_one_line(outcomes, module, args, words):
  status, text = outcomes[module, *args]
  assert status == 1 and words in text, text
  *said, last = text.splitlines()
  assert last.startswith("error: ") and words in last, text
  # Jobs say what they are before they look at files.
  assert not said or said[0].startswith(f"unifluid_jax.{module}: "), text
  assert "Traceback" not in text


def test_own_files_may_lie_anywhere_and_import_ours(outcomes):
  """It is refused for what this test left out, after its name was read."""
  _, text = outcomes["prepare", "--config=mine/own.py"]
  assert "unifluid_jax.prepare: my_own" in text


@pytest.mark.parametrize(
  "number, words",
  [
    (errno.ENOENT, "no such file or directory; check the path"),
    (errno.EACCES, "permission denied; choose a path that you may use"),
    (errno.EISDIR, "is a directory; name a file"),
    (errno.ENOTDIR, "a file lies where a directory is needed"),
    (errno.EEXIST, "file exists; a file lies where"),
    (errno.EROFS, "read-only file system; choose a path on another"),
    (errno.ENOSPC, "no space left on device; make room"),
  ],
)
def test_errors_of_files_name_the_path_and_the_fix(number, words):
  error = OSError(number, os.strerror(number), "/some/path")
  text = cli.one_line(error)
  assert text.startswith("/some/path: ") and words in text
  assert isinstance(error, cli.USER_ERRORS)


def test_other_errors_keep_their_words_on_one_line():
  assert cli.one_line(ValueError("a\n  b")) == "a b"
  assert cli.one_line(OSError("no image at x")) == "no image at x"


@pytest.mark.parametrize("flag", ["--verbosity=1", "-v=2"])
def test_tracebacks_are_shown_where_wanted(flag):
  with pytest.raises(OSError), cli._reported(["main", flag]):
    raise OSError(errno.ENOSPC, "full")
  with pytest.raises(SystemExit), cli._reported(["main", "--verbosity=0"]):
    raise flags.Error("odd")
  with pytest.raises(KeyError), cli._reported([]):  # a bug is no user's error
    raise KeyError("x")
