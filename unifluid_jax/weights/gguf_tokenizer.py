"""The tokenizer inside a GGUF file, as Hugging Face's tokenizer.json.

Source: llama.cpp src/llama-vocab.cpp, which splits a text by the rules that
`tokenizer.ggml.pre` names, and merges within the parts. Pieces are spelt in the
256 characters that stand for bytes in GPT-2.
"""

from collections.abc import Mapping
from typing import Any

from unifluid_jax.weights.settings import Settings

_AT = "tokenizer.ggml."
_BYTES = {
  "type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True,
  "use_regex": True,
}  # fmt: skip
# Name of a rule → its steps. SmolLM's cuts every digit off first.
_SPLITS: Mapping[str, list[Any]] = {
  "smollm": [{"type": "Digits", "individual_digits": True}, _BYTES],
  "gpt-2": [_BYTES],
}
_CONTROL, _USER_DEFINED = 3, 4  # of token_type


def special(content: Settings) -> dict[str, str]:
  """Our name of a special token → its piece, for `config.text.special`.

  Raises:
    WeightsError: an id that no piece has.
  """
  pieces, found = _pieces(content), {}
  for theirs, ours in (("bos", "bos"), ("eos", "eos"), ("unknown", "unk")):
    key = f"{_AT}{theirs}_token_id"
    place = content.tree.get(key)
    if place is None:
      continue
    if type(place) is not int or not 0 <= place < len(pieces):
      raise content.error(key, f"an id below {len(pieces)}")
    found[ours] = pieces[place]
  return found


def tokenizer(content: Settings) -> dict[str, Any]:
  """The content of tokenizer.json.

  Raises:
    WeightsError: not byte-level merges, or a rule of splitting that is not
      known here.
  """
  if content.tree.get(f"{_AT}model") != "gpt2":
    raise content.error(f"{_AT}model", "gpt2 (byte-level merges)")
  rule = content.tree.get(f"{_AT}pre")
  if not isinstance(rule, str) or rule not in _SPLITS:
    raise content.error(f"{_AT}pre", f"one of {', '.join(_SPLITS)}")
  pieces = _pieces(content)
  kinds = content.tree.get(f"{_AT}token_type")
  if not isinstance(kinds, list) or len(kinds) != len(pieces):
    raise content.error(f"{_AT}token_type", f"{len(pieces)} numbers")
  added = [
    {
      "id": i, "content": piece, "single_word": False, "lstrip": False,
      "rstrip": False, "normalized": False, "special": kind == _CONTROL,
    }
    for i, (piece, kind) in enumerate(zip(pieces, kinds, strict=True))
    if kind in (_CONTROL, _USER_DEFINED)
  ]  # fmt: skip
  return {
    "version": "1.0",
    "truncation": None,
    "padding": None,
    "added_tokens": added,
    "normalizer": None,
    "pre_tokenizer": {"type": "Sequence", "pretokenizers": _SPLITS[rule]},
    "post_processor": None,
    "decoder": _BYTES,
    "model": {
      "type": "BPE",
      "dropout": None,
      "unk_token": special(content).get("unk"),
      "continuing_subword_prefix": None,
      "end_of_word_suffix": None,
      "fuse_unk": False,
      "byte_fallback": False,
      "vocab": {piece: i for i, piece in enumerate(pieces)},
      "merges": _merges(content),
    },
  }


def _pieces(content):
  pieces = _texts(content, f"{_AT}tokens")
  if len(set(pieces)) != len(pieces):
    raise content.error(f"{_AT}tokens", "pieces that differ")
  return pieces


def _merges(content):
  merges = _texts(content, f"{_AT}merges")
  if any(merge.count(" ") != 1 for merge in merges):
    raise content.error(f"{_AT}merges", "two pieces each")
  return merges


def _texts(content, key):
  found = content.tree.get(key)
  if not isinstance(found, list) or not all(isinstance(x, str) for x in found):
    raise content.error(key, "a list of texts")
  return found
