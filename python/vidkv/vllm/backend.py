"""vLLM's attention on CPUs with packed pages: CPU_ATTN, except for the layers whose blocks are packed."""
from dataclasses import replace

import torch
from vllm.config import get_current_vllm_config
from vllm.v1.attention.backend import AttentionType
from vllm.v1.attention.backends.cpu_attn import (
    CPUAttentionBackend,
    CPUAttentionBackendImpl,
    CPUAttentionMetadata,
    CPUAttentionMetadataBuilder,
)
from vllm.v1.kv_cache_interface import FullAttentionSpec

from . import layers, options
from .lesson import Lesson


ENCODERS = (AttentionType.ENCODER, AttentionType.ENCODER_ONLY)  # which have no cache


def is_packed(spec):
    return type(spec) is FullAttentionSpec and spec.state_content_bytes is not None


class VidKVAttentionBackend(CPUAttentionBackend):
    @classmethod
    def customize_spec(cls, spec):
        """A layer with full attention: a block is one state of packed bytes. vLLM counts and shows the tokens that fit by it."""
        state = options.state()
        if not state.packs or type(spec) is not FullAttentionSpec or spec.sliding_window is not None or spec.block_size != options.BLOCK:
            return spec
        size = options.room_of_block(spec.num_kv_heads, spec.head_size)
        return replace(spec, num_head_slots=1, tokens_per_state=options.BLOCK, state_content_bytes=size, dtype=torch.uint8)

    @staticmethod
    def get_supported_kernel_block_sizes(kv_cache_spec=None):
        if kv_cache_spec is not None and is_packed(kv_cache_spec):
            return [options.BLOCK]
        return CPUAttentionBackend.get_supported_kernel_block_sizes(kv_cache_spec)

    @staticmethod
    def get_impl_cls():
        return VidKVAttentionImpl

    @staticmethod
    def get_builder_cls():
        return VidKVMetadataBuilder


class VidKVMetadataBuilder(CPUAttentionMetadataBuilder):
    def build(self, common_prefix_len, common_attn_metadata, fast_build=False):
        if not is_packed(self.kv_cache_spec):
            return super().build(common_prefix_len, common_attn_metadata, fast_build)
        common = common_attn_metadata
        return CPUAttentionMetadata(
            num_actual_tokens=common.num_actual_tokens,
            max_query_len=common.max_query_len,
            query_start_loc=common.query_start_loc,
            max_seq_len=common.max_seq_len,
            seq_lens=common.seq_lens,
            block_table=common.block_table_tensor,
            slot_mapping=common.slot_mapping,
            scheduler_metadata=None,
            causal=common.causal,
        )


class VidKVAttentionImpl(CPUAttentionBackendImpl):
    def __init__(self, num_heads, head_size, scale, num_kv_heads, alibi_slopes, sliding_window, *args, **kwargs):
        super().__init__(num_heads, head_size, scale, num_kv_heads, alibi_slopes, sliding_window, *args, **kwargs)
        state = options.configure(get_current_vllm_config())
        if not state.packs or self.kv_sharing_target_layer_name is not None or self.attn_type in ENCODERS:
            return
        if self.attn_type != AttentionType.DECODER or self.sliding_window != -1:
            options.add_other(num_kv_heads, head_size)
        elif alibi_slopes is not None:
            options.refuse("this model has ALiBi")
        else:
            options.add_layer(f"{len(state.layers)}", num_kv_heads, head_size)

    @staticmethod
    def packed(kv_cache):
        return kv_cache.dtype == torch.uint8 and kv_cache.dim() == 4 and kv_cache.shape[1] == kv_cache.shape[2] == 1

    def do_kv_cache_update(self, layer, key, value, kv_cache, slot_mapping):
        if not self.packed(kv_cache):  # packed blocks are written by forward, which knows the texts
            super().do_kv_cache_update(layer, key, value, kv_cache, slot_mapping)

    def forward(self, layer, query, key, value, kv_cache, attn_metadata, output, output_scale=None, output_block_scale=None):
        if attn_metadata is Lesson:
            native = layers.blocks_of(kv_cache, self.num_kv_heads, self.head_size) if self.packed(kv_cache) else None
            return Lesson.attend(self, query, key, value, output, native, Lesson.turns.get(layer.layer_name))
        if attn_metadata is None or not self.packed(kv_cache):
            return super().forward(layer, query, key, value, kv_cache, attn_metadata, output, output_scale, output_block_scale)
        if output_scale is not None or output_block_scale is not None:
            raise NotImplementedError("VidKV: the output of attention is not quantized")
        n = attn_metadata.num_actual_tokens
        writes = key is not None and value is not None and self.kv_sharing_target_layer_name is None
        q, k, v = (x[:n].float().contiguous() if x is not None else None for x in (query, key, value))
        out = torch.empty_like(q)
        causal = attn_metadata.causal
        if isinstance(causal, torch.Tensor):
            raise NotImplementedError("VidKV: attention that is causal for some sequences only is not packed; unset VIDKV_PRESET")
        layers.blocks_of(kv_cache, self.num_kv_heads, self.head_size).attend(
            q,
            k if writes else None,
            v if writes else None,
            out,
            attn_metadata.query_start_loc,
            attn_metadata.seq_lens,
            attn_metadata.block_table,
            scale=self.scale,
            softcap=float(self.logits_soft_cap),
            causal=bool(causal),
            drafts=options.state().drafts,
            sinks=None if self.sinks is None else self.sinks.float(),
            threads=torch.get_num_threads(),
        )
        output[:n].copy_(out)
        return output
