"""Breaks the core on purpose, line by line, and runs the tests meant for it.

  python -m tests.mutations [--only=REGEX]

A person runs it, `make test` does not: it takes a while. Every mutation is
made in a copy of the tree; a test that still passes did not look. Prints a
line per mutation and ends with the survivors; exit code 1 if there are any.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent


class Mutation(NamedTuple):
  """One edit, and the tests that must notice it."""

  file: str  # below unifluid_jax/
  old: str  # occurs once
  new: str
  tests: str  # arguments of pytest, below tests/


INPUTS = "systems/test_inputs.py"
LOSS = "systems/test_unifluid.py"
ANSWER = "systems/test_answer_loss.py"
COMPARISON = "evals/test_comparison.py"
_REPORT = "evals/report"
DRAW = "systems/test_decode.py::test_generation_equals_full_recomputation"
LIQUID = "systems/test_liquid.py"
_KEYS, COPIES = "models/key_cache.py", "systems/test_decode_program.py"
STEPWISE = (
  "models/test_decoder.py::test_prefill_and_steps_equal_the_full_forward"
)
_BEST, BEST = "rejection.py", "test_rejection.py"
_POLICY, POLICY = "policy.py", "systems/test_policy.py"
WEIGHED = (
  "systems/test_contract.py::test_each_row_to_draw_counts_as_its_weight_says"
)
LIQUID_DECODE = "systems/test_liquid_decode.py"
LIQUID_TURNS = "systems/test_liquid_dialogue.py"
SIZED = "systems/test_liquid_sizes.py"
SIZED_ROWS = f"{SIZED}::test_rows_have_the_codes_of_their_own_grid"
SIZED_LOSS = f"{SIZED}::test_the_loss_is_that_of_each_image_alone"
SIZED_FILES = f"{SIZED}::test_files_and_pixels_give_the_same_codes"
SIZED_TEXT = "data/test_sized_prompt.py"
LAID_OUT = f"{LIQUID}::test_rows_are_laid_out_and_labelled"
CROSS = (
  f"{LIQUID}::test_the_loss_is_a_plain_cross_entropy_over_the_whole_vocabulary"
)
DRAWN = f"{LIQUID_DECODE}::test_drawing_with_a_cache_is_teacher_forcing"
GREEDY = "systems/test_decode.py::test_greedy_answers_equal_full_recomputation"
STEP = "test_train_step.py"
OPTIM = "test_optim.py"
LAYOUT = (
  "test_golden.py::test_parameters_are_split_decayed_and_updated_as_pinned"
)
TRACE = "test_golden.py::test_training_steps_are_those_pinned"
AVERAGE = f"{STEP}::test_average_is_of_the_new_parameters_and_warms_up"
MEMORY = "test_host_memory.py"
SHARE = "systems/test_unifluid.py::test_a_share_of_orders_stays_random"
ORDER = f"{INPUTS}::test_the_share_of_random_orders_is_the_steps"
CELLS = (
  f"{INPUTS}::test_tokens_are_fed_and_predicted_in_the_order_of_their_cells"
)
PLAIN = f"{LOSS}::test_text_loss_equals_a_plain_computation"
BESIDE = f"{OPTIM}::test_adam_beside_muon_has_its_own_eps_rate_and_decay"
HELD = f"{STEP}::test_what_is_held_is_replaced_and_not_averaged"
OWN = f"{STEP}::test_a_part_starts_late_with_an_optimizer_of_its_own"
VQ = "systems/test_vq.py"
CODEBOOK = "systems/test_vq_codebook.py"
PAIRS = "ops/test_contrastive.py"
ALIGNED = "systems/test_vq_alignment.py"
TOWERS = "models/test_alignment.py"
MICRO = f"{STEP}::test_micro_batches_stay_on_their_devices"

TURNS, RULE = "data/test_dialogue.py", "data/test_in_context.py"
EXPORT = "test_export.py"
CHATS, ASKING = "data/test_conversations.py", "data/test_instructions.py"
WORLD_CHATS, DRAWS = "data/test_chats.py", "evals/test_dialogue_suite.py"
SCORED = "evals/test_in_context_suite.py"
_CONTRACT = "systems/test_contract.py"
WARM, IDS = "test_warm_start.py", "systems/test_special_ids.py"
TOY_TURNS = f"{_CONTRACT}::test_each_target_of_a_dialogue_counts_once"
_ROWS, _CONTEXT = "data/dialogue.py", "evals/worlds/in_context_suite.py"
_SAID, _ASKED = "data/conversation.py", "evals/worlds/dialogue_suite.py"
_FEW = "data/instructions/few_shot.py"
_INTERLEAVED = "systems/common/interleaved.py"
_UNIFLUID = "systems/unifluid.py"
_COMMON_COST = "systems/common/cost.py"
_FLOW, FLOW = "ops/flow.py", "ops/test_flow.py"
ENERGY, HEADS = "ops/test_energy.py", "models/test_token_heads.py"
SYSTEM_HEADS = "systems/test_heads.py"
DISTIL = "systems/test_distillation.py"
DISTILLED = "models/test_distilled_head.py"
_FUSED, FUSED = "ops/fused_head.py", "ops/test_fused_head.py"
_CONTINUOUS = "systems/common/continuous_decode.py"
REDRAW = "systems/test_redraw.py"
_CELLS, CODE_BY_CODE = (
  "systems/common/drawn_cells.py", "systems/test_drawn_codes.py",
)  # fmt: skip
TAIL = (
  f"{_CONTRACT}::test_raster_order_draws_a_cell_again_with_all_cells_after_it"
)
_VQ = "systems/vq_training.py"
_REBUILT = "systems/common/reconstruction.py"
_NEW_ROWS = "weights/new_rows.py"
_OPTIM, _MESH = "core/optim.py", "core/parallel.py"
_ANSWER = "systems/common/text_decode.py"
_TEXT = "systems/common/text_loss.py"
_LIQUID = "systems/liquid.py"
_EMBED = "systems/common/embed.py"
_TOKENS = "systems/common/token_decode.py"
_PACKING = "systems/common/packing.py"
_ORDER = "order.randomness(step, c.random_until, c.raster_from, c.random_share)"

_UNI, _UNICONFIG = "systems/unitoken.py", "systems/unitoken_config.py"
_ANYRES, SEEN = "data/any_resolution.py", "data/test_any_resolution.py"
UNI = "systems/test_unitoken.py"
_SIGNS, SIGNS = "data/worlds/signs.py", "data/test_signs.py"
_READING, READS = "evals/worlds/reading_suite.py", "evals/test_reading_suite.py"
SEES = f"{UNI}::test_understanding_rows_are_those_of_the_released_code"
UNILOSS = f"{UNI}::test_the_loss_is_a_plain_cross_entropy_with_z_loss"
UNIDRAW = f"{UNI}::test_drawing_with_a_cache_is_teacher_forcing"
_VARGPT, _DRAWING = "systems/vargpt.py", "systems/vargpt_images.py"
VARGPT = "systems/test_vargpt.py"
VARGPT_LOSS = f"{VARGPT}::test_the_loss_is_that_of_plain_rows"
VARGPT_MASK = (
  f"{VARGPT}::test_slots_see_the_prompt_their_scale_and_those_before"
)
VARGPT_DRAW = f"{VARGPT}::test_drawing_with_caches_is_full_recomputation"
TURN_CODES = "data/test_dialogue_codes.py"
DROPPED = f"{UNI}::test_dropped_prompts_begin_with_soi_at_position_0"
_CODES, _SUMS = "models/multiscale_vq.py", "codecs/multiscale_vq.py"
CODES, SCALED = "models/test_multiscale_vq.py", "systems/test_multiscale_vq.py"

_SCALES, SCALES = "models/scale_decoder.py", "models/test_scale_decoder.py"
_VAR, VAR = "systems/var.py", "systems/test_var.py"
_BYSCALE = "systems/common/scale_decode.py"
BYSCALE = "systems/test_scale_decode.py"
LOGITS = f"{SCALES}::test_logits_are_those_of_a_plain_computation"
CACHED = f"{SCALES}::test_scale_by_scale_with_a_cache_is_all_scales_at_once"
VARLOSS = f"{VAR}::test_the_loss_is_a_plain_cross_entropy_over_all_scales"
VARGUIDE = f"{VAR}::test_guidance_leads_away_from_the_null_class"
JOINS = f"{VAR}::test_scales_join_one_after_another"

_GROUPS = "systems/common/continuous_decode.py"
_ALBUM = "evals/worlds/emoji_album.py"
_JUDGE = "evals/worlds/emoji_classifier.py"
_PAINTED = "evals/worlds/emoji_suite.py"
_NAMED = "evals/worlds/emoji_text_suite.py"
_REDRAWN = "evals/worlds/emoji_edit_suite.py"
JUDGED, EMOJI = "evals/test_emoji_judge.py", "evals/test_emoji_suite.py"

MUTATIONS = tuple(
  Mutation(*row)
  for row in (
    # ------------------------------------------------------ scores of emoji
    (_JUDGE, "(best > best[place])", "(best >= best[place])", JUDGED),
    (_JUDGE, "self._styles == picture.style)\n      best",
     "self._styles != '')\n      best", JUDGED),
    (_JUDGE, "np.maximum.at", "np.add.at", JUDGED),
    (_JUDGE, "- middle - shift) / scale", "- middle - shift) * scale", JUDGED),
    (_ALBUM, "(1 + self._count) / len(self._postings[word])", "2", JUDGED),
    (_ALBUM, "e.picture != other_than", "True", JUDGED),
    (_ALBUM, "key=lambda f: len(f[0])", "key=lambda f: -len(f[0])", JUDGED),
    (_NAMED, "n / len(pool) / len(records)", "n / len(pool)", EMOJI),
    (_NAMED, "j = (i + turn) %", "j = turn %", EMOJI),
    (_REDRAWN, "idle = [e.source", "idle = [e.target", EMOJI),
    (_REDRAWN, "other_than=source", "other_than=None", EMOJI),
    (_PAINTED, "(ranks < 5)", "(ranks < 6)", EMOJI),
    (_PAINTED, "found.value / max(real.value", "real.value / max(found.value",
     EMOJI),
    # --------------------------------------------------- data as people have it
    (
      "data/sources/webdataset.py",
      "if lost := _behind(path, tar.offset, end):",
      'if lost := "":',
      "data/test_webdataset.py::test_a_damaged_header_is_no_end",
    ),
    (
      "data/sources/webdataset.py",
      "if not info.isreg() or info.issparse():",
      "if info.issparse():",
      "data/test_webdataset.py::test_no_member_reaches_the_file_system",
    ),
    (
      "data/sources/webdataset.py",
      "if len(data) < size:",
      "if False:",
      "data/test_webdataset.py::test_a_shard_that_changed",
    ),
    (
      "data/sources/tables.py",
      "lines = _Lines(stream, start + size, line + 1)",
      "lines = _Lines(stream, start + size, line)",
      "data/test_tables.py::test_a_bad_row_is_named_and_the_others_are_read",
    ),
    (
      "data/sources/tables.py",
      "      stream.seek(start)\n      size = 0",
      "      size = 0",
      "data/test_tables.py::test_a_bad_row_is_named_and_the_others_are_read",
    ),
    (
      "data/sources/arrow.py",
      "row = i - int(self._ends[k])",
      "row = i",
      "data/test_arrow.py::test_rows_of_all_files_and_batches",
    ),
    (
      "data/sources/rows.py",
      "    return not asks",
      "    return True",
      "data/test_tables.py::test_columns_are_named",
    ),
    (
      "data/sources/folders.py",
      "split(os.sep)[0]",
      "split(os.sep)[-1]",
      "data/test_image_folders.py::"
      "test_classes_are_the_names_of_subfolders",
    ),
    (
      "data/sources/discover.py",
      "return found if 2 * have >= seen else found + _classes(path)",
      "return found",
      "data/test_discover.py::test_classes_with_some_texts_are_named",
    ),
    (
      "data/sources/discover.py",
      '  if config.split != "train" and folder == full:',
      "  if False:",
      "data/test_discover.py::test_each_kind_is_found_and_read",
    ),
    (
      "data/sources/conversations.py",
      "if len(shown) != 1 or shown[0] > answered[0]:",
      "if len(shown) != 1:",
      "data/test_conversations.py::"
      "test_a_conversation_about_one_image_holds_questions",
    ),
    # ---------------------------------------------------- multi-scale codes
    (_CODES, "_A = -0.75", "_A = -0.5", CODES),
    (_CODES, "np.clip(tap, 0, inputs - 1)", "tap % inputs", CODES),
    (_CODES, "-(-(i + 1) * inputs // outputs)", "(i + 1) * inputs // outputs",
     CODES),
    (_CODES, "3 * count if count == 4 else 2 * count", "2 * count", CODES),
    (_CODES, "self.ratio * (y + biases[which])", "self.ratio * y + "
     "biases[which]", CODES),
    (_CODES, "residual - _sg(h)", "residual - 0.9 * h", CODES),
    (_CODES, "f_hat, residual = f_hat + h", "f_hat, residual = _sg(f_hat) + h",
     CODES),
    (_CODES, "self.sums(codes)[:-1]", "self.sums(codes)[1:]", CODES),
    (_CODES, "self.z + _sg(self.nearest - self.z)", "self.nearest", CODES),
    (_CODES, "batch_axis=0", "batch_axis=()", CODES),
    (_CODES, "return self.z[:, None]", "return 0.99 * self.z[:, None]",
     SCALED),
    (_SUMS, "return f_hat + self._vq", "return self._vq", SCALED),
    (_SUMS, "down(f_hat, self.config", "down(0.9 * f_hat, self.config",
     SCALED),
    (_VQ, "mean * last[:, None]", "mean * (last >= 0)[:, None]", SCALED),
    (_VQ, "_sg(found.compared)", "1.1 * _sg(found.compared)", SCALED),
    (_VQ, "_sg(nearest) - z", "nearest - z", SCALED),
    # ------------------------------------------------------------- VARGPT
    (_VARGPT, "np.array([p - 2, p + n - 1, p + n])",
     "np.array([p - 1, p + n - 1, p + n])", VARGPT_LOSS),
    (_VARGPT, "packed._replace(block=packed.block - before)", "packed",
     VARGPT_LOSS),
    (_VARGPT, "jnp.where(drop & (jnp.arange(3) == 0), PAD, end)", "end",
     VARGPT_LOSS),
    (_VARGPT, "ids = jnp.where(drop, self.null(prompt), prompt)",
     "ids = prompt", VARGPT_LOSS),
    (_VARGPT, "places[:, ::n], axis=1)", "places[:, 1::n], axis=1) | True",
     VARGPT_LOSS),
    (_VARGPT, 'weight * sums["image"].weighted / count',
     'weight * sums["image"].nll / count', VARGPT_LOSS),
    (_DRAWING, "jnp.asarray(block <= block[where, None])",
     "jnp.asarray(block < block[where, None] + 9)", VARGPT_MASK),
    (_DRAWING, "offset[:, None] + jnp.arange(where.start, where.stop)",
     "offset[:, None] + jnp.arange(where.stop - where.start)", VARGPT_DRAW),
    (_DRAWING, "number = k + len(self.codec.config.scales)", "number = k",
     VARGPT_DRAW),
    (_INTERLEAVED, "dict(zip(tasks, states, strict=True))",
     "dict(zip(tasks[::-1], states, strict=True))", VARGPT_LOSS),
    # -------------------------------------------- codes of dialogues in files
    (_ROWS, "codes[:count] = found[:count]", "codes[:count] = found[-count:]",
     TURN_CODES),
    (_ROWS, "[t for t in turns if t.image is not None and not self._seen(t)]",
     "[t for t in turns if t.image is not None]", TURN_CODES),
    (_ROWS, "prompt=True, file=False", "prompt=True", TURN_CODES),
    ("data/tasks.py", "ordered(turns, record.moments)", "ordered(turns)",
     TURN_CODES),
    ("data/sources/cached.py",
     "all(self.shape[1:] if self.several else self.shape)", "all(self.shape)",
     TURN_CODES),
    ("codecs/encoding.py", "in row.coded(record.dialogue)",
     "in record.dialogue if turn.image is not None", TURN_CODES),
    ("codecs/cache.py", 'note["images"] = row.which', "pass", TURN_CODES),
    ("data/worlds/chats.py", "(ASK, DRAW), (DRAW, EDIT),", "(ASK, DRAW),",
     "data/test_chats.py::test_every_kind_follows_a_drawing"),
    (_INTERLEAVED, "index = jnp.where(cell >= 0, cell, count)",
     "index = jnp.where(cell > 0, cell, count)", VARGPT_LOSS),
    (_ROWS, 'drawn = turn.role == "assistant" if turn.role else turn.target',
     "drawn = turn.target", TURNS),
    (_ROWS, "apart = after_text or (follows and self._seen(before))",
     "apart = after_text", TURNS),
    ("dialogues.py", "[seed + drawn], sampling)", "[seed], sampling)",
     "test_dialogues.py"),
    # ------------------------------------------------------- small words
    (_SIGNS, "_is_held_out(word) == held", "True", SIGNS),
    (_SIGNS, "zlib.crc32(word.encode())", "hash(word)", SIGNS),
    (_SIGNS, "columns - LENGTH))", "columns))", SIGNS),
    (_SIGNS, "rng.integers(1, columns", "rng.integers(0, columns", SIGNS),
    (_SIGNS, "left + i * wide", "left + i * (wide + 1)", SIGNS),
    (_SIGNS, "top + _FIRST_ROW, left", "top, left", SIGNS),
    (_SIGNS, "height, width, 3), np.uint8", "width, height, 3), np.uint8",
     SIGNS),
    (_SIGNS, "default_rng(sign.grain)", "default_rng(0)", SIGNS),
    (_SIGNS, "np.clip(image, 0, 255)", "image", SIGNS),
    ("data/worlds/signs_builder.py", "[seed, shapes.SPLITS.index(_SPLIT), "
     "index, _STREAM]", "[0, shapes.SPLITS.index(_SPLIT), index, _STREAM]",
     SIGNS),
    ("data/worlds/written.py", "tuple(kind.SUFFIX for kind in BESIDE.values())",
     "in_context.SUFFIX", SIGNS),
    (_READING, "max(len(read), len(word))", "len(word)", READS),
    (_READING, "zip(read, word, strict=False)", "zip(word, word)", READS),
    (_READING, "text.lower().split()", "text.split()", READS),
    (_READING, "np.equal(shares, 1)", "np.greater(shares, 0.5)", READS),
    (_READING, "right[kinds == kind].mean()", "right.mean()", READS),
    (_READING, "np.random.default_rng([0, i]), split)",
     "np.random.default_rng([0, i]), _SPLITS[0])", READS),
    (_READING, "guess**signs.LENGTH", "guess", READS),
    # ------------------------------------------------------------------ VAR
    (_SCALES, "gate1, gate2, scale1, scale2, shift1, shift2 = _split(parts)",
     "gate1, scale1, gate2, scale2, shift1, shift2 = _split(parts)", LOGITS),
    (_SCALES, "first = start.astype(jnp.float32) + self.start",
     "first = start.astype(jnp.float32)", LOGITS),
    (_SCALES, "return (x + level + self.position[where])",
     "return (x + level + self.position[: x.shape[1]])", CACHED),
    (_SCALES, "jnp.minimum(p[\"temperature\"], _MAX_TEMPERATURE)",
     "p[\"temperature\"]", LOGITS),
    (_SCALES, "scale = 0.25 * q.shape[-1] ** -0.5",
     "scale = q.shape[-1] ** -0.5", LOGITS),
    (_SCALES, "k = _unit(k)", "k = k", LOGITS),
    (_SCALES, "return x.astype(self.dtype), cache",
     "return x.astype(self.dtype), None",
     f"{SCALES}::test_without_layers_the_head_reads_the_embedding"),
    (_SCALES, "return layer[:, : where.stop], cache",
     "return layer[:, where.start : where.stop], cache", CACHED),
    (_SCALES, "level = jnp.asarray(scales.levels(c.scales)[: x.shape[1]])",
     "level = jnp.arange(x.shape[1])", LOGITS),
    (_SCALES, "2 * layer.number + branch", "layer.number",
     f"{SCALES}::test_dropped_paths_are_left_out_of_whole_rows_and_made_up_for"),
    (_BYSCALE, "share = k / max(len(scales) - 1, 1)",
     "share = (k + 1) / len(scales)", BYSCALE),
    (_BYSCALE, "sampling_ops.guide(*found, 1 + t)",
     "sampling_ops.guide(*found, t)", BYSCALE),
    (_BYSCALE, "jax.vmap(jax.random.fold_in, (0, None))(keys, k)", "keys",
     BYSCALE),
    (_BYSCALE, "(scores * (1 + share) + noise) / tau",
     "(scores + noise) / tau", BYSCALE),
    (_BYSCALE, "tau = max(0.27 * (1 - 0.95 * share), 0.005)", "tau = 0.27",
     BYSCALE),
    (_VAR, "given = [labels, jnp.full_like(labels, self.null)]",
     "given = [labels, labels]", VARGUIDE),
    (_VAR, "drop < self.config.loss.class_dropout",
     "drop >= self.config.loss.class_dropout",
     f"{VAR}::test_dropped_classes_train_the_null_class"),
    (_VAR, "c.label_smoothing * (d.codes - 1) / d.codes", "c.label_smoothing",
     VARLOSS),
    (_VAR, "weights = self._weights * self._progress(step)",
     "weights = self._progress(step)", VARLOSS),
    (_VAR, "found.nll[:, last:].sum()", "found.nll[:, :-last].sum()", VARLOSS),
    (_VAR, "(k < len(d.scales) - 1)", "(k < len(d.scales))", JOINS),
    ("systems/var_config.py", "(later - 0.5)", "later", JOINS),
    # ------------------------------------------------------------ UniToken
    (_UNI, "ids = [bos, image[:, :-1], sep, line, image[:, -1:], *text]",
     "ids = [bos, sep, image[:, :-1], line, image[:, -1:], *text]", SEES),
    (_UNI, "features = self.continuous(params, fields, x[:, n : n + 1])",
     "features = self.continuous(params, fields, x[:, n - 1 : n])", SEES),
    (_UNI, "[x[:, :n], features.x, x[:, n + 1 :]]",
     "[x[:, :n], features.x, x[:, n:]]", SEES),
    (_UNI, "[valid[:, :n], features.valid, valid[:, n + 1 :]]",
     "[valid[:, :n], features.valid | True, valid[:, n + 1 :]]", SEES),
    (_UNI, "target = target.at[:, :1].set(jnp.where(drop, PAD, "
     "target[:, :1]))", "", DROPPED),
    (_UNI, "prompt = jnp.where(drop, PAD, prompt)", "", DROPPED),
    (_UNI, "prompt = jnp.where(drop, PAD, prompt)",
     "prompt = jnp.where(drop, packing.null_prompt(prompt), prompt)", UNIDRAW),
    (_UNI, "last = len(self.template) - 1", "last = len(self.template)",
     UNILOSS),
    (_UNI, "tokens += len(batch[\"i2t\"][\"prefix\"])", "pass", UNILOSS),
    (_UNI, "total = total + weights[kind] * nll", "total = total + nll",
     UNILOSS),
    (_UNI, "(images + c.text_weight * texts)", "(images + texts)", UNILOSS),
    (_UNI, "jnp.square(x.log_z).sum()", "x.log_z.sum()", UNILOSS),
    (_TOKENS, "sampling.guide(*scores, cfg)",
     "sampling.guide(*scores[::-1], cfg)",
     f"{UNI}::test_codes_alone_are_drawn_and_the_best_k_of_them"),
    (_UNI, "keys, scores, sampling.temperature, sampling.image_top_k",
     "keys, scores, sampling.temperature, sampling.top_k",
     f"{UNI}::test_codes_alone_are_drawn_and_the_best_k_of_them"),
    (_UNI, "      keys,\n      self.ids[\"turn\"],", "      keys,",
     f"{UNI}::test_greedy_answers_equal_full_recomputation"),
    (_UNI, "x = jnp.take_along_axis(x, index[..., None], axis=1)",
     "x = x[:, : index.shape[1]]",
     f"{UNI}::test_stitched_features_equal_a_naive_loop"),
    ("models/adapter.py", "approximate=False", "approximate=True",
     f"{UNI}::test_stitched_features_equal_a_naive_loop"),
    (_UNICONFIG, "sizes = [size_id(m, height), size_id(m, width)]",
     "sizes = [size_id(m, width), size_id(m, height)]",
     f"{UNI}::test_sizes_stand_height_first_and_every_row_ends_with_a_new_line"),
    (_ANYRES, "return kept, kept - pinpoint[0] * pinpoint[1]",
     "return kept, 0", SEEN),
    (_ANYRES, "kept = min(width * height, size[0] * size[1])",
     "kept = width * height", SEEN),
    (_ANYRES, "w, h = inside(size, (width, height), up=True)",
     "w, h = inside(size, (width, height))", SEEN),
    (_ANYRES, "cut.swapaxes(1, 2).reshape(-1, view, view, 3)",
     "cut.swapaxes(0, 2).swapaxes(1, 2).reshape(-1, view, view, 3)", SEEN),
    (_ANYRES, "grid = grid.reshape(rows, columns, side, side).swapaxes(1, 2)",
     "grid = grid.reshape(rows, side, columns, side)", SEEN),
    (_ANYRES, "line = (1 + most_crops(view, pinpoints)) * n",
     "line = (1 + rows * columns) * n", SEEN),
    (_ANYRES, "(height - h) // 2, (height - 1) // 2)",
     "(height - h + 1) // 2, (height - 1) // 2)", SEEN),
    # ------------------------------------------------------------ the step
    ("train.py", "jax.random.fold_in(jax.random.key(config.seed), state.step)",
     "jax.random.key(config.seed)",
     f"{STEP}::test_draws_differ_from_step_to_step"),
    ("train.py", "keys = jax.random.split(key, config.accumulate)",
     "keys = jnp.broadcast_to(key, (config.accumulate,))",
     f"{STEP}::test_draws_differ_from_part_to_part"),
    ("train.py", "      ema, params, config", "      ema, state.params, config",
     AVERAGE),
    ("train.py", "TrainState(state.step + 1,", "TrainState(state.step,",
     AVERAGE),
    ("train.py", "part, counts,", "part, system.counts(part),",
     f"{STEP}::test_accumulated_parts_add_up"),
    (_MESH, "grouped = x.reshape(groups, count, rows, *rest)"
     ".swapaxes(0, 1)", "grouped = x.reshape(count, groups, rows, *rest)",
     MICRO),
    ("train.py", "grad_norm=optax.tree.norm(grads)",
     "grad_norm=optax.tree.norm(state.params)", f"{TRACE}[vae-muon]"),
    ("train.py", "optim.is_trained(config.optim, system.held, state.params)",
     "optim.is_trained(config.optim, (), state.params)",
     f"{STEP}::test_what_is_held_has_no_say_in_the_norm"),
    ("train.py", "optim.is_trained(config.optim, system.held, state.params)",
     "jax.tree.map(lambda _: True, state.params)",
     f"{STEP}::test_constants_cost_no_backward_pass"),
    ("train.py", "params = params if revised is None else revised", "pass",
     HELD),
    ("train.py", "config.optim.ema, state.step, system.held",
     "config.optim.ema, state.step", HELD),
    ("train.py", "    new = (grads, dict(metrics, loss=loss), seen)",
     "    new = (grads, dict(metrics, loss=loss), carry[2] if carry else seen)",
     f"{STEP}::test_what_parts_of_a_batch_see_adds_up"),
    ("train.py", "jax.block_until_ready(self._pending", "(self._pending",
     "test_train.py::test_a_run_is_never_many_steps_ahead_of_its_device"),
    ("core/shards.py", "    if not made():", "    if True:",
     "test_shards.py::test_of_commands_at_once_one_makes_the_file_and_the_"
     "others_wait"),
    # ------------------------------------------------------------ optimizer
    (_OPTIM, "lambda step: step >= start", "lambda step: step > start", OWN),
    (_OPTIM, "lambda step: step >= start", "lambda step: step >= 0", OWN),
    (_OPTIM, "_own(config, part, steps, rows),",
     "_clipped(config, steps, rows),", OWN),
    (_OPTIM, "decay = jnp.minimum(decay, (1 + step) / (10 + step))", "",
     AVERAGE),
    (_OPTIM, "e + (1 - decay) * (p - e)", "e + decay * (p - e)", AVERAGE),
    ("models/diffusion_head.py", '((0,), (1,)), ("paligemma",)',
     '((0,), (1,)), ("adamw", "paligemma")', f"{LAYOUT}[shapes]"),
    ("models/diffusion_head.py", '((0,), (1,)), ("paligemma",)',
     "((0,), (1,)), ()",
     f"{OPTIM}::test_kernels_of_all_networks_decay_as_paligemma_fine_tunes"),
    (_OPTIM, "(step + 1) / warmup", "step / warmup",
     f"{OPTIM}::test_cosine_falls_to_zero_after_a_linear_rise"),
    ("core/parameter_rows.py", "max(found, key=len", "min(found, key=len",
     f"{OPTIM}::test_rates_scale_updates_of_their_part"),
    (_OPTIM, "lambda step: config.adam_lr * factor(step), decays",
     "lambda step: config.lr * factor(step), decays", BESIDE),
    (_OPTIM, "eps=config.eps,", "eps=1e-8,", BESIDE),
    (_OPTIM, "mask=decays,\n    nes",
     "mask=lambda _: False,\n    nes", BESIDE),
    ("models/decoder.py", "((1, 2), (3,)), MATRIX", "((1,), (2, 3)), MATRIX",
     f"{TRACE}[unifluid-muon]"),
    (_OPTIM, "optax.clip_by_global_norm(config.clip)", "optax.identity()",
     f"{OPTIM}::test_frozen_gradients_do_not_count_in_the_clip"),
    # ------------------------------------------------------------- sharding
    ("models/decoder.py", '(None, "tensor", None, "fsdp")',
     '(None, None, None, "fsdp")', f"{LAYOUT}[unified_2b]"),
    ("models/decoder.py", 'lm_head)/table", ("fsdp", "tensor")',
     'lm_head)/table", ("fsdp", None)', f"{LAYOUT}[unified_2b]"),
    (_MESH, 'BATCH_AXES = ("data", "fsdp")', 'BATCH_AXES = ("data",)',
     "test_parallel.py::test_to_global_splits_the_batch"),
    (_MESH,
     "return int(np.prod([mesh.shape[axis] for axis in batch_axes(mesh)]))",
     "return 1", MICRO),
    (_MESH, "(SLICES, *BATCH_AXES)", "BATCH_AXES",
     "test_parallel.py::test_rows_are_split_over_slices_and_parameters_are_not"),
    (_MESH, "setdefault(getattr(device, \"slice_index\", 0), [])",
     "setdefault(0, [])", "test_parallel.py::test_a_tpu_knows_its_slices"),
    (_MESH, "found.index(mine[jax.process_index()]), len(found)",
     "jax.process_index(), jax.process_count()",
     "test_parallel.py::test_processes_along_tensor_hold_the_same_rows"),
    (_MESH, "not even or sum", "not even and sum",
     "test_parallel.py::test_processes_whose_rows_overlap_are_refused"),
    ("ops/weight_product.py", "parallel.replica_axes(mesh)", "\"data\"",
     "ops/test_weight_product.py::test_pieces_are_summed_over_slices_too"),
    ("core/shards.py", "for k in share(count)", "for k in range(count)",
     "test_shards.py::test_processes_divide_the_shards"),
    ("core/shards.py", "             if not shards[k].exists()]", "]",
     "test_shards.py::test_an_interrupted_job_makes_what_is_missing"),
    ("core/shards.py", "  _check_claim(folder, made_of)\n  write(*shard)",
     "  write(*shard)",
     "test_workers.py::test_workers_that_do_not_see_the_disk_are_refused"),
    ("core/workers.py", "sorted(done, key=lambda row: row[\"id\"])", "done",
     "test_workers.py::test_what_workers_made_is_in_order"),
    ("data/survey.py", "places[i : i + _PIECE]", "places[i : i + _PIECE - 1]",
     "test_workers.py::test_bad_records_are_those_found_here"),
    ("core/shards.py", "_read_claim(folder) != _json(made_of):\n    shutil",
     "False:\n    shutil",
     "test_shards.py::test_shards_of_something_else_are_removed"),
    (_MESH, "if shape == x.shape:\n", "if False:\n",
     "test_parallel.py::test_moments_are_laid_out_like_their_parameters"),
    # --------------------------------------- new rows, special ids, weights
    (_NEW_ROWS, "axes * jnp.sqrt(jnp.maximum(variances, 0))", "axes",
     f"{WARM}::test_noise_of_new_rows_has_the_covariance_of_the_old"),
    (_NEW_ROWS, "return mean + _SHARE", "return _SHARE",
     f"{WARM}::test_noise_of_new_rows_has_the_covariance_of_the_old"),
    (_NEW_ROWS, "zlib.crc32(name.encode())", "0",
     f"{WARM}::test_input_and_output_tables_draw_apart"),
    (_UNIFLUID, '      self.special["unk"],', "      3,",
     f"{IDS}::test_dropped_words_are_its_unk"),
    (_UNIFLUID, 'packing.null_prompt(text, (self.special["bos"],))',
     "packing.null_prompt(text)",
     f"{IDS}::test_dropped_prompts_are_the_null_condition"),
    (_UNIFLUID, '      keys,\n      self.special["eos"],', "      keys,",
     f"{IDS}::test_answers_end_with_its_eos"),
    ("weights/gguf_llama.py", '"(n r i) d -> d n (i r)"',
     '"(n i r) d -> d n (i r)"',
     "weights/test_gguf_weights.py::test_every_tensor_and_its_layout"),
    ("weights/llama.py", "x.repeat(heads // parts, axis=0)",
     "np.tile(x, (heads // parts, 1))",
     "weights/test_llama_weights.py::test_norms_per_part_of_a_split_model"),
    ("weights/llava.py", '"num_hidden_layers": 32', '"num_hidden_layers": 31',
     "weights/test_llava_weights.py::test_the_released_7b"),
    ("weights/llava.py", 'tree.get(key, value) != value', "False",
     "weights/test_llava_weights.py::test_other_networks_are_refused"),
    ("weights/vargpt.py", "return x[self._first :] if", "return x[:_READ] if",
     "weights/test_vargpt_weights.py::test_parts_are_read_as_if_alone"),
    ("weights/vargpt.py", '((0, "in"), (2, "out"))', '((2, "in"), (0, "out"))',
     "weights/test_vargpt_weights.py::test_parts_are_read_as_if_alone"),
    ("weights/vargpt.py", "hidden=inputs", "hidden=outputs",
     "weights/test_vargpt_weights.py::test_a_run_starts_from_it"),
    ("weights/autoencoder.py", '"decoder.up.{r}.block.{j}"',
     '"decoder.up.{i}.block.{j}"',
     "weights/test_vq_weights.py::test_levels_of_the_decoder_count_from_"
     "their_own_ends"),
    # ----------------------------------------------- inputs, order, targets
    (_UNIFLUID, "return packing.join([prefix, target]), x",
     "return packing.join([prefix, target]), order.put_tokens(x, cells)",
     CELLS),
    (_UNIFLUID, "x = order.take_tokens(x, cells)", "pass", CELLS),
    (_UNIFLUID, _ORDER, "jnp.float32(0)", ORDER),
    (_UNIFLUID, _ORDER, "jnp.float32(1)", ORDER),
    (_UNIFLUID, ", c.random_share)", ")", SHARE),
    (_UNIFLUID, "order.sample_orders(k_order, b, n, r,",
     "order.sample_orders(k_order, b, n, 1 - r,", CELLS),
    ("codecs/kl_vae.py", "kl_vae.sample(cached.astype(jnp.float32), key)",
     "kl_vae.sample(cached.astype(jnp.float32), None)",
     f"{INPUTS}::test_latents_in_training_are_drawn_from_their_posterior"),
    ("codecs/kl_vae.py",
     'kl_vae.to_latents(z, frozen["latent_mean"], frozen',
     "kl_vae.to_latents(z, 0.0, frozen",
     f"{LOSS}::test_moments_and_pixels_give_the_same_tokens"),
    (_UNIFLUID, "target = packing.causal(target, packing.all_valid(target))",
     "target = packing.prefix(target, packing.all_valid(target))", CELLS),
    (_UNIFLUID, "order.next(coming, cells)",
     "order.next(coming, jnp.roll(cells, 1, axis=1))",
     f"{LOSS}::test_next_position_reaches_only_its_slot_and_later_ones"),
    (_UNIFLUID, "order.current(position, cells)",
     "order.current(position, jnp.roll(cells, -1, axis=1))",
     f"{LOSS}::test_current_position_belongs_to_the_token_that_is_fed"),
    (_UNIFLUID, "jnp.where(u < p, null, text)", "jnp.where(u >= p, null, text)",
     f"{LOSS}::test_dropped_prompts_are_the_null_prompt"),
    # --------------------------------------------------------------- Liquid
    (_LIQUID, 'jnp.where(slots == n + 1, self.ids["eos"], targets)',
     'jnp.where(slots == n + 1, self.ids["eoi"], targets)', LAID_OUT),
    (_LIQUID, "jnp.where(codes == PAD, PAD, self.config.model.code_offset + "
     "codes)", "jnp.where(codes == PAD, PAD, self.config.model.code_offset + 1 "
     "+ codes)", CROSS),
    (_LIQUID, "return packing.causal_sequence(x, packing.text_valid(ids))",
     "return packing.prefix(x, packing.text_valid(ids))",
     f"{LIQUID}::test_nothing_sees_what_comes_after_it"),
    (_LIQUID, "return packing.causal_sequence(x, packing.text_valid(ids))",
     "return packing.causal_sequence(x, packing.all_valid(x))", CROSS),
    (_LIQUID, 'names = ("bos", "unconditional", "boi")',
     'names = ("bos", "boi")',
     f"{LIQUID}::test_the_null_prompt_is_a_token_of_its_own"),
    (_LIQUID, "drop < self.config.loss.prompt_dropout",
     "drop > self.config.loss.prompt_dropout",
     f"{LIQUID}::test_dropped_prompts_train_the_null_prompt"),
    (_EMBED, "jnp.where(lost, unk, fed)",
     "jnp.where(~lost, unk, fed)",
     f"{LIQUID}::test_lost_words_of_answers_are_unknown_but_still_predicted"),
    (_LIQUID, 'masks = {"image": image, "end": ~image}',
     'masks = {"image": image}\n        sums["end"] = Sums(0.0, 0.0, 0.0)',
     CROSS),
    (_LIQUID, "jnp.square(found.max_logit)", "jnp.square(found.log_z)", CROSS),
    (_LIQUID, "jnp.square(found.max_logit)",
     "jnp.square(jax.lax.stop_gradient(found.max_logit))",
     f"{LIQUID}::test_the_largest_logit_is_pulled_down_by_its_own_gradient"),
    (_LIQUID, 'if c.weighting == "tokens":', 'if c.weighting == "apart":',
     CROSS),
    (_LIQUID, "said = c.text_weight * sums", "said = sums", CROSS),
    (_LIQUID, 'jnp.maximum(words, 1) if texts else 0',
     "sum(suffix.size for suffix in texts)", CROSS),
    (_TOKENS, "[first : first + count]", "[first - 1 : first - 1 + count]",
     f"{LIQUID_DECODE}::test_codes_are_masked_before_they_are_filtered"),
    (_TOKENS, "sampling.guide(*scores, cfg)",
     "sampling.guide(*scores[::-1], cfg)", DRAWN),
    (_LIQUID, "prompts.append(null)", "prompts.append(prompt)",
     DRAWN),
    (_LIQUID, '[self.ids[name] for name in ends],', "1,",
     f"{LIQUID_DECODE}::test_greedy_answers_are_teacher_forced_and_end_with_"
     "the_named_eos"),
    ("systems/liquid_config.py", '("eoi", *m.ask), m.reply',
     '("eoi", *m.reply), m.ask', LAID_OUT),
    ("systems/liquid_config.py", "opening=m.user", "opening=()", LAID_OUT),
    (_TOKENS, "(offset + i - 1)[:, None],",
     "(offset + i)[:, None],", DRAWN),
    (_TOKENS, "slots < start + i)", "slots < start)",
     DRAWN),
    ("data/fields.py", "self.endings[int(rng.integers(len(self.endings)))]",
     "self.endings[0]",
     "data/test_fields.py::"
     "test_endings_are_drawn_in_training_and_the_first_in_prompts"),
    # ------------------------------------------------ images of several sizes
    (_LIQUID, "jnp.where(codes == PAD, PAD, self.config.model.code_offset + "
     "codes)", "self.config.model.code_offset + codes", SIZED_ROWS),
    (_LIQUID, "(codes != PAD).sum(axis=1, keepdims=True)",
     "jnp.full((len(codes), 1), codes.shape[1])", SIZED_ROWS),
    (_LIQUID, "codes = size.prod(axis=1).sum()", "pass", SIZED_LOSS),
    (_LIQUID, "self.null_of(fields), prompt)", 'self.null(fields["prompt"]), '
     "prompt)", SIZED_LOSS),
    (_LIQUID, "n = math.prod(self._grid(sampling))",
     "n = self.config.model.image_tokens",
     f"{SIZED}::test_a_size_is_drawn_code_by_code"),
    (_LIQUID, 'frozen["codec"], codes, self._grid(sampling))\n\n  def stages',
     'frozen["codec"], codes)\n\n  def stages',
     f"{SIZED}::test_images_are_drawn_in_the_size_that_prompts_name"),
    ("codecs/inputs.py", "images[:, :height, :width]",
     "images[:, -height:, -width:]", SIZED_FILES),
    ("codecs/inputs.py", "jnp.asarray([height, width])",
     "jnp.asarray([width, height])", SIZED_FILES),
    ("data/fields.py", "row[: cached.size] = cached.ravel()",
     "row[-cached.size :] = cached.ravel()", SIZED_TEXT),
    ("data/fields.py", "np.int32(cached.shape) * self.cell}",
     "np.int32(cached.shape[::-1]) * self.cell}", SIZED_TEXT),
    ("data/sized_prompt.py", "ending = size + self.text.ending(rng)",
     "ending = self.text.ending(rng) + size", SIZED_TEXT),
    ("data/sized_prompt.py", 'self.null.row(tokenizer, "", size)',
     'self.null.row(tokenizer, "", "")', SIZED_TEXT),
    ("data/transforms.py", "return math.log(shape[1] / shape[0])",
     "return shape[1] / shape[0]",
     "data/test_transforms.py::test_images_go_to_the_nearest_aspect_ratio"),
    ("codecs/cache.py", "and x.shape[:2] == size]", "]", SIZED_FILES),
    ("codecs/cache.py", '{**note, "sizes": (), "images": (), "max_pixels": ()}',
     "note", f"{SIZED}::test_caches_of_other_sizes_are_refused"),
    # --------------------------------------------------------------- losses
    (_EMBED, "fed = suffix[:, :-1]", "fed = suffix[:, 1:]", PLAIN),
    (_PACKING, "hidden[i][:, end - target.shape[1] : end]",
     "hidden[i][:, end - target.shape[1] - 1 : end - 1]", ANSWER),
    (_PACKING, "hidden[i][:, end - target.shape[1] : end]",
     "hidden[i][:, end - target.shape[1] - 1 : end - 1]",
     f"{TRACE}[unifluid-adamw]"),
    (_CONTINUOUS, "(i < known.count)", "(i <= known.count)", REDRAW),
    (_CONTINUOUS, "jnp.argsort(again, axis=1", "jnp.argsort(~again, axis=1",
     REDRAW),
    (_KEYS, "(0, 0, 0, index)", "(0, 0, index, 0)", STEPWISE),
    (_KEYS, "v.swapaxes(1, 2)", "k.swapaxes(1, 2)", STEPWISE),
    (_KEYS, "lambda x: x[rows]", "lambda x: x", "systems/test_decode.py"),
    ("ops/attention.py", '"BTKGH,BKHS->BKGTS", grouped, k)',
     '"BTKGH,BKHS->BKGTS", grouped, k[..., ::-1])', STEPWISE),
    ("models/decoder.py", "local = jnp.asarray(_local_layers(config))",
     "local = ~jnp.asarray(_local_layers(config))", "models/test_decoder.py"),
    ("systems/common/embed.py", '{"layers": stack.unstacked(layers)}',
     '{"layers": layers}', COPIES),
    (_POLICY, "rewards - rewards.mean(axis=1, keepdims=True)", "rewards",
     POLICY),
    (_POLICY, "np.where(better < 0", "np.where(better > 0", POLICY),
    (_POLICY, "(c.seed, step, self._share)", "(c.seed, 0, 0)", POLICY),
    (_POLICY, "for _ in range(c.policy.draws)]", "][:count] * c.policy.draws",
     POLICY),
    (_POLICY, 'rows[WEIGHT] * scale["drawn"]', "rows[WEIGHT]", POLICY),
    (_POLICY, 'local["own"], scale["own"]', 'local["own"], 1.0', POLICY),
    (_POLICY, "concatenate([x, rows[name]", "concatenate([rows[name], x",
     POLICY),
    ("evals/bench.py", "range(first, first + count)", "range(count)",
     "evals/test_bench.py"),
    ("evals/worlds/world_suite.py", "prompts, bench.seeds(half)",
     "prompts, range(half)", "evals/test_second_judge.py"),
    ("api.py", "return self.tokenizer.truncated > before",
     "return self.tokenizer.truncated > 0", "apps/test_app.py"),
    (_PACKING, "weights = jnp.concatenate(of_rows)",
     "weights = jnp.concatenate(of_rows)[::-1]", WEIGHED),
    (_PACKING, "(weights >= 0) | (row <= _FAR * mean)", "weights == weights",
     POLICY),
    (_PACKING, "(row * wanted).sum() / jnp.maximum(wanted.sum(), 1)",
     "row.mean()", POLICY),
    (_LIQUID, "token_loss.weighed(found[_DRAWN], [batch[_DRAWN]])",
     "found[_DRAWN]", WEIGHED),
    (_VARGPT, "packing.weigh(codes.weighted, fields)", "codes.weighted",
     WEIGHED),
    (_UNI, "          [fields],\n", "          [],\n", WEIGHED),
    (_BEST, "np.argsort(-self.rewards", "np.argsort(self.rewards", BEST),
    (_BEST, "if self.rewards[i] >= least", "if self.rewards[i] > least", BEST),
    (_BEST, "for task in part for _ in range(draws)",
     "for _ in range(draws) for task in part", BEST),
    (_BEST, "seed * count + number", "number", BEST),
    (_BEST, "config.init.all={before}", "config.init.all={start}", BEST),
    ("evals/worlds/shapes_reward.py", "count == wanted and ", "", BEST),
    ("evals/worlds/redraw_suite.py", "images[:, half] == before[:, half]",
     "images[:, half] == images[:, half]", "evals/test_redraw_suite.py"),
    ("evals/bench.py", "if s.path == same", "if s.path != same",
     "evals/test_bench.py"),
    (_CELLS, "known = rank < count", "known = rank <= count", REDRAW),
    (_CELLS, "n * (k + 1) // count", "n * k // count + 1", CODE_BY_CODE),
    (_CELLS, "cells[cells.argmax() :].all()", "cells[cells.argmax() :].any()",
     TAIL),
    (_CONTINUOUS, "jnp.where(known[..., None], placed, 0.0)", "placed",
     f"{REDRAW}::test_images_of_stages_are_decoded_from_what_is_known"),
    (_TOKENS, "rank % known.sum(axis=1, keepdims=True)", "rank", CODE_BY_CODE),
    (_TOKENS, "jnp.where(given == PAD, drawn, given)", "drawn", CODE_BY_CODE),
    (_LIQUID, "jnp.where(again, PAD, codes)", "jnp.where(again, codes, PAD)",
     CODE_BY_CODE),
    (_LIQUID, "      self.image_ids(known),", "      known,", CODE_BY_CODE),
    (_UNI, "jnp.where(again, PAD, codes)", "jnp.where(again, codes, PAD)",
     CODE_BY_CODE),
    (_UNI, ".set(known_ids)", ".set(known_ids[:, ::-1])", CODE_BY_CODE),
    (_UNI, "jnp.where(known == PAD, PAD, known + first)", "known",
     CODE_BY_CODE),
    (_BYSCALE, "drawn.sums[size - 1]", "drawn.sums[size - 2]", BYSCALE),
    (_BYSCALE, "return self.sums[-1]", "return self.sums[0]", BYSCALE),
    ("drawings.py", "height * rows // side", "width * rows // side", SIZED),
    ("drawings.py", "crop_resize(image, self._size(sampling))",
     "crop_resize(image, self._size(sampling)[::-1])", SIZED),
    ("drawings.py", "np.where(mask, new, old)", "new", "test_drawings.py"),
    ("drawings.py", "(y < bottom)", "(y <= bottom)", "test_drawings.py"),
    ("drawings.py", "(x + width / columns > left)",
     "(x + width / columns >= left)", "test_drawings.py"),
    (_UNIFLUID, 'count = draws * counts["image_tokens"]', "count = x0.size",
     "systems/test_accumulate.py"),
    (_UNIFLUID, "total + c.text_weight * text", "total + text",
     f"{LOSS}::test_losses_of_all_tasks_are_finite_and_weighted"),
    (_TEXT, '"answers": sum(map(len, suffixes))', '"answers": 1', ANSWER),
    (_TEXT, '"answer_tokens": jnp.maximum(words, 1)',
     '"answer_tokens": sum(s.size for s in suffixes)', ANSWER),
    (_TEXT, "mask = (suffix != PAD)", "mask = (suffix == suffix)", ANSWER),
    (_PACKING,
     "counted = jnp.cumsum(valid.astype(jnp.int32), axis=1) - 1",
     "counted = jnp.cumsum(jnp.ones_like(valid, jnp.int32), axis=1) - 1",
     PLAIN),
    ("ops/sampling.py", "np.linspace(first, last, levels)",
     "np.linspace(last, first, levels)", "ops/test_sampling.py"),
    (_GROUPS, "range(begun + 1, known)", "range(begun + 2, known)",
     "systems/test_decode.py"),
    (_GROUPS, "*[known - 1] * size", "*[known] * size",
     "systems/test_decode.py"),
    (_GROUPS, "*[known] * size], np.int32",
     "*group], np.int32", "systems/test_decode.py"),
    (_GROUPS, "embed(tokens[known], known, i)",
     "embed(tokens[known], known, known)", "systems/test_decode.py"),
    ("ops/order.py", "left - goal)", "max(left - goal, 2))",
     "ops/test_order.py"),
    ("core/host_memory.py", "mallopt(_MMAP_MAX, 0)", "pass", MEMORY),
    ("core/host_memory.py", 'return asked == "cpu"', "return True", MEMORY),
    ("ops/order.py", "score = apart - context", "score = apart + context",
     "ops/test_order.py"),
    ("ops/order.py", "group_sizes(n, passes, kind))", "group_sizes(n, n))",
     "ops/test_order.py"),
    ("ops/order.py", "nearest.argmax()", "nearest.argmin()",
     "ops/test_order.py"),
    ("ops/order.py", "jnp.argsort(group + u, axis=1)",
     "jnp.argsort(group + 0 * u, axis=1)", "ops/test_order.py"),
    ("systems/unifluid.py", "(n, config.passes, config.order)\n    return",
     '(n, config.passes, "random")\n    return', "systems/test_decode.py"),
    ("systems/unifluid_sampling.py", "passes < (loss.passes or n)",
     "passes < 0", "systems/test_redraw.py"),
    ("systems/unifluid.py", "jnp.asarray(which)[place], draws",
     "jnp.asarray(which)[0], draws", "systems/test_decode.py"),
    ("ops/diffusion.py", "_reverse(at, x_t, jax.lax.stop_gradient(eps), value)",
     "_reverse(at, x_t, eps, value)",
     f"{LOSS}::test_vb_trains_only_the_variance_output"),
    # -------------------------------------------------------- few-step heads
    (_FLOW, "(1 - t) * noise + t * x0", "t * noise + (1 - t) * x0", FLOW),
    (_FLOW, "return (stratum + u) / draws", "return u + 0 * stratum", FLOW),
    (_FLOW, "np.repeat(starts, 2)[1:]", "np.repeat(starts, 2)[:-1]", FLOW),
    (_FLOW, "(state.slope + v) / 2", "v", FLOW),
    (_FLOW, "jnp.where(at.corrects, state.start, state.x)", "state.x", FLOW),
    (_FLOW, "left = 1 - at.time", "left = 1.0", FLOW),
    (_FLOW, "jnp.floor(u * count) / count", "u", FLOW),
    (_FLOW, "half = 2.0 ** -(level + 1)", "half = 2.0**-level", FLOW),
    (_FLOW, "velocity(middle, t + half, level + 1)",
     "velocity(middle, t, level + 1)", FLOW),
    (_FLOW, "jax.lax.stop_gradient((first + second) / 2)",
     "(first + second) / 2", FLOW),
    (_FLOW, "max(1, draws // _SHARE)", "draws // _SHARE", FLOW),
    ("ops/energy.py", "/ (n - 1)", "/ n", ENERGY),
    ("ops/energy.py", "-0.5 * sum(others)", "-1.0 * sum(others)", ENERGY),
    ("ops/energy.py", "jnp.sqrt(jnp.where(apart, square, 1.0))",
     "jnp.sqrt(square)", ENERGY),
    ("ops/sampling.py", "*others, self.scale, self.image_scale",
     "*others, self.image_scale, self.scale", "ops/test_sampling.py"),
    ("models/flow_head.py", "x, _CHAIN * t, z, level", "x, t, z, level", HEADS),
    ("models/flow_head.py", "_CHAIN * part.time", "part.time", HEADS),
    ("models/flow_head.py", "flow.begin(temperature * noise(net, keys))",
     "flow.begin(noise(net, keys))", HEADS),
    ("models/flow_head.py",
     "jax.vmap(lambda k: jax.random.normal(k, (net.channels,)))(keys)",
     "jax.random.normal(keys[0], (len(keys), net.channels))", HEADS),
    ("models/flow_head.py", "return guided.combine(out)",
     "return out[: len(keys)]", HEADS),
    ("models/shortcut_head.py", "level=steps.bit_length() - 1",
     "level=flow.FINEST", HEADS),
    ("models/shortcut_head.py", "jnp.full(t.shape, flow.FINEST)",
     "jnp.zeros(t.shape, jnp.int32)", HEADS),
    ("models/shortcut_head.py", "(x0 - noise)[twice:]",
     "(x0 - noise)[:-twice]", HEADS),
    ("models/energy_head.py", "temperature * jax.vmap(draw)(keys)",
     "jax.vmap(draw)(keys)", HEADS),
    ("models/energy_head.py", "jnp.clip(guided.combine(tokens), -limit, limit)",
     "guided.combine(jnp.clip(tokens, -limit, limit))", HEADS),
    ("models/distilled_head.py", "_keys(key, b, n, draws), flow.evaluations",
     "_keys(key, b, n, draws)[::-1], flow.evaluations", DISTILLED),
    ("models/distilled_head.py", "tokens = jnp.moveaxis(tokens.reshape(b, n,",
     "tokens = jnp.moveaxis(tokens.reshape(n, b,", DISTILLED),
    ("models/distilled_head.py", "x0 - noise)}", "x0)}", DISTILLED),
    ("models/distilled_head.py", "jax.lax.stop_gradient(tokens)", "tokens",
     DISTILLED),
    ("systems/unifluid.py", "dropouts = (0.0, 1.0) if",
     "dropouts = (0.0, 0.0) if", DISTIL),
    ("systems/unifluid.py", 'self.held = ("teacher",) if',
     "self.held = () if", DISTIL),
    ("systems/common/head_targets.py", "return z[0], shown",
     "return z[1], shown", DISTIL),
    ("systems/common/head_targets.py", "sampling.Guided(z, loss.teacher_cfg)",
     "sampling.Guided(z, 1.0)", DISTIL),
    ("models/token_head.py", "options.solver not in KINDS[kind].solvers",
     "False", HEADS),
    ("evals/published/study_results.py", "settings.get(k, 0) == v",
     "settings.get(k, v) == v", "test_studies.py"),
    (_FUSED, "(h_ref[:, at] - mean) ** 2", "h_ref[:, at] ** 2", FUSED),
    (_FUSED, "u * (1 + scale)", "u * scale", FUSED),
    (_FUSED, "row(first), row(first + 1)", "row(first + 1), row(first)", FUSED),
    (_FUSED, "column(first + 2)", "column(first)", FUSED),
    (_FUSED, "first = 3 * index", "first = 0", FUSED),
    (_FUSED, "out * jax.nn.sigmoid(out)", "jax.nn.sigmoid(out)", FUSED),
    (_FUSED, "(i, before + j)", "(i, before)", FUSED),
    ("models/diffusion_head.py", "mesh.size > 1", "mesh.size > 8",
     "ops/test_fused_head.py::test_devices_of_a_mesh_draw_by_plain_operations"),
    ("models/diffusion_head.py", "tuple(parts[-2:])", "tuple(parts[:2])",
     FUSED),
    ("systems/unifluid_config.py", "head.width % fused_head.LANES == 0",
     "True", FUSED),
    ("systems/unifluid_config.py", "draws >= fewest,", "draws > 0,",
     f"{SYSTEM_HEADS}::test_refused_configurations"),
    ("systems/unifluid_sampling.py",
     "return token_head.refusal(config.model.head.kind, sampling)",
     'return ""', f"{SYSTEM_HEADS}::test_refused_configurations"),
    (_UNIFLUID, "limit=config.clip or math.inf, solver=config.solver,",
     'limit=config.clip or math.inf, solver="euler",',
     f"{SYSTEM_HEADS}::test_options_reach_the_head"),
    (_COMMON_COST, "draws + 2 / 3 * pairs", "draws + 2 * pairs",
     "systems/test_cost.py"),
    ("ops/attention.py", "block[:, None, :] <= block[:, :, None]",
     "block[:, None, :] < block[:, :, None]",
     "ops/test_attention.py::test_block_causal_mask_examples"),
    (_REBUILT, "step >= weights.adversarial_start", "step >= 0",
     "systems/test_vae.py::test_before_the_start_the_discriminator_takes_no_part"),
    (_REBUILT, "float(x[0].size * count)", "float(x.size)",
     "systems/test_vae.py::test_parts_of_a_batch_add_up"),
    # ------------------------------------------------------- VQ tokenizers
    ("models/vq.py", "self.z + _sg(self.nearest - self.z)", "self.nearest",
     "models/test_vq.py::test_gradients_pass_straight_through"),
    ("models/vq.py", "square + jnp.square(table).sum(-1) - 2", "square - 2",
     "models/test_vq.py::test_codes_are_the_nearest_vectors"),
    ("models/vq.py", "  table = vectors(table, normalised)\n", "",
     "models/test_vq.py::test_codes_are_the_nearest_vectors"),
    ("models/vq.py", "quantise(z, self.codebook(), self.config.normalised)",
     "quantise(z, self.codebook(), False)",
     "models/test_vq.py::test_images_are_decoded_from_the_vectors_of_their_"
     "codes"),
    ("models/vq.py", "jnp.square(x).sum(-1, keepdims=True)\n  return x",
     "jnp.square(_sg(x)).sum(-1, keepdims=True)\n  return x",
     "models/test_vq.py::test_gradients_pass_through_the_normalisation"),
    (_VQ, "return w.commitment * codes + encoder",
     "return codes + w.commitment * encoder", f"{VQ}::test_the_orders_differ_"
     "in_gradients_alone"),
    (_VQ, "jnp.square(_sg(nearest) - z)", "jnp.square(nearest - _sg(z))",
     f"{VQ}::test_the_encoder_is_committed_to_its_codes"),
    (_VQ, "(step + 1) % w.revive_every == 0", "step % w.revive_every == 0",
     f"{CODEBOOK}::test_codes_that_hardly_occur_are_replaced_when_it_is_due"),
    (_VQ, "jnp.where(rows, mean, used)", "used",
     f"{CODEBOOK}::test_codes_that_hardly_occur_are_replaced_when_it_is_due"),
    (_VQ, "replaced |= step == 0", "replaced |= step >= 0",
     f"{CODEBOOK}::test_codes_begin_as_outputs_of_the_encoder"),
    (_VQ, "order = jax.random.permutation(key, len(codes))",
     "order = jnp.arange(len(codes))",
     f"{CODEBOOK}::test_candidates_are_vectors_of_the_batch_each_at_most_once"),
    (_VQ, "count = jnp.ones(self._config.codes)",
     "count = jnp.zeros(self._config.codes)",
     f"{CODEBOOK}::test_unused_averages_stay_where_they_began"),
    (_VQ, "usage=share * self", "usage=self",
     f"{VQ}::test_parts_of_a_batch_add_up"),
    (_VQ, "if w.adaptive:", "if True:",
     f"{VQ}::test_the_adversarial_weight_is_constant_or_a_ratio_of_means"),
    ("codecs/vq.py", "codes.reshape(len(images), -1)",
     "codes.mT.reshape(len(images), -1)",
     f"{VQ}::test_four_images_are_learned_and_read_back_by_the_codec"),
    # ------------------------------------------------------ text alignment
    ("ops/contrastive.py", "same & ~pair", "same", PAIRS),
    ("ops/contrastive.py", "same & ~pair", "pair & ~pair", PAIRS),
    ("ops/contrastive.py", "for axis in (0, 1)", "for axis in (1, 1)", PAIRS),
    ("models/alignment.py", "np.tril(", "np.triu(", TOWERS),
    ("models/alignment.py", "(ids >= 0).sum(1) - 1", "(ids >= -1).sum(1) - 1",
     TOWERS),
    ("models/alignment.py", "x.astype(self.dtype) + self.position.astype("
     "self.dtype)", "x.astype(self.dtype)", TOWERS),
    ("models/alignment.py", "jnp.minimum(self.log_scale, math.log(_MAX_SCALE))",
     "self.log_scale", TOWERS),
    (_VQ, "total += w.align * term", "total += term", ALIGNED),
    (_VQ, 'params["alignment"], z, batch', 'params["alignment"], found.nearest,'
     " batch", ALIGNED),
    ("systems/common/alignment.py", "(captions[:, None] == captions[None])",
     "(captions[:, None] == 0 * captions[None])", ALIGNED),
    ("systems/common/alignment.py", 'after=("eos",)', "after=()", ALIGNED),
    # ------------------------------------------------------------- decoding
    (_UNIFLUID, "here[:, jnp.maximum(i - 1, 0)]", "here[:, i]", DRAW),
    (_UNIFLUID, "next_rows[:, target]",
     "next_rows[:, jnp.maximum(target - 1, 0)]", DRAW),
    (_UNIFLUID, "jax.random.fold_in(k, i))(split",
     "jax.random.fold_in(k, 0))(split", DRAW),
    (_CONTINUOUS, "(prompt.length + i)[:, None]",
     "(prompt.length + i + 1)[:, None]", DRAW),
    (_CONTINUOUS, "cache,\n      start + i,",
     "cache,\n      start + jnp.maximum(i - 1, 0),", DRAW),
    (_CONTINUOUS,
     "mask = prompt.seen | ((slots >= start) & (slots <= start + i))",
     "mask = prompt.seen | ((slots >= start) & (slots < start + i))", DRAW),
    (_UNIFLUID, "sampling.Guided(z, cfg", "sampling.Guided(z[:1] * 2, cfg",
     DRAW),
    (_UNIFLUID, "cfg_scale(kind, scale, i, n)", "cfg_scale(kind, scale, 0, n)",
     DRAW),
    (_UNIFLUID, "steps, config.temperature,", "steps, 1.0,", DRAW),
    (_UNIFLUID, "limit=config.clip or math.inf", "limit=math.inf", DRAW),
    (_UNIFLUID,
     "sampling, cells)\n    return self.codec.decode(frozen[\"codec\"], "
     "order.put_tokens(tokens, cells))",
     "sampling, cells)\n    return self.codec.decode(frozen[\"codec\"], "
     "tokens)", DRAW),
    ("ops/sampling.py", "return null + scale * (cond - null)",
     "return null - scale * (cond - null)",
     "ops/test_sampling.py::test_guide"),
    (_ANSWER, "first = logits_of(hidden[:, -1])",
     "first = logits_of(hidden[:, -2])", GREEDY),
    (_ANSWER, "mask = valid | ((slots >= start) & (slots <= start + i))",
     "mask = valid | ((slots >= start) & (slots < start + i))", GREEDY),
    ("ops/sampling.py", "logits, cache = step(cache, token, i - 1)\n    "
     "return i + 1, *emit", "logits, cache = step(cache, token, i)\n    "
     "return i + 1, *emit", GREEDY),
    # -------------------------------------------------- latents, evaluation
    ("codecs/kl_vae.py", '"scale": 1 / std', '"scale": std',
     "test_latents.py"),
    ("codecs/kl_vae.py", "(mean**2 + np.exp(logvar))", "(mean**2)",
     "test_latents.py"),
    ("evaluation.py", "weights = x.ndim > 0 and", "weights =",
     "test_evaluation.py::test_networks_are_bfloat16_and_constants_are_not"),
    ("evaluation.py", "*out.shape[2:])[:n])", "*out.shape[2:]))",
     "test_evaluation.py::test_the_next_checkpoint_needs_no_compilation"),
    ("loading.py", '"ema" if averaged(config, ema) else "params"', '"params"',
     "test_evaluation.py::test_averaged_weights_are_read_where_wanted"),
    ("loading.py", '"ema" if averaged(config, ema) else "params"', '"ema"',
     "test_evaluation.py::test_averaged_weights_are_read_where_wanted"),
    ("evaluation.py", "name: part if name in exact else", "name:",
     "test_evaluation.py::test_exact_parts_keep_their_precision"),
    # ------------------------------------------- fields, encoding, the API
    ("codecs/inputs.py", 'x = _encoded(system.codec, frozen["codec"], x)',
     "pass", f"{LOSS}::test_moments_and_pixels_give_the_same_tokens"),
    ("data/fields.py",
     'start = self.length - len(ids) if self.align == "right" else 0',
     "start = 0", "data/test_text.py"),
    ("data/fields.py", "    if not field.target\n", "",
     "data/test_fields.py::test_prompts_are_what_is_no_target"),
    ("data/tasks.py", "cached=record.moments)\n\n\ndef _choose(",
     "cached=None)\n\n\ndef _choose(",
     "data/test_pipeline.py::test_cached_moments_replace_pixels"),
    ("api.py", "jax.random.fold_in(key, row)", "key", "test_api.py"),
    ("api.py", "key = jax.random.key(sampling.seed)",
     "key = jax.random.key(0)", "test_api.py"),
    ("weights/warm_start.py", "entries.get(longest_prefix(entries, leaf), ",
     "entries.get(leaf.split('/')[0], ", "test_warm_start.py"),
    # ------------------------------------------------- dialogues, in context
    (_ROWS, '[*[_CODE] * self.tokens, special["eoi"]]',
     "[_CODE] * self.tokens", TURNS),
    (_ROWS, "turn.target or (follows and before.target)", "turn.target", TURNS),
    (_ROWS, "[turns[-1].target])", "[True])", TURNS),
    (_ROWS, "    if not self.prompt:\n", "    if True:\n", TURNS),
    (_ROWS, "kept = (*turns[:head], *turns[first:])", "kept = turns[first:]",
     CHATS),
    (_ROWS, "count -= 1", "count = head + 1", TURNS),
    (_ROWS, "start = self.length - count if self.prompt else 0", "start = 0",
     TURNS),
    (_ROWS, "and len(tokens.ids) < room", "and len(tokens.ids) <= room", TURNS),
    (_ROWS, "whole = len(turns) == len(given) and", "whole =", TURNS),
    (_ROWS, "if whole and not self.prompt", "if whole", TURNS),
    (_ROWS, "follows and before.image is None", "False", TURNS),
    (_ROWS, "follows = not ended and not marker", "follows = not ended", CHATS),
    (_ROWS, "follows = not ended and not marker", "follows = not marker",
     CHATS),
    (_ROWS, 'body += [special["eos"]] if ended else []', "pass", CHATS),
    (_ROWS, "and not (self.prompt and not after)", "", CHATS),
    (_ROWS, "room = self.length - 1 - len(reply)", "room = self.length - 1",
     CHATS),
    (_ROWS, 'and given[-1].role == "user"', "", CHATS),
    (_ROWS, "and not _ends_message(turns[-1], None)", "", CHATS),
    (_ROWS, "if turn.role and (before is None or before.role != turn.role)",
     "if turn.role", CHATS),
    (_ROWS, "return _Tokens(list(ids), [False] * len(ids))",
     "return _Tokens(list(ids), [True] * len(ids))", CHATS),
    (_ROWS, 'and chat.system:', "and True:", CHATS),
    (_SAID, "turns.append(Turn(\"\", left.pop(0), role == ASSISTANT, role))",
     "turns.append(Turn(\"\", left.pop(), role == ASSISTANT, role))", CHATS),
    (_SAID, "turns.append(Turn(text, None, role == ASSISTANT, role))",
     "turns.append(Turn(text, None, True, role))", CHATS),
    (_SAID, "if role != _HOLDS[part]:", "if False:", CHATS),
    (_SAID, "if asked != len(left):", "if asked > len(left):",
     f"{CHATS} data/test_instructions.py"),
    ("data/sources/conversations.py", "offset + len(data), number + 1",
     "offset + end - start, number + 1", CHATS),
    ("data/sources/conversations.py", "data = text[start:end].encode()\n",
     "data = text[start:end].encode(errors='ignore')[:-1]\n", CHATS),
    ("data/instructions/templates.py",
     "dealt.setdefault(key(text), str(text))", "dealt[text] = str(text)",
     ASKING),
    ("data/instructions/templates.py",
     "for hand in itertools.zip_longest(*piles):",
     "for hand in [[t for pile in piles for t in pile]]:", ASKING),
    ("data/instructions/templates.py",
     "tuple(p for i, p in enumerate(prompts) if i not in apart),",
     "prompts,", ASKING),
    (_FEW, "prompt, answer = _pick(used.prompts, rng)",
     "prompt, answer = _pick(used.prompts + used.held_out, rng)", ASKING),
    (_FEW, "images[k + (k >= i)]", "images[k]",
     ASKING),
    (_FEW, '"held_out": asked >= len(used.prompts)',
     '"held_out": False', ASKING),
    (_FEW, "if share < overlap:", "if False:",
     ASKING),
    ("data/instructions/builder.py", "if asked < len(used.prompts) else",
     "if True else", ASKING),
    ("data/worlds/chats.py", "exchange(world, rng, kind, before, split)",
     "exchange(world, rng, kind, None, split)", WORLD_CHATS),
    ("data/worlds/chats.py", "_pick(_PLAIN, rng), edit.target, shown)",
     "_pick(_PLAIN, rng), before, shown)", WORLD_CHATS),
    ("data/worlds/chats.py",
     "WORDINGS.held_out if unseen else WORDINGS.prompts",
     "WORDINGS.prompts + WORDINGS.held_out", WORLD_CHATS),
    (_ASKED, "r.draws == a.exchange.draws", "r.draws", DRAWS),
    (_ASKED, "if i % 2 else ()", "if i % 3 else ()", DRAWS),
    (_ASKED, "bool(s) and not r.draws", "bool(s)", DRAWS),
    (_ASKED, "right, values, shown = dict.fromkeys(due, False), {}, []",
     "right, values, shown = {}, {}, []", DRAWS),
    (_ASKED, "not (r.text or r.draws)", "True", DRAWS),
    (_ASKED, "said = [Turn(text, role=conversation.ASSISTANT)] if text else []",
     "said = []", DRAWS),
    (_ASKED, "return geneval.judge(asked.task, detections)[0]", "return True",
     DRAWS),
    (_ASKED, "scenes = scenes[:-1]", "scenes = scenes[:]", DRAWS),
    (_ROWS, "np.cumsum(here) - 1", "np.cumsum(here)", TURNS),
    (_ROWS, "turns, made = self._kept(given, example, room)",
     "turns, made = given, self._tokens(given, example)", TURNS),
    (_ROWS, "target[slots] = tokens.counts", "target[slots] = True", TURNS),
    ("data/tasks.py", "if not any(t.target for t in turns):", "if not turns:",
     TURNS),
    ("data/worlds/in_context.py", "s == shape and c != colour", "c != colour",
     RULE),
    ("data/worlds/in_context.py", "c == colour and s != shape", "s != shape",
     RULE),
    ("data/worlds/in_context.py", "for n in every if n != number]",
     "for n in every]", RULE),
    ("data/worlds/in_context.py",
     "taken = (*taken, shapes.other_pair(world, rng, taken))",
     "taken = (*taken, shapes.other_pair(world, rng, taken[:1]))", RULE),
    ("data/worlds/in_context.py", "(given._replace(target=False), found)",
     "(given, found)", RULE),
    (_CONTEXT, "step = 1 if kind == TELL else len(RULES)",
     "step = len(RULES)", SCORED),
    (_CONTEXT, "step = 1 if kind == TELL else len(RULES)", "step = 0", SCORED),
    (_CONTEXT, "moved = examples[step:] + examples[:step]", "moved = examples",
     SCORED),
    (_CONTEXT, "return found == [(colour, shape)] * number",
     "return found[:1] == [(colour, shape)]", SCORED),
    (_CONTEXT, "thing[k] == asked[k] for thing", "True for thing", SCORED),
    (_INTERLEAVED, "jnp.where(cell >= 0, image_ids(placed), row)",
     "jnp.where(cell >= 0, placed, row)", TOY_TURNS),
    (_INTERLEAVED, 'jnp.where(fields[f"{FIELD}.target"], ids, PAD)', "ids",
     TOY_TURNS),
    (_INTERLEAVED, "codes = codes.reshape(len(codes), -1)",
     "codes = codes[:, ::-1].reshape(len(codes), -1)", TOY_TURNS),
    ("systems/unitoken.py", "VqCodec(m.vq, m.vq_path, m.image_size)",
     "VqCodec(m.vq, m.vq_path, m.image_size, dtype)",
     "systems/test_unitoken.py::"
     "test_codes_are_those_of_the_float32_tokenizer"),
    ("data/transforms.py", "(sides[i % 2] * scale - size[i % 2]) / 2)", "0)",
     "data/test_task_source.py::"
     "test_a_crop_is_set_upright_and_has_the_box_where_it_shows"),
    ("evals/worlds/shapes_reward.py", "np.floor(ends + rng.random())",
     "np.rint(ends)",
     "test_rejection.py::test_few_shapes_prompts_are_of_all_tasks_in_time"),
    ("ops/sampling.py", "done | jnp.isin(token, ends)",
     "done | (token == ends.max())",
     "ops/test_sampling.py::test_several_tokens_may_end_an_answer"),
    ("ops/sampling.py", "ending[:, 0].at[:, i].set(ends[end])",
     "ending[:, 0].at[:, i].set(ends[0])",
     "ops/test_sampling.py::test_several_tokens_may_end_an_answer"),
    ("codecs/inputs.py", "return out.reshape(*several, *out.shape[1:])",
     "return out.reshape(*several[::-1], *out.shape[1:])",
     "systems/test_contract.py::"
     "test_dialogues_of_the_world_are_loaded_and_encoded"),
    (_LIQUID, "interleaved.targets(fields, ids)[:, 1:])",
     "interleaved.targets(fields, ids)[:, :-1])", LIQUID_TURNS),
    (_LIQUID, '"end": end, "text": ~image & ~end}', '"text": ~image}',
     LIQUID_TURNS),
    (_LIQUID, 'prompt = jnp.concatenate([prompt, boi], axis=1)', "pass",
     LIQUID_TURNS),
    (_LIQUID, "found = {kind: n + turns[kind] for kind, n in found.items()}",
     "pass", LIQUID_TURNS),
    ("systems/common/token_loss.py", "else jnp.maximum(count, 1)", "else count",
     LIQUID_TURNS),
    (_LIQUID, 'ends = ("eos", "boi") if task == _TURNS else ("eos",)',
     'ends = ("eos",)', LIQUID_TURNS),
    ("dialogues.py", '== self._tokenizer.special["boi"]', "== 1",
     "test_dialogues.py"),
    ("dialogues.py", "np.asarray(seeds, np.uint32), *rows",
     "np.zeros(len(dialogues), np.uint32), *rows", "test_dialogues.py"),
    # ------------------------------------------------------ several seeds
    (f"{_REPORT}/intervals.py", "ddof=1", "ddof=0", COMPARISON),
    (f"{_REPORT}/intervals.py", "0.5 + CONFIDENCE / 2", "CONFIDENCE",
     COMPARISON),
    (f"{_REPORT}/intervals.py", "va**2 / (len(a) - 1)", "va**2 / len(a)",
     COMPARISON),
    (f"{_REPORT}/intervals.py", "if min(len(a), len(b)) < 2",
     "if max(len(a), len(b)) < 2", COMPARISON),
    (f"{_REPORT}/run_groups.py", "    and run.step == first.step\n", "",
     COMPARISON),
    (f"{_REPORT}/run_groups.py",
     "not in [r.config.get(\"seed\") for r in group]", "is not None",
     COMPARISON),
    (f"{_REPORT}/comparison_page.py",
     "clear = found.half is None or found.excludes_zero", "clear = True",
     COMPARISON),
    ("exported.py", "network = x.ndim > 0 and jnp", "network = jnp",
     f"{EXPORT}::test_an_exported_model_has_the_numbers_of_its_run"),
    ("exported.py", "name: part if name in exact else", "name:",
     f"{EXPORT}::test_an_exported_model_has_the_numbers_of_its_run"),
    ("exported.py", "jnp.asarray(source.read(key), x.dtype)",
     "jnp.asarray(source.read(key))",
     f"{EXPORT}::test_an_exported_model_has_the_numbers_of_its_run"),
    ("exporting.py", "loading.read(run, step, ema=not raw)",
     "loading.read(run, step)", f"{EXPORT}::test_raw_weights_are_those_that"
     "_were_trained"),
    ("arguments.py", "return int(generator.integers(2**31)), rest",
     "return 0, rest",
     "test_api.py::test_options_may_have_the_names_of_diffusers"),
    ("model_card.py", 'if "value" in r and r["step"] == step}',
     'if "value" in r}', f"{EXPORT}::test_the_card_is_filled_from_the_run"),
  )
)  # fmt: skip


def run(tree: Path, tests: str) -> subprocess.CompletedProcess:
  """Pytest in a copy of the tree, until the first failure."""
  environment = os.environ | {
    "PYTHONPATH": str(tree),
    "PYTHONDONTWRITEBYTECODE": "1",
    # Programs that no mutation touches are compiled once.
    "JAX_COMPILATION_CACHE_DIR": str(tree / "compiled"),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2",
  }
  return subprocess.run(
    [sys.executable, "-m", "pytest", "-x", "-n0", "--tb=line",
     *(f"tests/{test}" for test in tests.split())],
    cwd=tree, env=environment, capture_output=True, text=True, check=False,
  )  # fmt: skip


def outcome(tree: Path, mutation: Mutation) -> str:
  """Applies a mutation, runs its tests, takes it back.

  Returns:
    "killed" or "SURVIVED", or why neither can be said.
  """
  path = tree / "unifluid_jax" / mutation.file
  text = path.read_text()
  if text.count(mutation.old) != 1:
    return f"STALE: occurs {text.count(mutation.old)} times"
  path.write_text(text.replace(mutation.old, mutation.new))
  try:
    done = run(tree, mutation.tests)
  finally:
    path.write_text(text)
  if done.returncode > 1:
    return f"BROKEN: {(done.stdout + done.stderr).strip()[-300:]}"
  return "killed" if done.returncode else "SURVIVED"


def main() -> int:
  """Runs the chosen mutations; 1 unless all are killed."""
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--only", default="", help="regex: file, line or test")
  only = re.compile(parser.parse_args().only)
  chosen = [m for m in MUTATIONS if only.search("  ".join(m))]
  bad = []
  with tempfile.TemporaryDirectory() as folder:
    tree = Path(folder) / "tree"
    ignored = shutil.ignore_patterns(".git", ".venv", "runs", "__pycache__")
    shutil.copytree(ROOT, tree, ignore=ignored)
    tests = sorted({test for m in chosen for test in m.tests.split()})
    whole = run(tree, " ".join(tests))
    if whole.returncode:
      print(whole.stdout[-2000:], "the tests fail without a mutation")
      return 1
    for i, mutation in enumerate(chosen, 1):
      begin = time.monotonic()
      found = outcome(tree, mutation)
      line = mutation.new.strip().split("\n")[0] or f"no {mutation.old}"
      seconds = time.monotonic() - begin
      print(
        f"{i}/{len(chosen)} {found} ({seconds:.0f} s)  {mutation.file}: {line}",
        flush=True,
      )
      if found != "killed":
        bad.append(mutation)
  print(f"{len(chosen) - len(bad)} of {len(chosen)} killed")
  for mutation in bad:
    print(f"  {mutation.file}: {mutation.old!r} -> {mutation.new!r}")
  return int(bool(bad))


if __name__ == "__main__":
  sys.exit(main())
