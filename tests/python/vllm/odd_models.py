"""Small models with random weights that are packed in part or not at all."""
COMMON = dict(initializer_range=0.12, vocab_size=512, hidden_size=128, intermediate_size=256, max_position_embeddings=4096)
NAMES = ("mla", "hybrid", "windows")
FULL, WINDOW = "full_attention", "sliding_attention"


def mla():
    from transformers import DeepseekV2Config

    return DeepseekV2Config(
        **COMMON, architectures=["DeepseekV2ForCausalLM"], num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=4, q_lora_rank=None,
        kv_lora_rank=512, qk_nope_head_dim=128, qk_rope_head_dim=64, v_head_dim=128, n_routed_experts=2, first_k_dense_replace=2,
        moe_intermediate_size=64,
    )


def hybrid():
    """Short convolutions and one layer of attention."""
    from transformers import Lfm2Config

    return Lfm2Config(
        **COMMON, architectures=["Lfm2ForCausalLM"], num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        layer_types=["conv", FULL], conv_L_cache=3, conv_dim=128, conv_dim_out=128, conv_bias=False,
        block_auto_adjust_ff_dim=False, block_dim=128, block_ff_dim=256, block_multiple_of=64,
    )


def windows():
    """Sliding windows and full attention in turns, with a soft cap on the logits."""
    from transformers import Gemma2Config

    return Gemma2Config(
        **COMMON, architectures=["Gemma2ForCausalLM"], num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2, head_dim=32,
        query_pre_attn_scalar=32, sliding_window=96, layer_types=[WINDOW, FULL, WINDOW, FULL], attn_logit_softcapping=20.0,
    )


def make(name, folder):
    import torch
    from transformers import AutoModelForCausalLM

    torch.manual_seed(1)
    AutoModelForCausalLM.from_config(globals()[name]()).save_pretrained(folder)
