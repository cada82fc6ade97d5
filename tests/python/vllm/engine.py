"""One vLLM engine with a small random Qwen2, asked in several ways; prints what it answered as JSON on its last line.

Run by test_vllm.py in vLLM's environment: engine.py FOLDER '{"ask": [...], "engine": {...}}'"""
import json
import os
import random
import sys

os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")


def make_model(folder):
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    if os.path.exists(os.path.join(folder, "config.json")):
        return
    torch.manual_seed(1)
    config = Qwen2Config(
        vocab_size=512, hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        max_position_embeddings=8192, initializer_range=0.12, tie_word_embeddings=False,
    )
    Qwen2ForCausalLM(config).save_pretrained(folder)


def prompts(lengths, seed=0, prefix=0):
    rng, shared = random.Random(seed), random.Random(99)
    head = [shared.randrange(512) for _ in range(prefix)]
    return [{"prompt_token_ids": head + [rng.randrange(512) for _ in range(n)]} for n in lengths]


class Engine:
    def __init__(self, folder, **options):
        from vllm import LLM

        options = {"max_model_len": 4096, "max_num_seqs": 8, "dtype": "float32", **options}
        self.llm = LLM(folder, skip_tokenizer_init=True, enforce_eager=True, seed=0, disable_log_stats=False, **options)

    def generate(self, asked, tokens=24):
        from vllm import SamplingParams

        how = SamplingParams(temperature=0, max_tokens=tokens, detokenize=False, ignore_eos=True, logprobs=1)
        outs = self.llm.generate(asked, how, use_tqdm=False)
        return [
            {
                "tokens": list(o.outputs[0].token_ids),
                "logprobs": [round(step[t].logprob, 4) for step, t in zip(o.outputs[0].logprobs, o.outputs[0].token_ids)],
                "cached": o.num_cached_tokens,
            }
            for o in outs
        ]

    def ask(self, how):
        """how: at once, one by one, the same prefix twice ... each a list of answers."""
        lengths = how.get("lengths", [700, 300, 1100, 64])
        asked = prompts(lengths, how.get("seed", 0), how.get("prefix", 0))
        if how.get("one_by_one"):
            return [self.generate([p], how.get("tokens", 24))[0] for p in asked]
        return self.generate(asked, how.get("tokens", 24))


def held():
    try:
        from vidkv.vllm import layers
    except ImportError:
        return []
    return [{"beside": s.bytes_beside, "rows": s.bytes_rows, "open": s.open, "packed": s.packed} for s in (b.stats() for b in layers.all_blocks())]


def main():
    folder, plan = sys.argv[1], json.loads(sys.argv[2])
    make_model(folder)
    engine = Engine(folder, **plan.get("engine", {}))
    answers = [engine.ask(how) for how in plan["ask"]]
    cache = engine.llm.llm_engine.vllm_config.cache_config
    print(json.dumps({"answers": answers, "held": held(), "capacity": cache.kv_cache_size_tokens}))


if __name__ == "__main__":
    main()
