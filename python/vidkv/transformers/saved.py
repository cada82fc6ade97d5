"""A VidKVCache in a .vidkv file: codes bit for bit, so that a model goes on as if it had never stopped."""
import json

import numpy as np
import torch
import transformers

from .. import File, FileWriter, version
from .storage import NativeStorage
from .torch_storage import TorchStorage

# What keys and values depend on: a cache of a model that differs in one of them is of no use to another.
SAME = ("model_type", "num_hidden_layers", "hidden_size", "num_attention_heads", "num_key_value_heads", "head_dim", "vocab_size",
        "rope_parameters", "rope_theta", "layer_types", "sliding_window")
BYTES = {torch.float32: np.float32, torch.float16: np.float16, torch.bfloat16: np.int16}


def describe_model(config):
    """The fields of SAME that the model's text part has."""
    text = config.get_text_config(decoder=True).to_dict()
    return json.loads(json.dumps({name: text[name] for name in SAME if text.get(name) is not None}, default=str))


def _with_rope_deltas(model):
    """Models that count positions of pictures (M-RoPE) keep the difference from the number of tokens beside the cache."""
    return [] if model is None else [module for module in model.modules() if hasattr(module, "rope_deltas")]


def _tensor_bytes(tensor):
    tensor = tensor.detach().cpu().contiguous()
    return (tensor.view(torch.int16) if tensor.dtype == torch.bfloat16 else tensor).numpy().tobytes()


def _dtype_name(dtype):
    return str(dtype).removeprefix("torch.")


# ---- saving


def save(cache, path, tokens=None, facts=None, model=None):
    packed = {id(layer) for layer in cache.packed_layers}
    manifest = {"kind": "transformers", "vidkv": version(), "transformers": transformers.__version__, "preset": cache.preset,
                "model": cache.model, "layers": [], **(facts or {})}
    for module in _with_rope_deltas(model):
        manifest["rope_deltas"] = None if module.rope_deltas is None else module.rope_deltas.tolist()
    for layer in cache.packed_layers:
        if isinstance(layer.storage, TorchStorage):
            raise ValueError(f"VidKVCache.save: the cache's codes lie on {layer.device} as torch tensors: only a cache on the CPU "
                             "(without force_torch) can be saved")
    writer = FileWriter(str(path), cache.params)
    for index, layer in enumerate(cache.layers):
        add = _add_packed if id(layer) in packed else _add_plain
        manifest["layers"].append(add(writer, index, layer))
    if tokens is not None:
        tokens = torch.as_tensor(tokens).reshape(-1, np.shape(tokens)[-1])
        manifest["tokens"] = list(tokens.shape)
        writer.add_section("tokens", tokens.to(torch.int32).cpu().numpy().tobytes())
    writer.add_section("manifest", json.dumps(manifest).encode())
    writer.finish()


def _add_packed(writer, index, layer):
    if layer.storage is None:
        return None
    layer.flush()
    storage = layer.storage
    for row, sequence in enumerate(storage.rows):
        writer.add_store(index, row, storage.keys, sequence)
        writer.add_store(index, row, storage.values, sequence)
    return {"kv_heads": layer.kv_heads, "key_dim": layer.key_dim, "value_dim": layer.value_dim, "dtype": _dtype_name(layer.dtype),
            "length": layer.length, "padding": layer._padding, "scale": layer._scale,
            "marks": [[row, list(positions)] for row, positions in layer._marks]}


def _add_plain(writer, index, layer):
    """A layer with a sliding window, as transformers keeps it."""
    if not layer.is_initialized:
        return None
    for side in ("keys", "values"):
        writer.add_section(f"{side}.{index}", _tensor_bytes(getattr(layer, side)))
    return {"shape": list(layer.keys.shape), "value_shape": list(layer.values.shape), "dtype": _dtype_name(layer.keys.dtype),
            "cumulative_length": getattr(layer, "cumulative_length", None)}


# ---- loading


def open_file(path, config):
    """(file, manifest), or ValueError if the file is of another model."""
    file = File(str(path))
    try:
        manifest = json.loads(file.section("manifest") or b"null")
    except ValueError:
        manifest = None
    if isinstance(manifest, dict) and "engine" in manifest and "kv" in manifest:
        manifest = _of_command(path, file, manifest, config)
    if not isinstance(manifest, dict) or manifest.get("kind") != "transformers" or not isinstance(manifest.get("layers"), list):
        raise ValueError(f"VidKVCache.load: '{path}' was not saved by VidKVCache.save: it can be opened by what wrote it (vidkv show says more)")
    ours, theirs = describe_model(config), manifest.get("model") or {}
    for name in SAME:
        if ours.get(name) != theirs.get(name):
            raise ValueError(f"VidKVCache.load: '{path}' is of another model: {name} is {theirs.get(name)!r} there and {ours.get(name)!r} here")
    return file, manifest


def _numbers(section):
    return np.frombuffer(section or b"", np.int64).tolist()


def _is_in_order(numbers, cells):
    """Whether a section `cells` (docs/format.md) says that cell i is token i."""
    try:
        at = 1 + numbers[0]
        texts, at = numbers[at], at + 1
        for _ in range(texts):
            at += 5 + numbers[at + 4]
        return texts == 1 and numbers[at:] == [1, cells, 0, 0, 0]
    except IndexError:
        return False


def _tokens_of_slot(section, picture):
    """The tokens that llama-server would be told, `picture` in the place of those that stand for pictures; None: it is not said."""
    numbers = np.frombuffer(section[8:8 + int.from_bytes(section[:8], "little")], np.int32) if section else []
    if len(numbers) < 6 or numbers[3] != -1 or numbers[4] != 1 or len(numbers) < 6 + numbers[5]:
        return None
    tokens = numbers[6:6 + numbers[5]]
    return np.where(tokens < 0, picture, tokens)


def _of_command(path, file, manifest, config):
    """What `vidkv ask` says of the cache that it saved, as save() would say it. It names the model by its GGUF, which says nothing here:
    layers, heads and sizes are compared."""
    text = config.get_text_config(decoder=True)
    if not text.model_type.startswith("qwen"):
        raise ValueError(f"VidKVCache.load: '{path}' was saved by llama.cpp, which may order the key channels of a {text.model_type} in another way: "
                         "only caches of Qwen2, Qwen3 and their kin can be taken over")
    heads = text.num_key_value_heads
    used, position = manifest.get("used"), manifest.get("end_position")
    stores = file.stores
    layers = {part.layer for part in stores}
    channels = {part.channels for part in stores}
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    if layers != set(range(text.num_hidden_layers)) or channels != {heads * head_dim}:
        raise ValueError(f"VidKVCache.load: '{path}' is of another model: {len(layers)} layers of {sorted(channels)} channels, not "
                         f"{text.num_hidden_layers} of {heads * head_dim}")
    if not isinstance(used, int) or not isinstance(position, int) or not _is_in_order(_numbers(file.section("cells")), used):
        raise ValueError(f"VidKVCache.load: the cells of '{path}' do not lie in order: only a video that was watched at once can be taken over")
    layer = {"kv_heads": heads, "key_dim": head_dim, "value_dim": head_dim, "dtype": None, "length": used, "padding": [0],
             "scale": head_dim ** -0.5, "marks": []}
    ours = {"kind": "transformers", "preset": manifest["kv"], "model": describe_model(config), "layers": [layer] * len(layers),
            "rope_deltas": [[position - used]]}
    tokens = _tokens_of_slot(file.section("slot"), getattr(config, "image_token_id", 0) or 0)
    return ours if tokens is None or len(tokens) != used else {**ours, "slot_tokens": tokens.astype(np.int64)[None]}


def fill(cache, path, file, manifest, device, model=None):
    """Fills a new cache of the same model with what the file holds."""
    if len(manifest["layers"]) != len(cache.layers):
        raise ValueError(f"VidKVCache.load: '{path}' has {len(manifest['layers'])} layers, the model {len(cache.layers)}")
    packed = {id(layer) for layer in cache.packed_layers}
    try:
        for index, (layer, about) in enumerate(zip(cache.layers, manifest["layers"])):
            if about is not None:
                about = about | {"dtype": about["dtype"] or _dtype_name(torch.float32 if model is None else model.dtype)}
                (_fill_packed if id(layer) in packed else _fill_plain)(file, index, layer, about, device)
        if "tokens" in manifest:
            tokens = np.frombuffer(file.section("tokens"), np.int32).reshape(manifest["tokens"])
            cache.tokens = torch.from_numpy(tokens.astype(np.int64)).to(device)
        elif "slot_tokens" in manifest:
            cache.tokens = torch.from_numpy(manifest["slot_tokens"]).to(device)
        if manifest.get("rope_deltas") is not None:
            for module in _with_rope_deltas(model):
                module.rope_deltas = torch.tensor(manifest["rope_deltas"], device=next(module.parameters()).device)
    except (KeyError, TypeError, AttributeError) as failure:
        raise ValueError(f"VidKVCache.load: '{path}' says too little about itself ({failure}): save it again") from failure


def _fill_packed(file, index, layer, about, device):
    kv_heads, key_dim, value_dim, padding = about["kv_heads"], about["key_dim"], about["value_dim"], about["padding"]
    cells = [about["length"] - row for row in padding]
    there = {(part.side, part.sequence): part.cells for part in file.stores if part.layer == index}
    if there != {(side, row): n for row, n in enumerate(cells) for side in ("keys", "values")}:
        raise ValueError(f"VidKVCache.load: the file says that layer {index} has {cells} tokens, and has others: save it again")
    layer.params = layer.params.__copy__()
    for part in file.stores:
        if part.layer == index:  # bits may differ from layer to layer
            setattr(layer.params, "key_bits" if part.side == "keys" else "value_bits", part.bits)
    kind = TorchStorage if device.type != "cpu" or layer.force_torch else NativeStorage
    layer.storage = kind(layer.params, len(padding), kv_heads, key_dim, value_dim, layer.max_length or max(1024, *cells), device)
    layer.storage.load(file, index)
    layer.batch_size, layer.kv_heads, layer.key_dim, layer.value_dim = len(padding), kv_heads, key_dim, value_dim
    layer.dtype, layer.device = getattr(torch, about["dtype"]), device
    layer.length, layer._padding, layer._scale = about["length"], list(padding), about["scale"]
    layer._marks = [(row, positions) for row, positions in about["marks"]]
    layer.is_initialized = True


def _fill_plain(file, index, layer, about, device):
    dtype = getattr(torch, about["dtype"])

    def tensor(side, shape):
        array = np.frombuffer(file.section(f"{side}.{index}"), BYTES[dtype]).reshape(shape).copy()
        return torch.from_numpy(array).view(dtype).to(device)
    keys, values = tensor("keys", about["shape"]), tensor("values", about["value_shape"])
    layer.lazy_initialization(keys, values)
    layer.keys, layer.values = keys, values
    if about["cumulative_length"] is not None:
        layer.cumulative_length = about["cumulative_length"]
