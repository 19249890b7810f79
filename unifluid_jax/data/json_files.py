"""JSON that strangers wrote: parsed whole, or refused in one line."""

import json
import os
from typing import Any

from etils import epath

from unifluid_jax.core import files

MAX_BYTES = 1 << 29  # of a file; what it holds takes several times that


def parse(data: str | bytes) -> Any:
  """What a text holds; bytes may be UTF-8, -16 or -32.

  Raises:
    ValueError: no JSON; one line.
  """
  try:
    return json.loads(data)
  except UnicodeDecodeError as error:  # whose text is better not its repr
    raise ValueError(f"not in UTF-8 ({error.reason})") from error
  except ValueError as error:
    raise ValueError(f"not JSON ({error})") from error
  except RecursionError as error:
    raise ValueError("not JSON of use (nested too deeply)") from error


def load(
  path: str | os.PathLike[str],
  hint: str = "download it again",
  limit: int = MAX_BYTES,
) -> Any:
  """What a file holds.

  Args:
    path: a file that exists.
    hint: what to do about a broken one.
    limit: bytes of the file at most.

  Raises:
    ValueError: unreadable, too large or no JSON; names the file and the fix.
  """
  data = read(path, limit)
  try:
    return parse(data)
  except ValueError as error:
    raise ValueError(f"{os.fspath(path)} is {error}: {hint}") from error


def read(path: str | os.PathLike[str], limit: int = MAX_BYTES) -> bytes:
  """The bytes of a file of annotations, `limit` at most.

  Raises:
    ValueError: unreadable or too large; names the file.
  """
  try:
    files.check_regular(path)
    size = epath.Path(path).stat().length
    if size > limit:
      raise ValueError(
        f"{os.fspath(path)} has {size} bytes, at most {limit} are read "
        "whole: cut it into parts, or convert it to JSONL"
      )
    return epath.Path(path).read_bytes()
  except OSError as error:
    raise ValueError(f"{os.fspath(path)} cannot be read: {error}") from error


def text(value: Any, name: str) -> str:
  """A text.

  Raises:
    ValueError: anything else, or half of a surrogate pair: no tokenizer, file
      or terminal takes that.
  """
  if not isinstance(value, str):
    raise ValueError(f"{name} is {type(value).__name__}, not a text")
  try:
    value.encode()
  except UnicodeEncodeError as error:
    raise ValueError(f"{name} holds a lone surrogate: no text") from error
  return value
