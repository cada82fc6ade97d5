"""Names of blocks that are the same in every process: what vLLM's own block hashes are made of, from a root that says which model,
preset and shapes. (vLLM's hashes begin with a random number in each process unless PYTHONHASHSEED is set.)"""
import hashlib
import json
import os
from array import array

BLOCK = 128
SAMPLE = 1 << 20


def _add_file(digest, path):
    size = os.path.getsize(path)
    digest.update(f"{os.path.basename(path)}:{size}:".encode())
    with open(path, "rb") as file:
        digest.update(file.read(SAMPLE))
        if size > SAMPLE:
            file.seek(max(SAMPLE, size - SAMPLE))
            digest.update(file.read(SAMPLE))


def model_fingerprint(model_config):
    """Of the configuration and the weights: the first and last MiB of each file of a local model, else its name and revision."""
    digest = hashlib.sha256()
    digest.update(json.dumps(model_config.hf_config.to_dict(), sort_keys=True, default=str).encode())
    digest.update(f"{model_config.dtype}|{model_config.quantization}".encode())
    folder = model_config.model
    if os.path.isdir(folder):
        names = sorted(n for n in os.listdir(folder) if n.endswith((".safetensors", ".bin", ".gguf", ".pt")))
        for name in names:
            _add_file(digest, os.path.join(folder, name))
        if not names:  # dummy weights: those of a folder and a seed
            digest.update(f"{os.path.realpath(folder)}|{model_config.seed}".encode())
    elif os.path.isfile(folder):
        _add_file(digest, folder)
    else:
        digest.update(f"{folder}|{model_config.revision}".encode())
    return digest.hexdigest()


def root(fingerprint, preset, layers, rank, ranks):
    """layers: [(name, kv_heads, head_dim)] of a rank."""
    text = json.dumps(["vidkv-vllm-1", fingerprint, preset, layers, rank, ranks])
    return hashlib.sha256(text.encode()).digest()


def of_request(request, blocks, extra_keys):
    """The chained hashes of the first `blocks` blocks, from a fixed beginning. extra_keys: vLLM's own function for what is not tokens."""
    tokens, keys, last, next_media = request.all_token_ids, [], b"vidkv", 0
    for i in range(blocks):
        first, end = i * BLOCK, (i + 1) * BLOCK
        extra, next_media = extra_keys(request, first, end, next_media)
        digest = hashlib.sha256(last)
        digest.update(array("q", tokens[first:end]).tobytes())
        digest.update(repr(extra).encode())
        last = digest.digest()
        keys.append(last)
    return keys


def entry_name(root_of_rank, key):
    return hashlib.sha256(root_of_rank + key).hexdigest()
