"""python -m vidkv.cuda_bench: attention on packed codes on a GPU, against scaled_dot_product_attention on f16 keys and values. JSON.

The time of one call in a CUDA graph, median; calls go round several layers, so that none finds its keys in the L2 cache. f16 is
measured with every back-end that torch has, heads shared or as tokens of their KV head: the best counts. --model-depths: then a whole
model of Qwen2.5-7B's shape with random weights in transformers, whose cache is filled with random keys and values."""
import argparse
import json
import statistics
import sys

HEADS, KV_HEADS, HEAD_DIM = 28, 4, 128
CACHE_BYTES = 256 << 20  # of all layers together, at least
BASE_TOKENS = 4096       # that are really packed: their bytes are repeated


def parse(arguments=None):
    parser = argparse.ArgumentParser(prog="python -m vidkv.cuda_bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--presets", default="t1.65,t2.2,t1.15")
    parser.add_argument("--shapes", default="4096x1,8192x1,32768x1,131072x1,524288x1,32768x8", help="tokens x batch (default %(default)s)")
    parser.add_argument("--model-depths", default="", help="tokens in the model's cache, such as 32768,131072 (default: no model)")
    parser.add_argument("--query-tokens", type=int, default=1)
    parser.add_argument("--threads", type=int, default=4, help="that pack")
    return parser.parse_args(arguments)


def graph_time(calls, repeats=15, rounds=3):
    """Microseconds of a call: all `calls` one after the other in a CUDA graph, median of its replays."""
    import torch

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for call in calls:
            call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        for _ in range(rounds):
            for call in calls:
                call()
    times = []
    for _ in range(repeats + 3):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) * 1e3 / (rounds * len(calls)))
    return statistics.median(times[3:])


def bandwidth():
    """GB/s of a copy within the device, bytes read and written, and of reading alone."""
    import torch

    a = torch.empty(1 << 30, dtype=torch.uint8, device="cuda").random_(0, 255)
    b = torch.empty_like(a)
    copy = graph_time([lambda: b.copy_(a)])
    words = a.view(torch.float32)
    read = graph_time([lambda: torch.amax(words)])
    return dict(copy_gb_s=round(2e-3 * a.numel() / copy, 1), read_gb_s=round(1e-3 * a.numel() / read, 1))


def states(tokens, generator):
    """Keys, values, queries [heads, tokens, head_dim], channels of very different size as in models."""
    import torch

    draw = lambda heads, n: torch.randn(heads, n, HEAD_DIM, generator=generator)
    keys = draw(KV_HEADS, tokens) * draw(KV_HEADS, 1).exp() + 2 * draw(KV_HEADS, 1)
    return keys, draw(KV_HEADS, tokens), 0.3 * draw(HEADS, tokens)


def packed(preset, threads):
    """Keys and values of one layer, packed once: DeviceStores on the GPU, and the seconds that packing took."""
    import time

    import torch

    from . import Params
    from .transformers.torch_storage import TorchStorage

    torch.set_num_threads(threads)
    storage = TorchStorage(Params.from_preset(preset), 1, KV_HEADS, HEAD_DIM, HEAD_DIM, 2 * BASE_TOKENS, torch.device("cuda"))
    keys, values, queries = (part.cuda() for part in states(BASE_TOKENS + 200, torch.Generator().manual_seed(1)))
    storage.write(0, 0, keys, values)
    storage.observe(0, queries)
    started = time.perf_counter()
    storage.seal(HEAD_DIM ** -0.5)
    torch.cuda.synchronize()
    return storage, time.perf_counter() - started


def repeat_pages(storage, tokens, sequences):
    """A storage of so many sequences of `tokens` sealed tokens and the window: bytes of its own."""
    import copy

    import torch

    from .transformers.torch_storage import SealedPage

    other = storage.clone()
    for name in ("keys", "values"):
        store = getattr(other, name)
        base = store.rows[0]
        store.rows = []
        for _ in range(sequences):
            rows = copy.copy(base)
            block = torch.stack([base.pages[i % len(base.pages)].data for i in range(tokens // 128)])
            pad = -block.shape[1] % 512
            block = torch.nn.functional.pad(block, (0, pad))
            rows.pages = [SealedPage(block[i], 0) for i in range(len(block))]
            rows.tail, rows.addresses = base.tail.clone(), None
            store.rows.append(rows)
    other.rows = list(range(sequences))
    return other


def ours(storage, tokens, batch, n):
    """(microseconds, bytes of the pages that a call reads)."""
    import torch

    from .transformers import cuda

    size = sum(store.rows[0].pages[0].data.numel() for store in (storage.keys, storage.values)) * (tokens // 128) * batch
    layers = [repeat_pages(storage, tokens, batch) for _ in range(max(2, min(256, CACHE_BYTES // size)))]
    window = storage.keys.rows[0].tail.shape[1]
    q = torch.randn(batch, HEADS, n, HEAD_DIM, device="cuda", dtype=torch.float16)
    out = torch.empty(batch, n, HEADS, HEAD_DIM, device="cuda", dtype=torch.float16)
    cells = [tokens + window] * batch
    call = lambda layer: lambda: cuda.attention(layer.keys, layer.values, range(batch), q, out, cells, None, n > 1, HEAD_DIM ** -0.5)
    for layer in layers:
        call(layer)()
    return graph_time([call(layer) for layer in layers]), size


def theirs(tokens, batch, n):
    """Microseconds by way: back-end, and whether heads are shared by torch or tokens of their KV head."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel

    size = 4 * batch * KV_HEADS * tokens * HEAD_DIM
    make = lambda: torch.randn(batch, KV_HEADS, tokens, HEAD_DIM, device="cuda", dtype=torch.float16)
    layers = [(make(), make()) for _ in range(max(2, min(256, CACHE_BYTES // size)))]
    q = torch.randn(batch, HEADS, n, HEAD_DIM, device="cuda", dtype=torch.float16)
    folded = q.reshape(batch, KV_HEADS, -1, HEAD_DIM)
    times = {}
    for backend in (SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION, SDPBackend.EFFICIENT_ATTENTION):
        for way, query, options in (("shared", q, dict(enable_gqa=True)), ("folded", folded, {})):
            call = lambda k, v: lambda: torch.nn.functional.scaled_dot_product_attention(query, k, v, **options)
            try:
                with sdpa_kernel(backend):
                    times[f"{backend.name.lower()} {way}"] = round(graph_time([call(k, v) for k, v in layers]), 2)
            except RuntimeError:
                torch.cuda.synchronize()  # this back-end cannot
    return times, size


def qwen_7b():
    """Qwen2.5-7B's shape, which is that of Qwen2.5-VL-7B's language model, with random f16 weights on the GPU."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    config = Qwen2Config(hidden_size=3584, num_attention_heads=HEADS, num_key_value_heads=KV_HEADS, num_hidden_layers=28, intermediate_size=18944,
                         vocab_size=152064, max_position_embeddings=1 << 18, dtype=torch.float16)
    torch.set_default_dtype(torch.float16)
    with torch.device("cuda"):
        model = Qwen2ForCausalLM(config).eval()
    torch.set_default_dtype(torch.float32)
    return model


def filled_dynamic(model, depth):
    import torch
    from transformers import DynamicCache

    cache = DynamicCache(config=model.config)
    for layer in range(model.config.num_hidden_layers):
        cache.update(*(torch.randn(1, KV_HEADS, depth, HEAD_DIM, device="cuda", dtype=torch.float16) for _ in range(2)), layer)
    return cache


def filled_packed(model, preset, storage, depth):
    """Every layer has bytes of its own: the pages of `storage`, again and again, and its window."""
    import torch

    from .transformers import VidKVCache

    cache, one = VidKVCache(model.config, preset), torch.zeros(1, KV_HEADS, 1, HEAD_DIM, device="cuda", dtype=torch.float16)
    for layer in cache.packed_layers:
        layer.lazy_initialization(one, one)
        copied = repeat_pages(storage, depth, 1)
        for name in ("keys", "values"):
            rows = getattr(copied, name).rows[0]
            more = depth - BASE_TOKENS
            rows.aged, rows.writes, rows.last_writes = depth // 128, rows.writes + more, [n + more for n in rows.last_writes]
            getattr(layer.storage, name).rows = [rows]
        layer.length, layer._padding = depth + rows.tail.shape[1], [0]
    return cache


def decode(model, cache, name, depth, memory_before):
    """16 tokens: the median of their times, that of the GPU alone, and memory beside the weights."""
    import time

    import torch

    from .transformers.names import as_arguments

    model.set_attn_implementation("sdpa" if name == "dynamic" else "vidkv")
    token, times = torch.tensor([[5]], device="cuda"), []
    step = lambda: model(input_ids=token, **as_arguments(cache), use_cache=True).logits[0, -1].argmax()
    with torch.no_grad():
        for _ in range(16):
            torch.cuda.synchronize()
            started = time.perf_counter()
            step()
            torch.cuda.synchronize()
            times.append(1e3 * (time.perf_counter() - started))
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            for _ in range(4):
                step()
            torch.cuda.synchronize()
    busy = sum(event.self_device_time_total for event in profile.key_averages()) / 4e3
    held = cache.bytes_held() if hasattr(cache, "bytes_held") else sum(t.nbytes for layer in cache.layers for t in (layer.keys, layer.values))
    return dict(cache=name, tokens=depth, ms_per_token=round(statistics.median(times[4:]), 2), gpu_ms_per_token=round(busy, 2),
                cache_mb=round(held / 1e6, 1), peak_mb_beside_weights=round((torch.cuda.max_memory_allocated() - memory_before) / 1e6, 1))


def model_rows(depths, storages):
    import torch

    model, rows = qwen_7b(), []
    for depth in depths:
        for name in ("dynamic", *storages):
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            cache = filled_dynamic(model, depth) if name == "dynamic" else filled_packed(model, name, storages[name], depth)
            torch.cuda.reset_peak_memory_stats()
            rows.append(decode(model, cache, name, depth, before))
            print(json.dumps(rows[-1]), file=sys.stderr)
            del cache
    return rows


def measure(options):
    import torch

    device = torch.cuda.get_device_properties(0)
    result = dict(device=device.name, torch=torch.__version__, heads=f"{HEADS}/{KV_HEADS}/{HEAD_DIM}", query_tokens=options.query_tokens, **bandwidth())
    print(json.dumps(result), file=sys.stderr)
    storages, result["rows"] = {}, []
    for preset in options.presets.split(","):
        storages[preset], seconds = packed(preset, options.threads)
        result[f"packing_{preset}_us_per_token_and_layer"] = round(1e6 * seconds / BASE_TOKENS, 2)
    for shape in filter(None, options.shapes.split(",")):
        tokens, batch = (int(part) for part in shape.split("x"))
        times, size = theirs(tokens, batch, options.query_tokens)
        best = min(times, key=times.get)
        row = dict(tokens=tokens, batch=batch, f16_us=times[best], f16_best=best, f16_gb_s=round(1e-3 * size / times[best], 1), f16_all=times)
        for preset, storage in storages.items():
            us, size = ours(storage, tokens, batch, options.query_tokens)
            row[preset] = dict(us=round(us, 2), faster=round(times[best] / us, 2), gb_s=round(1e-3 * size / us, 1))
            torch.cuda.empty_cache()
        result["rows"].append(row)
        print(json.dumps(row), file=sys.stderr)
    if options.model_depths:
        result["model"] = model_rows([int(depth) for depth in options.model_depths.split(",")], storages)
    return result


def main(arguments=None):
    try:
        import torch
    except ImportError:
        print("vidkv.cuda_bench: needs torch", file=sys.stderr)
        return 1
    options = parse(arguments)
    if not torch.cuda.is_available():
        print("vidkv.cuda_bench: there is no GPU: torch.cuda.is_available() is false", file=sys.stderr)
        return 1
    print(json.dumps(measure(options), indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
