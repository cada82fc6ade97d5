"""What a layer's update() returns: a stand-in for its keys or values.

It has their shape, type and device but no data. The attention function "vidkv" takes the layer from it and reads the codes;
anything else that computes with it gets real keys and values, decoded at that moment.
"""
import torch
from transformers.utils import logging

logger = logging.get_logger(__name__)
DECODES = ("VidKVCache: this attention implementation cannot read the codes, so each layer is decoded when it is read: slower, and one "
           "layer at a time in full. model.set_attn_implementation('vidkv') reads the codes.")

# What a model may ask of a tensor without touching its data.
_METADATA = {"size", "dim", "ndimension", "numel", "nelement", "stride", "__len__", "is_floating_point", "is_complex", "element_size",
             "get_device", "is_contiguous", "type", "__hash__"}
_PROPERTIES = {torch.Tensor.shape, torch.Tensor.dtype, torch.Tensor.device, torch.Tensor.ndim, torch.Tensor.layout,
               torch.Tensor.requires_grad, torch.Tensor.is_cuda, torch.Tensor.is_cpu, torch.Tensor.is_meta, torch.Tensor.is_sparse,
               torch.Tensor.is_quantized, torch.Tensor.is_nested, torch.Tensor.is_leaf, torch.Tensor.grad_fn}
_GETTERS = {getattr(p, "__get__") for p in _PROPERTIES}
_QUERY_READERS = {"matmul", "__matmul__", "bmm", "baddbmm", "scaled_dot_product_attention"}


def _map(value, convert):
    if isinstance(value, torch.Tensor):
        return convert(value)
    if isinstance(value, (list, tuple)):
        return type(value)(_map(v, convert) for v in value)
    return value


class PackedTensor(torch.Tensor):
    """Keys or values [batch, kv_heads, tokens, head_dim] of a layer."""

    @staticmethod
    def __new__(cls, layer, side, shape, dtype, device):
        return torch.Tensor._make_wrapper_subclass(cls, shape, dtype=dtype, device=device)

    def __init__(self, layer, side, shape, dtype, device):
        self.layer, self.side, self.tokens = layer, side, shape[2]

    def materialize(self):
        """The real tensor, decoded now."""
        return self.layer.materialize(self.side, self.tokens)

    def __repr__(self, **_):
        return f"PackedTensor({self.side}, shape={tuple(self.shape)}, dtype={self.dtype})"

    def __deepcopy__(self, memo):
        return self.materialize().clone()

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func in _GETTERS or getattr(func, "__name__", "") in _METADATA:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **kwargs)
        return func(*_map(args, cls._real), **{k: _map(v, cls._real) for k, v in kwargs.items()})

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return func(*_map(args, cls._plain), **{k: _map(v, cls._plain) for k, v in (kwargs or {}).items()})

    @staticmethod
    def _plain(tensor):
        if not isinstance(tensor, PackedTensor):
            return tensor
        logger.warning_once(DECODES)
        return tensor.materialize()

    @staticmethod
    def _real(tensor):
        if not isinstance(tensor, PackedTensor):
            return tensor
        real = PackedTensor._plain(tensor)
        return DecodedKeys.of(real, tensor.layer) if tensor.side == "keys" and tensor.layer.wants_queries else real


class DecodedKeys(torch.Tensor):
    """Decoded keys on their way through another attention implementation: shows the layer the queries that read them."""

    @staticmethod
    def of(tensor, layer):
        keys = tensor.as_subclass(DecodedKeys)
        keys.layer = layer
        return keys

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        found = [t for t in (*args, *kwargs.values()) if isinstance(t, DecodedKeys)]
        layer = getattr(found[0], "layer", None) if found else None
        if getattr(func, "__name__", "") in _QUERY_READERS and layer is not None:
            query = kwargs.get("query", args[0] if args else None)
            if isinstance(query, torch.Tensor) and not isinstance(query, DecodedKeys):
                layer.observe_decoded(query)
            plain = lambda t: t.as_subclass(torch.Tensor) if isinstance(t, DecodedKeys) else t
            return func(*_map(args, plain), **{k: _map(v, plain) for k, v in kwargs.items()})
        result = super().__torch_function__(func, types, args, kwargs)
        if isinstance(result, DecodedKeys):
            result.layer = layer
        return result
