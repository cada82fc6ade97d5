"""attn_implementation="vidkv": reads the codes where the keys are a VidKVCache's, and is plain attention elsewhere."""
import torch
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from .dense import dense_attention
from .packed import PackedTensor

NAME = "vidkv"


def are_of_one_layer(key, value):
    """Whether they stand for a layer's keys and values as they are. Some models change one of them first (DiffLlama its values)."""
    packed = isinstance(key, PackedTensor) and isinstance(value, PackedTensor)
    return packed and key.layer is value.layer and (key.side, value.side) == ("keys", "values")


@torch.compiler.disable(reason="VidKV packs and reads codes outside of the graph")
def vidkv_attention(module, query, key, value, attention_mask, dropout=0.0, scaling=None, is_causal=None, softcap=None, s_aux=None, **kwargs):
    """query [batch, heads, n, head_dim]; key and value: what VidKVCache.update returned, or plain tensors
    -> ([batch, n, heads, head_dim], None)."""
    causal = is_causal if is_causal is not None else getattr(module, "is_causal", True)
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    if not are_of_one_layer(key, value):
        if softcap or s_aux is not None:
            return dense_attention(query, key, value, attention_mask, causal, scale, softcap or 0.0, s_aux), None
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, is_causal=is_causal, **kwargs)
    if dropout:
        raise ValueError("attn_implementation='vidkv' is for inference: dropout must be 0; call model.eval()")
    if kwargs.get("position_bias") is not None:
        raise ValueError("attn_implementation='vidkv' has no position_bias: use a model with rotary keys")
    out = key.layer.attend(query, key.shape[2], attention_mask, causal and attention_mask is None and query.shape[2] > 1, scale,
                           softcap or 0.0, s_aux)
    return out, None


def register_attention() -> None:
    """Makes attn_implementation="vidkv" known, with its mask function. Called by `import vidkv.transformers`."""
    AttentionInterface.register(NAME, vidkv_attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)
