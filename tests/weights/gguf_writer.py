"""Writes small GGUF files, after github.com/ggml-org/ggml docs/gguf.md."""

import struct

import numpy as np

_KINDS = {np.dtype("f4"): 0, np.dtype("f2"): 1}
FIELDS = {
  "general.architecture": "llama",
  "llama.block_count": 2,
  "llama.embedding_length": 24,
  "llama.feed_forward_length": 32,
  "llama.attention.head_count": 4,
  "llama.attention.head_count_kv": 2,
  "llama.attention.layer_norm_rms_epsilon": 1e-5,
  "llama.rope.freq_base": 1e5,
  "llama.rope.dimension_count": 6,
  "tokenizer.ggml.model": "gpt2",
  "tokenizer.ggml.pre": "smollm",
  "tokenizer.ggml.tokens": ["<s>", "<e>", "a", "b", "ab", "1", "\u0120", "x"],
  "tokenizer.ggml.token_type": [3, 3, 1, 1, 1, 1, 1, 4],
  "tokenizer.ggml.merges": ["a b"],
  "tokenizer.ggml.bos_token_id": 0,
  "tokenizer.ggml.eos_token_id": 1,
}


def tensors(seed=0):
  """A Llama of two layers as llama.cpp has it, rows of q and k reordered."""
  rng = np.random.default_rng(seed)
  shapes = {
    "attn_q": (24, 24), "attn_k": (12, 24), "attn_v": (12, 24),
    "attn_output": (24, 24), "ffn_gate": (32, 24), "ffn_up": (32, 24),
    "ffn_down": (24, 32), "attn_norm": (24,), "ffn_norm": (24,),
  }  # fmt: skip
  out = {"token_embd.weight": (8, 24), "output_norm.weight": (24,)}
  for i in range(2):
    out |= {f"blk.{i}.{name}.weight": shape for name, shape in shapes.items()}
  return {k: rng.normal(size=v).astype(np.float32) for k, v in out.items()}


def permuted(x, heads):
  """Rows of queries or keys in llama.cpp's order, from Hugging Face's."""
  halves = x.reshape(heads, 2, len(x) // heads // 2, *x.shape[1:])
  return halves.swapaxes(1, 2).reshape(x.shape)


def write(path, fields, arrays, raw=None):
  """Writes a file.

  Args:
    path: of it.
    fields: key to text, number, or list of either.
    arrays: name to numbers in float32 or float16.
    raw: name to (shape, type number, bytes), of quantised tensors.
  """
  blobs = {
    name: (x.shape, _KINDS[x.dtype], x.tobytes()) for name, x in arrays.items()
  } | (raw or {})
  head = struct.pack("<4sIQQ", b"GGUF", 3, len(blobs), len(fields))
  for key, value in fields.items():
    head += text(key) + typed(value)
  at, data = 0, b""
  for name, (shape, kind, content) in blobs.items():
    head += text(name) + struct.pack("<I", len(shape))
    head += struct.pack(f"<{len(shape)}Q", *shape[::-1])
    head += struct.pack("<IQ", kind, at)
    data += content + bytes(-len(content) % 32)
    at = len(data)
  path.write_bytes(head + bytes(-len(head) % 32) + data)
  return path


def text(value):
  data = value.encode()
  return struct.pack("<Q", len(data)) + data


def typed(value):
  """A value behind the number of its type."""
  if isinstance(value, str):
    return struct.pack("<I", 8) + text(value)
  if isinstance(value, int):
    return struct.pack("<II", 4, value)
  if isinstance(value, float):
    return struct.pack("<If", 6, value)
  kind, *_ = struct.unpack("<I", typed(value[0])[:4])
  items = b"".join(typed(x)[4:] for x in value)
  return struct.pack("<IIQ", 9, kind, len(value)) + items
