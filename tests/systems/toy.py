"""A fifth system: one causal model of words and of colours, one vocabulary.

An image is a grid of cells, each the nearest of K colours; their codes are
the vocabulary's last rows but one, which begins an image. Dialogues are plain
causal. All that a system brings stands in this file.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, PRNGKeyArray

from unifluid_jax.codecs import copies
from unifluid_jax.core import presets, ranges
from unifluid_jax.core.config import Config, option
from unifluid_jax.core.freeze import need
from unifluid_jax.core.parameter_rows import Row
from unifluid_jax.core.ranges import AMOUNT, COUNT, DECAY, POSITIVE, below
from unifluid_jax.core.types import (
  EOS,
  Batch,
  Metrics,
  Params,
  Part,
  SystemSpec,
)
from unifluid_jax.data.dialogue import Dialogue
from unifluid_jax.data.fields import Cached, Field, Text
from unifluid_jax.models import decoder
from unifluid_jax.ops import sampling as sampling_ops
from unifluid_jax.ops.cross_entropy import chunked_cross_entropy
from unifluid_jax.systems.common import (
  cost,
  embed,
  interleaved,
  networks,
  packing,
  text_decode,
  token_loss,
)
from unifluid_jax.systems.common import text_loss as texts

Fields = Mapping[str, Any]  # name → array [B, ...] of one task


@dataclasses.dataclass(frozen=True)
class ModelConfig:
  """The networks."""

  decoder: presets.DecoderConfig
  codec_path: str
  image_size: int
  cell: int  # pixels a side
  colours: int  # K

  @property
  def image_tokens(self) -> int:
    """N."""
    return (self.image_size // self.cell) ** 2

  @property
  def first_code(self) -> int:
    """Rows before it are the tokenizer's, K are codes, the last is BOI."""
    return self.decoder.vocab - self.colours - 1


@dataclasses.dataclass(frozen=True)
class LossConfig:
  """The objective."""

  prompt_dropout: float
  vocab_chunk: int
  label_smoothing: float = 0.0
  text_mean: Literal["tokens", "answers"] = "tokens"


@dataclasses.dataclass(frozen=True)
class SamplingConfig:
  """How images and text are drawn."""

  cfg: float = option("images")
  temperature: float = option("images")
  text: Literal["greedy", "sample"] = option("text")
  text_temperature: float = option("text", default=1.0)
  top_k: int = option("text", default=0)
  top_p: float = option("text", default=1.0)
  seed: int = 0


class ColourCodec:
  """A `types.ImageCodec`; weights {"colours": f32[K, 3]}."""

  fit = "crop"
  path_key = "config.model.codec_path"
  file_dtype = np.uint16
  measured = False

  def __init__(self, m: ModelConfig):
    """Reads nothing."""
    self._model = m
    self.path, self.size, self._cell = m.codec_path, m.image_size, m.cell
    self._colours, self._side = m.colours, m.image_size // m.cell
    self.cache = jax.ShapeDtypeStruct((m.image_tokens,), np.int32)
    self.sizes = ()

  def shapes(self) -> Params:
    """See `types.ImageCodec`, as all that follow."""
    return {"colours": jax.ShapeDtypeStruct((self._colours, 3), np.float32)}

  def load(self) -> Params:
    return copies.restore(self.path, "codec", self.shapes(), self._model)

  weights = load

  def digest(self, frozen: Params) -> str:
    return copies.digest(frozen)

  def identity(self, frozen: Params) -> dict[str, Any]:
    return {"weights": self.digest(frozen)}

  def saved(self, frozen: Params) -> tuple[Params, dict[str, Any]]:
    return {"codec": dict(frozen)}, {}

  def encode(
    self, frozen: Params, images: Float[Array, "B H W 3"]
  ) -> Int[Array, "B N"]:
    cut = (-1, self._side, self._cell, self._side, self._cell, 3)
    means = images.reshape(cut).mean((2, 4)).reshape(len(images), -1, 1, 3)
    distance = jnp.square(means - frozen["colours"]).sum(-1)
    return jnp.argmin(distance, axis=-1).astype(jnp.int32)

  def tokens(
    self, frozen: Params, cached: Int[Array, "B N"], key: Any
  ) -> Int[Array, "B N"]:
    del frozen, key
    return cached

  def decode(
    self, frozen: Params, tokens: Int[Array, "B N"]
  ) -> Float[Array, "B H W 3"]:
    cells = frozen["colours"][tokens].reshape(-1, self._side, self._side, 3)
    return cells.repeat(self._cell, axis=1).repeat(self._cell, axis=2)

  def reconstruct(
    self, frozen: Params, images: Float[Array, "B H W 3"]
  ) -> Float[Array, "B H W 3"]:
    return self.decode(frozen, self.encode(frozen, images))


class Toy:
  """A `types.Generator`; it counts the codes that it has been shown."""

  parts = {"decoder": decoder.ROWS, "counts": (Row("codes", (None,)),)}
  held = ("counts",)

  def __init__(self, config: Config):
    """Builds the network; no arrays are made here."""
    self.config = config
    self.decoder = decoder.Decoder(
      config.model.decoder, jnp.float32, scan=False
    )
    self.codec = ColourCodec(config.model)
    self.inputs = _inputs(config, self.codec)
    self.boi = config.model.decoder.vocab - 1
    part = Part(self.codec.shapes, self.codec.load, exact=True)
    self.frozen = {"codec": part}

  def init(self, key: PRNGKeyArray) -> Params:
    x = jnp.zeros((1, 1, self.config.model.decoder.width))
    position, mask = jnp.zeros((1, 1), jnp.int32), jnp.ones((1, 1, 1), bool)
    return {
      "decoder": self.decoder.init(key, x, position, mask)["params"],
      "counts": {"codes": jnp.zeros(self.config.model.colours)},
    }

  def cost(self) -> cost.StepCost:
    c, n = self.config, self.config.model.image_tokens
    drawn, said = c.text.prompt + n, c.text.prefix + c.text.suffix - 1
    tasks = {
      "t2i": cost.Sequences(c.batch.get("t2i", 0), drawn, logits=n),
      "i2t": cost.Sequences(
        c.batch.get("i2t", 0), n + said, logits=c.text.suffix
      ),
      "dialogue": cost.Sequences(
        c.batch.get("dialogue", 0), c.text.dialogue, logits=c.text.dialogue
      ),
    }
    return cost.step_cost(
      c.model.decoder, None, tasks, "plain", "none", c.accumulate
    )

  def counts(self, batch: Batch) -> dict[str, Any]:
    rows = len(batch["t2i"]["prompt"]) if "t2i" in batch else 0
    turns = batch["dialogue"]["row.target"] if "dialogue" in batch else None
    return {
      "image_tokens": rows * self.config.model.image_tokens,
      "turn_tokens": 0 if turns is None else jnp.maximum(turns.sum(), 1),
      **texts.counts(batch),
    }

  def loss(
    self,
    params: Params,
    frozen: Params,
    batch: Batch,
    counts: Mapping[str, Any],
    key: PRNGKeyArray,
    step: int | Int[Array, ""],
  ) -> tuple[Float[Array, ""], Metrics, Params]:
    """Cross entropies of codes, of answers, of dialogues; codes shown."""
    tasks, images, answers = [], [], []
    seen = jnp.zeros(self.config.model.colours)
    if "t2i" in batch:
      fields = batch["t2i"]
      codes = self.codec.tokens(frozen["codec"], fields["image"], None)
      drop = jax.random.uniform(key, (len(codes), 1))
      drop = drop < self.config.loss.prompt_dropout
      null = packing.null_prompt(fields["prompt"])
      prompt = jnp.where(drop, null, fields["prompt"])
      ids = self._ids(codes)
      tasks.append(self._drawn(params, {"prompt": prompt}, ids))
      images.append((0, ids))
      seen = seen.at[codes].add(1)
    if "i2t" in batch:
      fields = batch["i2t"]
      answers.append((len(tasks), fields["suffix"]))
      tasks.append(self._answered(params, fields))
      seen = seen.at[fields["codes"]].add(1)
    if "dialogue" in batch:
      fields, rows = batch["dialogue"], self._turns(batch["dialogue"])
      tasks.append(self._causal(params, rows))
      colours = jnp.clip(rows - self.config.model.first_code, 0)
      seen = seen.at[colours].add(fields["row.cell"] >= 0)
    hidden, c = packing.hidden_states(self.decoder, params, tasks), self.config
    table = decoder.output_table(params["decoder"])
    total, metrics = jnp.float32(0), {}
    if images:
      (h,), (ids,) = packing.read_out(hidden, tasks, images)
      nll, hits, *_ = chunked_cross_entropy(
        lambda x: decoder.logits(c.model.decoder, table, x),
        h, ids, c.loss.vocab_chunk,
      )  # fmt: skip
      nll = packing.weigh(nll, [batch["t2i"]])
      total = nll.sum() / counts["image_tokens"]
      hits = hits.sum() / counts["image_tokens"]
      metrics = {"loss_image": total, "image_accuracy": hits}
    if answers:
      read = packing.read_out(hidden, tasks, answers)
      text, more = texts.text_loss(
        c.model.decoder, table, *read, counts, c.loss
      )
      total, metrics = total + text, metrics | more
    if "dialogue" in batch:
      found = token_loss.token_losses(
        c.model.decoder, table, hidden[-1][:, : rows.shape[1] - 1],
        interleaved.targets(fields, rows)[:, 1:], c.loss.vocab_chunk,
      )  # fmt: skip
      turns, hits = (x.sum() / counts["turn_tokens"] for x in found[:2])
      more = {"loss_dialogue": turns, "dialogue_accuracy": hits}
      total, metrics = total + turns, metrics | more
    return total, metrics, {"codes": seen}

  def revise(
    self, params: Params, seen: Any, key: PRNGKeyArray, step: Any
  ) -> Params:
    return params | {"counts": jax.tree.map(jnp.add, params["counts"], seen)}

  def generate(
    self, params: Params, frozen: Params, prompts: Batch,
    keys: Key[Array, "B"], sampling: Any,
  ) -> Float[Array, "B H W 3"]:  # fmt: skip
    ((_, fields),) = prompts.items()
    codes = self.draw(params, fields, keys, sampling)
    return self.codec.decode(frozen["codec"], codes)

  def answer(
    self, params: Params, frozen: Params, prompts: Batch,
    keys: Key[Array, "B"], sampling: Any,
  ) -> Int[Array, "B A"]:  # fmt: skip
    ((task, fields),) = prompts.items()
    if turns := task == "dialogue":
      packed = self._causal(params, self._turns(fields))
    else:
      packed = self._prompt(params, fields)
    ends = (EOS, self.boi) if turns else (EOS,)
    return text_decode.answer(
      self.decoder, params, packed, self.config.text.suffix, sampling, keys,
      ends,
    )  # fmt: skip

  def score(
    self, params: Params, frozen: Params, prompts: Batch
  ) -> Float[Array, "B"]:
    suffix, c = prompts["i2t"]["suffix"], self.config
    tasks = [self._answered(params, prompts["i2t"])]
    hidden = packing.hidden_states(self.decoder, params, tasks)
    (states,), _ = packing.read_out(hidden, tasks, [(0, suffix)])
    return texts.log_likelihood(
      c.model.decoder, decoder.output_table(params["decoder"]), states,
      suffix, c.loss.vocab_chunk,
    )  # fmt: skip

  def reconstruct(
    self, params: Params, frozen: Params, images: Float[Array, "B H W 3"]
  ) -> Float[Array, "B H W 3"]:
    return self.codec.reconstruct(frozen["codec"], images)

  def draw(
    self, params: Params, fields: Fields, keys: Key[Array, "B"], sampling: Any
  ) -> Int[Array, "B N"]:
    """Codes in raster order; prompts and null prompts run in one batch."""
    m, turns = self.config.model, "prompt" not in fields
    prompts = [self._turns(fields) if turns else fields["prompt"]]
    if sampling.cfg != 1:
      prompts.append(packing.null_prompt(prompts[0]))
    ids = jnp.concatenate(prompts)
    packed = self._causal(params, ids) if turns else self._prompt(
      params, {"prompt": ids})  # fmt: skip
    start, n = packed.x.shape[1], m.image_tokens
    cache, _ = text_decode.prefill(self.decoder, params, packed, n)
    valid = jnp.pad(packed.valid, ((0, 0), (0, n)))
    offset, slots = packed.valid.sum(1), jnp.arange(start + n)

    def step(carry, i):
      cache, token = carry
      token = jnp.concatenate([token] * len(prompts))[:, None]
      hidden, cache = self.decoder.apply(
        {"params": params["decoder"]},
        embed.text(self.decoder, params, token),
        (offset + i)[:, None],
        (valid | ((slots >= start) & (slots <= start + i)))[:, None],
        cache,
        start + i,
      )
      row_keys = jax.vmap(lambda k: jax.random.fold_in(k, i))(keys)
      code = self.pick(params, hidden[:, 0], row_keys, sampling)
      return (cache, self._ids(code)), code

    boi = jnp.full(len(keys), self.boi, jnp.int32)
    _, codes = jax.lax.scan(step, (cache, boi), jnp.arange(n))
    return codes.T

  def pick(
    self, params: Params, hidden: Float[Array, "R D"], keys: Any, sampling: Any
  ) -> Int[Array, "B"]:
    """Codes drawn from states, those of null prompts after the others."""
    m = self.config.model
    table = decoder.output_table(params["decoder"])
    table = table[m.first_code : m.first_code + m.colours]
    scores = decoder.logits(m.decoder, table, hidden)
    if sampling.cfg != 1:
      scores = sampling_ops.guide(*jnp.split(scores, 2), sampling.cfg)
    return sampling_ops.pick_token(keys, scores, sampling.temperature)

  def _turns(self, fields: Fields) -> Int[Array, "B T"]:
    return interleaved.ids(fields, self._ids)

  def _causal(self, params: Params, ids: Int[Array, "B T"]) -> packing.Packed:
    x = embed.text(self.decoder, params, ids)
    return packing.causal_sequence(x, packing.text_valid(ids))

  def _ids(self, codes: Int[Array, "*rows"]) -> Int[Array, "*rows"]:
    return self.config.model.first_code + codes

  def _prompt(self, params: Params, fields: Fields) -> packing.Packed:
    """What is seen, if anything, then the text: all see one another."""
    ids = [fields["prompt"] if "prompt" in fields else fields["prefix"]]
    if "codes" in fields:
      ids.insert(0, self._ids(fields["codes"]))
    ids = jnp.concatenate(ids, axis=1)
    x = embed.text(self.decoder, params, ids)
    return packing.prefix(x, packing.text_valid(ids))

  def _answered(self, params: Params, fields: Fields) -> packing.Packed:
    """A question, and its answer but for the last word."""
    fed = fields["suffix"][:, :-1]
    x = embed.text(self.decoder, params, fed)
    x = packing.causal(x, packing.text_valid(fed))
    return packing.join([self._prompt(params, fields), x])

  def _drawn(self, params: Params, fields: Fields, ids: Any) -> packing.Packed:
    """A prompt, BOI and all codes but the last."""
    boi = jnp.full((len(ids), 1), self.boi)
    fed = jnp.concatenate([boi, ids[:, :-1]], axis=1)
    x = embed.text(self.decoder, params, fed)
    x = packing.causal(x, packing.all_valid(x))
    return packing.join([self._prompt(params, fields), x])


def _inputs(config: Config, codec: ColourCodec) -> dict[str, dict[str, Field]]:
  text, data, of = config.text, config.data, codec.cache
  drawn = Cached("drawn", of.shape, of.dtype, codec.size, codec.fit,
                 file=data.has_cache("t2i"), target=True)  # fmt: skip
  seen = dataclasses.replace(
    drawn, role="seen", file=data.has_cache("i2t"), target=False
  )
  suffix = Text("suffix", text.suffix, after=("eos",), align="left",
                target=True)  # fmt: skip
  prefix = Text("prefix", text.prefix, ("bos",), ("newline",))
  return {
    "t2i": {"prompt": Text("prompt", text.prompt, ("bos",)), "image": drawn},
    "i2t": {"codes": seen, "prefix": prefix, "suffix": suffix},
    "dialogue": {
      interleaved.FIELD: Dialogue(
        text.dialogue,
        of.shape[0],
        codec.size,
        codec.fit,
        file=data.has_cache("dialogue"),
      ),  # fmt: skip
    },
  }


def _check(config: Config, mesh: Any = None) -> None:
  m = config.model
  networks.check_special(config.text.special, m.decoder.vocab)
  networks.check_decoder(m.decoder)
  need(
    m.image_size % m.cell == 0,
    f"model.image_size={m.image_size} must be a multiple of "
    f"model.cell={m.cell}",
  )
  need(
    m.first_code > 0,
    f"model.decoder.vocab={m.decoder.vocab} holds {m.colours} colours, BOI "
    "and no text: raise it",
  )


def _check_sampling(config: Config, sampling: SamplingConfig, task: str):
  if sampling.cfg != 1 and not config.loss.prompt_dropout:
    raise ValueError(f"cfg={sampling.cfg}: trained without prompt_dropout")


SPEC = SystemSpec(
  model=ModelConfig,
  loss=LossConfig,
  sampling=SamplingConfig,
  ranges=(
    *ranges.DECODER,
    *ranges.ANSWERS,
    ranges.Row(below("text", "prompt prefix suffix"), COUNT),
    ranges.Row(below("model", "image_size cell colours"), COUNT),
    ranges.Row("loss.vocab_chunk", COUNT),
    ranges.Row(below("loss", "prompt_dropout label_smoothing"), DECAY),
    ranges.Row("sampling.cfg", AMOUNT),
    ranges.Row("sampling.temperature", POSITIVE),
  ),
  tasks=("t2i", "i2t", "dialogue"),
  check=_check,
  check_sampling=_check_sampling,
  migrate=dict,
  summary=lambda config: {
    "colours": f"{config.model.image_tokens} cells of {config.model.colours}"
  },
  losses={"loss_image": "L_image (nats)", "loss_text": "L_text (nats)"},
  build=Toy,
  codec_path="codec_path",
  text_rows=lambda config: config.model.first_code,
)
