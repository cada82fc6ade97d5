"""KIVI (arXiv 2402.02750) at 2 bits for transformers, to compare with: keys per channel in groups of 32 tokens, values per token in groups of
32 channels, each group with an f16 scale and an f16 minimum: 3 bits an element. The newest 128 tokens stay as they are. Each step decodes all."""
import torch
from transformers.cache_utils import DYNAMIC_LAYER_TYPE_MAPPING, Cache, DynamicLayer, get_layer_types_and_kwargs

GROUP, RESIDUAL, TOP = 32, 128, 3  # TOP: the highest of four codes


class Codes:
    """[..., 32] numbers as 2-bit codes, four a byte, and the scale and minimum of each 32."""

    def __init__(self, groups):
        low, high = groups.amin(-1, keepdim=True).float(), groups.amax(-1, keepdim=True).float()
        self.step, self.low, self.dtype = ((high - low) / TOP).half(), low.half(), groups.dtype
        step = self.step.float()
        codes = torch.where(step > 0, ((groups.float() - self.low.float()) / step).round().clamp(0, TOP), torch.zeros((), device=groups.device))
        quarters = codes.to(torch.uint8).unflatten(-1, (4, GROUP // 4))
        self.packed = quarters[..., 0, :] | quarters[..., 1, :] << 2 | quarters[..., 2, :] << 4 | quarters[..., 3, :] << 6

    def decoded(self):
        codes = torch.cat([self.packed >> shift & TOP for shift in (0, 2, 4, 6)], -1)
        return (codes * self.step.float() + self.low.float()).to(self.dtype)

    def bytes(self):
        return sum(part.numel() * part.element_size() for part in (self.packed, self.step, self.low))


class KiviLayer(DynamicLayer):
    """keys and values are the newest tokens; `coded` the older ones, packed once, 32 tokens at a time."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.coded, self.tokens_coded = [], 0

    def update(self, key_states, value_states, *arguments, **options):
        super().update(key_states, value_states, *arguments, **options)
        older = [(self._tokens(keys), values.decoded().flatten(-2)) for keys, values in self.coded]
        keys, values = (torch.cat(parts, -2) for parts in zip(*older, (self.keys, self.values)))
        full = (self.keys.shape[-2] - RESIDUAL) // GROUP * GROUP
        if full > 0:
            self._pack(full)
        return keys, values

    def _pack(self, count):
        keys = self.keys[..., :count, :].unflatten(-2, (-1, GROUP)).transpose(-1, -2)  # [..., groups, channels, 32 tokens]
        values = self.values[..., :count, :].unflatten(-1, (-1, GROUP))                # [..., tokens, groups, 32 channels]
        self.coded.append((Codes(keys), Codes(values)))
        self.tokens_coded += count
        self.keys, self.values = (rows[..., count:, :].clone() for rows in (self.keys, self.values))

    @staticmethod
    def _tokens(codes):
        return codes.decoded().transpose(-1, -2).flatten(-3, -2)

    def get_seq_length(self, *arguments):
        return self.tokens_coded + super().get_seq_length()

    def bytes(self):
        rows = sum(part.numel() * part.element_size() for part in (self.keys, self.values)) if self.is_initialized else 0
        return rows + sum(codes.bytes() for pair in self.coded for codes in pair)


class KiviCache(Cache):
    """What `generate` takes; sliding-window layers stay as transformers keeps them."""

    true_bits = 2 + 32 / GROUP

    def __init__(self, config):
        kinds, arguments = get_layer_types_and_kwargs(config.get_text_config(decoder=True))
        super().__init__(layers=[KiviLayer() if kind == "full_attention" else DYNAMIC_LAYER_TYPE_MAPPING[kind](**options)
                                 for kind, options in zip(kinds, arguments)])

    def bytes_held(self):
        return sum(layer.bytes() if isinstance(layer, KiviLayer) else (layer.keys.nbytes + layer.values.nbytes if layer.is_initialized else 0)
                   for layer in self.layers)
