"""Vision models of real structure, small widths and random weights: folders as Hugging Face has them, and what llama.cpp's own converter
makes of them. The tokenizer is the small model's with each model's own special tokens."""
import contextlib
import io
import json
import logging
import os
import re
import sys
from dataclasses import dataclass, field

import torch
import transformers
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import AddedToken

from random_llava import TOKENIZER, randomize, write

TEXT = dict(hidden_size=256, intermediate_size=320, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2, head_dim=64,
            max_position_embeddings=32768, rms_norm_eps=1e-6, tie_word_embeddings=False)
# Four layers: llama.cpp's converter finds a projector's parts by numbers below the number of layers.
VISION = dict(hidden_size=64, intermediate_size=128, num_hidden_layers=4, num_attention_heads=2, image_size=112, patch_size=14)
QWEN_VISION = dict(depth=4, hidden_size=64, intermediate_size=128, num_heads=2, patch_size=14, spatial_merge_size=2, temporal_patch_size=2,
                   out_hidden_size=256)
PIXELS = dict(image_mean=[0.5] * 3, image_std=[0.5] * 3)
MROPE = {"rope_type": "default", "type": "default", "mrope_section": [8, 12, 12], "rope_theta": 1e6}
CHATML = ("{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
          "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}")


@dataclass
class Structure:
    """One row of the table in docs/models.md."""
    name: str        # as its publishers call it
    make: object     # token numbers -> transformers' configuration
    projector: str   # llama.cpp's name of it
    tokens: tuple = ()             # special tokens beside the small model's
    pixels: dict = field(default_factory=lambda: PIXELS)  # preprocessor_config.json
    layout: object = None          # (folder): what its publishers' own folder has otherwise than transformers'
    fails: str = ""                # in llama.cpp, with these words
    quick: bool = False            # in every run of the tests; the others in the nightly one


def text(vocabulary, **more):
    return dict(TEXT, vocab_size=vocabulary, **more)


def qwen_ids(ids):
    return dict(image_token_id=ids["<|image_pad|>"], video_token_id=ids["<|video_pad|>"], vision_start_token_id=ids["<|vision_start|>"],
                vision_end_token_id=ids["<|vision_end|>"])


def qwen2_vl(ids):
    vision = dict(depth=4, embed_dim=64, hidden_size=256, num_heads=2, patch_size=14, mlp_ratio=2)
    return transformers.Qwen2VLConfig(text_config=text(len(ids), rope_parameters=MROPE), vision_config=vision, **qwen_ids(ids))


def qwen2_5_vl(ids):
    vision = dict(QWEN_VISION, window_size=112, fullatt_block_indexes=[3])
    return transformers.Qwen2_5_VLConfig(text_config=text(len(ids), rope_parameters=MROPE), vision_config=vision, **qwen_ids(ids))


QWEN3_VISION = dict(QWEN_VISION, num_position_embeddings=144, deepstack_visual_indexes=[0])


def qwen3_vl(ids):
    return transformers.Qwen3VLConfig(text_config=text(len(ids), rope_parameters=dict(MROPE, mrope_interleaved=True)),
                                      vision_config=QWEN3_VISION, **qwen_ids(ids))


def qwen3_vl_moe(ids):
    experts = dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=64, decoder_sparse_step=1)
    return transformers.Qwen3VLMoeConfig(text_config=text(len(ids), rope_parameters=dict(MROPE, mrope_interleaved=True), **experts),
                                         vision_config=QWEN3_VISION, **qwen_ids(ids))


def qwen3_vl_moe_layout(folder):
    """Its publishers keep the experts' matrices the other way round."""
    tensors = {name: tensor.transpose(1, 2).contiguous() if ".experts." in name else tensor for name, tensor in renamed(folder, ()).items()}
    save_file(tensors, os.path.join(folder, "model.safetensors"), {"format": "pt"})


QWEN3_5_TEXT = dict(num_hidden_layers=4, linear_num_key_heads=2, linear_num_value_heads=2, linear_key_head_dim=64, linear_value_head_dim=64,
                    rope_parameters=dict(MROPE, mrope_section=[3, 3, 2], mrope_interleaved=True, partial_rotary_factor=0.25))


def qwen3_5(ids):
    vision = {name: value for name, value in QWEN3_VISION.items() if name != "deepstack_visual_indexes"}
    return transformers.Qwen3_5Config(text_config=text(len(ids), **QWEN3_5_TEXT), vision_config=vision, **qwen_ids(ids))


def smolvlm2(ids):
    return transformers.SmolVLMConfig(text_config=text(len(ids), model_type="llama"), vision_config=VISION, image_token_id=ids["<image>"],
                                      scale_factor=2)


def internvl(ids):
    vision = dict(VISION, image_size=[112, 112], patch_size=[14, 14])
    return transformers.InternVLConfig(text_config=text(len(ids), model_type="qwen2"), vision_config=vision,
                                       image_token_id=ids["<IMG_CONTEXT>"], image_seq_length=16, downsample_ratio=0.5,
                                       tie_word_embeddings=False)


INTERNVL_NAMES = (
    (r"^vision_tower\.encoder\.layer\.", "vision_model.encoder.layers."), (r"^vision_tower\.", "vision_model."),
    (r"patch_embeddings\.projection", "patch_embedding"), (r"position_embeddings$", "position_embedding"), (r"cls_token$", "class_embedding"),
    (r"attention\.projection_layer", "attn.proj"), (r"attention\.([qkv])_proj", r"attn.\1"), (r"layernorm_before", "norm1"),
    (r"layernorm_after", "norm2"), (r"lambda_([12])$", r"ls\1"), (r"^multi_modal_projector\.layer_norm", "mlp1.0"),
    (r"^multi_modal_projector\.linear_1", "mlp1.1"), (r"^multi_modal_projector\.linear_2", "mlp1.3"))


def internvl_layout(folder):
    """OpenGVLab's own folder: other names, one matrix for queries, keys and values, the classes of its two halves."""
    tensors = renamed(folder, INTERNVL_NAMES)
    for name in [name for name in tensors if ".attn.q." in name]:
        parts = [tensors.pop(name.replace(".attn.q.", f".attn.{part}.")) for part in "qkv"]
        tensors[name.replace(".attn.q.", ".attn.qkv.")] = torch.cat(parts)
    save_file(tensors, os.path.join(folder, "model.safetensors"), {"format": "pt"})
    edit(folder, vision_config=dict(architectures=["InternVisionModel"]), text_config=dict(architectures=["Qwen2ForCausalLM"]))


def siglip_layout(folder):
    """The vision tower under the name it was published with."""
    tensors = renamed(folder, [(r"vision_tower\.", "vision_tower.vision_model.")])
    save_file(tensors, os.path.join(folder, "model.safetensors"), {"format": "pt"})


GEMMA3_TEXT = dict(num_hidden_layers=6, sliding_window=512, query_pre_attn_scalar=64)
IMAGE_INDEX = dict(image="<image_soft_token>", boi="<start_of_image>", eoi="<end_of_image>")


def gemma3(ids):
    return transformers.Gemma3Config(text_config=text(len(ids), **GEMMA3_TEXT), vision_config=dict(VISION, image_size=224, vision_use_head=False),
                                     mm_tokens_per_image=16, **{f"{name}_token_index": ids[token] for name, token in IMAGE_INDEX.items()})


def gemma4(ids):
    kinds = ["sliding_attention", "full_attention"]
    layers = dict(num_hidden_layers=6, layer_types=kinds * 3, sliding_window=512, global_head_dim=128, num_kv_shared_layers=2,
                  hidden_size_per_layer_input=32, vocab_size_per_layer_input=len(ids))
    vision = dict(hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2, head_dim=32,
                  patch_size=16, position_embedding_size=1024)
    return transformers.Gemma4Config(text_config=text(len(ids), **layers), vision_config=vision, audio_config=None,
                                     image_token_id=ids["<|image|>"], boi_token_id=ids["<|image>"], eoi_token_id=ids["<image|>"])


GLM_TOKENS = ("<|image|>", "<|video|>", "<|begin_of_image|>", "<|end_of_image|>", "<|begin_of_video|>", "<|end_of_video|>")


def glm_ids(ids):
    return dict(image_token_id=ids["<|image|>"], video_token_id=ids["<|video|>"], image_start_token_id=ids["<|begin_of_image|>"],
                image_end_token_id=ids["<|end_of_image|>"], video_start_token_id=ids["<|begin_of_video|>"],
                video_end_token_id=ids["<|end_of_video|>"])


GLM_ROPE = dict(MROPE, mrope_section=[4, 6, 6], partial_rotary_factor=0.5)


def glm4v(ids):
    return transformers.Glm4vConfig(text_config=text(len(ids), rope_parameters=GLM_ROPE), vision_config=dict(QWEN_VISION, image_size=112),
                                    **glm_ids(ids))


def glm4v_moe(ids):
    experts = dict(n_routed_experts=4, num_experts_per_tok=2, moe_intermediate_size=64, n_shared_experts=1, first_k_dense_replace=1,
                   n_group=1, topk_group=1)
    return transformers.Glm4vMoeConfig(text_config=text(len(ids), rope_parameters=GLM_ROPE, **experts),
                                       vision_config=dict(QWEN_VISION, image_size=112), **glm_ids(ids))


def glm_ocr(ids):
    return transformers.GlmOcrConfig(text_config=text(len(ids), rope_parameters=dict(MROPE, mrope_section=[8, 12, 12])),
                                     vision_config=dict(QWEN_VISION, image_size=112), **glm_ids(ids))


MINICPM_TOKENS = ("<image>", "</image>", "<slice>", "</slice>", "<|image|>", "<|video|>")


def minicpm_v(ids):
    return transformers.MiniCPMV4_6Config(
        text_config=text(len(ids), model_type="qwen3_5_text", **QWEN3_5_TEXT),
        vision_config=dict(VISION, image_size=980, insert_layer_id=1), insert_layer_id=1, image_size=112,
        image_token_id=ids["<|image|>"], video_token_id=ids["<|video|>"])


def lfm2_vl(ids):
    language = {name: value for name, value in text(len(ids)).items() if name not in ("head_dim", "rms_norm_eps")}
    layers = ["conv", "full_attention", "conv", "full_attention"]
    language.update(num_hidden_layers=4, layer_types=layers, block_multiple_of=32, block_auto_adjust_ff_dim=False, tie_word_embeddings=True)
    vision = dict(hidden_size=64, intermediate_size=128, num_hidden_layers=4, num_attention_heads=2, patch_size=16, num_patches=256,
                  vision_use_head=False)
    return transformers.Lfm2VlConfig(text_config=language, vision_config=vision, image_token_id=ids["<image>"], projector_hidden_size=128)


def lfm2_vl_layout(folder):
    siglip_layout(folder)
    edit(folder, text_config=dict(architectures=["Lfm2ForCausalLM"]))


def pixtral(ids):
    vision = dict(hidden_size=64, intermediate_size=128, num_hidden_layers=4, num_attention_heads=2, head_dim=32, image_size=224, patch_size=14,
                  hidden_act="silu")
    return transformers.Mistral3Config(text_config=text(len(ids), model_type="mistral", sliding_window=None),
                                       vision_config=dict(vision, model_type="pixtral"), image_token_index=ids["[IMG]"], spatial_merge_size=2)


def llama4(ids):
    language = text(len(ids), num_local_experts=2, intermediate_size_mlp=256, num_experts_per_tok=1)
    language.update(num_hidden_layers=4, attention_chunk_size=8192)
    vision = dict(hidden_size=64, intermediate_size=256, num_hidden_layers=4, num_attention_heads=2, image_size=112, patch_size=14,
                  vision_output_dim=128, projector_input_dim=128, projector_output_dim=128)
    return transformers.Llama4Config(text_config=language, vision_config=vision, image_token_index=ids["<|patch|>"],
                                     boi_token_index=ids["<|image_start|>"], eoi_token_index=ids["<|image_end|>"])


def edit(folder, **changes):
    """Changes config.json; a dictionary is merged into what is there."""
    with open(os.path.join(folder, "config.json"), encoding="utf-8") as file:
        config = json.load(file)
    for name, value in changes.items():
        config[name] = {**config[name], **value} if isinstance(value, dict) else value
    write(folder, "config.json", config)


def renamed(folder, names):
    """The folder's tensors under other names."""
    tensors = {}
    with safe_open(os.path.join(folder, "model.safetensors"), framework="pt") as held:
        for name in held.keys():
            wanted = name
            for pattern, replacement in names:
                wanted = re.sub(pattern, replacement, wanted)
            tensors[wanted] = held.get_tensor(name)
    return tensors


def text_class(name):
    """A layout whose config.json names the class of the language model."""
    return lambda folder: edit(folder, text_config=dict(architectures=[name]))


STRUCTURES = [
    Structure("Qwen2-VL", qwen2_vl, "qwen2vl_merger", quick=True),
    Structure("Qwen2.5-VL", qwen2_5_vl, "qwen2.5vl_merger"),
    Structure("Qwen3-VL", qwen3_vl, "qwen3vl_merger", quick=True),
    Structure("Qwen3-VL, experts", qwen3_vl_moe, "qwen3vl_merger", layout=qwen3_vl_moe_layout),
    Structure("Qwen3.5", qwen3_5, "qwen3vl_merger"),
    Structure("SmolVLM2", smolvlm2, "idefics3", ("<image>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>", "\n\n"), quick=True,
              pixels=dict(PIXELS, size=dict(longest_edge=112)), layout=text_class("VLlama3ForCausalLM")),
    Structure("InternVL 3", internvl, "internvl", ("<img>", "</img>", "<IMG_CONTEXT>"), layout=internvl_layout),
    Structure("MiniCPM-V 4.6", minicpm_v, "minicpmv4_6", MINICPM_TOKENS, pixels=dict(PIXELS, scale_resolution=112)),
    Structure("Gemma 3", gemma3, "gemma3", tuple(IMAGE_INDEX.values()), layout=siglip_layout),
    Structure("Gemma 4", gemma4, "gemma4v", ("<|image|>", "<|image>", "<image|>")),
    Structure("GLM-4.1V", glm4v, "glm4v", GLM_TOKENS),
    Structure("GLM-4.5V, experts", glm4v_moe, "glm4v", GLM_TOKENS),
    Structure("GLM-OCR", glm_ocr, "glm4v", GLM_TOKENS),
    Structure("LFM2-VL", lfm2_vl, "lfm2", ("<image>", "<|image_start|>", "<|image_end|>", "<|img_thumbnail|>"),
              layout=lfm2_vl_layout),
    Structure("Mistral Small 3.1 (Pixtral)", pixtral, "pixtral", ("[IMG]", "[IMG_BREAK]", "[IMG_END]"),
              fails="does not fit the model"),  # its converter leaves out the embedding of [IMG_BREAK], which its loader wants
    Structure("Llama 4", llama4, "llama4", ("<|patch|>", "<|image_start|>", "<|image_end|>", "<|image|>")),
]


def make_hf(structure, folder, seed):
    """A folder as Hugging Face has it."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(TOKENIZER)
    tokenizer.add_tokens([AddedToken(token, special=token.strip() != "") for token in structure.tokens])
    tokenizer.chat_template = CHATML
    ids = tokenizer.get_vocab()
    torch.manual_seed(seed)
    model = transformers.AutoModelForImageTextToText.from_config(structure.make(ids))
    randomize(model, seed)
    if model.get_output_embeddings().weight is model.get_input_embeddings().weight:  # a token must not be nearest to itself alone
        model.get_input_embeddings().weight.data /= TEXT["hidden_size"] ** 0.5
    model.generation_config = transformers.GenerationConfig(eos_token_id=ids["<|im_end|>"], pad_token_id=0)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    write(folder, "preprocessor_config.json", structure.pixels)
    if structure.layout:
        structure.layout(folder)
    return folder


def convert(folder, llama_cpp):
    """(model, mmproj) as llama.cpp's own convert_hf_to_gguf.py writes them. Only the hash by which it knows a published tokenizer is passed
    over: this one has none."""
    sys.path[:0] = [place for place in (llama_cpp, os.path.join(llama_cpp, "gguf-py")) if place not in sys.path]
    import gguf
    from conversion import ModelType, get_model_architecture, get_model_class
    from conversion.base import ModelBase, TextModel
    from pathlib import Path

    logging.disable(logging.INFO)
    TextModel.get_vocab_base_pre = lambda self, tokenizer: "qwen2"
    TextModel._set_vocab_sentencepiece = TextModel._set_vocab_gpt2
    written = []
    for kind, name in ((ModelType.TEXT, "model.gguf"), (ModelType.MMPROJ, "mmproj.gguf")):
        parameters = ModelBase.load_hparams(Path(folder), False)
        made = get_model_class(get_model_architecture(parameters, kind), mmproj=kind == ModelType.MMPROJ)
        if kind == ModelType.TEXT:
            made.set_vocab, made.no_mtp = TextModel._set_vocab_gpt2, True  # --no-mtp
        path = Path(folder) / name
        with torch.inference_mode(), contextlib.redirect_stderr(io.StringIO()):  # progress bars
            made(Path(folder), gguf.LlamaFileType.MOSTLY_F16, path, model_name=os.path.basename(folder)).write()
        written.append(str(path))
    return tuple(written)
