"""MLA keeps one latent row a token, which VidKV does not pack: vLLM's own, with a line that says so."""
import logging

from vllm.v1.attention.backends.mla.cpu_mla import CPUMLABackend

from . import options


class UnpackedMLABackend(CPUMLABackend):
    @staticmethod
    def get_impl_cls():
        from vllm.config import get_current_vllm_config_or_none

        config = get_current_vllm_config_or_none()
        preset = config and options.preset_asked_for(config)
        if preset and options.state().refused is None:
            options.state().refused = "this model has MLA"
            logging.getLogger("vllm.vidkv").warning("VidKV: %s is not used: this model has MLA; vLLM goes on with its own KV cache", preset)
        return CPUMLABackend.get_impl_cls()
