"""One vLLM engine after the other in one process, and what a measurement wants of them."""
import contextlib
import gc
import os

os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "2")  # GiB; by itself vLLM wants most of the memory free
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")


def make(model, preset, **options):
    """preset None: vLLM's own cache."""
    from vllm import LLM

    extra = {"vidkv": {"preset": preset}} if preset else {}
    defaults = {"enforce_eager": True, "seed": 0, "max_num_seqs": 8, "skip_tokenizer_init": True, "additional_config": extra}
    return LLM(model, **{**defaults, **options})


def forget(llm):
    """Frees an engine, so that the next one finds the memory."""
    from vllm.distributed.parallel_state import cleanup_dist_env_and_memory

    with contextlib.suppress(Exception):
        llm.llm_engine.engine_core.shutdown()
    del llm
    with contextlib.suppress(ImportError):
        from vidkv.vllm import layers

        layers.clear()
    cleanup_dist_env_and_memory()
    gc.collect()


def core(llm):
    return llm.llm_engine.engine_core.engine_core


def runner(llm):
    worker = core(llm).model_executor.driver_worker
    return getattr(worker, "worker", worker).model_runner


class Reader:
    """Reads texts in steps of chosen sizes and gives the next-token distributions of their last tokens."""

    def __init__(self, llm):
        self.llm, self.runner, self.scheduler = llm, runner(llm), core(llm).scheduler
        self.hidden, self.steps = [], []
        original = self.runner._get_prompt_logprobs_dict

        def keep(hidden_states, scheduled):
            self.hidden.append(hidden_states[: sum(scheduled.values())].clone())
            if self.steps:
                self.scheduler.max_num_scheduled_tokens = self.steps.pop(0)
            return original(hidden_states, scheduled)

        self.runner._get_prompt_logprobs_dict = keep

    def log_probabilities(self, tokens, steps, last):
        """steps: tokens of each step; the last one's size stays."""
        from vllm import SamplingParams

        self.hidden, self.steps = [], list(steps[1:])
        self.scheduler.max_num_scheduled_tokens = steps[0]
        how = SamplingParams(temperature=0, max_tokens=1, detokenize=False, ignore_eos=True)
        self.llm.generate([{"prompt_token_ids": tokens}], how, use_tqdm=False)
        import torch

        hidden = torch.cat(self.hidden)
        assert len(hidden) == len(tokens), (len(hidden), len(tokens))
        return self.runner.model.compute_logits(hidden[-last:]).float().log_softmax(-1)
