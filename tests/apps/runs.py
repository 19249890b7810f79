"""Runs whose networks draw at once: all but their maths is real."""

import sys

import jax
import jax.numpy as jnp

from configs import debug
from unifluid_jax import api, systems
from unifluid_jax.apps.runs import Example, Run
from unifluid_jax.data import text

SENTENCES = ("a red circle", "two green squares", "what colour is the circle",
             "change it to blue", "yes", "describe")  # fmt: skip


def maker(root):
  """Makes a UniFluid with four cells; the image is as bright as its seed."""
  tokenizer = text.train(SENTENCES, f"{root}/tokenizer.model", 64)
  said = jnp.asarray([tokenizer.encode("yes")])

  def make(name="run", **batch):
    tree = debug.get_config()
    tree.batch.update(batch)
    config = systems.resolve(tree)
    system = systems.build(config)

    def generate(params, frozen, prompts, keys, sampling):
      (seed,) = keys  # of one request
      grey = jnp.float32(jnp.asarray(_seed(seed))) / 127.5 - 1
      return jnp.broadcast_to(grey, (1, 32, 32, 3))

    def stages(params, frozen, prompts, keys, sampling, most):
      whole = generate(params, frozen, prompts, keys, sampling)
      shares = jnp.linspace(1, 0, 4)[None, :, None, None, None]
      return whole[:, None] * (1 - shares) - shares

    def redraw(params, frozen, prompts, keys, sampling, given, again):
      return generate(params, frozen, prompts, keys, sampling)

    def answer(params, frozen, prompts, keys, sampling):
      return said

    for function in (generate, stages, redraw, answer):
      setattr(system, function.__name__, function)
    model = api.Model(config, system, tokenizer, api.jitted({}, {}, 1))
    examples = (Example("a red circle", 7), Example("two green squares", 9))
    return Run(name, model, examples, ("what colour is the circle",))

  return make


def _seed(key):
  """The seed that a key was made of."""
  return jax.random.key_data(key)[-1]


if __name__ == "__main__":  # python -m tests.apps.runs FOLDER: an app of two
  from unifluid_jax.apps import page
  from unifluid_jax.core import interrupt

  interrupt.listen()  # as every command does
  make = maker(sys.argv[1])
  served = page.serve(
    [make("one", edit=8), make("two", edit=8)], "127.0.0.1", None, share=False
  )
  print(served.url, flush=True)
  served.wait()
