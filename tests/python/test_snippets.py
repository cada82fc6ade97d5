"""Every Python snippet of the documents runs as written, each in a process of its own; so does the package's docstring."""
import doctest
import os
import re
import subprocess
import sys

import pytest
from common import PUBLISHED, ROOT, vision_model

import vidkv
import vidkv.transformers  # switches the published calls on
from vidkv.transformers.names import cache_of

DOCUMENTS = ["README.md", os.path.join("docs", "transformers.md")]


def snippets():
    for document in DOCUMENTS:
        with open(os.path.join(ROOT, document), encoding="utf-8") as file:
            for number, code in enumerate(re.findall(r"^```python\n(.*?)^```", file.read(), re.MULTILINE | re.DOTALL), 1):
                yield pytest.param(code, id=f"{document}-{number}")


SNIPPETS = list(snippets())


def test_each_document_has_snippets():
    assert {param.id.rsplit("-", 1)[0] for param in SNIPPETS} == set(DOCUMENTS)


@pytest.mark.parametrize("code", SNIPPETS)
def test_a_snippet_runs(code, tmp_path):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]


# The paper's call after the snippet of the README, with its model and inputs.
AS_PUBLISHED = """
out = model.generate(**inputs, max_new_tokens=20, cache_implementation="quantized",
                     cache_config={"backend": "QuantizedCacheVLMSTP", "nbits": [1.5, 1.58], "q_group_size": 32, "residual_length": 128,
                                   "axis_key": -1, "axis_value": -1, "vidkv_stp": 0.2})
print(tokenizer.decode(out[0, inputs["input_ids"].shape[1]:], skip_special_tokens=True))
"""


def test_readme_snippet_answers():
    done = subprocess.run([sys.executable, "-c", SNIPPETS[0].values[0] + AS_PUBLISHED], capture_output=True, text=True)
    lines = done.stdout.splitlines()
    assert "green" in lines[0].lower() and "VidKVCache(" in lines[0] and "green" in lines[1].lower()


def test_docstring_of_the_package():
    result = doctest.testmod(vidkv)
    assert result.attempted >= 5 and result.failed == 0


@pytest.mark.parametrize("backend, nbits", [("QuantizedCacheLM", 2), ("QuantizedCacheVLM", [1.5, 2]), ("QuantizedCacheVLM", [1.5, 1.58]),
                                            ("QuantizedCacheVLMSTP", [1.5, 2]), ("QuantizedCacheVLMSTP", [1.5, 1.58])])
@pytest.mark.parametrize("as_text", [False, True])
@pytest.mark.filterwarnings("ignore:cache_config.'vidkv_stp'")
def test_published_configurations(backend, nbits, as_text):
    model, inputs = vision_model("llava_onevision")
    config = {"backend": backend, **PUBLISHED, "nbits": nbits}
    out = model.generate(**inputs, max_new_tokens=6, do_sample=False, return_dict_in_generate=True, cache_implementation="quantized",
                         cache_config=str(config) if as_text else config)
    cache, (key_bits, value_bits) = cache_of(out), nbits if isinstance(nbits, list) else (nbits, nbits)
    assert (cache.params.key_bits, cache.params.value_bits) == (key_bits, pytest.approx(value_bits))
    assert cache.params.protect == pytest.approx(0.2 if backend == "QuantizedCacheVLMSTP" and value_bits < 2 else 0)
    assert cache.packed_layers[0].storage.keys.stats().cells_sealed >= 128
