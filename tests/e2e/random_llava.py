"""LLaVA-OneVision in its real structure with random weights, in both published layouts."""
import json
import os
import shutil

import torch
import transformers
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import AddedToken

from common import ROOT

TOKENIZER = os.path.join(ROOT, "models", "tiny", "hf")
# llava-hf's own.
TEMPLATE = ("{% for message in messages %}{{'<|im_start|>' + message['role'] + ' '}}"
            "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>' }}{% endfor %}"
            "{% for content in message['content'] | selectattr('type', 'equalto', 'video') %}{{ '<video>' }}{% endfor %}"
            "{% if message['role'] != 'assistant' %}{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
            "{{ '\n' + content['text'] }}{% endfor %}{% else %}{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
            "{% generation %}{{ '\n' + content['text'] }}{% endgeneration %}{% endfor %}{% endif %}{{'<|im_end|>'}}{% endfor %}"
            "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}")
SMALL = dict(
    text=dict(hidden_size=128, intermediate_size=320, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2),
    vision=dict(hidden_size=96, intermediate_size=200, num_hidden_layers=3, num_attention_heads=3))
# As published (0.5B), but for the number of layers.
REAL_WIDTHS = dict(
    text=dict(hidden_size=896, intermediate_size=4864, num_hidden_layers=2, num_attention_heads=14, num_key_value_heads=2),
    vision=dict(hidden_size=1152, intermediate_size=4304, num_hidden_layers=2, num_attention_heads=16))
WIDTHS_OF_7B = dict(
    text=dict(hidden_size=3584, intermediate_size=18944, num_hidden_layers=2, num_attention_heads=28, num_key_value_heads=4),
    vision=dict(hidden_size=1152, intermediate_size=4304, num_hidden_layers=27, num_attention_heads=16))
PIXELS = dict(do_resize=True, size=dict(height=384, width=384), resample=3, do_rescale=True, rescale_factor=1 / 255, do_normalize=True,
              image_mean=[0.5] * 3, image_std=[0.5] * 3, do_convert_rgb=True)


def randomize(model, seed):
    """Weights that keep the size of what passes, so that every layer, bias and norm matters."""
    generator = torch.Generator().manual_seed(seed)
    for name, weight in model.named_parameters():
        noise = torch.randn(weight.shape, generator=generator)
        if weight.dim() == 1:
            noise = noise * 0.1 + ("norm" in name and name.endswith("weight"))
        elif "embed" not in name:
            noise = noise / weight[0].numel() ** 0.5
        weight.data.copy_(noise)


def tokenizer_with_pictures():
    tokenizer = transformers.AutoTokenizer.from_pretrained(TOKENIZER)
    tokenizer.add_tokens([AddedToken(token, special=True) for token in ("<image>", "<video>")], special_tokens=True)
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def make_hf(folder, seed, widths, tied=False, shard_size="5GB", dtype=torch.float32):
    """A folder as llava-hf publishes it."""
    tokenizer = tokenizer_with_pictures()
    text = dict(widths["text"], model_type="qwen2", vocab_size=len(tokenizer) + 6, max_position_embeddings=32768, tie_word_embeddings=tied,
                rope_theta=1e6)
    vision = dict(widths["vision"], model_type="siglip_vision_model", image_size=384, patch_size=14, vision_use_head=False)
    config = transformers.LlavaOnevisionConfig(
        text_config=text, vision_config=vision, vision_feature_layer=-1, vision_feature_select_strategy="full", tie_word_embeddings=tied,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"), video_token_index=tokenizer.convert_tokens_to_ids("<video>"),
        image_grid_pinpoints=[[384, 384], [384, 768], [768, 384], [768, 768]], projector_hidden_act="gelu")
    model = transformers.LlavaOnevisionForConditionalGeneration(config)
    randomize(model, seed)
    model.generation_config = transformers.GenerationConfig(eos_token_id=tokenizer.convert_tokens_to_ids("<|im_end|>"), pad_token_id=0)
    model.to(dtype).save_pretrained(folder, max_shard_size=shard_size)
    tokenizer.save_pretrained(folder)
    for name, kind in (("preprocessor_config.json", "image_processor_type"), ("video_preprocessor_config.json", "video_processor_type")):
        write(folder, name, {**PIXELS, kind: "LlavaOnevisionImageProcessor" if kind[0] == "i" else "LlavaOnevisionVideoProcessor"})
    write(folder, "processor_config.json", dict(processor_class="LlavaOnevisionProcessor", num_image_tokens=729, vision_aspect_ratio="anyres_max_9",
                                                vision_feature_select_strategy="full", image_token="<image>", video_token="<video>"))
    return folder


def write(folder, name, value):
    with open(os.path.join(folder, name), "w", encoding="utf-8") as f:
        json.dump(value, f, indent=1)


LMMS_NAMES = (("language_model.model.", "model."), ("model.language_model.", "model."), ("language_model.lm_head.", "lm_head."),
              ("model.vision_tower.", "vision_tower."), ("model.multi_modal_projector.", "multi_modal_projector."),
              ("vision_tower.vision_model.", "vision_tower."), ("vision_tower.", "model.vision_tower.vision_tower.vision_model."),
              ("multi_modal_projector.linear_1.", "model.mm_projector.0."), ("multi_modal_projector.linear_2.", "model.mm_projector.2."),
              ("model.image_newline", "image_newline"), ("image_newline", "model.image_newline"))


def lmms_name(name):
    for before, after in LMMS_NAMES:
        if name.startswith(before):
            name = after + name[len(before):]
    return name


def make_lmms(hf, folder):
    """The same weights as lmms-lab publishes them: no vision_config, the tower's last layer left out, no prompt for videos."""
    os.makedirs(folder)
    with safe_open(os.path.join(hf, "model.safetensors"), framework="pt") as weights:
        save_file({lmms_name(key): weights.get_tensor(key).bfloat16() for key in weights.keys()}, os.path.join(folder, "model.safetensors"))
    with open(os.path.join(hf, "config.json"), encoding="utf-8") as f:
        config = json.load(f)
    write(folder, "config.json", {**config["text_config"], "model_type": "llava", "architectures": ["LlavaQwenForCausalLM"],
                                  "mm_projector_type": "mlp2x_gelu", "mm_vision_tower": "tower-patch14-384", "mm_vision_select_layer": -2,
                                  "mm_hidden_size": config["vision_config"]["hidden_size"], "mm_spatial_pool_mode": "bilinear",
                                  "image_grid_pinpoints": "(1x1),...,(2x2)", "image_aspect_ratio": "anyres_max_9"})
    os.makedirs(os.path.join(folder, "tower-patch14-384"))
    layers = config["vision_config"]["num_hidden_layers"] + 1
    write(os.path.join(folder, "tower-patch14-384"), "config.json", {"vision_config": {**config["vision_config"], "num_hidden_layers": layers}})
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(os.path.join(hf, name), folder)
    return folder
