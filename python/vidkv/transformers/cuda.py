"""Attention on the codes of TorchStorage with the kernels of libvidkv_cuda (include/vidkv/cuda.h), on the current stream."""
import ctypes
import functools
import os

import torch

PAGE = 128
NUMBERS = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
LIBRARY = os.path.join(os.path.dirname(os.path.dirname(__file__)), "libvidkv_cuda.so")
_int, _long, _float, _pointer = ctypes.c_int32, ctypes.c_int64, ctypes.c_float, ctypes.c_void_p


class _Params(ctypes.Structure):
    _fields_ = [("key_bits", _float), ("value_bits", _float), ("key_codec", _int), ("value_codec", _int), ("group_size", _int),
                ("residual_length", _int), ("sink_tokens", _int), ("protect", _float)]


class _Rows(ctypes.Structure):
    _fields_ = [("rows", _pointer), ("head_stride", _long), ("row_stride", _long)]


class _Sequence(ctypes.Structure):
    _fields_ = [("key_pages", _pointer), ("value_pages", _pointer), ("order", _pointer), ("means", _pointer), ("key_sinks", _Rows),
                ("value_sinks", _Rows), ("keys", _Rows), ("values", _Rows), ("pages", _long), ("cells", _long), ("sinks", _int)]


class _Arguments(ctypes.Structure):
    _fields_ = [("params", _Params), ("head_dim", _int), ("kv_heads", _int), ("heads", _int), ("sequences", _int), ("sequence", _pointer),
                ("q", _pointer), ("q_sequence_stride", _long), ("q_token_stride", _long), ("q_head_stride", _long),
                ("out", _pointer), ("out_sequence_stride", _long), ("out_token_stride", _long), ("out_head_stride", _long),
                ("q_number", _int), ("out_number", _int), ("tokens", _int), ("mask", _pointer), ("mask_stride", _long), ("causal", _int),
                ("scale", _float), ("softcap", _float), ("sinks", _pointer), ("workspace", _pointer), ("workspace_bytes", ctypes.c_uint64)]


@functools.cache
def _library():
    library = ctypes.CDLL(os.environ.get("VIDKV_CUDA_LIBRARY", LIBRARY))
    library.vidkv_cuda_workspace.restype = ctypes.c_uint64
    library.vidkv_cuda_last_error.restype = ctypes.c_char_p
    for function, arguments in (("vidkv_cuda_supports", [_pointer, _int]), ("vidkv_cuda_workspace", [_pointer]), ("vidkv_cuda_attention", [_pointer, _pointer])):
        getattr(library, function).argtypes = arguments
    return library


def _params(params):
    return _Params(*(getattr(params, name) for name, _ in _Params._fields_))


def why_not(params, key_dim, value_dim, device):
    """Why the kernels cannot read such pages on this device, in a line; "" if they can."""
    if device.type != "cuda":
        return f"there are no kernels for devices of type {device.type}"
    if key_dim != value_dim:
        return "the CUDA kernels need keys and values of one head_dim"
    try:
        library = _library()
    except OSError:
        return "this vidkv was built without its CUDA kernels (nvcc builds them, docs/transformers.md)"
    with torch.cuda.device(device):
        status = library.vidkv_cuda_supports(ctypes.byref(_params(params)), key_dim)
    return library.vidkv_cuda_last_error().decode() if status else ""


_workspaces = {}  # (device, stream) -> zeros; the kernels leave them so


def _workspace(device, stream, size):
    held = _workspaces.get((device, stream))
    if held is None or held.numel() < size:
        held = _workspaces[device, stream] = torch.zeros(max(2 * size, 1 << 20), dtype=torch.uint8, device=device)
    return held


def _rows(tensor):
    """tensor: f16 [kv_heads, n, head_dim] or None."""
    if tensor is None or tensor.shape[1] == 0:
        return _Rows()
    return _Rows(tensor.data_ptr(), tensor.stride(0), tensor.stride(1))


def can_read(keys, values, sequence, cells, device):
    """Whether a sequence of two DeviceStores lies as the kernels read it."""
    k, v = keys.rows[sequence], values.rows[sequence]
    fits = len(k.pages) == len(v.pages) and cells >= k.start() and k.tail.shape[1] == v.tail.shape[1] >= cells - k.start()
    return fits and all(t.device == device and t.stride(2) == 1 and t.data_ptr() % 16 == 0 for t in (k.tail, v.tail) if t.shape[1])


def _sequence(keys, values, sequence, cells, device):
    k, v = keys.rows[sequence], values.rows[sequence]
    out = _Sequence(keys=_rows(k.tail), values=_rows(v.tail), pages=len(k.pages), cells=cells)
    if k.pages:
        out.key_pages, out.value_pages = k.page_addresses(device).data_ptr(), v.page_addresses(device).data_ptr()
        out.order, out.means = k.plans.order.data_ptr(), k.plans.means.data_ptr()
        out.key_sinks, out.value_sinks, out.sinks = _rows(k.sinks), _rows(v.sinks), k.sinks.shape[1]
    return out


def attention(keys, values, sequences, q, out, cells, mask=None, causal=False, scale=1.0, softcap=0.0, sinks=None):
    """q [batch, heads, n, head_dim] and out [batch, n, heads, head_dim] on the device, batch row i of sequence sequences[i] with cells[i]
    cells; mask: f16 [n, cells] to add, for all rows, or None; sinks: f32 [heads] or None."""
    library, device = _library(), q.device
    arguments = _Arguments(params=_params(keys.params), head_dim=keys.head_dim, kv_heads=keys.kv_heads, heads=q.shape[1], sequences=len(sequences),
                           q=q.data_ptr(), q_sequence_stride=q.stride(0), q_token_stride=q.stride(2), q_head_stride=q.stride(1),
                           out=out.data_ptr(), out_sequence_stride=out.stride(0), out_token_stride=out.stride(1), out_head_stride=out.stride(2),
                           q_number=NUMBERS[q.dtype], out_number=NUMBERS[out.dtype], tokens=q.shape[2], causal=causal, scale=scale, softcap=softcap)
    each = (_Sequence * len(sequences))(*(_sequence(keys, values, s, n, device) for s, n in zip(sequences, cells)))
    arguments.sequence = ctypes.addressof(each)
    if mask is not None:
        arguments.mask, arguments.mask_stride = mask.data_ptr(), mask.stride(0)
    if sinks is not None:
        arguments.sinks = sinks.data_ptr()
    with torch.cuda.device(device):
        stream = torch.cuda.current_stream(device).cuda_stream
        size = library.vidkv_cuda_workspace(ctypes.byref(arguments))
        if size:
            workspace = _workspace(device, stream, size)
            arguments.workspace, arguments.workspace_bytes = workspace.data_ptr(), workspace.numel()
        if not size or library.vidkv_cuda_attention(ctypes.byref(arguments), stream):
            raise RuntimeError("VidKVCache: " + library.vidkv_cuda_last_error().decode())
    return out
