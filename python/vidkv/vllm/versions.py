"""Whether this vLLM is one that the plug-in was made for."""
import os


def version_of_vllm():
    import vllm

    return vllm.__version__.split("+")[0]


def why_not(tested):
    """A line that says why the plug-in stays out; None if it does not."""
    version = version_of_vllm()
    if version in tested or os.environ.get("VIDKV_VLLM_ANY_VERSION") == "1":
        return None
    return (
        f"not used: this is vLLM {version}, tested are {', '.join(tested)}; vLLM goes on without it "
        "(VIDKV_VLLM_ANY_VERSION=1 tries it all the same)"
    )
