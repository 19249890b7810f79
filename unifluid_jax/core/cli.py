"""What the entry points share: flags, help, errors in one line, log lines."""

import contextlib
import errno
import os
import re
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
from absl import app, flags, logging
from ml_collections import config_flags

from unifluid_jax.core import (
  compile_cache,
  config_files,
  host_memory,
  interrupt,
)

# Flags that are defined here belong to the entry point that asks for them.
flags.disclaim_key_flags()

# What a user can fix; anything else is a bug and shows its traceback.
USER_ERRORS = (ValueError, OSError, FloatingPointError)

_FIXES = {
  errno.ENOENT: "check the path",
  errno.EACCES: "choose a path that you may use, or change its permissions",
  errno.EPERM: "choose a path that you may use, or change its permissions",
  errno.EISDIR: "name a file",
  errno.ENOTDIR: "a file lies where a directory is needed; choose another path",
  errno.EEXIST: "a file lies where a directory is needed; choose another path",
  errno.EROFS: "choose a path on another file system",
  errno.ENOSPC: "make room or choose another disk; the same command goes on",
  errno.EDQUOT: "make room or choose another disk; the same command goes on",
}
_HELP = ("--help", "-help", "-h", "-?", "--helpshort", "-helpshort")
_VERBOSE = re.compile(r"--?(v|verbosity)=[1-9]\d*")
_WIDTH = 80
_INDENT = 24

_CACHE = flags.DEFINE_bool(
  "compilation_cache", True,
  "Keep compiled programs for the next start (see README).",
)  # fmt: skip


def run(
  entry: Callable[[list[str]], Any],
  positional: int = 0,
  caches: bool = True,
) -> None:
  """Runs an entry point under absl; user errors are one line, status 1.

  Libraries may warn; --verbosity=0 lets them inform, --verbosity=1 also shows
  the traceback of user errors. Ctrl-C ends the process at once, status 130,
  where the work does not catch it.

  Args:
    entry: main of a module whose docstring is its help.
    positional: arguments that are no flags are refused beyond so many.
    caches: whether compiled programs are kept on disk.
  """
  interrupt.listen()

  def parsed(argv: list[str]) -> list[str]:
    if any(word in _HELP for word in _before_dashes(argv[1:])):
      print(help_text(entry))
      sys.exit(0)
    with _reported(argv):
      _refuse_overrides()
      rest = flags.FLAGS(argv)
      if len(rest) > 1 + positional:
        unknown = " ".join(rest[1 + positional :])
        raise ValueError(
          f"unknown arguments: {unknown}; flags are written --NAME=VALUE"
        )
      return rest

  def guarded(argv: list[str]) -> Any:
    if not flags.FLAGS["verbosity"].present:
      logging.set_verbosity(logging.WARNING)
    host_memory.keep_freed()
    with _reported(sys.argv):
      if caches and _CACHE.value:
        compile_cache.enable()
      return entry(argv)

  app.run(guarded, flags_parser=parsed)


@contextlib.contextmanager
def _reported(argv: Sequence[str]) -> Iterator[None]:
  """Turns the errors of users into one line on stderr and status 1."""
  try:
    yield
  except BrokenPipeError as error:
    # The reader of our output has left: nothing to tell anybody.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    raise SystemExit(1) from error
  except (flags.Error, *USER_ERRORS) as error:
    if any(_VERBOSE.fullmatch(word) for word in _before_dashes(argv)):
      raise
    raise SystemExit(f"error: {one_line(error)}") from error


def one_line(error: BaseException) -> str:
  """What happened and what to do about it."""
  cause = error.__context__
  if isinstance(error, flags.Error):
    if isinstance(cause, config_files.ConfigFileError):
      return _joined(str(cause))
    return _joined(_flag_error(error))
  if isinstance(error, OSError) and error.errno is not None:
    names = [str(x) for x in (error.filename, error.filename2) if x is not None]
    text = f"{' and '.join(names)}: " if names else ""
    text += os.strerror(error.errno).lower()
    fix = _FIXES.get(error.errno)
    return _joined(f"{text}; {fix}" if fix else text)
  return _joined(str(error) or type(error).__name__)


def _flag_error(error: flags.Error) -> str:
  """absl's words, with the flag as it is written and what it takes."""
  if isinstance(error, flags.UnrecognizedFlagError):
    name = error.flagname
    if name.startswith("config.") and "config" in flags.FLAGS:
      return f"--{name}: --config is missing"
    close = config_files.nearest(name, list(flags.FLAGS), "--")
    return f"unknown flag --{name}: {close}--help lists the flags"
  text = str(error).removeprefix("flag ")
  missing = re.match(r"--([\w-]+)=None: Flag .* must have a value", text)
  if missing:
    return f"--{missing[1]} is missing; --help shows examples"
  value = re.match(r"--(?:no)?([\w.-]+)=(.*?): ", text, re.DOTALL)
  if value and value[1] in flags.FLAGS:
    wanted = flags.FLAGS[value[1]].parser.syntactic_help
    if wanted and isinstance(error, flags.IllegalFlagValueError):
      return f"--{value[1]}={value[2]}: not {wanted}"
  return text


def _joined(text: str) -> str:
  """One line of a text of several."""
  return " ".join(text.split())


def _before_dashes(argv: Sequence[str]) -> list[str]:
  """Arguments up to --, after which nothing is a flag."""
  argv = list(argv)
  return argv[: argv.index("--")] if "--" in argv else argv


# ------------------------------------------------------------ The --config flag


def define_config(
  default: str | None = None,
  help_string: str = "Shipped configuration or file, with its arguments.",
  whole: bool = False,
) -> flags.FlagHolder:
  """Defines --config and, for each key, --config.KEY.

  Args:
    default: name or file, as on the command line.
    help_string: what it is for.
    whole: for commands that hand the file on to others: `run` refuses to set
      its values one by one.
  """
  holder = config_flags.DEFINE_config_file("config", None, help_string)
  flags.FLAGS["config"].parser = _ConfigParser(whole)
  # Setting a default reads it, overrides and all; `run` refuses these.
  if default is not None and not (whole and _overrides()):
    flags.set_default(holder, default)
  return holder


def _refuse_overrides() -> None:
  if "config" not in flags.FLAGS:
    return
  parser = flags.FLAGS["config"].parser
  if isinstance(parser, _ConfigParser) and parser.whole and _overrides():
    raise ValueError("--config.KEY=VALUE: write a file for --config instead")


def _overrides() -> list[str]:
  """The keys of --config.KEY=VALUE on the command line, right or wrong."""
  argv = flags.FLAGS.read_flags_from_files(sys.argv, force_gnu=False)
  found = (
    re.match(r"--?(?:no)?config\.([^=]+)", word)
    for word in _before_dashes(argv)
  )
  return [m[1] for m in found if m]


class _ConfigParser(flags.ArgumentParser):
  """NAME, FILE or FILE:ARGUMENT → ConfigDict, its overrides checked."""

  syntactic_help = "a configuration"

  def __init__(self, whole: bool):
    self.whole = whole

  def parse(self, argument: str) -> Any:
    tree = config_files.load(argument)
    if self.whole:
      return tree  # `run` refuses all; a default is read on import
    config_files.check_overrides(tree, _overrides())
    return tree

  def flag_type(self) -> str:
    return "config file"


# ------------------------------------------------------------------------ Help


def help_text(entry: Callable[..., Any]) -> str:
  """The docstring of an entry point as it is written, then its flags."""
  module = sys.modules[entry.__module__]
  name = sys.argv[0] if module.__name__ == "__main__" else module.__name__
  own = flags.FLAGS.get_flags_for_module(name)
  lines = [row for flag in sorted(own, key=lambda f: f.name)
           for row in _help_rows(flag)]  # fmt: skip
  shared = _help_rows(flags.FLAGS["compilation_cache"])
  foot = "--helpfull lists the flags of libraries too; --verbosity=1 shows the "
  foot += "traceback of errors."
  return "\n".join([
    (module.__doc__ or "").strip("\n"), "", "flags:", *lines, *shared, "",
    textwrap.fill(foot, _WIDTH),
  ])  # fmt: skip


def _help_rows(flag: flags.Flag) -> list[str]:
  """Name and value, then what it is, at most 80 columns wide."""
  text = re.sub(r"^<[^>]*>: |;\s+repeat this option.*", "", flag.help or "")
  choices = getattr(flag.parser, "enum_values", None)
  if choices:
    text += f" One of: {', '.join(choices)}."
  if flag.default not in (None, "", []) and not flag.boolean:
    text += f" (default: {flag.default_as_str.strip(chr(39))})"
  if flag.boolean:
    return _help_row(f"--[no]{flag.name}", text)
  kinds = {"int": "INT", "float": "NUMBER", "config file": "FILE"}
  kind = "NAME" if choices else kinds.get(flag.parser.flag_type(), "TEXT")
  rows = _help_row(f"--{flag.name}={kind}", text)
  if flag.name == "config" and not flag.parser.whole:
    rows += _help_row("--config.KEY=VALUE", "Sets one of its values.")
  return rows


def _help_row(name: str, text: str) -> list[str]:
  blank, head = " " * _INDENT, f"  {name}"
  rows = textwrap.wrap(text, _WIDTH - _INDENT, break_on_hyphens=False)
  below = [blank + row for row in rows]
  if len(head) > _INDENT - 2 or not rows:
    return [head, *below]
  return [f"{head:<{_INDENT}}{rows[0]}", *below[1:]]


# ------------------------------------------------------------------- Log lines


def speaker() -> Callable[[str], None]:
  """print on process 0, silence elsewhere."""
  if jax.process_index() == 0:
    return lambda line: print(line, flush=True)
  return lambda line: None
