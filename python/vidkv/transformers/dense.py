"""Attention on plain tensors: prefills from nothing, vision towers, sliding-window layers, caches that are not ours."""
import torch


def repeat_heads(states, groups):
    """[batch, kv_heads, n, head_dim] -> [batch, kv_heads * groups, n, head_dim]."""
    return states if groups == 1 else states.repeat_interleave(groups, dim=1)


def _additive(mask, dtype):
    if mask is None or mask.dtype != torch.bool:
        return mask
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, torch.finfo(dtype).min)


def _explicit(q, k, v, mask, causal, scale, softcap, sinks):
    scores = torch.matmul(q.float(), k.float().transpose(2, 3)) * scale
    if softcap:
        scores = softcap * torch.tanh(scores / softcap)
    if mask is not None:
        scores = scores + _additive(mask, torch.float32)[..., :k.shape[2]]
    elif causal:
        visible = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).tril(k.shape[2] - q.shape[2])
        scores = scores.masked_fill(~visible, torch.finfo(torch.float32).min)
    if sinks is not None:
        sinks = sinks.float().reshape(1, -1, 1, 1).expand(scores.shape[0], -1, scores.shape[2], 1)
        scores = torch.cat([scores, sinks], dim=-1)
    weights = scores.softmax(-1)[..., :k.shape[2]]
    return torch.matmul(weights, v.float()).to(q.dtype)


def dense_attention(q, k, v, mask, causal, scale, softcap=0.0, sinks=None):
    """q [batch, heads, n, head_dim], k and v [batch, kv_heads, m, head_dim] -> [batch, n, heads, head_dim of v].
    mask: bool or added; causal counts where there is no mask and n > 1 (the last query sees everything)."""
    groups = q.shape[1] // k.shape[1]
    k, v = repeat_heads(k, groups), repeat_heads(v, groups)
    if softcap or sinks is not None:
        out = _explicit(q, k, v, mask, causal and q.shape[2] > 1, scale, softcap, sinks)
    else:
        is_causal = bool(causal and mask is None and q.shape[2] > 1)
        out = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=is_causal, scale=scale)
    return out.transpose(1, 2).contiguous()
