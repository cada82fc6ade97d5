"""What the Python tests share: small models of real structure with random weights."""
import os

import pytest
import torch
import transformers

ROOT = os.path.normpath(os.path.join(os.path.dirname(__file__), "..", ".."))
TINY = os.path.join(ROOT, "models", "tiny", "hf")
PRESETS = ["f16", "k2v2", "k1.5v1.58", "t2.2", "t1.65", "t1.0", "k1.5v1.58-stp0.2", "t1.65-stp0.2"]
TEXT = dict(hidden_size=128, intermediate_size=256, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2, vocab_size=300,
            max_position_embeddings=4096, pad_token_id=0, bos_token_id=1, eos_token_id=2)
IMAGE, VIDEO, START, END = 290, 291, 292, 293
PUBLISHED = {"nbits": [1.5, 1.58], "q_group_size": 32, "residual_length": 128, "axis_key": -1, "axis_value": -1, "vidkv_stp": 0.2}


def seeded(make):
    torch.manual_seed(20261123)
    model = make().eval()
    model.generation_config.eos_token_id = None  # random weights must not end early
    model.generation_config.pad_token_id = 0
    return model


WINDOWS = dict(head_dim=64, sliding_window=64)
# What each text model has beside TEXT, and why it is here.
TEXT_CONFIGS = {
    "llama": (transformers.LlamaConfig, {}),
    "qwen2": (transformers.Qwen2Config, {}),
    "qwen3": (transformers.Qwen3Config, dict(head_dim=64)),
    "gemma3": (transformers.Gemma3TextConfig, dict(WINDOWS, num_hidden_layers=6, query_pre_attn_scalar=64)),
    "gemma2": (transformers.Gemma2Config, dict(WINDOWS, query_pre_attn_scalar=64, num_hidden_layers=2)),  # caps its scores
    "gpt_oss": (transformers.GptOssConfig, dict(WINDOWS, num_local_experts=4, num_experts_per_tok=2)),  # attention sinks
    "llama4": (transformers.Llama4TextConfig, dict(head_dim=64, num_hidden_layers=4, num_local_experts=2, intermediate_size_mlp=256,
                                                   attention_chunk_size=64)),  # attends in chunks
    "gemma3n": (transformers.Gemma3nTextConfig, dict(WINDOWS, num_hidden_layers=10, num_kv_shared_layers=4, vocab_size_per_layer_input=300,
                                                     hidden_size_per_layer_input=16, activation_sparsity_pattern=None,
                                                     layer_types=2 * (["sliding_attention"] * 4 + ["full_attention"]))),  # layers share keys
    "diffllama": (transformers.DiffLlamaConfig, {}),  # rearranges values on their way to attention
    "phi3": (transformers.Phi3Config, {}),
    "mistral": (transformers.MistralConfig, dict(sliding_window=None)),
    "mqa, head_dim 80": (transformers.LlamaConfig, dict(head_dim=80, num_key_value_heads=1)),
}


def text_model(kind, **changes):
    config, options = TEXT_CONFIGS[kind]
    return seeded(lambda: transformers.AutoModelForCausalLM.from_config(config(**{**TEXT, **options, **changes})))


def _qwen_vision(patch_merge_size=2):
    return dict(depth=2, hidden_size=64, num_heads=2, patch_size=14, spatial_merge_size=patch_merge_size, temporal_patch_size=2)


def vision_model(kind):
    """(model, inputs of a prompt with two images or videos and a question)."""
    rope = {"rope_type": "default", "type": "default", "mrope_section": [4, 6, 6], "rope_theta": 1e4}
    ids = dict(image_token_id=IMAGE, video_token_id=VIDEO, vision_start_token_id=START, vision_end_token_id=END)
    if kind == "qwen2_5_vl":
        vision = dict(_qwen_vision(), intermediate_size=128, out_hidden_size=128, window_size=112, fullatt_block_indexes=[1])
        config = transformers.Qwen2_5_VLConfig(text_config=dict(TEXT, rope_parameters=rope), vision_config=vision, **ids)
        return seeded(lambda: transformers.Qwen2_5_VLForConditionalGeneration(config)), qwen_inputs()
    if kind == "qwen2_vl":
        vision = dict(depth=2, embed_dim=64, hidden_size=128, num_heads=2, patch_size=14, mlp_ratio=2)
        config = transformers.Qwen2VLConfig(text_config=dict(TEXT, rope_parameters=rope), vision_config=vision, **ids)
        return seeded(lambda: transformers.Qwen2VLForConditionalGeneration(config)), qwen_inputs()
    if kind == "llava_onevision":
        vision = dict(model_type="siglip_vision_model", hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2,
                      image_size=84, patch_size=14, vision_use_head=False)
        config = transformers.LlavaOnevisionConfig(text_config=dict(TEXT, model_type="qwen2"), vision_config=vision, image_token_index=IMAGE,
                                                   video_token_index=VIDEO, vision_feature_layer=-1, image_grid_pinpoints=[[84, 84]])
        return seeded(lambda: transformers.LlavaOnevisionForConditionalGeneration(config)), llava_inputs()
    if kind == "smolvlm2":
        vision = dict(hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2, image_size=56, patch_size=14)
        config = transformers.SmolVLMConfig(text_config=dict(TEXT, model_type="llama"), vision_config=vision, image_token_id=IMAGE, scale_factor=2)
        return seeded(lambda: transformers.SmolVLMForConditionalGeneration(config)), smolvlm_inputs()
    if kind == "qwen3_vl":  # visual features enter deeper layers too
        rope = {"rope_type": "default", "mrope_section": [6, 5, 5], "mrope_interleaved": True, "rope_theta": 1e4}
        vision = dict(_qwen_vision(), intermediate_size=128, out_hidden_size=128, deepstack_visual_indexes=[0], num_position_embeddings=144)
        config = transformers.Qwen3VLConfig(text_config=dict(TEXT, head_dim=32, rope_parameters=rope), vision_config=vision, **ids)
        return seeded(lambda: transformers.Qwen3VLForConditionalGeneration(config)), images_inputs(9, 36, torch.randn(9 * 144, 1176), 12)
    if kind == "internvl":
        vision = dict(hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2, image_size=[84, 84], patch_size=[14, 14])
        config = transformers.InternVLConfig(text_config=dict(TEXT, model_type="qwen2"), vision_config=vision, image_token_id=IMAGE,
                                             image_seq_length=9, downsample_ratio=0.5)
        return seeded(lambda: transformers.InternVLForConditionalGeneration(config)), images_inputs(32, 9, torch.randn(32, 3, 84, 84))
    if kind == "gemma3_vl":  # image tokens see each other both ways; five layers of six have windows
        vision = dict(hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2, image_size=112, patch_size=14,
                      vision_use_head=False)
        text = dict(TEXT, model_type="gemma3_text", **TEXT_CONFIGS["gemma3"][1])
        config = transformers.Gemma3Config(text_config=text, vision_config=vision, image_token_index=IMAGE, mm_tokens_per_image=16,
                                           boi_token_index=START, eoi_token_index=END)
        inputs = images_inputs(20, 16, torch.randn(20, 3, 112, 112))
        return seeded(lambda: transformers.Gemma3ForConditionalGeneration(config)), dict(inputs, token_type_ids=(inputs["input_ids"] == IMAGE).int())
    if kind in ("glm4v", "glm4v_moe", "glm_ocr"):
        return glm_model(kind, ids)
    if kind == "qwen3_vl_moe":
        rope = {"rope_type": "default", "mrope_section": [6, 5, 5], "mrope_interleaved": True, "rope_theta": 1e4}
        vision = dict(_qwen_vision(), intermediate_size=128, out_hidden_size=128, deepstack_visual_indexes=[0], num_position_embeddings=144)
        text = dict(TEXT, head_dim=32, rope_parameters=rope, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=64)
        config = transformers.Qwen3VLMoeConfig(text_config=text, vision_config=vision, **ids)
        return seeded(lambda: transformers.Qwen3VLMoeForConditionalGeneration(config)), images_inputs(9, 36, torch.randn(9 * 144, 1176), 12)
    if kind == "mistral3":  # Pixtral's vision tower
        vision = dict(model_type="pixtral", hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2, head_dim=32,
                      image_size=112, patch_size=14)
        config = transformers.Mistral3Config(text_config=dict(TEXT, model_type="mistral", sliding_window=None), vision_config=vision,
                                             image_token_index=IMAGE, spatial_merge_size=2)
        inputs = dict(images_inputs(20, 16, torch.randn(20, 3, 112, 112)), image_sizes=torch.tensor([[112, 112]] * 20))
        return seeded(lambda: transformers.Mistral3ForConditionalGeneration(config)), inputs
    if kind == "gemma4_vl":  # windows, layers that share keys, another head_dim where attention is full
        vision = dict(hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2, head_dim=32,
                      patch_size=14, position_embedding_size=1024)
        text = dict(WINDOWS, global_head_dim=128, num_hidden_layers=6, layer_types=["sliding_attention", "full_attention"] * 3,
                    num_kv_shared_layers=2, hidden_size_per_layer_input=16, vocab_size_per_layer_input=300)
        config = transformers.Gemma4Config(text_config=dict(TEXT, **text), vision_config=vision, audio_config=None, image_token_id=IMAGE,
                                           video_token_id=VIDEO, boi_token_id=START, eoi_token_id=END)
        places = torch.cartesian_prod(torch.arange(12), torch.arange(12)).flip(-1)
        inputs = dict(images_inputs(20, 16, torch.rand(20, 144, 3 * 14 * 14)), image_position_ids=places.expand(20, -1, -1))
        inputs["mm_token_type_ids"] = (inputs["input_ids"] == IMAGE).int()
        return seeded(lambda: transformers.Gemma4ForConditionalGeneration(config)), inputs
    raise ValueError(kind)


def glm_model(kind, ids):
    """GLM-4.1V, GLM-4.5V (experts) and GLM-OCR."""
    rope = {"rope_type": "default", "mrope_section": [4, 6, 6], "rope_theta": 1e4}
    if kind == "glm4v_moe":
        rope.update(mrope_section=[2, 3, 3], partial_rotary_factor=0.5)
    vision = dict(_qwen_vision(), intermediate_size=128, out_hidden_size=128, image_size=168)
    experts = dict(n_routed_experts=4, num_experts_per_tok=2, moe_intermediate_size=64, n_shared_experts=1, first_k_dense_replace=1, n_group=1,
                   topk_group=1)
    text = dict(TEXT, head_dim=32, rope_parameters=rope, **(experts if kind == "glm4v_moe" else {}))
    configs = {"glm4v": transformers.Glm4vConfig, "glm4v_moe": transformers.Glm4vMoeConfig, "glm_ocr": transformers.GlmOcrConfig}
    config = configs[kind](text_config=text, vision_config=vision, image_token_id=IMAGE, video_token_id=VIDEO, image_start_token_id=START,
                           image_end_token_id=END, video_start_token_id=294, video_end_token_id=295)
    inputs = images_inputs(9, 36, torch.randn(9 * 144, 1176), 12)
    return seeded(lambda: transformers.AutoModelForImageTextToText.from_config(config)), inputs


def prompt(*visual_runs):
    """Ids: text, runs of visual tokens with text between them, a question of 12 tokens."""
    ids = [5, 6, 7]
    for token, count in visual_runs:
        ids += [START] + [token] * count + [END, 8]
    return torch.tensor([ids + list(range(20, 32))])


def qwen_inputs():
    """One image of 36 and one video of 8 x 36 visual tokens."""
    torch.manual_seed(1)
    ids = prompt((IMAGE, 36), (VIDEO, 288))
    kinds = (ids == IMAGE).int() + 2 * (ids == VIDEO).int()
    grid = 12
    return dict(input_ids=ids, attention_mask=torch.ones_like(ids), mm_token_type_ids=kinds,
                pixel_values=torch.randn(grid * grid, 1176), image_grid_thw=torch.tensor([[1, grid, grid]]),
                pixel_values_videos=torch.randn(8 * grid * grid, 1176), video_grid_thw=torch.tensor([[8, grid, grid]]))


def images_inputs(images, tokens, pixels, grid=None):
    """`images` images of `tokens` tokens each; grid: patches a side, for models that want to be told."""
    ids = prompt(*[(IMAGE, tokens)] * images)
    inputs = dict(input_ids=ids, attention_mask=torch.ones_like(ids), pixel_values=pixels)
    if grid:
        inputs.update(mm_token_type_ids=(ids == IMAGE).int(), image_grid_thw=torch.tensor([[1, grid, grid]] * images))
    return inputs


def llava_inputs():
    """A video of 32 frames, 9 tokens per frame and one newline token."""
    torch.manual_seed(1)
    ids = prompt((VIDEO, 32 * 9 + 1))
    return dict(input_ids=ids, attention_mask=torch.ones_like(ids), pixel_values_videos=torch.randn(1, 32, 3, 84, 84))


def smolvlm_inputs():
    """Two clips of 40 frames of 4 tokens."""
    torch.manual_seed(1)
    ids = prompt((IMAGE, 160), (IMAGE, 160))
    return dict(input_ids=ids, attention_mask=torch.ones_like(ids), pixel_values=torch.randn(1, 80, 3, 56, 56))


TEXT_MODELS = ["llama", "qwen2", "qwen3", "gemma3"]
OTHER_MODELS = [kind for kind in TEXT_CONFIGS if kind not in TEXT_MODELS]
VISION_MODELS = ["qwen2_5_vl", "qwen2_vl", "llava_onevision", "smolvlm2"]
OTHER_VISION_MODELS = ["qwen3_vl", "internvl", "gemma3_vl", "glm4v"]
NIGHTLY_VISION_MODELS = ["gemma4_vl", "glm4v_moe", "glm_ocr", "qwen3_vl_moe", "mistral3"]  # VIDKV_NIGHTLY=1


@pytest.fixture(scope="module", params=["vidkv", "sdpa", "eager"])
def implementation(request):
    return request.param
