"""python -m vidkv.demo VIDEO QUESTION: asks a video model about a video, its keys and values packed by VidKV."""
import argparse
import json
import os
import sys
import time


def parse(arguments=None):
    parser = argparse.ArgumentParser(prog="python -m vidkv.demo", description=__doc__)
    parser.add_argument("video", help="a file that FFmpeg reads")
    parser.add_argument("question")
    parser.add_argument("--model", metavar="DIR", help="a folder of LLaVA-OneVision, Qwen2.5-VL or another video model of transformers; "
                                                       "default: the small model that comes with VidKV")
    choice = parser.add_mutually_exclusive_group()
    choice.add_argument("--preset", help="how the cache is packed (default t1.65); 'dynamic' for transformers' own cache")
    choice.add_argument("--cache-config", metavar="JSON", help="a published configuration, as in {\"backend\": \"QuantizedCacheVLM\", \"nbits\": 2}")
    parser.add_argument("--frames", type=int, default=32, help="frames, evenly over the video (default 32)")
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument("--device", default="cpu", help="torch device (default cpu)")
    parser.add_argument("--dtype", default="auto", choices=["auto", "float32", "float16", "bfloat16"])
    parser.add_argument("--json", action="store_true", help="one JSON object in the place of text")
    return parser.parse_args(arguments)


def check(options):
    """Says what is wrong with the options before a model is loaded, which takes long."""
    from . import Params
    from .video import check_video

    check_video(options.video, options.frames)
    if options.model and not os.path.isdir(options.model):
        raise FileNotFoundError(f"--model {options.model}: there is no such folder")
    if options.preset not in (None, "dynamic"):
        try:
            Params.from_preset(options.preset)
        except ValueError as error:
            raise ValueError(f"--preset {options.preset}: {error}") from None
    if options.max_new_tokens < 1:
        raise ValueError(f"--max-new-tokens must be 1 or more, not {options.max_new_tokens}")


def load(options):
    """(model, tokenizer or processor, whether it is the small model)."""
    import torch
    from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor, AutoTokenizer
    from transformers.utils import logging

    from . import small_model

    logging.disable_progress_bar()

    place = options.model or small_model.folder()
    dtype = options.dtype if options.dtype == "auto" else getattr(torch, options.dtype)
    config = AutoConfig.from_pretrained(place)
    small = small_model.is_small_model(config)
    if small and options.dtype == "auto":
        dtype = torch.float32
    model = AutoModelForImageTextToText.from_pretrained(place, dtype=dtype, attn_implementation="sdpa").eval().to(options.device)
    return model, AutoTokenizer.from_pretrained(place) if small else AutoProcessor.from_pretrained(place), small


def prepare(model, reader, small, options):
    """(inputs of generate, number of frames)."""
    from . import small_model
    from .video import read_frames

    frames = read_frames(options.video, options.frames, (small_model.SIZE, small_model.SIZE) if small else None)
    if small:
        inputs = small_model.inputs(reader, model.config, frames, options.question)
    else:
        talk = [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": options.question}]}]
        text = reader.apply_chat_template(talk, add_generation_prompt=True)
        inputs = dict(reader(text=[text], videos=[frames], return_tensors="pt"))
    moved = {k: v.to(model.device, model.dtype) if v.is_floating_point() else v.to(model.device) for k, v in inputs.items()}
    return moved, len(frames)


def cache_arguments(model, options):
    """What says to generate which cache to use."""
    from transformers import DynamicCache

    from .transformers import VidKVCache
    from .transformers.options import parse_cache_config

    if options.cache_config:
        return dict(cache_implementation="quantized", cache_config=parse_cache_config(options.cache_config))
    if options.preset == "dynamic":
        return dict(past_key_values=DynamicCache(config=model.config))
    text = model.get_decoder() if hasattr(model, "get_decoder") else model
    text.set_attn_implementation("vidkv")
    return dict(past_key_values=VidKVCache(model.config, options.preset or "t1.65"))


def bytes_held(cache):
    if hasattr(cache, "bytes_held"):
        return cache.bytes_held()
    return sum(t.numel() * t.element_size() for layer in cache.layers for t in (layer.keys, layer.values))


def run(options):
    """The report: answer, tokens, seconds, bytes held."""
    check(options)
    model, reader, small = load(options)
    inputs, frames = prepare(model, reader, small, options)
    cache = cache_arguments(model, options)  # before `generate` is looked up: importing vidkv.transformers changes it
    started = time.perf_counter()
    out = model.generate(**inputs, max_new_tokens=options.max_new_tokens, do_sample=False, return_dict_in_generate=True, **cache)
    seconds = time.perf_counter() - started
    prompt, cache = inputs["input_ids"].shape[1], out.past_key_values
    config = model.config.get_text_config(decoder=True)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    f16 = cache.get_seq_length() * config.num_hidden_layers * config.num_key_value_heads * head_dim * 4
    answer = reader.decode(out.sequences[0, prompt:], skip_special_tokens=True).strip()
    return dict(answer=answer, frames=frames, prompt_tokens=prompt, new_tokens=out.sequences.shape[1] - prompt, seconds=round(seconds, 3),
                cache=repr(cache) if hasattr(cache, "bytes_held") else type(cache).__name__, bytes_held=bytes_held(cache), bytes_f16=f16)


def main(arguments=None):
    options = parse(arguments)
    try:
        report = run(options)
    except (ImportError, OSError, ValueError, TypeError) as error:
        print(f"vidkv.demo: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("vidkv.demo: interrupted", file=sys.stderr)
        return 130
    if options.json:
        print(json.dumps(report))
    else:
        print(report["answer"])
        print(f"{report['frames']} frames, {report['prompt_tokens']} prompt tokens, {report['new_tokens']} new ones in {report['seconds']} s; "
              f"cache {report['bytes_held']:,} bytes ({report['bytes_f16']:,} in f16)", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
