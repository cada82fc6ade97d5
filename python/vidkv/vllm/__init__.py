"""VidKV inside vLLM: packed pages as its KV cache on CPUs, and a store of packed pages for any vLLM.

vLLM loads `register` through the entry point group `vllm.general_plugins` in each of its processes. Nothing changes until a preset is
named: VIDKV_PRESET=t1.65 in the environment, or --additional-config '{"vidkv": {"preset": "t1.65"}}'. docs/vllm.md is the manual.
"""
TESTED = ("0.32.0",)  # versions of vLLM that this is made for


def register():
    import logging

    from . import versions

    reason = versions.why_not(TESTED)
    if reason:
        logging.getLogger("vllm.vidkv").warning("VidKV: %s", reason)
        return
    from . import plugin

    plugin.register()
