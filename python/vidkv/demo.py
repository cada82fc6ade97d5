"""python -m vidkv.demo VIDEO QUESTION: asks a video model about a video, its keys and values packed by VidKV.

Without --model a toy answers: a small model that was trained on clips of `vidkv data` and knows nothing else. For videos of your own
give --model."""
import argparse
import json
import os
import sys
import time


FRAMES = 32
TOY = ("this video is none of `vidkv data`: the model that comes with VidKV is a toy that has seen nothing else, and its answer means nothing. "
       "Give --model DIR")


def parse(arguments=None):
    parser = argparse.ArgumentParser(prog="python -m vidkv.demo", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("video", help="a file that FFmpeg reads")
    parser.add_argument("question")
    parser.add_argument("--model", metavar="DIR", help="a folder of LLaVA-OneVision, Qwen2.5-VL or another video model of transformers; "
                                                       "default: the toy that comes with VidKV")
    choice = parser.add_mutually_exclusive_group()
    choice.add_argument("--preset", help="how the cache is packed (default t1.65); 'dynamic' for transformers' own cache")
    choice.add_argument("--cache-config", metavar="JSON", help="a published configuration, as in {\"backend\": \"QuantizedCacheVLM\", \"nbits\": 2}")
    parser.add_argument("--frames", type=int, help="frames at most, evenly over the video (default: 32; the toy: no limit)")
    parser.add_argument("--fps", type=float, help="frames taken a second (default: as many as --frames allows; the toy: 4)")
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument("--device", default="cpu", help="torch device (default cpu)")
    parser.add_argument("--dtype", default="auto", choices=["auto", "float32", "float16", "bfloat16"])
    parser.add_argument("--json", action="store_true", help="one JSON object in the place of text")
    return parser.parse_args(arguments)


def check(options):
    """Says what is wrong with the options before a model is loaded, which takes long."""
    from . import Params
    from .video import check_video

    check_video(options.video, options.frames, options.fps)
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

    from . import llava_onevision, small_model

    logging.disable_progress_bar()

    place = options.model or small_model.folder()
    dtype = options.dtype if options.dtype == "auto" else getattr(torch, options.dtype)
    config = AutoConfig.from_pretrained(place)
    small = small_model.is_small_model(config)
    if small and options.dtype == "auto":
        dtype = torch.float32
    model = AutoModelForImageTextToText.from_pretrained(place, dtype=dtype, attn_implementation="sdpa").eval().to(options.device)
    if small:
        return model, AutoTokenizer.from_pretrained(place), small
    reader = llava_onevision.Reader(place, config) if config.model_type == "llava_onevision" else AutoProcessor.from_pretrained(place)
    pixels = getattr(reader, "video_processor", None)
    if getattr(pixels, "cap_pixels_per_frame", True) is None:
        pixels.cap_pixels_per_frame = True  # as Qwen's own code has it; transformers warns until that is its default
    return model, reader, small


def shown_at(seconds):
    """How a processor of transformers is told that frames are chosen already, and when they are shown: Qwen's models see the time."""
    milliseconds = [round(1000 * (second - seconds[0])) for second in seconds]
    step = milliseconds[-1] / (len(seconds) - 1) if len(seconds) > 1 else 1000
    metadata = dict(total_num_frames=round(milliseconds[-1] + step), fps=1000, frames_indices=milliseconds)
    return dict(do_sample_frames=False, video_metadata=[metadata])


def prepare(model, reader, small, options):
    """(inputs of generate, number of frames)."""
    from . import small_model
    from .video import frame_size, read_frames, read_video

    until = getattr(options, "until", None)
    if small:
        size = (small_model.SIZE, small_model.SIZE)
        if frame_size(options.video) != size:
            print(f"vidkv.demo: {TOY}", file=sys.stderr)
        frames = read_frames(options.video, options.frames, options.fps or small_model.FPS, size, until)
    else:
        frames, seconds = read_video(options.video, options.frames or (None if options.fps else FRAMES), options.fps, until=until)
    if small:
        inputs = small_model.inputs(reader, model.config, frames, options.question)
    elif hasattr(reader, "inputs"):
        inputs = reader.inputs(frames, options.question)
    else:
        talk = [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": options.question}]}]
        text = reader.apply_chat_template(talk, add_generation_prompt=True)
        inputs = dict(reader(text=[text], videos=[frames], return_tensors="pt", **shown_at(seconds)))
    moved = {k: v.to(model.device, model.dtype) if v.is_floating_point() else v.to(model.device) for k, v in inputs.items() if hasattr(v, "to")}
    return moved, len(frames)


def cache_arguments(model, options):
    """What says to generate which cache to use."""
    from transformers import DynamicCache

    from .transformers import VidKVCache
    from .transformers.names import as_arguments
    from .transformers.options import parse_cache_config

    if options.cache_config:
        return dict(cache_implementation="quantized", cache_config=parse_cache_config(options.cache_config))
    if options.preset == "dynamic":
        return as_arguments(DynamicCache(config=model.config))
    text = model.get_decoder() if hasattr(model, "get_decoder") else model
    text.set_attn_implementation("vidkv")
    return as_arguments(VidKVCache(model.config, options.preset or "t1.65"))


def bytes_held(cache):
    if hasattr(cache, "bytes_held"):
        return cache.bytes_held()
    return sum(t.numel() * t.element_size() for layer in cache.layers for t in (layer.keys, layer.values))


def explanation(report):
    """Why a cache is no smaller than f16, where it is not."""
    packed = report["cache"].startswith("VidKVCache")
    if not packed or report["bytes_held"] < report["bytes_f16"]:
        return ""
    return "; nothing is saved on so few tokens: the newest 128 to 255 stay in f16"


def run(options):
    """The report: answer, tokens, seconds, bytes held."""
    from .transformers.names import cache_of

    check(options)
    model, reader, small = load(options)
    inputs, frames = prepare(model, reader, small, options)
    cache = cache_arguments(model, options)  # before `generate` is looked up: importing vidkv.transformers changes it
    started = time.perf_counter()
    out = model.generate(**inputs, max_new_tokens=options.max_new_tokens, do_sample=False, return_dict_in_generate=True, **cache)
    seconds = time.perf_counter() - started
    prompt, cache = inputs["input_ids"].shape[1], cache_of(out)
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
    except ModuleNotFoundError as error:
        print(f"vidkv.demo needs {error.name}: pip install 'vidkv[demo]'", file=sys.stderr)
        return 1
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
              f"cache {report['bytes_held']:,} bytes ({report['bytes_f16']:,} in f16)" + explanation(report), file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
