"""python -m vidkv.bench: transformers' caches and VidKV's on one prompt: peak memory, bytes held, time per token, KL divergence. JSON.

Every cache runs in a process of its own, so that its peak memory is its own. The first one writes a continuation greedily; the others
are given the same tokens and their next-token distributions are compared with the first one's."""
import argparse
import concurrent.futures
import json
import multiprocessing
import resource
import statistics
import sys
import time

CACHES = ["dynamic", "vidkv:f16", "vidkv:k2v2", "vidkv:k1.5v1.58", "vidkv:t2.2", "vidkv:t1.65", "vidkv:t1.0", "quanto:4", "quanto:2", "hqq:4", "hqq:2", "fp8"]
LONGEST = 131072


def parse(arguments=None):
    parser = argparse.ArgumentParser(prog="python -m vidkv.bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="small", help="'small': the video model that comes with VidKV; '7b-shape': random weights with the "
                                                         "attention of Qwen2-7B and little else; or a folder of transformers (default small)")
    parser.add_argument("--tokens", type=int, default=3200, help="tokens of the prompt, about (default 3200)")
    parser.add_argument("--depth", type=int, default=0, help="tokens of random keys and values that the cache is filled with before the prompt, "
                                                             "to time decoding where a prefill would take too long (default 0)")
    parser.add_argument("--new-tokens", type=int, default=32, help="tokens decoded (default 32)")
    parser.add_argument("--dtype", default="auto", choices=["auto", "float32", "float16", "bfloat16"],
                        help="of the model (default: what its weights have; float32 for the two models that come along)")
    parser.add_argument("--layers", type=int, default=4, help="layers of 7b-shape (default 4)")
    parser.add_argument("--caches", default=",".join(CACHES), help="what to measure; the first is the reference; 'vidkv-torch:PRESET' reads the codes "
                                                                   "as devices without kernels do (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=1)
    return parser.parse_args(arguments)


def random_model(layers):
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    config = Qwen2Config(hidden_size=3584, num_attention_heads=28, num_key_value_heads=4, num_hidden_layers=layers, intermediate_size=256,
                         vocab_size=512, max_position_embeddings=LONGEST)
    return Qwen2ForCausalLM(config)


def load(options):
    """(model in evaluation, inputs of its prompt)."""
    import numpy as np
    import torch
    from transformers import AutoModelForImageTextToText, AutoModelForCausalLM, AutoTokenizer

    from . import small_model

    random = np.random.default_rng(options.seed)
    dtype = torch.float32 if options.dtype == "auto" else getattr(torch, options.dtype)
    if options.model == "small":
        place = small_model.folder()
        model = AutoModelForImageTextToText.from_pretrained(place, dtype=dtype).eval()
        frames = moving_squares(random, max(2, 2 * (options.tokens - 20) // 11))
        return model, small_model.inputs(AutoTokenizer.from_pretrained(place), model.config, frames, "Which shape is green?")
    if options.model == "7b-shape":
        model = random_model(options.layers).to(dtype)
    else:
        model = AutoModelForCausalLM.from_pretrained(options.model, dtype="auto" if options.dtype == "auto" else dtype)
    ids = torch.from_numpy(random.integers(3, model.config.get_text_config().vocab_size, (1, options.tokens)))
    return model.eval(), dict(input_ids=ids)


def moving_squares(random, count):
    """Frames uint8 [count, 84, 84, 3]: a coloured square wanders over noise."""
    import numpy as np

    frames = random.integers(0, 40, (count, 84, 84, 3), dtype=np.uint8)
    place = np.array([30.0, 30.0])
    for i, frame in enumerate(frames):
        if i % 16 == 0:
            colour, step = random.integers(60, 255, 3), random.uniform(-4, 4, 2)
        place = np.clip(place + step, 0, 60)
        y, x = place.astype(int)
        frame[y:y + 22, x:x + 22] = colour
    return frames


def make_cache(name, model):
    """The cache called `name`; ImportError or ValueError if it cannot be had for this model."""
    from transformers import DynamicCache, QuantizedCache

    from .transformers import VidKVCache

    kind, _, detail = name.partition(":")
    if kind == "dynamic":
        return DynamicCache(config=model.config)
    if kind in ("vidkv", "vidkv-torch"):
        return VidKVCache(model.config, detail, force_torch=kind == "vidkv-torch")
    if kind == "fp8":
        return QuantizedCache("fp8", model.config)
    if kind in ("quanto", "hqq"):
        axis = 0 if kind == "quanto" else 1
        return QuantizedCache(kind, model.config, nbits=int(detail), axis_key=axis, axis_value=axis, q_group_size=64, residual_length=128)
    raise ValueError(f"no cache is called {name!r}; known: {', '.join(CACHES)}")


def fill(cache, model, tokens, seed):
    """Puts `tokens` random keys and values into each layer of a cache."""
    import torch

    config = model.config.get_text_config()
    random = torch.Generator().manual_seed(seed)
    for layer in range(config.num_hidden_layers):
        keys, values = (torch.randn(1, config.num_key_value_heads, tokens, head_dim(config), generator=random).to(model.dtype) for _ in range(2))
        cache.update(keys, values, layer)


def head_dim(config):
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def tensor_bytes(value, seen):
    """Bytes of all tensors in a value, each counted once, wherever a quantizer hides them."""
    import torch

    if isinstance(value, torch.Tensor):
        if hasattr(value, "__tensor_flatten__"):
            return sum(tensor_bytes(getattr(value, name), seen) for name in value.__tensor_flatten__()[0])
        place = value.untyped_storage().data_ptr()
        if place in seen:
            return 0
        seen.add(place)
        return value.untyped_storage().nbytes()
    if isinstance(value, dict):
        return sum(tensor_bytes(v, seen) for v in value.values())
    if isinstance(value, (list, tuple)):
        return sum(tensor_bytes(v, seen) for v in value)
    return 0


def bytes_held(cache):
    if hasattr(cache, "bytes_held"):
        return cache.bytes_held()
    seen = set()
    return sum(tensor_bytes(vars(layer), seen) for layer in cache.layers)


def peak_kilobytes():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def measure(name, options, forced):
    """One cache in this process: (figures, log-probabilities [tokens, vocabulary], tokens)."""
    import torch
    from transformers.utils import logging

    from .transformers.names import as_arguments

    logging.disable_progress_bar()
    torch.set_num_threads(options.threads)
    model, inputs = load(options)
    try:
        cache = make_cache(name, model)
    except (ImportError, ValueError) as error:
        return dict(cache=name, skipped=str(error).strip().splitlines()[0]), None, None
    if name.startswith("vidkv"):
        (model.get_decoder() if hasattr(model, "get_decoder") else model).set_attn_implementation("vidkv")
    with torch.no_grad():
        model(input_ids=torch.ones(1, 2, dtype=torch.long))  # allocations that are the model's, not the cache's
        before = peak_kilobytes()
        try:
            if options.depth:
                fill(cache, model, options.depth, options.seed)
            started = time.perf_counter()
            logits = model(**inputs, **as_arguments(cache), use_cache=True, logits_to_keep=1).logits[:, -1]
        except Exception as error:  # a quantizer that does not work here is a finding, not a failure of the others
            return dict(cache=name, skipped=f"{type(error).__name__}: {error}".splitlines()[0]), None, None
        prefill = time.perf_counter() - started
        rows, tokens, times = [logits.float().log_softmax(-1)], [], []
        for i in range(options.new_tokens):
            token = int(rows[-1].argmax()) if forced is None else forced[i]
            tokens.append(token)
            started = time.perf_counter()
            logits = model(input_ids=torch.tensor([[token]]), **as_arguments(cache), use_cache=True).logits[:, -1]
            times.append(time.perf_counter() - started)
            rows.append(logits.float().log_softmax(-1))
    held, length = bytes_held(cache), cache.get_seq_length()
    config = model.config.get_text_config()
    f16 = 4 * length * config.num_hidden_layers * config.num_key_value_heads * head_dim(config)
    figures = dict(cache=name, tokens=length, peak_mb=round((peak_kilobytes() - before) / 1024, 1), bytes_held=held, bytes_f16=f16,
                   times_smaller_than_f16=round(f16 / held, 2), prefill_s=round(prefill, 3),
                   ms_a_token=round(1e3 * statistics.median(times[1:] or times), 3))
    return figures, torch.cat(rows).numpy(), tokens


def in_own_process(name, options, forced):
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(measure, name, options, forced).result()


def main(arguments=None):
    import numpy as np

    options = parse(arguments)
    if options.tokens < 32 or options.new_tokens < 1 or options.depth < 0:
        print("vidkv.bench: --tokens must be 32 or more, --new-tokens 1 or more and --depth 0 or more", file=sys.stderr)
        return 1
    reference = forced = None
    results = []
    for name in options.caches.split(","):
        try:
            figures, logs, tokens = in_own_process(name, options, forced)
        except (OSError, ValueError, RuntimeError) as error:
            print(f"vidkv.bench: {name}: {error}", file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            print("vidkv.bench: interrupted", file=sys.stderr)
            return 130
        if logs is not None and reference is None:
            reference, forced = logs, tokens
        if logs is not None and not options.depth:  # random keys say nothing about how a model drifts
            kl = (np.exp(reference) * (reference - logs)).sum(-1)
            figures.update(kl_mean=round(float(kl.mean()), 5), kl_max=round(float(kl.max()), 5),
                           same_top_token=round(float((reference.argmax(-1) == logs.argmax(-1)).mean()), 3))
        results.append(figures)
        print(f"{name}: {figures}", file=sys.stderr)
    settings = {name: getattr(options, name) for name in ("model", "dtype", "depth", "threads", "new_tokens", "seed")}
    print(json.dumps(dict(settings, results=results), indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
