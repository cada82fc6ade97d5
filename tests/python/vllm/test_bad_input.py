"""What cannot be packed or stored: one line each, without starting an engine."""
import logging
from types import SimpleNamespace

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed (scripts/vllm-environment makes an environment with it)")

import torch
from vidkv.vllm import options, plugin
from vidkv.vllm.store import open_store


class Lines(logging.Handler):
    def __init__(self):
        super().__init__()
        self.found = []

    def emit(self, record):
        self.found.append(record.getMessage())


@pytest.fixture
def lines():
    """vLLM's own logger does not pass on what it is told."""
    logger, handler = logging.getLogger("vllm.vidkv"), Lines()
    logger.addHandler(handler)
    yield handler.found
    logger.removeHandler(handler)


def configuration(extra=None, **changed):
    """What VidKV looks at of vLLM's configuration. changed: model__use_mla=True, ..."""
    config = SimpleNamespace(
        additional_config={"vidkv": {"preset": "t1.65"}} if extra is None else extra,
        cache_config=SimpleNamespace(block_size=128, cache_dtype="auto"),
        model_config=SimpleNamespace(use_mla=False, is_hybrid=False, max_model_len=4096, dtype=torch.bfloat16),
        parallel_config=SimpleNamespace(decode_context_parallel_size=1),
        scheduler_config=SimpleNamespace(max_num_seqs=8),
        kv_transfer_config=None,
        num_speculative_tokens=0,
    )
    for name, value in changed.items():
        section, _, key = name.partition("__")
        setattr(getattr(config, section) if key else config, key or section, value)
    return config


def models(**layers):
    """The state once a model is built. layers: full=(KV heads, head_dim), window=..."""
    for kind, shape in layers.items():
        if kind == "full":
            options.add_layer("0", *shape)
        else:
            options.add_other(*shape)


@pytest.mark.parametrize(
    "changed,reason",
    [
        ({"model_config__use_mla": True, "cache_config__block_size": 16}, "this model has MLA"),
        ({"model_config__is_hybrid": True}, "this model has layers that are not attention (hybrid)"),
        ({"cache_config__block_size": 64}, "a block must have 128 tokens, not 64 (leave --block-size out)"),
        ({"cache_config__cache_dtype": "fp8_e4m3"}, "--kv-cache-dtype fp8_e4m3 quantizes by itself (leave it out)"),
        ({"parallel_config__decode_context_parallel_size": 2}, "context parallelism splits blocks over ranks"),
        (
            {"kv_transfer_config": SimpleNamespace(kv_connector="OffloadingConnector")},
            "the KV connector OffloadingConnector moves blocks that are not packed (VidKVConnector moves packed ones)",
        ),
    ],
)
def test_what_cannot_be_packed_is_one_line(lines, changed, reason):
    config = configuration(**changed)
    for _ in range(3):  # each layer asks
        assert not options.configure(config).packs
    options.settle(config)
    assert lines == [f"VidKV: t1.65 is not used: {reason}; vLLM goes on with its own KV cache"]
    assert options.reserve(config, 1 << 30) == 0


@pytest.mark.parametrize(
    "preset,shape,reason",
    [
        ("t1.65", (2, 20), "2 KV heads of head_dim 20: "),
        ("t1.65", (1, 1024), "1 KV heads of head_dim 1024: "),
        ("k2v2", (2, 12), "2 KV heads of head_dim 12: "),
    ],
)
def test_shapes_that_cannot_be_packed_are_one_line(lines, preset, shape, reason):
    options.configure(configuration({"vidkv": preset}))
    models(full=(2, 64))
    assert options.state().packs
    for _ in range(2):
        models(full=shape)
    (line,) = lines
    assert line.startswith(f"VidKV: {preset} is not used: {reason}") and line.endswith("; vLLM goes on with its own KV cache")
    assert not options.state().packs


def test_a_model_without_full_attention_is_one_line(lines):
    config = configuration()
    options.configure(config)
    models(window=(2, 64))
    options.settle(config), options.settle(config)
    assert lines == ["VidKV: t1.65 is not used: this model has no layers with full causal attention; vLLM goes on with its own KV cache"]


@pytest.mark.parametrize(
    "extra,line",
    [
        ({"vidkv": {"preset": "t9.65"}}, "VidKV: unknown preset 't9.65': use f16, "),
        ({"vidkv": "q4_0"}, "VidKV: unknown preset 'q4_0'"),
        ({"vidkv": {"preset": 2}}, "VidKV: a preset is a name such as t1.65, not 2"),
        ({"vidkv": {"presset": "t1.65"}}, "VidKV: --additional-config vidkv has unknown options presset; there is preset"),
        ({"vidkv": {"preset": "t1.65-stp0.2"}}, "pages of unequal size: in vLLM use t1.65"),
    ],
)
def test_presets_that_cannot_be_end_vllm_before_it_loads_a_model(extra, line):
    class Platform:
        @classmethod
        def check_and_update_config(cls, config):
            raise AssertionError("went on")

    plugin._refuse_early(Platform)
    with pytest.raises(ValueError) as found:
        Platform.check_and_update_config(configuration(extra))
    assert line in str(found.value) and "\n" not in str(found.value)


def test_the_additional_configuration_comes_before_the_environment(monkeypatch):
    monkeypatch.setenv("VIDKV_PRESET", "t2.2")
    assert [options.check(configuration(extra))[0] for extra in ({}, {"vidkv": "t1.15"}, {"vidkv": {}}, None)] == ["t2.2", "t1.15", "t2.2", "t1.65"]
    monkeypatch.setenv("VIDKV_PRESET", "")
    assert options.check(configuration({})) == (None, None)


def test_a_gpu_has_no_packed_blocks(lines, monkeypatch):
    from vllm import platforms

    monkeypatch.setattr(type(platforms.current_platform), "is_cpu", lambda self: False)
    monkeypatch.setenv("VIDKV_PRESET", "t1.65")
    plugin.register()
    assert lines == ["VidKV: t1.65 is not used: packed blocks are for CPUs; vLLM goes on with its own KV cache"]


@pytest.mark.parametrize("window", [(2, 64), (4, 128), (1, 256)])
@pytest.mark.parametrize("preset", ["t1.15", "t1.65", "t2.2", "t3.2"])
def test_beside_sliding_windows_a_block_holds_a_whole_number_of_packed_ones(preset, window):
    options.configure(configuration({"vidkv": preset}))
    models(full=(2, 64))
    alone = options.room_of_block(2, 64)
    models(window=window)
    room, other = options.room_of_block(2, 64), 128 * window[0] * window[1] * 2 * 2
    assert other % room == 0 and room % 64 == 0 and alone <= room
    assert other // room >= min(other // alone, 8) // 2


def test_more_rows_than_a_quarter_of_the_memory_are_a_line(lines):
    config = configuration(scheduler_config__max_num_seqs=1000)
    options.configure(config)
    models(full=(8, 128))
    assert options.reserve(config, 100 << 20) == 25 << 20
    assert len([line for line in lines if "more than a quarter of the 100 MiB" in line]) == 1


@pytest.mark.parametrize(
    "place,more,line",
    [
        ("/tmp/x", {"ttl": "86400"}, "ttl must be a number greater than 0, not '86400'"),
        ("/tmp/x", {"ttl": -1}, "ttl must be a number greater than 0, not -1"),
        ("/tmp/x", {"max_bytes": 0}, "max_bytes must be a number greater than 0, not 0"),
        ("s3://bucket", {}, "a store is a folder or redis://host:port/0: s3://bucket is neither"),
        (7, {}, "store is a folder or redis://host:port/0, not 7"),
    ],
)
def test_places_that_cannot_be_are_refused(place, more, line):
    with pytest.raises(ValueError) as found:
        open_store(place, **more)
    assert str(found.value) == f"VidKV: {line}"
