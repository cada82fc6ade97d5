"""A video that transformers has read, asked about by `vidkv ask` with the same weights in GGUF, and the other way round."""
import json
import os
import subprocess
import sys
import tempfile

from agreement import MAX_TOKENS, Reference, patches, read_frames
from common import ROOT, VIDKV, make_set, skip

sys.path.insert(0, os.environ.get("VIDKV_STAGE", os.path.join(ROOT, "build", "python")))
try:
    import numpy as np
    import torch
    import transformers

    from vidkv.transformers import VidKVCache
    from vidkv.transformers.names import as_arguments
except ImportError as missing:
    skip(f"{missing} (-DVIDKV_BUILD_PYTHON=ON builds the package)")

SEED = int(os.environ.get("VIDKV_TEST_SEED", "20261126"))


def run(*arguments):
    done = subprocess.run([VIDKV, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


class Reader:
    """The model in transformers with a packed cache: the video once, questions after it."""

    def __init__(self, reference):
        self.model, self.tokenizer = reference.model, reference.tokenizer
        self.model.get_decoder().set_attn_implementation("vidkv")
        self.prompt = reference.prompt

    def inputs(self, ids, frames=None):
        inputs = dict(input_ids=ids, attention_mask=torch.ones_like(ids), mm_token_type_ids=(ids == self.model.config.image_token_id).int())
        if frames is None:
            return inputs
        pairs = [np.stack([frames[i], frames[min(i + 1, len(frames) - 1)]]) for i in range(0, len(frames), 2)]
        return inputs | dict(pixel_values=torch.tensor(np.concatenate([patches(p) for p in pairs])), image_grid_thw=torch.tensor([[1, 6, 6]] * len(pairs)))

    def video_tokens(self, frames):
        question = self.tokenizer.encode("?<|im_end|>\n<|im_start|>assistant\n", add_special_tokens=False)
        return torch.tensor([self.prompt((len(frames) + 1) // 2, "?")[:-len(question)]])

    def read(self, frames, preset):
        ids = self.video_tokens(frames)
        cache = VidKVCache(self.model.config, preset)
        with torch.no_grad():
            self.model(**self.inputs(ids, frames), **as_arguments(cache), use_cache=True)
        return cache, ids

    def answer(self, cache, ids, question):
        after = self.tokenizer.encode(question + "<|im_end|>\n<|im_start|>assistant\n", add_special_tokens=False)
        whole = torch.cat((ids, torch.tensor([after])), 1)
        with torch.no_grad():
            out = self.model.generate(**self.inputs(whole), cache=cache, max_new_tokens=MAX_TOKENS, do_sample=False)
        return self.tokenizer.decode(out[0, whole.shape[1]:], skip_special_tokens=True).strip()


def difference(a, b):
    """Of rows of two caches in f16: the root of the mean square of their difference, as a share of b's."""
    worst = 0
    for ours, theirs in zip(a.packed_layers, b.packed_layers):
        for side in ("keys", "values"):
            x, y = (layer.materialize(side, theirs.length).float() for layer in (ours, theirs))
            worst = max(worst, float((x - y).pow(2).mean().sqrt() / y.pow(2).mean().sqrt()))
    return worst


def asked(questions, *options):
    report = json.loads(run("ask", *options, *[word for q in questions for word in ("-q", q)], "-n", str(MAX_TOKENS), "--json"))
    return [each["answer"] for each in report["answers"]]


def another_model_is_refused():
    config = transformers.LlamaConfig(num_hidden_layers=2, hidden_size=64, intermediate_size=64, num_attention_heads=2, vocab_size=200)
    model = transformers.LlamaForCausalLM(config).eval()
    with tempfile.TemporaryDirectory() as folder:
        saved, cache = os.path.join(folder, "text.vidkv"), VidKVCache(config, "f16")
        model.generate(torch.ones(1, 20, dtype=torch.long), cache=cache, max_new_tokens=1, pad_token_id=0)
        cache.save(saved)
        refused = subprocess.run([VIDKV, "ask", "--load-cache", saved, "What?"], capture_output=True, text=True)
    assert (refused.returncode, refused.stderr.count("\n")) == (1, 1) and "another model" in refused.stderr, refused.stderr


def main():
    reader = Reader(Reference())
    owner, clips = make_set("long", SEED, 1)
    there = back = total = 0
    with owner as folder:
        video, entries = clips[0]
        frames, questions = read_frames(video), [entry["question"] for entry in entries][:8]
        for preset in ("f16", "t1.65"):
            saved, watched = os.path.join(folder, f"{preset}.vidkv"), os.path.join(folder, f"{preset}-ask.vidkv")
            cache, ids = reader.read(frames, preset)
            cache.save(saved, tokens=ids, model=reader.model, facts={"title": "a clip"})
            ours = asked(questions, "--load-cache", saved)
            watched_answers = asked(questions, video, "--no-cache", "--kv", preset, "--save-cache", watched)
            theirs = []
            for question in questions:
                loaded = VidKVCache.load(watched, reader.model.config, model=reader.model)
                assert torch.equal(loaded.tokens, ids), "other tokens"
                theirs.append(reader.answer(loaded, loaded.tokens, question))
            straight = []
            for question in questions:
                cache = VidKVCache.load(saved, reader.model.config, model=reader.model)
                straight.append(reader.answer(cache, ids, question))
            there += sum(a == b for a, b in zip(ours, straight))
            back += sum(a == b for a, b in zip(theirs, watched_answers))
            total += len(questions)
            apart = difference(VidKVCache.load(watched, reader.model.config, model=reader.model), VidKVCache.load(saved, reader.model.config, model=reader.model))
            print(f"{preset}: rows of the two engines differ by {apart:.4f}")
            if preset == "f16":
                assert apart < 0.02, "keys and values of the two engines are not the same"
    print(f"transformers to vidkv ask: {there} of {total} answers the same; vidkv ask to transformers: {back} of {total}")
    # A tie between two nearly equal logits may fall either way.
    assert total >= 8 and min(there, back) >= total - 1
    another_model_is_refused()


if __name__ == "__main__":
    sys.exit(main())
