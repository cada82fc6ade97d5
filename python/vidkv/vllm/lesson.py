"""A short text that the model reads once, at the start: its queries stand for those that will be asked of any block.

A block is packed when it is full, by its own 128 tokens' queries; later ones look elsewhere, and what the process has read before must not matter
(the block's codes would depend on who fills it). The same text for everybody gives the same beginning to everybody.

Rotary positions turn queries: those that will be asked of a block come from behind it. The text is read once, its queries are turned on to
where they would be behind the block, in steps that double."""
import logging
from pathlib import Path

import torch

from .. import Params
from . import layers, options

logger = logging.getLogger("vllm.vidkv")
TOKENS = 768  # at most
FIRST = 1024  # blocks that begin before this token of their text are taught by queries from here on; others from twice where the step begins


def starts(length):
    """(first token of the blocks that are taught, position of the queries that teach them) up to texts of so many tokens."""
    found = [(0, FIRST)]
    while found[-1][1] < length:
        found.append((found[-1][1], 2 * found[-1][1]))
    return found


def turns(model):
    """How the queries of each layer are turned on: {name of the layer: turn(query, positions)}. Turning twice adds up, so the model's own
    rotary embedding turns what it has turned before."""

    def turn_by(rotary):
        def turn(query, by):
            flat = query.float().flatten(1).clone()
            most = len(rotary.cos_sin_cache) - 1  # the model's own, not --max-model-len: codes are the same in all processes
            turned = rotary.forward_native(torch.full((len(flat),), min(by, most)), flat, None)[0].view_as(query)
            return turned * (query.float().norm(dim=-1, keepdim=True) / turned.norm(dim=-1, keepdim=True).clamp_min(1e-20))  # some scale as well

        return turn

    found = {}
    for module in model.modules():
        rotary, attention = getattr(module, "rotary_emb", None), getattr(module, "attn", None)
        if hasattr(rotary, "forward_native") and hasattr(rotary, "cos_sin_cache") and hasattr(attention, "layer_name"):
            found[attention.layer_name] = turn_by(rotary)
    return found


class Lesson:
    """Stands in the place of a layer's attention metadata while the text is read: nothing is written into any block."""

    turns = {}  # of the model that reads

    @staticmethod
    def attend(impl, query, key, value, output, native, turn):
        """All tokens see those before them. native: the layer's blocks; None for layers that are not packed. turn: see turns(); None: positions
        do not turn its queries, or not by the number of tokens before them (pictures)."""
        q, k, v = (x.float().transpose(0, 1).unsqueeze(0) for x in (query, key, value))
        if native is not None:
            native.forget()
            for start, position in starts(options.state().length) if turn else [(0, 0)]:
                native.learn((turn(query, position) if position else query).float().contiguous(), start)
        out = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=impl.scale, enable_gqa=True)
        output.copy_(out[0].transpose(0, 1))
        return output


def tokens_of(model_config):
    """The text in the model's tokens; None where there is no tokenizer."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(model_config.tokenizer, revision=model_config.tokenizer_revision,
                                                  trust_remote_code=model_config.trust_remote_code)
        text = Path(__file__).with_name("lesson.txt").read_text(encoding="utf-8")
        return tokenizer(text, add_special_tokens=True)["input_ids"][:TOKENS] or None
    except Exception as error:  # tokenizers raise anything
        logger.info("VidKV: keys are packed by their own block's queries alone: no tokenizer (%s)", str(error).splitlines()[0] if str(error) else repr(error))
        return None


def wants_one(params: Params):
    """Trellis keys spend their bits by queries."""
    return params.key_bits < 16 and params.key_codec == 1


def read(worker):
    """Called in each worker when the model and its blocks are there."""
    state = options.state()
    if not state.packs or not wants_one(state.params):
        return
    config, runner = worker.vllm_config, worker.model_runner
    ids = tokens_of(config.model_config)
    if ids is None:
        return
    try:
        _read(config, runner, torch.tensor(ids[: config.model_config.max_model_len]))
    except Exception as error:  # a model that wants more than tokens and positions
        for native in layers.all_blocks():
            native.forget()
        logger.warning("VidKV: keys are packed by their own block's queries alone: the model did not read the lesson: %r", error)


@torch.inference_mode()
def _read(config, runner, ids):
    from vllm.forward_context import set_forward_context

    positions = torch.arange(len(ids))
    Lesson.turns = turns(runner.model)
    if getattr(runner, "uses_mrope", False):
        positions, Lesson.turns = positions.expand(3, -1).contiguous(), {}
    names = config.compilation_config.static_forward_context
    with set_forward_context({name: Lesson for name in names}, config, num_tokens=len(ids), slot_mapping={}, skip_compiled=True):
        runner.model(input_ids=ids, positions=positions, intermediate_tensors=None, inputs_embeds=None)
