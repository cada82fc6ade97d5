"""Semantic token protection: which visual tokens the question is about (arXiv 2503.16257, section 3.3)."""
import warnings

import torch

from .names import given_cache

VISUAL_TOKENS = ("image_token_id", "image_token_index", "video_token_id", "video_token_index")
UNIT = 32  # visual tokens are protected by multiples of this


def visual_token_ids(config):
    """The placeholder ids of images and videos in input_ids."""
    ids = {getattr(config, name, None) for name in VISUAL_TOKENS}
    return sorted(i for i in ids if isinstance(i, int))


def salient_positions(embeddings, visual, real, share):
    """Positions to protect in one row: embeddings [n, hidden], visual and real bool [n]. The question is the text after the last
    visual token, or all text if none follows. Saliency: the mean over its tokens of the dot product of input embeddings."""
    places = visual.nonzero().flatten()
    if len(places) == 0:
        return []
    text = real & ~visual
    after = text.clone()
    after[: int(places[-1]) + 1] = False
    question = after if bool(after.any()) else text
    if not bool(question.any()):
        return []
    saliency = embeddings[places].float() @ embeddings[question].float().mean(0)
    count = min(len(places), max(UNIT, int(share * len(places)) // UNIT * UNIT))
    return places[saliency.topk(count).indices].sort().values.tolist()


class _PrefillWatch:
    """Sees the input ids on their way into the model, and the input embeddings on their way into its decoder."""

    def __init__(self, model, cache):
        self.cache, self.visual, self.mask = cache, None, None
        self.ids = visual_token_ids(model.config)
        decoder = model.get_decoder() if hasattr(model, "get_decoder") else None
        self.handles = []
        if not self.ids or decoder is None or decoder is model:
            return  # a text model: the tokens that queries attend to most are protected instead
        self.handles = [model.register_forward_pre_hook(self.see_ids, with_kwargs=True),
                        decoder.register_forward_pre_hook(self.see_embeddings, with_kwargs=True)]

    def see_ids(self, module, args, kwargs):
        ids = kwargs.get("input_ids", args[0] if args else None)
        self.visual, self.mask = None, kwargs.get("attention_mask")
        if ids is not None and ids.dim() == 2 and ids.shape[1] > 1:
            self.visual = torch.isin(ids, torch.tensor(self.ids, device=ids.device))

    def see_embeddings(self, module, args, kwargs):
        embeddings = kwargs.get("inputs_embeds")
        if embeddings is None or given_cache(kwargs) is not self.cache or self.visual is None:
            return
        past, n = self.cache.get_seq_length(), embeddings.shape[1]
        if self.visual.shape[1] != n:
            warnings.warn("vidkv: the decoder sees another number of tokens than input_ids has: no visual tokens are protected", stacklevel=2)
            return
        for row in range(embeddings.shape[0]):
            real = torch.ones(n, dtype=torch.bool, device=embeddings.device)
            if self.mask is not None and self.mask.dim() == 2:
                real = self.mask[row, -n:].bool().to(embeddings.device)
            places = salient_positions(embeddings[row].detach(), self.visual[row].to(embeddings.device), real, self.cache.params.protect)
            if places:
                self.cache.protect(row, [past + p for p in places])

    def remove(self):
        for handle in self.handles:
            handle.remove()


def watch_prefill(model, cache):
    """Protects visual tokens of every prompt that `model` reads into `cache`; returns the function that ends this."""
    return _PrefillWatch(model, cache).remove
