"""Texts as UniFluid's fields lay them out, in slots of any length."""

import dataclasses

from configs import debug
from unifluid_jax import systems

_INPUTS = systems.build(systems.resolve(debug.get_config())).inputs


def prompt(tokenizer, text, length):
  """What is to be drawn; None: the null condition."""
  return _row(_INPUTS["t2i"]["prompt"], tokenizer, text, length)


def prefix(tokenizer, text, length):
  """A question; None: nothing is asked."""
  return _row(_INPUTS["i2t"]["prefix"], tokenizer, text, length)


def suffix(tokenizer, text, length):
  """An answer."""
  return _row(_INPUTS["i2t"]["suffix"], tokenizer, text, length)


def _row(field, tokenizer, text, length):
  return dataclasses.replace(field, length=length).row(tokenizer, text)
