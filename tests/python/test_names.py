"""Whatever transformers calls the cache, `cache` or `past_key_values`: it is taken, its visual tokens are protected, and no old name is used."""
import subprocess
import sys
import warnings

import pytest
import torch
from common import IMAGE, PUBLISHED, VIDEO, vision_model

from transformers import DynamicCache
from vidkv.transformers import VidKVCache
from vidkv.transformers.names import CACHE, NEW, OLD, as_arguments, cache_of


def deprecations(run, caplog):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run()
    said = [str(warning.message) for warning in caught] + [record.getMessage() for record in caplog.records]
    return [text for text in said if "deprecated" in text]


@pytest.mark.parametrize("name", [NEW, OLD])
@pytest.mark.filterwarnings("ignore:.*past_key_values:FutureWarning")
def test_either_name_protects_visual_tokens(name):
    model, inputs = vision_model("qwen2_5_vl")
    cache = VidKVCache(model.config, "k1.5v1.58-stp0.2")
    model.generate(**inputs, max_new_tokens=4, do_sample=False, **{name: cache})
    visual = torch.isin(inputs["input_ids"][0], torch.tensor([IMAGE, VIDEO]))
    mask = int.from_bytes(cache.packed_layers[0].storage.values.sealed_page(0, 0)[:16], "little")
    marked = [position for position in range(128) if mask >> position & 1]
    assert marked and sum(bool(visual[p]) for p in marked) > 0.8 * len(marked)  # groups are protected as a whole: some neighbours are too


def test_the_published_call_uses_no_old_name(caplog):
    model, inputs = vision_model("llava_onevision")
    config = {"backend": "QuantizedCacheVLMSTP", **PUBLISHED}
    call = lambda: model.generate(**inputs, max_new_tokens=4, do_sample=False, cache_implementation="quantized", cache_config=config)
    assert deprecations(call, caplog) == []


def test_a_cache_of_transformers_goes_by_the_new_name_too(caplog):
    model, inputs = vision_model("qwen2_vl")
    run = lambda: model.generate(**inputs, max_new_tokens=2, do_sample=False, cache=DynamicCache(config=model.config), return_dict_in_generate=True)
    assert deprecations(lambda: isinstance(cache_of(run()), DynamicCache) or pytest.fail("another cache"), caplog) == []


def test_forward_takes_the_name_that_is_current(caplog):
    model, inputs = vision_model("qwen2_vl")
    cache = VidKVCache(model.config, "t1.65")
    assert set(as_arguments(cache)) == {CACHE}
    assert deprecations(lambda: model(**inputs, **as_arguments(cache), use_cache=True), caplog) == []
    assert cache.get_seq_length() == inputs["input_ids"].shape[1]


def test_the_library_alone_needs_neither_torch_nor_transformers():
    code = "import sys, vidkv; vidkv.Params.from_preset('t1.65'); sys.exit(bool({'torch', 'transformers', 'av'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
