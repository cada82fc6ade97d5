#!/usr/bin/env python3
"""Decoding speed of packed blocks in vLLM beside CPU_ATTN, in turns on the same machine.

    speed.py MODEL [--kv stock,t1.65] [--cases 8x8192,1x512] [--steps 24] [--rounds 3]

With --restore, for each of --kv but stock: seconds to compute a text of 8,192 tokens, to take it from the connector's folder instead
(VidKVConnector), to read a question of 64 tokens behind it and to answer one token.

MODEL is a folder, or a shape with random weights: qwen0.5b, 7b-2 (two layers of a 7B model), heads (a 7B's heads in a thin model, where
attention is most of the work). The texts before the decoded tokens
are not computed: blocks are filled with one random page (of normal numbers), packed or not, so that only decoding is measured. One process
for each cache, all loaded before the first is measured; --gate FILE waits until FILE is there (to begin on a quiet machine)."""
import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import engine

SHAPES = {
    "qwen0.5b": dict(vocab_size=151936, hidden_size=896, intermediate_size=4864, num_hidden_layers=24, num_attention_heads=14,
                     num_key_value_heads=2),
    "heads": dict(vocab_size=32000, hidden_size=896, intermediate_size=2432, num_hidden_layers=8, num_attention_heads=28, num_key_value_heads=4,
                  head_dim=128),
    "7b-2": dict(vocab_size=32000, hidden_size=3584, intermediate_size=18944, num_hidden_layers=2, num_attention_heads=28,
                 num_key_value_heads=4),
}


def folder_of(model, place):
    """A folder with the configuration of a shape; its weights are vLLM's random ones."""
    if model not in SHAPES:
        return model, "auto"
    from transformers import Qwen2Config, Qwen3Config

    config, name = (Qwen3Config, "Qwen3ForCausalLM") if "head_dim" in SHAPES[model] else (Qwen2Config, "Qwen2ForCausalLM")
    config(**SHAPES[model], max_position_embeddings=32768, architectures=[name]).save_pretrained(place)
    return place, "dummy"


def fill_instead_of_reading(preset):
    """VidKVConnector finds every block, and fills it with the same random page."""
    import numpy as np
    import torch
    from vidkv.vllm import backend, connector, layers

    pages = {}

    def page_of(native, kv_heads, head_dim, params):
        from vidkv import _core
        from vidkv.vllm.dense import _aligned

        memory = _aligned(_core.block_bytes(params, kv_heads, head_dim))
        one = _core.Blocks(memory.view(1, -1), kv_heads, head_dim, params, 0)
        rows = [torch.randn(128, kv_heads, head_dim) for _ in range(2)]
        one.write(*rows, np.array([0, 128], np.int32), np.array([256], np.int32), np.zeros((1, 2), np.int32))
        return one.export_block(0)

    class Filled(connector.VidKVConnector):
        invents = True  # False: as the connector is
        most = 1 << 30  # blocks that are found
        seconds = 0.0  # in looking up and loading

        def _is_whole(self, key):
            return self.invents or super()._is_whole(key)

        def get_num_new_matched_tokens(self, request, num_computed_tokens):
            began = time.perf_counter()
            tokens, later = super().get_num_new_matched_tokens(request, num_computed_tokens)
            Filled.seconds += time.perf_counter() - began
            return max(min(tokens, self.most * 128 - num_computed_tokens), 0), later

        def start_load_kv(self, forward_context, **kwargs):
            began = time.perf_counter()
            self._invent() if self.invents else super().start_load_kv(forward_context, **kwargs)
            Filled.seconds += time.perf_counter() - began

        def _keep(self, key, page):
            name = self._name(key, self._rank)
            self._store.put(name, connector.entries.write(name, self._about, [page] * len(self._order)))

        def _invent(self):
            for key, block in self._get_connector_metadata().loads:
                for cache in self._caches.values():
                    if backend.VidKVAttentionImpl.packed(cache):
                        native = layers.blocks_of(cache, self._kv_heads, self._head_dim)
                        if "page" not in pages:
                            pages["page"] = page_of(native, self._kv_heads, self._head_dim, self._params)
                        native.import_block(block, pages["page"])
                    else:
                        if "rows" not in pages:
                            pages["rows"] = torch.randn(cache[block].shape).to(cache.dtype)
                        cache[block].copy_(pages["rows"])
                if "page" in pages:
                    self._keep(key, pages["page"])

        def wait_for_save(self):
            return

    connector.VidKVConnector = Filled
    return Filled


class Worker:
    """One cache in a process of its own."""

    def __init__(self, arguments, preset):
        place = tempfile.mkdtemp(prefix="vidkv-speed-")
        model, weights = folder_of(arguments.model, place)
        self.connector = fill_instead_of_reading(preset)
        self.place = place
        transfer = {"kv_connector": "VidKVConnector", "kv_role": "kv_both", "kv_connector_extra_config": {"store": place}}
        self.llm = engine.make(model, preset, load_format=weights, dtype=arguments.dtype, max_model_len=16512, kv_transfer_config=transfer,
                               max_num_batched_tokens=2048)
        self.times = []
        self._time_steps()

    def _time_steps(self):
        runner = engine.runner(self.llm)
        original = runner.execute_model

        def execute_model(scheduled, *args, **kwargs):
            self.times.append((time.perf_counter(), scheduled.total_num_scheduled_tokens))
            return original(scheduled, *args, **kwargs)

        runner.execute_model = execute_model

    def decode(self, batch, length, steps):
        """Seconds of each step that decodes one token of each text."""
        from vllm import SamplingParams

        texts = [{"prompt_token_ids": [1 + (7 * i + t) % 1000 for t in range(length)]} for i in range(batch)]
        self.times.clear()
        how = SamplingParams(temperature=0, max_tokens=steps, detokenize=False, ignore_eos=True)
        self.llm.generate(texts, how, use_tqdm=False)
        at = self.times
        return [at[i + 1][0] - at[i][0] for i in range(len(at) - 1) if at[i][1] == batch and at[i + 1][1] == batch]


    def step(self, depth, tokens):
        """Seconds of a step that computes so many tokens behind a text of `depth`."""
        from vllm import SamplingParams

        self.llm.reset_prefix_cache()
        self.connector.most = depth // 128
        self.times.clear()
        how = SamplingParams(temperature=0, max_tokens=2, detokenize=False, ignore_eos=True)
        self.llm.generate([{"prompt_token_ids": [1 + (5 * t) % 999 for t in range(depth + tokens)]}], how, use_tqdm=False)
        self.connector.most = 1 << 30
        return self.times[1][0] - self.times[0][0]

    def restore(self, length):
        """Seconds of looking up and loading a text from the folder, of the whole request, and bytes of a token there."""
        self.decode(1, length, 2)  # leaves its entries
        self.connector.invents = False
        found = []
        for _ in range(3):
            self.llm.reset_prefix_cache()
            self.connector.seconds, began = 0.0, time.perf_counter()
            self.decode(1, length, 1)
            found.append({"load": self.connector.seconds, "request": time.perf_counter() - began})
        self.connector.invents = True
        sizes = [f.stat().st_size for f in Path(self.place).rglob("*.vidkvblock")]
        return {**min(found, key=lambda x: x["load"]), "bytes_per_token": sum(sizes) / len(sizes) / 128}


def serve(arguments, preset):
    worker = Worker(arguments, preset)
    for case in arguments.cases:
        worker.decode(*case, 4)
    print("ready", flush=True)
    for line in sys.stdin:
        what, *numbers = json.loads(line)
        print(json.dumps([getattr(worker, what)(*numbers)]), flush=True)


def parse_case(text):
    batch, length = text.split("x")
    return int(batch), int(length)


def arguments_from_user():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--kv", default="stock,t1.65")
    parser.add_argument("--cases", type=lambda s: [parse_case(c) for c in s.split(",")], default="8x8192,1x512")
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--gate")
    parser.add_argument("--restore", action="store_true")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    return parser.parse_args()


def answer(process):
    for line in process.stdout:
        if line.startswith(("ready", "[")):
            return line.strip()
    raise SystemExit("a worker ended before it answered")


def ask(process, *words):
    print(json.dumps(words), file=process.stdin, flush=True)
    return json.loads(answer(process))[0]


def report_restoring(kind, process, tokens=8192, step=2048, question=64):
    """A text of so many tokens in steps: the first and the last are measured, those between lie between."""
    first, last = ask(process, "step", 0, step), ask(process, "step", tokens - step, step)
    computed = (first + last) / 2 * tokens / step
    asked = ask(process, "step", tokens, question)
    answered = statistics.median(ask(process, "decode", 1, tokens, 12))
    restored = ask(process, "restore", tokens)
    print(json.dumps({"kv": kind, "tokens": tokens, "computed_s": round(computed, 2), "first_step_s": round(first, 2), "last_step_s": round(last, 2),
                      "question_s": round(asked, 3), "token_s": round(answered, 4), **{k: round(v, 4) for k, v in restored.items()},
                      "times_faster": round(computed / restored["load"], 1)}), flush=True)


def main():
    arguments = arguments_from_user()
    if arguments.serve:
        return serve(arguments, None if arguments.serve == "stock" else arguments.serve)
    kinds = arguments.kv.split(",")
    workers = {k: subprocess.Popen([sys.executable, *sys.argv, "--serve", k], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
               for k in kinds}
    for process in workers.values():
        answer(process)
    print("ready", flush=True)
    while arguments.gate and not os.path.exists(arguments.gate):
        time.sleep(0.2)
    for kind in [k for k in kinds if k != "stock"] if arguments.restore else []:
        report_restoring(kind, workers[kind])
    for batch, length in [] if arguments.restore else arguments.cases:
        seconds = {k: [] for k in kinds}
        for _ in range(arguments.rounds):
            for kind, process in workers.items():
                seconds[kind] += ask(process, "decode", batch, length, arguments.steps)
        speeds = {k: batch / statistics.median(s) for k, s in seconds.items()}
        for kind in kinds:
            print(json.dumps({"batch": batch, "tokens": length, "kv": kind, "tokens_per_second": round(speeds[kind], 2),
                              "times_first": round(speeds[kind] / speeds[kinds[0]], 3)}), flush=True)
    for process in workers.values():
        process.stdin.close()
        process.wait()


if __name__ == "__main__":
    sys.exit(main())
