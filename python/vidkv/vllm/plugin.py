"""Registers what VidKV brings to vLLM."""
import functools
import logging
import os

logger = logging.getLogger("vllm.vidkv")


def register():
    from vllm.distributed.kv_transfer.kv_connector.factory import KVConnectorFactory
    from vllm.platforms import current_platform

    if "VidKVConnector" not in KVConnectorFactory._registry:
        KVConnectorFactory.register_connector("VidKVConnector", "vidkv.vllm.connector", "VidKVConnector")
    _add_tier()
    if not current_platform.is_cpu():
        if os.environ.get("VIDKV_PRESET"):
            logger.warning("VidKV: %s is not used: packed blocks are for CPUs; vLLM goes on with its own KV cache", os.environ["VIDKV_PRESET"])
        return
    from vllm.v1.attention.backends.registry import AttentionBackendEnum, register_backend

    register_backend(AttentionBackendEnum.CPU_ATTN, "vidkv.vllm.backend.VidKVAttentionBackend")
    _refuse_early(type(current_platform))
    _count_what_lies_beside()
    _read_a_lesson()
    _keep_generators()


def _add_tier():
    """`"type": "vidkv"` among the secondary tiers of vLLM's offloading."""
    from vllm.v1.kv_offload.tiering.factory import SecondaryTierFactory

    if "vidkv" not in SecondaryTierFactory._registry:
        SecondaryTierFactory.register_tier("vidkv", "vidkv.vllm.tier", "VidKVTier")


def _refuse_early(platform):
    """A preset that does not exist ends vLLM before it loads a model."""
    original = platform.check_and_update_config
    if getattr(original, "checks_vidkv", False):
        return

    def check_and_update_config(cls, vllm_config):
        from . import options

        options.check(vllm_config)
        return original(vllm_config)

    check_and_update_config.checks_vidkv = True
    platform.check_and_update_config = classmethod(check_and_update_config)


def _count_what_lies_beside():
    """vLLM's memory for the KV cache also holds the f16 rows beside the packed blocks: so much is taken off before blocks are counted."""
    from vllm.v1.worker.cpu_worker import CPUWorker

    original = CPUWorker.determine_available_memory
    if getattr(original, "counts_vidkv", False):
        return

    @functools.wraps(original)
    def determine_available_memory(self):
        from . import options

        available = original(self)
        return available - options.reserve(self.vllm_config, available)

    determine_available_memory.counts_vidkv = True
    CPUWorker.determine_available_memory = determine_available_memory


def _read_a_lesson():
    """When a worker's model and blocks are ready."""
    from vllm.v1.worker.cpu_worker import CPUWorker

    original = CPUWorker.compile_or_warm_up_model
    if getattr(original, "reads_vidkv_lesson", False):
        return

    @functools.wraps(original)
    def compile_or_warm_up_model(self):
        from . import lesson, options

        options.settle(self.vllm_config)
        lesson.read(self)
        return original(self)

    compile_or_warm_up_model.reads_vidkv_lesson = True
    CPUWorker.compile_or_warm_up_model = compile_or_warm_up_model


def _keep_generators():
    from vllm.v1.worker.cpu_model_runner import CPUModelRunner

    from .seeds import keep_generators

    keep_generators(CPUModelRunner)
