"""UniFluid: one decoder for continuous image tokens and discrete text.

Paper: UniFluid (arXiv 2503.13436) §3 and §4. What it leaves open follows
PaliGemma (projector, text layout), RAR (position tables) and MAR (head).
"""

import functools
import math
import operator
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int, Key, PRNGKeyArray

from unifluid_jax.codecs.kl_vae import KlVaeCodec
from unifluid_jax.core import parallel
from unifluid_jax.core.config import Config
from unifluid_jax.core.types import (
  Batch,
  Metrics,
  Params,
  Part,
  SystemSpec,
)
from unifluid_jax.models import decoder, diffusion_head, token_head
from unifluid_jax.models.vit import Vit
from unifluid_jax.ops import order, sampling
from unifluid_jax.systems import unifluid_config, unifluid_sampling
from unifluid_jax.systems.common import (
  continuous_decode,
  cost,
  embed,
  head_targets,
  packing,
  text_decode,
)
from unifluid_jax.systems.common import text_loss as texts

Fields = Mapping[str, Any]  # name → array [B, ...] of one task


class UniFluid:
  """The System of `config.system == "unifluid"`."""

  parts = unifluid_config.PARTS

  def __init__(self, config: Config):
    """Builds the networks; no arrays are made here."""
    m = config.model
    self.config = config
    dtype = jnp.dtype(m.dtype)
    self.decoder = decoder.Decoder(
      m.decoder, dtype, m.remat, m.scan, m.attention
    )
    self.vit = Vit(m.vit, dtype, m.remat, m.scan)
    # Attention of the vision encoder in training. The other fused kernels
    # take masks only, or were not timed with its heads.
    self.vit_kernel = "mosaic" if m.attention == "mosaic" else "plain"
    self.tokens = token_head.build(m.head, m.token_channels, dtype)
    self.head = self.tokens.net
    self.held = ("teacher",) if self.tokens.taught else ()
    self.codec = KlVaeCodec(
      m.vae, m.vae_path, m.image_size, m.patch, m.latent_std, dtype
    )
    self.project = nn.Dense(
      m.decoder.width, dtype=dtype, kernel_init=nn.initializers.zeros
    )
    self.embed_token = nn.Dense(m.decoder.width, dtype=dtype)
    self.inputs = unifluid_config.inputs(config, self.codec)
    self.special, self.grid = unifluid_config.special_ids(config), (m.grid,) * 2
    # Runs on text and understanding alone need no codec.
    draws = any(config.batch.get(t) and "image" in f
                for t, f in self.inputs.items())  # fmt: skip
    codec = Part(self.codec.shapes, self.codec.load)
    self.frozen = {"codec": codec} if draws else {}

  # ------------------------------------------------------------- parameters

  def init(self, key: PRNGKeyArray) -> Params:
    """Fresh float32 parameters; see the System protocol."""
    m = self.config.model
    keys = jax.random.split(key, 7)
    width, pixels = m.decoder.width, m.vit.image_size
    x, position = jnp.zeros((1, 1, width)), jnp.zeros((1, 1), jnp.int32)
    tokens = jnp.zeros((1, m.token_channels))
    table = nn.initializers.truncated_normal(0.02)

    def fresh(network, key, *inputs):
      return network.init(key, *inputs)["params"]

    head = fresh(self.head, key, *self.tokens.inputs(width))
    return dict.fromkeys(("head", *self.held), head) | {
      "decoder": fresh(
        self.decoder, keys[0], x, position, jnp.ones((1, 1, 1), bool)
      ),
      "vit": fresh(self.vit, keys[1], jnp.zeros((1, pixels, pixels, 3))),
      "projector": fresh(self.project, keys[2], jnp.zeros((1, m.vit.width))),
      "image": {
        "in": fresh(self.embed_token, keys[3], tokens),
        "position": table(keys[4], (m.image_tokens, width)),
        "next_position": table(keys[5], (m.image_tokens, width)),
        "boi": table(keys[6], (width,)),
      },
    }

  def cost(self) -> cost.StepCost:
    """Tokens and FLOPs of one step; the frozen VAE is not counted."""
    return unifluid_config.step_cost(self.config)

  # -------------------------------------------------------------- embedding

  def embed_tokens(
    self, params: Params, x: Float[Array, "B n C"]
  ) -> Float[Array, "B n D"]:
    """Image tokens without their positions."""
    return self.embed_token.apply({"params": params["image"]["in"]}, x)

  def embed_image(
    self, params: Params, x: Float[Array, "B N C"], cells: Int[Array, "B N"]
  ) -> Float[Array, "B N D"]:
    """Inputs that predict the tokens of `cells` in that order.

    Slot 0 is BOI; slot i carries token i-1 and its position. Every slot also
    carries the position of the token that it predicts (UniFluid §3.2, RAR).
    """
    table = params["image"]
    tokens = self.embed_tokens(params, parallel.constrain(x[:, :-1], "BTC"))
    position = parallel.gather(table["position"], None, "fsdp")
    tokens = tokens + order.current(position, cells)
    boi = jnp.broadcast_to(table["boi"], (x.shape[0], 1, tokens.shape[-1]))
    inputs = jnp.concatenate([boi.astype(tokens.dtype), tokens], axis=1)
    coming = parallel.gather(table["next_position"], None, "fsdp")
    inputs = inputs + order.next(coming, cells).astype(inputs.dtype)
    return parallel.constrain(inputs, "BTD")

  def prompt_parts(
    self,
    params: Params,
    frozen: Params,
    fields: Fields,
    kernel: str = "plain",
  ) -> packing.Packed:
    """The bidirectional prefix of an example: images, then the text.

    Args:
      params: all parameters.
      frozen: the VAE, for sources that are shown as tokens too.
      fields: "prompt" or "prefix"; "seen" and "source" where an image is
        looked at or edited.
      kernel: of the vision encoder's attention.
    """
    parts = []
    if "seen" in fields:
      x = embed.pixels(self.vit, self.project, params, fields["seen"], kernel)
      parts.append(packing.prefix(x, packing.all_valid(x)))
    if "source" in fields:
      x = self.codec.tokens(frozen["codec"], fields["source"], None)
      position = params["image"]["position"].astype(self.decoder.dtype)
      x = self.embed_tokens(params, x) + position
      parts.append(packing.prefix(x, packing.all_valid(x)))
    text = fields["prompt"] if "prompt" in fields else fields["prefix"]
    x = embed.text(self.decoder, params, text)
    parts.append(packing.prefix(x, packing.text_valid(text)))
    return packing.join(parts)

  # ------------------------------------------------------------------- loss

  def counts(self, batch: Batch) -> dict[str, Any]:
    """Image tokens, answer tokens and answers; see `System.counts`."""
    drawn = sum(len(f["prompt"]) for f in batch.values() if "prompt" in f)
    image_tokens = drawn * self.config.model.image_tokens
    return {"image_tokens": image_tokens, **texts.counts(batch)}

  def loss(
    self,
    params: Params,
    frozen: Params,
    batch: Batch,
    counts: Mapping[str, Any],
    key: PRNGKeyArray,
    step: int | Int[Array, ""],
  ) -> tuple[Float[Array, ""], Metrics, Params]:
    """L = L_visual + lambda * L_text over one backbone pass (UniFluid §4.1)."""
    keys = jax.random.split(key, 5)
    c = self.config.loss
    params = embed.cast_embedding(params, self.decoder.dtype)
    r = order.randomness(step, c.random_until, c.raster_from, c.random_share)
    tasks, images, rows, answers = [], [], [], []
    # A teacher's guidance needs both conditions of each row.
    dropouts = (0.0, 1.0) if self.tokens.taught else (c.prompt_dropout,)
    for i, task in enumerate(("t2i", "edit")):
      if task in batch:
        rows.append(batch[task])
        for p in dropouts:
          row = self._pack_image(params, frozen, batch[task], keys[i], r, p)
          images.append((len(tasks), row[1]))
          tasks.append(row[0])
    for i, task in enumerate(("i2t", "text")):
      if task in batch:
        answers.append((len(tasks), batch[task]["suffix"]))
        k = jax.random.fold_in(keys[4], i)
        tasks.append(self._pack_answer(params, batch[task], k))
    hidden = packing.hidden_states(self.decoder, params, tasks, keys[2])
    total, metrics = jnp.float32(0), {}
    if images:
      total, metrics = self._visual_loss(
        params, packing.read_out(hidden, tasks, images), rows, counts, keys[3]
      )
      drawn = self.counts(batch)["image_tokens"]
      metrics["order_randomness"] = r * (drawn / counts["image_tokens"])
    if answers:
      text, more = texts.text_loss(
        self.config.model.decoder, decoder.output_table(params["decoder"]),
        *packing.read_out(hidden, tasks, answers), counts, c,
      )  # fmt: skip
      metrics |= more
      total = total + c.text_weight * text
    return total, metrics, {}

  def revise(
    self, params: Params, seen: Any, key: PRNGKeyArray, step: Any
  ) -> None:
    """Gradients alone change parameters."""

  def _pack_image(
    self,
    params: Params,
    frozen: Params,
    fields: Fields,
    key: PRNGKeyArray,
    r: float | Float[Array, ""],
    p: float,
  ) -> tuple[packing.Packed, Float[Array, "B N C"]]:
    """A row, its prompt dropped with probability p, and what it predicts."""
    c = self.config.loss
    k_latent, k_order, k_drop = jax.random.split(key, 3)
    x = self.codec.tokens(frozen["codec"], fields["image"], k_latent)
    b, n, _ = x.shape
    cells = order.sample_orders(k_order, b, n, r, c.order, c.passes)
    x = order.take_tokens(x, cells)
    # One draw for both: with equal rates p of edits, p/2 lose their text
    # alone, p/2 their source alone, p/2 both, as InstructPix2Pix trains.
    u = jax.random.uniform(k_drop, (b, 1))
    text = fields["prompt"]
    null = packing.null_prompt(text, (self.special["bos"],))
    text = jnp.where(u < p, null, text)
    prefix = self.prompt_parts(
      params, frozen, {**fields, "prompt": text}, self.vit_kernel
    )
    if "seen" in fields and c.image_dropout:
      drop = (u >= p / 2) & (u < p / 2 + c.image_dropout)
      prefix = packing.hide_source(prefix, text.shape[1], drop[:, 0])
    target = self.embed_image(params, x, cells)
    target = packing.causal(target, packing.all_valid(target))
    return packing.join([prefix, target]), x

  def _pack_answer(
    self, params: Params, fields: Fields, key: PRNGKeyArray | None
  ) -> packing.Packed:
    """An understanding or text example: predicts its suffix.

    With word dropout (arXiv 1511.06349) some input words of the answer are
    UNK, and the words after them must be predicted from the image. Without a
    key none are.
    """
    parts = []
    if "seen" in fields:
      x = embed.pixels(
        self.vit, self.project, params, fields["seen"], self.vit_kernel
      )
      parts.append(packing.prefix(x, packing.all_valid(x)))
    fed = embed.fed_words(
      fields["suffix"],
      self.config.loss.word_dropout,
      self.special["unk"],
      key,
    )
    tokens = jnp.concatenate([fields["prefix"], fed], axis=1)
    x = embed.text(self.decoder, params, tokens)
    p = fields["prefix"].shape[1]
    valid = packing.text_valid(tokens)
    parts.append(packing.prefix(x[:, :p], valid[:, :p]))
    parts.append(packing.causal(x[:, p:], valid[:, p:]))
    return packing.join(parts)

  def _visual_loss(
    self,
    params: Params,
    read_out: tuple[list[Any], list[Any]],
    rows: Sequence[Fields],
    counts: Mapping[str, Any],
    key: PRNGKeyArray,
  ) -> tuple[Float[Array, ""], Metrics]:
    """What the head learns of every image token, several draws each (MAR).

    Args:
      params: all parameters.
      read_out: see `head_targets.of_tasks`.
      rows: the tasks' fields.
      counts: of the whole batch.
      key: draws steps and noise.
    """
    draws = self.config.loss.draws
    z, x0 = head_targets.of_tasks(
      self.tokens, params, read_out, key, self.config
    )
    terms = self.tokens.losses(params["head"], z, x0, key, draws)
    count = draws * counts["image_tokens"]
    terms = {k: packing.weigh(x, rows).sum() / count for k, x in terms.items()}
    total = functools.reduce(operator.add, terms.values())
    return total, {"loss_visual": total, **terms}

  # ------------------------------------------------------------------ decode

  def generate(
    self,
    params: Params,
    frozen: Params,
    prompts: Batch,
    keys: Key[Array, "*rows"],
    sampling: Any,
    cells: Int[Array, "B N"] | None = None,
  ) -> Float[Array, "B H W 3"]:
    """Images in [-1, 1] (UniFluid §4.2).

    Args:
      params: all parameters.
      frozen: the VAE.
      prompts: "t2i" or "edit", B rows.
      keys: one key, split by row, or one key per row; row i depends on its
        own key only, whatever the batch.
      sampling: steps, guidance, temperature, order. With `image_cfg` of 1 the
        null condition of an edit is its source without instruction; otherwise
        there is a second, neither of them (InstructPix2Pix), which the run
        must have been trained with (`loss.image_dropout`).
      cells: the order in which cells are drawn; default as `sampling.order`.
    """
    tokens, cells = self._draw(params, frozen, prompts, keys, sampling, cells)
    return self.codec.decode(frozen["codec"], order.put_tokens(tokens, cells))

  def redraw(
    self, params: Params, frozen: Params, prompts: Batch, keys: Any,
    sampling: Any, given: Float[Array, "B H W 3"], again: Bool[Array, "B N"],
  ) -> Float[Array, "B H W 3"]:  # fmt: skip
    """Images with some cells drawn again; see `types.Redrawer`."""
    x = self.codec.encode(frozen["codec"], given)
    stays = again, self.codec.tokens(frozen["codec"], x, None)
    tokens, cells = self._draw(
      params, frozen, prompts, keys, sampling, stays=stays
    )
    return self.codec.decode(frozen["codec"], order.put_tokens(tokens, cells))

  def stages(
    self, params: Params, frozen: Params, prompts: Batch, keys: Any,
    sampling: Any, most: int,
  ) -> Float[Array, "B S H W 3"]:  # fmt: skip
    """Images while they appear; see `types.Stager`."""
    drawn = self._draw(params, frozen, prompts, keys, sampling)
    return continuous_decode.images_of_stages(
      self.codec, frozen["codec"], *drawn, most
    )

  def _draw(
    self, params: Params, frozen: Params, prompts: Batch, keys: Any,
    config: Any, cells: Any = None, stays: tuple[Array, Array] | None = None,
  ) -> tuple[Float[Array, "B N C"], Int[Array, "B N"]]:  # fmt: skip
    """Tokens in the order they were drawn, and that order."""
    if wrong := token_head.refusal(self.config.model.head.kind, config):
      raise ValueError(wrong)
    ((_, fields),) = prompts.items()
    b, n = len(fields["prompt"]), self.config.model.image_tokens
    keys = keys if keys.ndim else jax.random.split(keys, b)
    split = jax.vmap(lambda k: jax.random.split(k, 2))(keys)
    known = None
    if cells is None:
      cells = order.to_draw(config.order, split[:, 0], n, config.passes)
    if stays is not None:
      cells, known = continuous_decode.known_first(cells, *stays)
    params = embed.cast_for_decoding(params, self.decoder.dtype)
    head = diffusion_head.narrow(params["head"], self.decoder.dtype)
    kind, last = config.cfg_schedule, config.last_steps or config.steps
    counts, which = sampling.steps_by_place(config.steps, last, n)
    table = params["image"]
    next_rows = order.next(table["next_position"], cells)  # [B, N, D]
    here = table["position"][cells]  # [B, N, D]

    def embedded(token, i, target):
      x = self.embed_tokens(params, token[:, None])[:, 0]
      x = x + here[:, jnp.maximum(i - 1, 0)]
      return jnp.where(i == 0, table["boi"], x) + next_rows[:, target]

    def pick(z, i, place):
      cfg, image_cfg = (
        sampling.cfg_scale(kind, scale, i, n)
        for scale in (config.cfg, config.image_cfg)
      )

      def draw(steps):
        return self.tokens.sample(
          head, sampling.Guided(z, cfg, image_cfg),
          jax.vmap(lambda k: jax.random.fold_in(k, i))(split[:, 1]),
          steps, config.temperature,
          limit=config.clip or math.inf, solver=config.solver,
        )  # fmt: skip

      draws = [lambda steps=steps: draw(steps) for steps in counts]
      return jax.lax.switch(jnp.asarray(which)[place], draws)

    conditions = self._conditions(params, frozen, fields, config)
    first = jnp.zeros((b, self.config.model.token_channels), jnp.float32)
    given = self.decoder, params, conditions, embedded, pick, first, n
    sizes = order.group_sizes(n, config.passes, config.order)
    return continuous_decode.draw(*given, known, sizes), cells

  def _conditions(
    self, params: Params, frozen: Params, fields: Fields, config: Any
  ) -> list[packing.Packed]:
    """The prompt; without its text; without its text and source."""
    three_way = "seen" in fields and config.image_cfg != 1.0
    found = [self.prompt_parts(params, frozen, fields)]
    if config.cfg != 1.0 or three_way:
      null = packing.null_prompt(fields["prompt"], (self.special["bos"],))
      null = {**fields, "prompt": null}
      found.append(self.prompt_parts(params, frozen, null))
    if three_way:
      drop, width = jnp.ones(len(found[1].x), bool), fields["prompt"].shape[1]
      found.append(packing.hide_source(found[1], width, drop))
    return found

  def answer(
    self,
    params: Params,
    frozen: Params,
    prompts: Batch,
    keys: Key[Array, "B"],
    sampling: Any,
  ) -> Int[Array, "B A"]:
    """Token ids of "i2t" or "text" prompts; see `text_decode.answer`."""
    ((_, fields),) = prompts.items()
    params = embed.cast_for_decoding(params, self.decoder.dtype)
    return text_decode.answer(
      self.decoder,
      params,
      self.prompt_parts(params, frozen, fields),
      self.config.text.suffix,
      sampling,
      keys,
      self.special["eos"],
    )

  def score(
    self, params: Params, frozen: Params, prompts: Batch
  ) -> Float[Array, "B"]:
    """Log-likelihood of the suffixes of "i2t" or "text"; see `types.Scorer`."""
    del frozen
    ((_, fields),) = prompts.items()
    params = embed.cast_embedding(params, self.decoder.dtype)
    tasks = [self._pack_answer(params, fields, None)]
    hidden = packing.hidden_states(self.decoder, params, tasks)
    (states,), (suffix,) = packing.read_out(
      hidden, tasks, [(0, fields["suffix"])]
    )
    return texts.log_likelihood(
      self.config.model.decoder,
      decoder.output_table(params["decoder"]),
      states,
      suffix,
      self.config.loss.vocab_chunk,
    )

  def reconstruct(
    self, params: Params, frozen: Params, images: Float[Array, "B H W 3"]
  ) -> Float[Array, "B H W 3"]:
    """Images through the frozen VAE: an upper bound for generation."""
    del params
    return self.codec.reconstruct(frozen["codec"], images)


SPEC = SystemSpec(
  model=unifluid_config.ModelConfig,
  loss=unifluid_config.LossConfig,
  sampling=unifluid_sampling.SamplingConfig,
  ranges=unifluid_config.RANGES,
  tasks=("t2i", "i2t", "edit", "text"),
  check=unifluid_config.check,
  check_sampling=unifluid_sampling.check_sampling,
  check_redraw=unifluid_sampling.check_redraw,
  migrate=unifluid_config.migrate,
  summary=unifluid_config.summary,
  losses={
    "loss_visual": "L_visual",
    "loss_text": "L_text (nats)",
  },
  build=UniFluid,
  codec_path="vae_path",
)
