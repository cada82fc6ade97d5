"""A small Qwen2.5-VL in plain torch, for training. State-dict names are those of the published checkpoints, so a
saved state loads into transformers and into llama.cpp's converter as it is.

Faster than the general code because training needs less: every frame pair fits in one vision window (at most
112x112 pixels), and a batch shares one layout: a video prefix, then several questions that each see the prefix
and themselves, never one another.
"""
from dataclasses import dataclass

import torch
import torch.nn as nn
import torch.nn.functional as F


@dataclass
class Config:
    vocab: int = 512
    hidden: int = 256
    layers: int = 4
    heads: int = 2              # query heads; hidden / heads is the head dimension, 128 as in the published models
    kv_heads: int = 2
    ffn: int = 512
    theta: float = 1e6
    sections: tuple = (16, 24, 24)
    eps: float = 1e-6
    vision_hidden: int = 128
    vision_layers: int = 3
    vision_heads: int = 2
    vision_ffn: int = 256
    patch: int = 14
    merge: int = 2
    size: int = 84

    @property
    def head_dim(self):
        return self.hidden // self.heads

    @property
    def grid(self):
        """Visual tokens a side of one frame pair."""
        return self.size // self.patch // self.merge


class RMSNorm(nn.Module):
    def __init__(self, width, eps=1e-6):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x):
        return F.rms_norm(x, (x.shape[-1],), self.weight.to(x.dtype), self.eps)


def rotate(x, cos, sin):
    a, b = x.chunk(2, -1)
    return x * cos + torch.cat([-b, a], -1) * sin


class MLP(nn.Module):
    def __init__(self, width, inner, bias):
        super().__init__()
        self.gate_proj = nn.Linear(width, inner, bias=bias)
        self.up_proj = nn.Linear(width, inner, bias=bias)
        self.down_proj = nn.Linear(inner, width, bias=bias)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class VisionAttention(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x, cos, sin):
        b, n, d = x.shape
        q, k, v = self.qkv(x).view(b, n, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        out = F.scaled_dot_product_attention(rotate(q, cos, sin), rotate(k, cos, sin), v)
        return self.proj(out.transpose(1, 2).reshape(b, n, d))


class VisionBlock(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.norm1, self.norm2 = RMSNorm(c.vision_hidden), RMSNorm(c.vision_hidden)
        self.attn = VisionAttention(c.vision_hidden, c.vision_heads)
        self.mlp = MLP(c.vision_hidden, c.vision_ffn, True)

    def forward(self, x, cos, sin):
        x = x + self.attn(self.norm1(x), cos, sin)
        return x + self.mlp(self.norm2(x))


class PatchEmbed(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.proj = nn.Conv3d(3, c.vision_hidden, (2, c.patch, c.patch), (2, c.patch, c.patch), bias=False)


class Merger(nn.Module):
    def __init__(self, c):
        super().__init__()
        width = c.vision_hidden * c.merge ** 2
        self.ln_q = RMSNorm(c.vision_hidden)
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, c.hidden))


class Vision(nn.Module):
    """Frame pairs -> visual tokens."""

    def __init__(self, c):
        super().__init__()
        self.c = c
        self.patch_embed = PatchEmbed(c)
        self.blocks = nn.ModuleList(VisionBlock(c) for _ in range(c.vision_layers))
        self.merger = Merger(c)

    def patchify(self, pairs):
        """Normalised pixels [b, 2, 3, s, s] -> [b, patches in merge order, 3*2*patch*patch], transformers' pixel_values."""
        p, m = self.c.patch, self.c.merge
        b, t, ch, height, width = pairs.shape
        h, w = height // p, width // p
        x = pairs.view(b, t, ch, h // m, m, p, w // m, m, p).permute(0, 3, 6, 4, 7, 2, 1, 5, 8)
        return x.reshape(b, h * w, ch * t * p * p)

    def rope(self, side, device):
        m = self.c.merge
        head = self.c.vision_hidden // self.c.vision_heads
        ids = torch.arange(side * side, device=device).view(side // m, m, side // m, m).permute(0, 2, 1, 3).reshape(-1)
        inverse = 1e4 ** -(torch.arange(0, head // 2, 2, device=device).float() / (head // 2))
        angle = torch.cat([(ids // side)[:, None] * inverse, (ids % side)[:, None] * inverse], -1)
        angle = torch.cat([angle, angle], -1)
        return angle.cos(), angle.sin()

    def forward(self, patches):
        """patchify's output -> [b, grid*grid, hidden]"""
        b, n, _ = patches.shape
        weight = self.patch_embed.proj.weight
        x = F.linear(patches, weight.view(weight.shape[0], -1))
        cos, sin = (t.to(x.dtype) for t in self.rope(round(n ** 0.5), x.device))
        for block in self.blocks:
            x = block(x, cos, sin)
        return self.merger.mlp(self.merger.ln_q(x).reshape(b, n // self.c.merge ** 2, -1))


class Attention(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.c = c
        self.q_proj = nn.Linear(c.hidden, c.heads * c.head_dim)
        self.k_proj = nn.Linear(c.hidden, c.kv_heads * c.head_dim)
        self.v_proj = nn.Linear(c.hidden, c.kv_heads * c.head_dim)
        self.o_proj = nn.Linear(c.heads * c.head_dim, c.hidden, bias=False)

    def forward(self, x, cos, sin, prefix, mask, kv_noise):
        c = self.c
        b, n, _ = x.shape
        q = rotate(self.q_proj(x).view(b, n, c.heads, -1).transpose(1, 2), cos, sin)
        k = rotate(self.k_proj(x).view(b, n, c.kv_heads, -1).transpose(1, 2), cos, sin)
        v = self.v_proj(x).view(b, n, c.kv_heads, -1).transpose(1, 2)
        if kv_noise:
            k, v = kv_noise(k, v)
        repeat = c.heads // c.kv_heads
        if repeat > 1:
            k, v = k.repeat_interleave(repeat, 1), v.repeat_interleave(repeat, 1)
        # Two calls: the long prefix takes the fast causal path, only the few question rows need an explicit mask.
        video = F.scaled_dot_product_attention(q[:, :, :prefix], k[:, :, :prefix], v[:, :, :prefix], is_causal=True)
        asked = F.scaled_dot_product_attention(q[:, :, prefix:], k, v, attn_mask=mask)
        return self.o_proj(torch.cat([video, asked], 2).transpose(1, 2).reshape(b, n, -1))


class Layer(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.input_layernorm, self.post_attention_layernorm = RMSNorm(c.hidden, c.eps), RMSNorm(c.hidden, c.eps)
        self.self_attn = Attention(c)
        self.mlp = MLP(c.hidden, c.ffn, False)

    def forward(self, x, *attention):
        x = x + self.self_attn(self.input_layernorm(x), *attention)
        return x + self.mlp(self.post_attention_layernorm(x))


class Language(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.embed_tokens = nn.Embedding(c.vocab, c.hidden)
        self.layers = nn.ModuleList(Layer(c) for _ in range(c.layers))
        self.norm = RMSNorm(c.hidden, c.eps)


class VideoModel(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.c = c
        self.visual = Vision(c)
        self.model = Language(c)
        for name, p in self.named_parameters():
            if p.ndim >= 2:
                nn.init.normal_(p, std=0.1 if "embed_tokens" in name else 0.7 * p[0].numel() ** -0.5)
            elif name.endswith("bias"):
                nn.init.zeros_(p)

    def rope(self, positions):
        """M-RoPE: positions [3, n] (time, height, width) -> cos, sin [n, head_dim]"""
        c = self.c
        inverse = c.theta ** -(torch.arange(0, c.head_dim, 2, device=positions.device).float() / c.head_dim)
        angle = positions[:, :, None].float() * inverse
        starts = (0, c.sections[0], c.sections[0] + c.sections[1])
        angle = torch.cat([angle[i, :, a:a + n] for i, (a, n) in enumerate(zip(starts, c.sections))], -1)
        angle = torch.cat([angle, angle], -1)
        return angle.cos(), angle.sin()

    def forward(self, layout, ids, visual, outputs, kv_noise=None, taps=None):
        """layout: batches.Layout; ids [b, n]; visual [b, visual tokens, hidden]; outputs [b, m] positions
        -> logits [b, m, vocab] at those positions. kv_noise(k, v) -> (k, v) damages each layer's keys and values;
        taps, a list, receives each layer's output."""
        words = self.model.embed_tokens.weight
        x = F.embedding(ids, words).to(visual.dtype)
        x = torch.index_copy(x, 1, layout.visual_at, visual)
        cos, sin = (t.to(x.dtype) for t in self.rope(layout.positions))
        for layer in self.model.layers:
            x = layer(x, cos, sin, layout.prefix, layout.mask, kv_noise)
            if taps is not None:
                taps.append(x)
        x = x.gather(1, outputs[:, :, None].expand(-1, -1, x.shape[-1]))
        return F.linear(self.model.norm(x), words.to(x.dtype)).float()
