#!/usr/bin/env python3
"""A folder of LLaVA-OneVision in its published layout, with small random weights, to try the harness with.

    python3 random_llava_onevision.py OUT [--seed S]

The tokenizer is the small model's with two more tokens. Needs torch, transformers and torchvision."""
import argparse

import torch
from transformers import (AutoTokenizer, LlavaOnevisionConfig, LlavaOnevisionForConditionalGeneration, LlavaOnevisionImageProcessor,
                          LlavaOnevisionProcessor, LlavaOnevisionVideoProcessor)

from vidkv import small_model

SIZE, PATCH = 84, 14
TEMPLATE = ("{% for message in messages %}<|im_start|>{{ message['role'] }}\n{% for part in message['content'] if part['type'] != 'text' %}"
            "<{{ part['type'] }}>\n{% endfor %}{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}"
            "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}")


def model(tokenizer):
    image, video = tokenizer.convert_tokens_to_ids(["<image>", "<video>"])
    text = dict(model_type="qwen2", hidden_size=256, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
                vocab_size=len(tokenizer), max_position_embeddings=32768, bos_token_id=None, pad_token_id=0,
                eos_token_id=tokenizer.convert_tokens_to_ids("<|im_end|>"))
    vision = dict(model_type="siglip_vision_model", hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2,
                  image_size=SIZE, patch_size=PATCH, vision_use_head=False)
    config = LlavaOnevisionConfig(text_config=text, vision_config=vision, image_token_index=image, video_token_index=video,
                                  vision_feature_layer=-1, image_grid_pinpoints=[[SIZE, SIZE]])
    return LlavaOnevisionForConditionalGeneration(config).eval()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out")
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    torch.manual_seed(chosen.seed)
    tokenizer = AutoTokenizer.from_pretrained(small_model.folder())
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>", "<video>"]})
    size = dict(height=SIZE, width=SIZE)
    processor = LlavaOnevisionProcessor(
        LlavaOnevisionImageProcessor(size=size, image_grid_pinpoints=[[SIZE, SIZE]]), tokenizer, LlavaOnevisionVideoProcessor(size=size),
        num_image_tokens=(SIZE // PATCH) ** 2, vision_feature_select_strategy="full", chat_template=TEMPLATE)
    model(tokenizer).save_pretrained(chosen.out)
    processor.save_pretrained(chosen.out)


if __name__ == "__main__":
    main()
