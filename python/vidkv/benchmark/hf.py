"""lmms-eval's model vidkv_hf: LLaVA-OneVision, Qwen2-VL, Qwen2.5-VL, Qwen3-VL through transformers, with any preset.

--model_args pretrained=DIR,preset=t1.65,frames=32 and: fps, dtype, device (torch's names), cache_config=FILE (a published
configuration in JSON, in the place of preset), log=FILE, max_new_tokens (a cap)."""
import argparse

from ..demo import cache_arguments, load, prepare
from ..transformers.saliency import visual_token_ids
from .answers import VideoModel


def _options(pretrained, preset, cache_config, frames, fps, dtype, device):
    if cache_config:
        with open(cache_config, encoding="utf-8") as file:
            cache_config = file.read()
    return argparse.Namespace(model=pretrained or None, preset=None if cache_config else preset, cache_config=cache_config or None,
                              frames=int(frames) if frames else None, fps=float(fps) if fps else None, dtype=dtype, device=device)


class VidkvHf(VideoModel):
    def __init__(self, pretrained="", preset="t1.65", cache_config="", frames="", fps="", dtype="auto", torch_device="cpu", **others):
        super().__init__(**others)
        self.options = _options(pretrained, preset, cache_config, frames, fps, dtype, torch_device)
        self.network, self.reader, self.small = load(self.options)
        self.visual = set(visual_token_ids(self.network.config))

    def answer(self, video, question, settings):
        import torch

        from ..transformers.names import cache_of

        options = argparse.Namespace(**vars(self.options), video=video, question=question)
        inputs, frames = prepare(self.network, self.reader, self.small, options)
        with torch.no_grad():
            out = self.network.generate(**inputs, max_new_tokens=settings["max_new_tokens"], do_sample=False, return_dict_in_generate=True,
                                        **cache_arguments(self.network, options))
        ids, cache = inputs["input_ids"][0], cache_of(out)
        text = self.reader.decode(out.sequences[0, len(ids):], skip_special_tokens=True)
        tokens = sum(int(token) in self.visual for token in ids)
        return text.strip(), dict(frames=frames, visual_tokens=tokens, **held(cache, self.network.config.get_text_config(decoder=True)))


def held(cache, config):
    """Bytes held, the same tokens in f16, and the bits of a packed element."""
    from ..demo import bytes_held

    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    f16 = cache.get_seq_length() * config.num_hidden_layers * config.num_key_value_heads * head_dim * 4
    if hasattr(cache, "params"):
        bits = (cache.params.true_bits("keys", head_dim) + cache.params.true_bits("values", head_dim)) / 2
    else:
        bits = 8 * bytes_held(cache) / (f16 / 2)
    return dict(bytes_held=bytes_held(cache), bytes_f16=f16, true_bits=round(bits, 4))
