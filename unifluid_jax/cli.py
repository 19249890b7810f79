"""What the entry points share: flags, help, errors in one line, log lines."""

import errno
import os
import re
import sys
import textwrap
from collections.abc import Callable, Sequence
from typing import Any

import jax
from absl import app, flags, logging
from ml_collections import config_flags

from unifluid_jax import compile_cache, config_files, interrupt

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
_WIDTH = 80

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
    with _one_line(argv):
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
    with _one_line(sys.argv):
      if caches and _CACHE.value:
        compile_cache.enable()
      return entry(argv)

  app.run(guarded, flags_parser=parsed)


class _one_line:  # noqa: N801, used as a function
  """Turns the errors of users into one line on stderr and status 1."""

  def __init__(self, argv: Sequence[str]):
    self._verbose = any(
      re.fullmatch(r"--?(v|verbosity)=[1-9]\d*", word)
      for word in _before_dashes(argv)
    )

  def __enter__(self) -> None:
    pass

  def __exit__(self, kind, error, traceback) -> None:
    if isinstance(error, BrokenPipeError):
      # The reader of our output has left: nothing to tell anybody.
      os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
      raise SystemExit(1) from error
    if isinstance(error, (flags.Error, *USER_ERRORS)) and not self._verbose:
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
    return f"unknown flag --{name}: {config_files.nearest(name, _flags())}" + (
      "--help lists the flags"
    )
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


def _flags() -> list[str]:
  return list(flags.FLAGS)


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
) -> flags.FlagHolder:
  """Defines --config and, for each key, --config.KEY.

  Args:
    default: name or file, as on the command line.
    help_string: what it is for.
  """
  holder = config_flags.DEFINE_config_file("config", None, help_string)
  flags.FLAGS["config"].parser = _ConfigParser()
  if default is not None:
    flags.set_default(holder, default)
  return holder


class _ConfigParser(flags.ArgumentParser):
  """NAME, FILE or FILE:ARGUMENT → ConfigDict, its overrides checked."""

  syntactic_help = "a configuration"

  def parse(self, argument: str) -> Any:
    tree = config_files.load(argument)
    argv = flags.FLAGS.read_flags_from_files(sys.argv, force_gnu=False)
    found = (
      re.match(r"--?(?:no)?config\.([^=]+)", word)
      for word in _before_dashes(argv)
    )
    config_files.check_overrides(tree, [m[1] for m in found if m])
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
  name, text = f"--{flag.name}", flag.help or ""
  choices = getattr(flag.parser, "enum_values", None)
  kinds = {"int": "=INTEGER", "float": "=NUMBER", "config file": "=FILE"}
  if flag.boolean:
    name = f"--[no]{flag.name}"
  else:
    name += kinds.get(flag.parser.flag_type(), "=TEXT")
  if choices:
    name = f"--{flag.name}=NAME"
    text += f" One of: {', '.join(choices)}."
  if isinstance(flag, flags.MultiFlag):
    text = text.rstrip(".") + "."
  if flag.default not in (None, "", [], False, True):
    text += f" (default: {flag.default_as_str.strip(chr(39))})"
  indent = 24
  rows = textwrap.wrap(text, _WIDTH - indent, break_on_hyphens=False) or [""]
  head = f"  {name}"
  if len(head) > indent - 2:
    return [head, *(" " * indent + row for row in rows)]
  return [
    f"{head:<{indent}}{rows[0]}",
    *(" " * indent + row for row in rows[1:]),
  ]


# ------------------------------------------------------------------- Log lines


def speaker() -> Callable[[str], None]:
  """print on process 0, silence elsewhere."""
  if jax.process_index() == 0:
    return lambda line: print(line, flush=True)
  return lambda line: None
