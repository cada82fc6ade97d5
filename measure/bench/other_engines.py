#!/usr/bin/env python3
"""Other engines' attention and decoding beside vidkv's, in turns on the same machine.

    other_engines.py attention [--shape 28/4/128] [--tokens 1k,8k,32k] [--kv t1.65] [--threads 2] [--rounds 3] [--json]
    other_engines.py decode -m MODEL.gguf [--depth 0,4k] [--kv stock,t1.65] [--threads 2] [--rounds 3] [--json]

attention: one decoded token of one layer, microseconds: ONNX Runtime's GroupQueryAttention (f32, f16; the cache is written in place) and torch's
scaled_dot_product_attention (f32, bf16); "rows": the query heads of a KV head as rows of one product (ONNX Runtime's MultiHeadAttention); and
`vidkv bench attention`, which brings ggml.
Each engine has a process of its own; before every call memory of twice the last-level cache is read, and rounds go through all engines. Medians count.

decode: tokens/s of a model at depth: mistral.rs end to end on the same GGUF, beside `vidkv bench model`.

Engines that are not installed are named and left out. To have them all, over an environment with torch (tests/e2e/requirements.txt):

    pip install --require-hashes --no-deps --target FOLDER -r measure/bench/requirements.txt; PYTHONPATH=FOLDER python other_engines.py ..."""
import argparse
import importlib.util
import json
import math
import multiprocessing
import os
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
VIDKV = os.environ.get("VIDKV", str(ROOT / "build" / "bin" / "vidkv"))


def last_level_cache_bytes():
    sizes = Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")
    return max((int(path.read_text().strip().rstrip("K")) * 1024 for path in sizes), default=32 << 20)


class Problem:
    """A layer's cache of normal numbers and the query of one token, in numpy; the newest cell is the token's own."""

    def __init__(self, heads, kv_heads, head_dim, tokens):
        import numpy as np

        made = np.random.default_rng(1)
        self.heads, self.kv_heads, self.head_dim, self.tokens = heads, kv_heads, head_dim, tokens
        self.q = made.standard_normal((heads, head_dim), dtype=np.float32)
        self.k, self.v = (made.standard_normal((kv_heads, tokens, head_dim), dtype=np.float32) for _ in range(2))

    def error(self, out):
        """Relative rms against attention in double."""
        import numpy as np

        q = self.q.reshape(self.kv_heads, -1, self.head_dim).astype(np.float64)
        scores = q @ self.k.astype(np.float64).transpose(0, 2, 1) / math.sqrt(self.head_dim)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        exact = (weights / weights.sum(-1, keepdims=True)) @ self.v
        got = np.asarray(out, np.float64).reshape(exact.shape)
        return float(np.sqrt(((got - exact) ** 2).mean() / (exact**2).mean()))


def onnx_file(node, inputs, outputs):
    from onnx import helper

    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(helper.make_graph([node], "attention", inputs, outputs), opset_imports=opsets, ir_version=9).SerializeToString()


def onnx_model(problem, element):
    """One GroupQueryAttention node, as bytes."""
    from onnx import TensorProto, helper

    cache = [1, problem.kv_heads, problem.tokens, problem.head_dim]
    rows = {"query": problem.heads, "key": problem.kv_heads, "value": problem.kv_heads}
    inputs = [helper.make_tensor_value_info(name, element, [1, 1, heads * problem.head_dim]) for name, heads in rows.items()]
    inputs += [helper.make_tensor_value_info(name, element, cache) for name in ("past_key", "past_value")]
    inputs += [helper.make_tensor_value_info("seqlens_k", TensorProto.INT32, [1]), helper.make_tensor_value_info("total", TensorProto.INT32, [])]
    outputs = [helper.make_tensor_value_info("output", element, [1, 1, problem.heads * problem.head_dim])]
    outputs += [helper.make_tensor_value_info(name, element, cache) for name in ("present_key", "present_value")]
    node = helper.make_node("GroupQueryAttention", [each.name for each in inputs], [each.name for each in outputs], domain="com.microsoft",
                            num_heads=problem.heads, kv_num_heads=problem.kv_heads)
    return onnx_file(node, inputs, outputs)


def onnx_rows_model(problem):
    """One MultiHeadAttention node, in which the query heads of a KV head are rows; keys and values lie head by head, as in a cache."""
    from onnx import TensorProto, helper

    width, rows = problem.kv_heads * problem.head_dim, problem.heads // problem.kv_heads
    shapes = {"query": [1, rows, width], **dict.fromkeys(("key", "value"), [1, problem.kv_heads, problem.tokens, problem.head_dim])}
    inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()]
    outputs = [helper.make_tensor_value_info("output", TensorProto.FLOAT, [1, rows, width])]
    node = helper.make_node("MultiHeadAttention", list(shapes), ["output"], domain="com.microsoft", num_heads=problem.kv_heads)
    return onnx_file(node, inputs, outputs)


def onnx_session(model, threads):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 3
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def onnx_rows_call(problem, threads):
    import numpy as np
    import onnxruntime

    session, value = onnx_session(onnx_rows_model(problem), threads), onnxruntime.OrtValue.ortvalue_from_numpy
    binding = session.io_binding()
    q = problem.q.reshape(problem.kv_heads, -1, problem.head_dim).transpose(1, 0, 2)
    binding.bind_ortvalue_input("query", value(np.ascontiguousarray(q).reshape(1, q.shape[0], -1)))
    binding.bind_ortvalue_input("key", value(problem.k[None]))
    binding.bind_ortvalue_input("value", value(problem.v[None]))
    out = value(np.zeros((1, q.shape[0], q.shape[1] * q.shape[2]), np.float32))
    binding.bind_ortvalue_output("output", out)

    def call():
        session.run_with_iobinding(binding)
        return lambda: out.numpy().reshape(q.shape).transpose(1, 0, 2)

    return call


def onnx_call(problem, dtype, threads):
    import numpy as np
    import onnxruntime
    from onnx import TensorProto

    number, element = (np.float32, TensorProto.FLOAT) if dtype == "f32" else (np.float16, TensorProto.FLOAT16)
    session = onnx_session(onnx_model(problem, element), threads)
    value = onnxruntime.OrtValue.ortvalue_from_numpy
    binding = session.io_binding()
    arrays = {"query": problem.q, "key": problem.k[:, -1], "value": problem.v[:, -1]}
    for name, array in arrays.items():
        binding.bind_ortvalue_input(name, value(np.ascontiguousarray(array, number).reshape(1, 1, -1)))
    for name, array in (("key", problem.k), ("value", problem.v)):
        cache = value(array[None].astype(number))
        binding.bind_ortvalue_input(f"past_{name}", cache)
        binding.bind_ortvalue_output(f"present_{name}", cache)  # in place: nothing is copied
    binding.bind_ortvalue_input("seqlens_k", value(np.array([problem.tokens - 1], np.int32)))
    binding.bind_ortvalue_input("total", value(np.array(problem.tokens, np.int32)))
    out = value(np.zeros((1, 1, problem.q.size), number))
    binding.bind_ortvalue_output("output", out)

    def call():
        session.run_with_iobinding(binding)
        return out.numpy

    return call


def torch_call(problem, dtype, threads, rows):
    import torch

    torch.set_num_threads(threads)
    number = torch.float32 if dtype == "f32" else torch.bfloat16
    q, k, v = (torch.from_numpy(array)[None].to(number) for array in (problem.q, problem.k, problem.v))
    q = q.view(1, problem.kv_heads, -1, problem.head_dim) if rows else q[:, :, None]
    options = {} if rows else {"enable_gqa": True}

    def call():
        with torch.inference_mode():
            out = torch.nn.functional.scaled_dot_product_attention(q, k, v, **options)
        return lambda: out.float().numpy()

    return call


# name: what it needs, and how a call is made
ENGINES = {
    "onnx-f32": (("onnxruntime", "onnx"), lambda problem, threads: onnx_call(problem, "f32", threads)),
    "onnx-f16": (("onnxruntime", "onnx"), lambda problem, threads: onnx_call(problem, "f16", threads)),
    "onnx-f32-rows": (("onnxruntime", "onnx"), onnx_rows_call),
    "torch-f32": (("torch",), lambda problem, threads: torch_call(problem, "f32", threads, False)),
    "torch-bf16": (("torch",), lambda problem, threads: torch_call(problem, "bf16", threads, False)),
    "torch-f32-rows": (("torch",), lambda problem, threads: torch_call(problem, "f32", threads, True)),
    "torch-bf16-rows": (("torch",), lambda problem, threads: torch_call(problem, "bf16", threads, True)),
}


def serve(name, shape, tokens, threads, pipe):
    """A process of one engine: {"error"} once, then the seconds of a call for each message until None comes."""
    try:
        import numpy as np

        call = ENGINES[name][1](Problem(*shape, tokens), threads)
        pipe.send({"error": Problem(*shape, tokens).error(call()())})
        others = np.ones(2 * last_level_cache_bytes() // 8)
        with ThreadPoolExecutor(threads) as team:
            while pipe.recv() is not None:
                list(team.map(np.sum, np.array_split(others, threads)))
                began = time.perf_counter()
                call()
                pipe.send(time.perf_counter() - began)
    except Exception as error:  # an engine's own, told by the parent
        pipe.send({"failed": f"{type(error).__name__}: {error}".splitlines()[0]})


class Child:
    def __init__(self, name, shape, tokens, threads):
        context = multiprocessing.get_context("spawn")
        self.pipe, other = context.Pipe()
        self.process = context.Process(target=serve, args=(name, shape, tokens, threads, other), daemon=True)
        self.process.start()
        other.close()
        self.name, self.seconds = name, []
        self.error = self.ask().get("error")

    def ask(self):
        try:
            answer = self.pipe.recv()
        except EOFError:
            answer = {"failed": "it ended by itself"}
        if isinstance(answer, dict) and "failed" in answer:
            raise RuntimeError(f"{self.name}: {answer['failed']}")
        return answer

    def run(self, times):
        for _ in range(times):
            self.pipe.send(True)
            self.seconds.append(self.ask())

    def end(self):
        self.pipe.send(None)
        self.process.join()


def installed(names):
    """The engines whose packages are here; says which are not."""
    absent = {name: [package for package in ENGINES[name][0] if importlib.util.find_spec(package) is None] for name in names}
    for package in dict.fromkeys(package for packages in absent.values() for package in packages):
        left_out = ", ".join(name for name, packages in absent.items() if package in packages)
        say(f"{package} is not installed (measure/bench/requirements.txt; torch: tests/e2e/requirements.txt): {left_out} left out")
    return [name for name in names if not absent[name]]


def say(line):
    print(f"other_engines.py: {line}", file=sys.stderr, flush=True)


def vidkv(*arguments):
    try:
        done = subprocess.run([VIDKV, "bench", *arguments, "--json"], capture_output=True, text=True)
    except OSError as error:
        sys.exit(f"other_engines.py: {VIDKV} cannot be run ({error.strerror}): build it, or name it with VIDKV=...")
    if done.returncode != 0:
        sys.exit(f"other_engines.py: {done.stderr.strip() or f'{VIDKV} failed'}")
    return json.loads(done.stdout)


def attention_of_vidkv(options, shape, tokens, seconds):
    report = vidkv("attention", "--shape", shape, "--tokens", str(tokens), "--phase", "decode", "--threads", str(options.threads), "--kv", options.kv,
                   "--repeat", str(options.calls), "--seconds", str(options.seconds))
    for row in report["rows"]:
        if row["name"].startswith("ggml-f16") or not row["name"].startswith(("ggml", "llama.cpp")):
            seconds.setdefault(row["name"], []).append(row["ms"] / 1e3)


def attention_rows(options, names, shape, tokens):
    children, ours = [], {}
    for name in names:
        try:
            children.append(Child(name, tuple(map(int, shape.split("/"))), tokens, options.threads))
        except RuntimeError as error:
            say(f"{error}: left out")
    for _ in range(options.rounds):
        attention_of_vidkv(options, shape, tokens, ours)
        for child in children:
            child.run(options.calls)
    for child in children:
        child.end()
    rows = [{"name": name, "us": statistics.median(seconds) * 1e6} for name, seconds in ours.items()]
    rows += [{"name": child.name, "us": statistics.median(child.seconds) * 1e6, "error": child.error} for child in children]
    return [{"shape": shape, "tokens": tokens, **row, **{f"times_{name}": row["us"] / 1e6 / statistics.median(seconds) for name, seconds in ours.items()}}
            for row in rows]


def attention(options):
    names = installed(options.engines.split(","))
    if not names:
        return 1
    points = [(shape, tokens) for shape in options.shape.split(",") for tokens in options.tokens]
    rows = [row for point in points for row in attention_rows(options, names, *point)]
    show(rows, options, lambda row: f"{row['shape']:>9} {row['tokens']:>7} {row['name']:<16} {row['us']:>10.0f} us" + times(row))
    return 0 if any(row["name"] in ENGINES for row in rows) else 1


def times(row):
    return "".join(f"  {value:7.2f} x {name[6:]}" for name, value in row.items() if name.startswith("times_"))


def show(rows, options, line):
    print(json.dumps({"rows": rows}, indent=2) if options.json else "\n".join(map(line, rows)), flush=True)


def mistral(model, threads):
    """mistral.rs with a model: what runs a prompt of about depth tokens, and returns its length, tokens/s of reading it and of decoding."""
    os.environ.setdefault("RAYON_NUM_THREADS", str(threads))
    import mistralrs

    which = mistralrs.Which.GGUF(quantized_model_id=str(model.resolve().parent), quantized_filename=model.name)
    runner = mistralrs.Runner(which=which, max_seqs=1, prefix_cache_n=0, token_source="none")

    def run(depth, predict):
        text = "".join(f"{i % 10} " for i in range(max(depth // 2, 1)))
        request = mistralrs.ChatCompletionRequest(messages=[{"role": "user", "content": text}], model="default", max_tokens=predict + 1,
                                                  temperature=0.0, ignore_eos=True, stream=True)
        began, times = time.perf_counter(), []
        for chunk in runner.send_chat_completion_request(request):
            times.append(time.perf_counter())
            if len(times) == 1:
                say(f"depth {depth}: the prompt is read")
            usage = chunk.usage
        return usage.prompt_tokens, usage.prompt_tokens / (times[0] - began), (len(times) - 1) / (times[-1] - times[0])

    return run


def decode(options):
    if importlib.util.find_spec("mistralrs") is None:
        sys.exit("other_engines.py: mistralrs is not installed: pip install -r measure/bench/requirements.txt")
    if not options.model.is_file():
        sys.exit(f"other_engines.py: {options.model} is not a file")
    sys.stdout = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # mistral.rs logs to the standard output
    run, rows = mistral(options.model, options.threads), []
    for depth in options.depth:
        found = [run(depth, options.predict) for _ in range(options.rounds)]
        reading, rate = (statistics.median(rates) for rates in list(zip(*found))[1:])
        rows.append({"name": "mistral.rs", "depth": found[0][0], "reading_per_s": reading, "tokens_per_s": rate})
        if options.kv != "none":
            ours = vidkv("model", "-m", str(options.model), "--kv", options.kv, "-d", str(depth), "-p", "0", "-n", str(options.predict),
                         "--repeat", str(options.rounds), "-t", str(options.threads))["rows"]
            rows += [{"name": row["name"], "depth": depth, "tokens_per_s": row["tokens_per_s"]} for row in ours]
    show(rows, options, lambda row: f"{row['name']:<12} depth {row['depth']:>7} {row['tokens_per_s']:>8.2f} tokens/s")
    return 0


def numbers(text):
    """1k,8k as [1024, 8192]."""
    scale = {"k": 1024, "m": 1 << 20}
    try:
        return [int(each.rstrip("kmKM")) * scale.get(each[-1:].lower(), 1) for each in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}' is not a list of numbers such as 1k,8k") from None


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    calls = commands.add_parser("attention", help="one call of attention, engine by engine")
    calls.add_argument("--shape", default="28/4/128", help="query heads/KV heads/head_dim (default %(default)s)")
    calls.add_argument("--tokens", type=numbers, default="1k,8k,32k", help="cells in the cache (default %(default)s)")
    calls.add_argument("--engines", default=",".join(ENGINES), help="default %(default)s")
    calls.add_argument("--kv", default="t1.65", help="vidkv's presets (default %(default)s)")
    calls.add_argument("--calls", type=int, default=9, help="calls of each in a round (default %(default)s)")
    calls.add_argument("--seconds", type=float, default=2, help="vidkv's own limit for a point (default %(default)s)")
    calls.set_defaults(run=attention)
    model = commands.add_parser("decode", help="tokens/s of a model at depth")
    model.add_argument("-m", "--model", type=Path, required=True, help="a GGUF file")
    model.add_argument("--depth", type=numbers, default="0,4k", help="tokens in the cache before (default %(default)s)")
    model.add_argument("--predict", type=int, default=16, help="tokens decoded (default %(default)s)")
    model.add_argument("--kv", default="stock,t1.65", help="vidkv's caches, or none (default %(default)s)")
    model.set_defaults(run=decode)
    for each in (calls, model):
        each.add_argument("--threads", type=int, default=2, help="default %(default)s")
        each.add_argument("--rounds", type=int, default=3, help="default %(default)s")
        each.add_argument("--json", action="store_true", help="print one JSON document instead of a table")
    return parser


def main():
    options = arguments().parse_args()
    unknown = set(getattr(options, "engines", "onnx-f32").split(",")) - set(ENGINES)
    if unknown:
        sys.exit(f"other_engines.py: there is no engine {', '.join(sorted(unknown))}; there are {', '.join(ENGINES)}")
    return options.run(options)


if __name__ == "__main__":
    sys.exit(main())
