#!/usr/bin/env python3
"""KL divergence of packed blocks in vLLM from vLLM's own cache, on the windows of `vidkv eval kl` (near).

    kl.py MODEL [--kv f16,t2.2,t1.65,t1.15] [--windows 3]

MODEL is a folder with a model and its tokenizer. Four ways to read a window of 2,048 tokens, whose last 256 are scored:
  whole    1,792 tokens in one step, the rest in another: what `vidkv eval kl` does
  decoded  1,792 tokens in one step, the rest one by one
  512, 128 steps of so many tokens: later ones read the codes of earlier ones, as a long prompt does"""
import argparse
import json
import math
import sys
from pathlib import Path

import engine

LENGTH, SCORED = 2048, 256
WAYS = {"whole": [LENGTH - SCORED, SCORED], "decoded": [LENGTH - SCORED, 1], "512": [512], "128": [128]}


def windows(model, text, count):
    from transformers import AutoTokenizer

    tokens = AutoTokenizer.from_pretrained(model)(text, add_special_tokens=False)["input_ids"]
    count = min(count, len(tokens) // LENGTH)
    return [tokens[i : i + LENGTH] for i in range(0, count * (len(tokens) // count), len(tokens) // count)][:count]


class Divergence:
    """Of distributions from those of vLLM's own cache, by window."""

    def __init__(self, reference):
        self.reference, self.means, self.flips = reference, {}, {}

    def take(self, way, index, found):
        stock = self.reference[index]
        self.means.setdefault(way, []).append(float((stock.exp() * (stock - found)).sum(-1).mean()))
        self.flips.setdefault(way, []).append(float((stock.argmax(-1) != found.argmax(-1)).float().mean()))

    def row(self, way):
        means, n = self.means[way], len(self.means[way])
        mean = sum(means) / n
        error = math.sqrt(sum((m - mean) ** 2 for m in means) / max(n - 1, 1) / n)
        return {"read": way, "kld": round(mean, 5), "error": round(error, 5), "windows": [round(m, 5) for m in means],
                "flips": round(sum(self.flips[way]) / n, 4)}


def measure(arguments, texts, preset, ways, take):
    """Gives the distributions of each text, read in each way, to take(way, index, distributions)."""
    llm = engine.make(arguments.model, preset, dtype=arguments.dtype, max_model_len=LENGTH + 128, max_num_batched_tokens=LENGTH,
                      enable_prefix_caching=False)
    reader = engine.Reader(llm)
    for way in ways:
        for i, text in enumerate(texts):
            take(way, i, reader.log_probabilities(text, WAYS[way], SCORED))
    del reader
    engine.forget(llm)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--kv", default="f16,t2.2,t1.65,t1.15")
    parser.add_argument("--ways", default=",".join(WAYS))
    parser.add_argument("--windows", type=int, default=3)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--text", default=str(Path(__file__).parents[1] / "eval" / "text.txt"))
    arguments = parser.parse_args()
    texts = windows(arguments.model, Path(arguments.text).read_text(), arguments.windows)
    ways = arguments.ways.split(",")
    reference = {}  # the same numbers but for rounding, however it is read
    measure(arguments, texts, None, ways[:1], lambda way, index, found: reference.update({index: found}))
    for preset in arguments.kv.split(","):
        divergence = Divergence(reference)
        measure(arguments, texts, preset, ways, divergence.take)
        for way in ways:
            print(json.dumps({"kv": preset, **divergence.row(way)}), flush=True)


if __name__ == "__main__":
    sys.exit(main())
