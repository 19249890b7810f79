"""SmolLM2 from its GGUF file, ours against transformers.

  python -m tests.parity.smollm2 SmolLM2-135M-Instruct.Q4_1.gguf

Prints how far logits differ in float32, whether tokenizers agree, and a
greedy continuation. transformers reads the file by itself: names, order of
rows and blocks are its own work.
"""

import os
import sys
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
import torch
import transformers

from tests.parity.test_gemma_parity import generate
from tests.weights import helpers
from unifluid_jax.core import checkpoint
from unifluid_jax.data.text import Tokenizer
from unifluid_jax.weights import convert, readers
from unifluid_jax.weights.rows import nested

TEXTS = (
  "The capital of France is Paris, and the capital of Italy is",
  "A red circle and 3 blue squares (2 of them large) aren't far from it.\n"
  "    def area(r):  return 3.14159 * r ** 2   # naïve – ünïcode 你好 🙂",
)
QUESTION = (
  "<|im_start|>user\nWhat is a square? Answer in one sentence.<|im_end|>\n"
  "<|im_start|>assistant\n"
)


def main(path):
  """Converts, compares, continues."""
  with tempfile.TemporaryDirectory() as at:
    to = os.path.join(at, "ours")
    convert.to_checkpoint(f"gguf:{path}", to, print)
    meta = checkpoint.read_meta(to, 0)["weights"]
    tree = nested({
      name.removeprefix("params/decoder/"): source.read(name)
      for source in [readers.open_source(to)]
      for name in source.names()
    })  # fmt: skip
    tokenizer = Tokenizer.load(
      os.path.join(to, "tokenizer.json"), meta["special"]
    )
  config, params = helpers.gemma_config(meta), jax.tree.map(jnp.asarray, tree)
  folder, name = os.path.split(os.path.abspath(path))
  model = transformers.AutoModelForCausalLM.from_pretrained(
    folder, gguf_file=name, dtype=torch.float32, attn_implementation="eager"
  ).eval()
  theirs = transformers.AutoTokenizer.from_pretrained(folder, gguf_file=name)
  for text in TEXTS:
    tokens = tokenizer.encode(text)
    want = theirs(text, add_special_tokens=False)["input_ids"]
    print(
      f"{len(tokens)} tokens, as theirs: {tokens == want}, back to the text: "
      f"{tokenizer.decode(tokens) == text}"
    )
    ids = np.array([tokens])
    with torch.no_grad():
      logits = model(torch.tensor(ids)).logits.numpy()
    _, got = helpers.run_gemma(config, params, ids)
    print(
      f"logits of up to {np.abs(logits).max():.1f}: they differ by "
      f"{helpers.absolute(got, logits):.1e} at most"
    )
  start = np.array([theirs(QUESTION, add_special_tokens=False)["input_ids"]])
  answer = generate(config, params, start, 32)
  print(f"{QUESTION!r} goes on: {tokenizer.decode(answer)!r}")
  continued = tokenizer.encode(TEXTS[0])
  more = generate(config, params, np.array([continued]), 16)
  print(f"{TEXTS[0]!r} goes on: {tokenizer.decode(more)!r}")
  with torch.no_grad():
    want = model.generate(
      torch.tensor(start), attention_mask=torch.ones(start.shape),
      max_new_tokens=32, do_sample=False, eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
  print(f"as theirs: {answer == want[0, start.shape[1] :].tolist()}")


if __name__ == "__main__":
  main(*sys.argv[1:])
