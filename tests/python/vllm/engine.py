"""vLLM engines, one after the other, asked in several ways; prints what they answered as JSON on its last line.

Run by the tests in vLLM's environment: engine.py FOLDER '{"NAME": {"preset": ..., "ask": [...], "engine": {...}}, ...}'. The model is a small
random Qwen2, or "model": tiny (the project's small video model) or llava (LLaVA-OneVision, random weights)."""
import json
import multiprocessing
import os
import random
import subprocess
import sys
import traceback
from pathlib import Path

import odd_models

os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")


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


def folder_of(model, folder):
    """Where the model is, made if it is not there yet."""
    root = Path(__file__).parents[3]
    if model == "tiny":
        return str(root / "models" / "tiny" / "hf")
    place = os.path.join(folder, model)
    os.makedirs(place, exist_ok=True)
    if model == "llava":
        sys.path[:0] = [str(root / "tests" / "e2e"), str(root / "tests" / "python")]
        import random_llava

        random_llava.make_hf(place, 5, random_llava.SMALL)
        name_as_published(os.path.join(place, "model.safetensors"))
    elif model in odd_models.NAMES:
        odd_models.make(model, place)
    else:
        make_model(place)
    return place


def name_as_published(weights):
    """Newer releases of transformers write names of the vision tower that vLLM does not know; published files have the older ones."""
    from safetensors.torch import load_file, save_file

    nested, flat = "vision_tower.vision_model.", "vision_tower."
    tensors = {name.replace(flat, nested) if name.startswith(flat) and not name.startswith(nested) else name: x for name, x in load_file(weights).items()}
    save_file(tensors, weights, metadata={"format": "pt"})


def pictures(count, seed, side=84):
    import numpy as np

    rng = np.random.default_rng(seed)
    return [np.kron(rng.integers(0, 255, (4, 4, 3), np.uint8), np.ones((side // 4, side // 4, 1), np.uint8)) for _ in range(count)]


MEDIA = {
    "tiny": ("image", "<|im_start|>user\nVideo:{media}{question}<|im_end|>\n<|im_start|>assistant\n", "<|vision_start|><|image_pad|><|vision_end|>"),
    "llava": ("video", "<|im_start|>user {media}\n{question}<|im_end|><|im_start|>assistant\n", "<video>"),
}


def seen(model, count, seed, question):
    """A prompt with pictures, or with one video of so many pictures."""
    import numpy as np

    kind, text, token = MEDIA[model]
    shown = pictures(count, seed)
    return {
        "prompt": text.format(media=token * (count if kind == "image" else 1), question=question),
        "multi_modal_data": {kind: shown if kind == "image" else np.stack(shown)},
    }


class Engine:
    def __init__(self, folder, plan):
        from vllm import LLM

        self.model = plan.get("model", "qwen2")
        preset = plan.get("preset")
        options = {"max_model_len": 4096, "max_num_seqs": 8, "dtype": "float32", "skip_tokenizer_init": self.model in ("qwen2", *odd_models.NAMES)}
        if preset:
            options["additional_config"] = {"vidkv": {"preset": preset}}
        options |= plan.get("engine", {})
        self.llm = LLM(folder_of(self.model, folder), enforce_eager=True, seed=0, disable_log_stats=False, **options)

    def generate(self, asked, tokens=24, drawn=None):
        """drawn: the seed with which tokens are drawn; without one the likeliest are taken."""
        from vllm import SamplingParams

        draw = {"temperature": 0} if drawn is None else {"temperature": 1, "seed": drawn}
        how = SamplingParams(**draw, max_tokens=tokens, detokenize=False, ignore_eos=True, logprobs=1)
        outs = self.llm.generate(asked, how, use_tqdm=False)
        return [
            {
                "tokens": list(o.outputs[0].token_ids),
                "logprobs": [round(step[t].logprob, 4) for step, t in zip(o.outputs[0].logprobs, o.outputs[0].token_ids)],
                "cached": o.num_cached_tokens,
                "prompt": len(o.prompt_token_ids),
            }
            for o in outs
        ]

    def asked(self, how):
        if "pictures" in how:
            return [seen(self.model, how["pictures"], how.get("seed", 0), question) for question in how.get("questions", ["count ?"])]
        if "repeat" in how:  # a few tokens again and again, which drafts can guess
            return [{"prompt_token_ids": (p["prompt_token_ids"] * 100)[: how.get("length", 500)]} for p in prompts([how["repeat"]] * 2)]
        return prompts(how.get("lengths", [700, 300, 1100, 64]), how.get("seed", 0), how.get("prefix", 0))

    def ask(self, how):
        """how: at once, one by one, the same prefix twice ... each a list of answers. before: a command of the shell."""
        if "before" in how:
            subprocess.run(how["before"], shell=True, check=True)
        if how.get("forget"):
            self.llm.reset_prefix_cache()
        asked, ways = self.asked(how), {"tokens": how.get("tokens", 24), "drawn": how.get("drawn")}
        if how.get("one_by_one"):
            return [self.generate([p], **ways)[0] for p in asked]
        return self.generate(asked, **ways)

    def counted(self):
        """vLLM's own counters that tests look at."""
        wanted = ("preemptions", "draft", "accepted")
        return {m.name: m.value for m in self.llm.get_metrics() if hasattr(m, "value") and any(w in m.name for w in wanted)}

    def held(self):
        from vidkv.vllm import layers

        return [{"beside": s.bytes_beside, "rows": s.bytes_rows, "open": s.open, "packed": s.packed} for s in (b.stats() for b in layers.all_blocks())]


def answer(folder, plan):
    engine = Engine(folder, plan)
    answers = [engine.ask(how) for how in plan["ask"]]
    cache = engine.llm.llm_engine.vllm_config.cache_config
    return {"answers": answers, "held": engine.held(), "capacity": cache.kv_cache_size_tokens, "counted": engine.counted()}


def answer_into(pipe, folder, plan):
    try:
        pipe.send(answer(folder, plan))
    except BaseException:  # a test of its own says that this one failed
        traceback.print_exc()
        pipe.send({"error": traceback.format_exc()})


def answer_in_child(folder, plan):
    """Each engine has a process of its own, forked from one that has imported vLLM, which takes long."""
    context = multiprocessing.get_context("fork")
    receive, send = context.Pipe(duplex=False)
    child = context.Process(target=answer_into, args=(send, folder, plan))
    child.start()
    send.close()
    try:
        found = receive.recv()
    except EOFError:
        found = {"error": "the process ended"}
    child.join()
    return found


def main():
    import transformers  # noqa: F401
    import vllm  # noqa: F401

    folder, plans = sys.argv[1], json.loads(sys.argv[2])
    print(json.dumps({name: answer_in_child(folder, plan) for name, plan in plans.items()}))


if __name__ == "__main__":
    main()
