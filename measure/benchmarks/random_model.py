#!/usr/bin/env python3
"""A folder of LLaVA-OneVision, Qwen2.5-VL or Qwen3-VL in its published layout, with small random
weights, to try the harness with.

    python3 random_model.py OUT [--structure llava_onevision|qwen2_5_vl|qwen3_vl] [--seed S]

The tokenizer is the small model's, with two more tokens for LLaVA-OneVision. Needs torch, transformers and torchvision."""
import argparse

import torch
from transformers import (AutoTokenizer, LlavaOnevisionConfig, LlavaOnevisionForConditionalGeneration, LlavaOnevisionImageProcessor,
                          LlavaOnevisionProcessor, LlavaOnevisionVideoProcessor, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration,
                          Qwen2_5_VLProcessor, Qwen2VLImageProcessor, Qwen2VLVideoProcessor, Qwen3VLConfig, Qwen3VLForConditionalGeneration,
                          Qwen3VLProcessor, Qwen3VLVideoProcessor)

from vidkv import small_model

SIZE, PATCH = 84, 14


def template(image, video):
    return ("{% for message in messages %}<|im_start|>{{ message['role'] }}\n{% for part in message['content'] %}"
            "{% if part['type'] == 'image' %}" + image + "{% elif part['type'] == 'video' %}" + video + "{% endif %}{% endfor %}"
            "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}"
            "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}")


def text(tokenizer, **more):
    return dict(num_hidden_layers=2, vocab_size=len(tokenizer), max_position_embeddings=32768, bos_token_id=None, pad_token_id=0,
                eos_token_id=tokenizer.convert_tokens_to_ids("<|im_end|>"), **more)


def llava_onevision(tokenizer):
    """(model, processor)"""
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>", "<video>"]})
    image, video = tokenizer.convert_tokens_to_ids(["<image>", "<video>"])
    language = text(tokenizer, model_type="qwen2", hidden_size=256, intermediate_size=256, num_attention_heads=4, num_key_value_heads=2)
    vision = dict(model_type="siglip_vision_model", hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2,
                  image_size=SIZE, patch_size=PATCH, vision_use_head=False)
    config = LlavaOnevisionConfig(text_config=language, vision_config=vision, image_token_index=image, video_token_index=video,
                                  vision_feature_layer=-1, image_grid_pinpoints=[[SIZE, SIZE]])
    size = dict(height=SIZE, width=SIZE)
    processor = LlavaOnevisionProcessor(
        LlavaOnevisionImageProcessor(size=size, image_grid_pinpoints=[[SIZE, SIZE]]), tokenizer, LlavaOnevisionVideoProcessor(size=size),
        num_image_tokens=(SIZE // PATCH) ** 2, vision_feature_select_strategy="full", chat_template=template("<image>\n", "<video>\n"))
    return LlavaOnevisionForConditionalGeneration(config), processor


QWEN_TOKENS = dict(image_token_id="<|image_pad|>", video_token_id="<|video_pad|>", vision_start_token_id="<|vision_start|>",
                   vision_end_token_id="<|vision_end|>")
QWEN_TEMPLATE = template("<|vision_start|><|image_pad|><|vision_end|>", "<|vision_start|><|video_pad|><|vision_end|>")


def qwen_parts(tokenizer, **rope):
    """Arguments of a configuration beside the vision tower's."""
    rope = dict(rope_type="default", mrope_section=[8, 12, 12], rope_theta=1e6, **rope)
    language = text(tokenizer, hidden_size=320, intermediate_size=320, num_attention_heads=5, num_key_value_heads=1, head_dim=64, rope_parameters=rope)
    return dict(text_config=language, **{name: tokenizer.convert_tokens_to_ids(token) for name, token in QWEN_TOKENS.items()})


def qwen2_5_vl(tokenizer):
    """(model, processor)"""
    vision = dict(depth=2, hidden_size=64, intermediate_size=128, num_heads=2, patch_size=PATCH, out_hidden_size=320, fullatt_block_indexes=[1])
    config = Qwen2_5_VLConfig(vision_config=vision, **qwen_parts(tokenizer))
    size = dict(shortest_edge=(2 * PATCH) ** 2, longest_edge=SIZE * SIZE)
    processor = Qwen2_5_VLProcessor(Qwen2VLImageProcessor(size=size), tokenizer, Qwen2VLVideoProcessor(size=size), chat_template=QWEN_TEMPLATE)
    return Qwen2_5_VLForConditionalGeneration(config), processor


def qwen3_vl(tokenizer):
    """(model, processor)"""
    vision = dict(depth=2, hidden_size=64, intermediate_size=128, num_heads=2, patch_size=16, out_hidden_size=320, deepstack_visual_indexes=[1],
                  num_position_embeddings=36)
    config = Qwen3VLConfig(vision_config=vision, **qwen_parts(tokenizer, mrope_interleaved=True))
    size = dict(shortest_edge=32 * 32, longest_edge=64 * 96 * 96)  # of a whole video
    processor = Qwen3VLProcessor(Qwen2VLImageProcessor(size=size, patch_size=16), tokenizer, Qwen3VLVideoProcessor(size=size), chat_template=QWEN_TEMPLATE)
    return Qwen3VLForConditionalGeneration(config), processor


STRUCTURES = {"llava_onevision": llava_onevision, "qwen2_5_vl": qwen2_5_vl, "qwen3_vl": qwen3_vl}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out")
    parser.add_argument("--structure", choices=STRUCTURES, default="llava_onevision")
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    torch.manual_seed(chosen.seed)
    model, processor = STRUCTURES[chosen.structure](AutoTokenizer.from_pretrained(small_model.folder()))
    model.eval().save_pretrained(chosen.out)
    processor.save_pretrained(chosen.out)


if __name__ == "__main__":
    main()
