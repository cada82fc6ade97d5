"""lmms-eval's model vidkv_hf: LLaVA-OneVision, Qwen2-VL, Qwen2.5-VL, Qwen3-VL through transformers, with any preset.

--model_args pretrained=DIR,preset=t1.65,frames=32 and: fps, dtype, torch_device (torch's names), cache_config=FILE (a published
configuration in JSON, in the place of preset), log=FILE, max_new_tokens (a cap). preset=kivi2 is KIVI, preset=dynamic transformers' own."""
import argparse
import functools

from ..demo import bytes_held, cache_arguments, load, prepare
from ..transformers.saliency import visual_token_ids
from .answers import VideoModel


def _options(pretrained, preset, cache_config, frames, fps, dtype, device):
    if cache_config:
        with open(cache_config, encoding="utf-8") as file:
            cache_config = file.read()
    return argparse.Namespace(model=pretrained or None, preset=None if cache_config else preset, cache_config=cache_config or None,
                              frames=int(frames) if frames else None, fps=float(fps) if fps else None, dtype=dtype, device=device)


@functools.lru_cache(maxsize=1)
def _loaded(place, dtype, device):
    """A model is loaded once, however many caches are tried with it in one process."""
    return load(argparse.Namespace(model=place, dtype=dtype, device=device))


class VidkvHf(VideoModel):
    def __init__(self, pretrained="", preset="t1.65", cache_config="", frames="", fps="", dtype="auto", torch_device="cpu", **others):
        super().__init__(**others)
        self.options = _options(pretrained, preset, cache_config, frames, fps, dtype, torch_device)
        self.network, self.reader, self.small = _loaded(self.options.model, dtype, torch_device)
        self.bare = self.small  # the toy has seen nothing else
        self.visual = set(visual_token_ids(self.network.config))

    def _cache(self):
        """What says to generate which cache to use."""
        self.network.get_decoder().set_attn_implementation("sdpa")  # what reads codes is set with each VidKVCache
        if self.options.preset != "kivi2":
            return cache_arguments(self.network, self.options)
        from ..transformers.names import as_arguments
        from .kivi import KiviCache

        return as_arguments(KiviCache(self.network.config))

    def _prepare(self, video, question):
        """(inputs of generate, what is logged of them)."""
        options = argparse.Namespace(**vars(self.options), video=video.path, until=video.until, question=question)
        inputs, frames = prepare(self.network, self.reader, self.small, options)
        tokens = sum(int(token) in self.visual for token in inputs["input_ids"][0])
        return inputs, dict(frames=frames, visual_tokens=tokens)

    def answer(self, video, question, settings):
        import torch

        from ..transformers.names import cache_of

        inputs, figures = self._prepare(video, question)
        with torch.no_grad():
            out = self.network.generate(**inputs, max_new_tokens=settings["max_new_tokens"], do_sample=False, return_dict_in_generate=True,
                                        **self._cache())
        text = self.reader.decode(out.sequences[0, inputs["input_ids"].shape[1]:], skip_special_tokens=True)
        return text.strip(), dict(figures, **held(cache_of(out), self.network.config.get_text_config(decoder=True)))

    def likelihood(self, video, question, choice):
        """(mean negative log-likelihood of an answer, whether it is the likeliest, what is logged): the prompt lies in the cache."""
        import torch

        inputs, figures = self._prepare(video, question)
        wanted = self._tokens(choice)
        cache = self._filled_cache()
        with torch.no_grad():
            rows = [self.network(**inputs, **cache.arguments, use_cache=True).logits[0, -1]]
            for token in wanted[:-1]:
                one = torch.tensor([[token]], device=self.network.device)
                rows.append(self.network(input_ids=one, **cache.arguments, use_cache=True).logits[0, -1])
        logits = torch.stack(rows).float()
        loss = torch.nn.functional.cross_entropy(logits, torch.tensor(wanted, device=logits.device))
        likeliest = logits.argmax(-1).tolist() == wanted
        return float(loss), likeliest, dict(figures, **held(cache.cache, self.network.config.get_text_config(decoder=True)))

    def _tokens(self, text):
        tokenizer = getattr(self.reader, "tokenizer", self.reader)
        return tokenizer.encode(text, add_special_tokens=False)

    def _filled_cache(self):
        """A cache to be handed to the model's forward: those that `generate` would make itself are made here."""
        from ..transformers import VidKVCache
        from ..transformers.names import as_arguments

        if self.options.cache_config:
            from ..transformers.options import parse_cache_config
            cache = VidKVCache(self.network.config, cache_config=parse_cache_config(self.options.cache_config))
            return argparse.Namespace(cache=cache, arguments=as_arguments(cache))
        arguments = self._cache()
        return argparse.Namespace(cache=next(iter(arguments.values())), arguments=arguments)


def held(cache, config):
    """Bytes held, the same tokens in f16, and the bits of a packed element."""
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    f16 = cache.get_seq_length() * config.num_hidden_layers * config.num_key_value_heads * head_dim * 4
    if hasattr(cache, "params"):
        bits = (cache.params.true_bits("keys", head_dim) + cache.params.true_bits("values", head_dim)) / 2
    else:
        bits = getattr(cache, "true_bits", None) or 8 * bytes_held(cache) / (f16 / 2)
    return dict(bytes_held=bytes_held(cache), bytes_f16=f16, true_bits=round(bits, 4))
