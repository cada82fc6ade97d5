#!/usr/bin/env python3
"""LLaVA-OneVision from Hugging Face -> two GGUF files that llama.cpp loads.

    python convert.py DIR [OUT]      (OUT: a folder, by default DIR itself)

writes OUT/NAME.gguf (the language model, qwen2) and OUT/mmproj-NAME.gguf (SigLIP, the projector, the newline embedding), NAME being DIR's
own. llama-quantize makes smaller ones of the first. Needs: gguf, numpy, safetensors, torch, and jinja2 for the chat template.
"""
import argparse
import math
import os
import re
import sys

import numpy as np

from checkpoint import BadFolder, Checkpoint, read_json
from vocabulary import CHATML, Vocabulary, prompt

FRAMES = 32  # of a video, as published
KEY = "vidkv.llava_onevision."
SIGLIP_PIXELS = [0.5, 0.5, 0.5]  # mean and deviation where the folder has no preprocessor, as in lmms-lab's
TEXT_NAMES = {
    "embed_tokens": "token_embd", "norm": "output_norm", "lm_head": "output", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"}
VISION_NAMES = {
    "embeddings.patch_embedding": "patch_embd", "embeddings.position_embedding": "position_embd", "layer_norm1": "ln1", "layer_norm2": "ln2",
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.out_proj": "attn_out",
    "mlp.fc1": "ffn_up", "mlp.fc2": "ffn_down"}
EXACT = ("v.patch_embd.weight", "v.position_embd.weight")  # small, and the first thing every pixel meets


def renamed(name, layers, table, block):
    """`layers` is what numbers the blocks in the folder's names, `block` in llama.cpp's."""
    stem, kind = name.rsplit(".", 1)
    number = re.match(re.escape(layers) + r"(\d+)\.(.*)$", stem)
    known = table.get(number[2] if number else stem)
    if known is None:
        raise BadFolder(f"unexpected tensor {name}: not a LLaVA-OneVision that this program knows")
    return f"{block}blk.{number[1]}.{known}.{kind}" if number else f"{block}{known}.{kind}"


def rope_base(text):
    stated = text.get("rope_parameters") or {}
    scaling = text.get("rope_scaling") or stated
    if (scaling.get("rope_type") or scaling.get("type") or "default") != "default":
        raise BadFolder(f"the language model scales its positions ({scaling}): this is not converted")
    return float(stated.get("rope_theta") or text.get("rope_theta") or 1e4)


class Output:
    """A GGUF file beside its place until it is complete; tensors are read one at a time."""

    def __init__(self, gguf, path, architecture, half):
        self.gguf, self.path, self.half, self.tensors = gguf, path, half, []
        self.writer = gguf.GGUFWriter(path + ".partial", architecture)
        self.writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16 if half else gguf.LlamaFileType.ALL_F32)
        self.writer.add_quantization_version(gguf.GGML_QUANT_VERSION)

    def add(self, name, shape, read):
        kind = np.dtype(np.float16 if self.half and len(shape) > 1 and name not in EXACT else np.float32)
        self.tensors.append((name, kind, read))
        self.writer.add_tensor_info(name, shape, kind, math.prod(shape) * kind.itemsize)

    def finish(self):
        try:
            self.writer.write_header_to_file()
            self.writer.write_kv_data_to_file()
            self.writer.write_ti_data_to_file()
            for name, kind, read in self.tensors:
                self.writer.write_tensor_data(to_type(name, read(), kind))
            self.writer.close()
            os.replace(self.path + ".partial", self.path)
        finally:
            if os.path.exists(self.path + ".partial"):
                os.remove(self.path + ".partial")


def to_type(name, values, kind):
    if kind == np.float16 and np.abs(values).max(initial=0) > np.finfo(np.float16).max:
        raise BadFolder(f"{name} has numbers that f16 does not hold: use --outtype f32")
    return values.astype(kind)


def add_vocabulary(gguf, writer, vocabulary, rows):
    texts, kinds = vocabulary.listed(rows, gguf.TokenType)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(texts)
    writer.add_token_types(kinds)
    writer.add_token_merges(vocabulary.merges)
    writer.add_eos_token_id(vocabulary.id("<|im_end|>"))
    end = vocabulary.id("<|endoftext|>")
    if end is not None:
        writer.add_bos_token_id(end)
        writer.add_pad_token_id(end)
    writer.add_add_bos_token(False)
    writer.add_chat_template(CHATML)


def write_text(gguf, checkpoint, vocabulary, path, half, name):
    text, out = checkpoint.text, Output(gguf, path, "qwen2", half)
    writer, heads = out.writer, text["num_attention_heads"]
    writer.add_name(name)
    writer.add_context_length(text.get("max_position_embeddings", 32768))
    writer.add_embedding_length(text["hidden_size"])
    writer.add_block_count(text["num_hidden_layers"])
    writer.add_feed_forward_length(text["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(text.get("num_key_value_heads") or heads)
    writer.add_layer_norm_rms_eps(text.get("rms_norm_eps", 1e-6))
    writer.add_rope_freq_base(rope_base(text))
    add_vocabulary(gguf, writer, vocabulary, checkpoint.shape("text.embed_tokens.weight")[0])
    tied = text.get("tie_word_embeddings", checkpoint.config.get("tie_word_embeddings", False))
    for source in checkpoint.names("text."):
        if source == "text.lm_head.weight" and tied:
            continue
        out.add(renamed(source[5:], "layers.", TEXT_NAMES, ""), checkpoint.shape(source), lambda s=source: checkpoint.tensor(s))
    if not tied and "text.lm_head.weight" not in checkpoint.places:
        raise BadFolder(f"'{checkpoint.folder}' holds no lm_head.weight, and config.json does not say that it is tied: a shard is missing")
    out.finish()


def pixel_scale(folder):
    """Mean and deviation of the frames' normalization, from where transformers looks."""
    for name in ("processor_config.json", "video_preprocessor_config.json", "preprocessor_config.json"):
        path = os.path.join(folder, name)
        stated = read_json(path) if os.path.exists(path) else {}
        stated = stated.get("video_processor", {}) if name == "processor_config.json" else stated
        if "image_mean" in stated and "image_std" in stated:
            return stated["image_mean"], stated["image_std"]
    return SIGLIP_PIXELS, SIGLIP_PIXELS


def add_vision_keys(writer, checkpoint, layers):
    vision = checkpoint.vision
    writer.add_clip_has_vision_encoder(True)
    writer.add_clip_projector_type("mlp")
    writer.add_vision_use_gelu(True)
    writer.add_vision_image_size(vision["image_size"])
    writer.add_vision_patch_size(vision["patch_size"])
    writer.add_vision_embedding_length(vision["hidden_size"])
    writer.add_vision_feed_forward_length(vision["intermediate_size"])
    writer.add_vision_projection_dim(checkpoint.text["hidden_size"])
    writer.add_vision_block_count(layers)
    writer.add_vision_head_count(vision["num_attention_heads"])
    writer.add_vision_attention_layernorm_eps(vision["layer_norm_eps"])
    writer.add_vision_feature_layers(checkpoint.feature_layers())
    mean, deviation = pixel_scale(checkpoint.folder)
    writer.add_vision_image_mean(mean)
    writer.add_vision_image_std(deviation)


def add_own_keys(gguf, writer, checkpoint, vocabulary):
    """What libmtmd does not know: how frames are pooled and pictures cut into tiles, and the prompt."""
    number = checkpoint.config.get("video_token_index", checkpoint.config.get("video_token_id"))
    before, between, after = prompt(checkpoint.folder, vocabulary.tokens.get(number, "<video>"))
    vision = checkpoint.vision
    side = vision["image_size"] // vision["patch_size"]
    writer.add_uint32(KEY + "frames", FRAMES)
    writer.add_uint32(KEY + "frame_pixels", vision["image_size"])
    writer.add_uint32(KEY + "frame_side", side)
    writer.add_uint32(KEY + "pooled_side", (side + 1) // 2)
    grids, most = checkpoint.tiles(vision["image_size"])
    if grids:
        writer.add_key_value(KEY + "grids", [n for grid in grids for n in grid], gguf.GGUFValueType.ARRAY, gguf.GGUFValueType.UINT32)
        writer.add_uint32(KEY + "most_tiles", most)
    writer.add_string(KEY + "prompt_before", before)
    writer.add_string(KEY + "prompt_between", between)
    writer.add_string(KEY + "prompt_after", after)


def vision_name(source, swapped):
    name = renamed(source[7:], "encoder.layers.", VISION_NAMES, "v.")
    # llama.cpp takes layers whose two widths are equal for those of old files, and swaps them.
    exchange = {"ffn_up": "ffn_down", "ffn_down": "ffn_up"} if swapped else {}
    return re.sub("ffn_up|ffn_down", lambda found: exchange.get(found[0], found[0]), name)


def write_vision(gguf, checkpoint, vocabulary, path, half, name):
    strategy = checkpoint.config.get("vision_feature_select_strategy", "full")
    if strategy != "full":
        raise BadFolder(f"vision_feature_select_strategy '{strategy}' of '{checkpoint.folder}': only 'full' is converted")
    out = Output(gguf, path, "clip", half)
    out.writer.add_name(name)
    add_vision_keys(out.writer, checkpoint, checkpoint.layers("vision.encoder.layers."))
    add_own_keys(gguf, out.writer, checkpoint, vocabulary)
    swapped = checkpoint.vision["intermediate_size"] == checkpoint.vision["hidden_size"]
    named = {source: vision_name(source, swapped) for source in checkpoint.names("vision.")}
    named.update({f"projector.{i}.{kind}": f"mm.{2 * i - 2}.{kind}" for i in (1, 2) for kind in ("weight", "bias")})
    named["image_newline"] = "v.image_newline"
    for source, target in named.items():
        out.add(target, checkpoint.shape(source), lambda s=source: checkpoint.tensor(s))
    out.finish()


def convert(folder, out, half=True, name=None):
    """(path of the language model, path of the mmproj)."""
    import gguf

    name = name or os.path.basename(os.path.realpath(folder))
    checkpoint, vocabulary = Checkpoint(folder), Vocabulary(folder)
    os.makedirs(out, exist_ok=True)
    text, mmproj = os.path.join(out, f"{name}.gguf"), os.path.join(out, f"mmproj-{name}.gguf")
    write_vision(gguf, checkpoint, vocabulary, mmproj, half, name)
    write_text(gguf, checkpoint, vocabulary, text, half, name)
    return text, mmproj


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("folder", metavar="DIR", help="a download of llava-hf/llava-onevision-* or lmms-lab/llava-onevision-*")
    parser.add_argument("out", metavar="OUT", nargs="?", help="where the two files go (default: DIR)")
    parser.add_argument("--outtype", choices=["f16", "f32"], default="f16", help="of matrices (default f16)")
    parser.add_argument("--name", help="of the model and its files (default: DIR's own)")
    options = parser.parse_args()
    try:
        for path in convert(options.folder, options.out or options.folder, options.outtype == "f16", options.name):
            print(path)
    except (BadFolder, OSError, ImportError) as error:
        print(f"convert: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
