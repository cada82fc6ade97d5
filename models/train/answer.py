#!/usr/bin/env python3
"""Ask the small video model through transformers, on the same frame pairs and prompt that libmtmd gives llama.cpp.

    python answer.py CLIP QUESTION... [--model tiny/hf] [--stamps] [--json]

libmtmd treats each frame pair as one image, so the pairs are handed over as images (image_grid_thw [1, h, w]);
transformers' own video processor lays them out differently. transformers 5 silently falls back to plain positions
without mm_token_type_ids.
"""
import argparse
import json
import os

import torch
from transformers import Qwen2_5_VLForConditionalGeneration

import batches
import tokens
from evaluate import HERE, read_frames
from network import Config, Vision


def inputs(encode, frames, question, stamps=False):
    """Keyword arguments for the model: frames uint8 [n, 3, s, s], one question."""
    config = Config()
    layout = batches.make_layout(encode, config.grid, len(frames), stamps, 1, 1)
    ids = torch.tensor([layout.ids + encode(question + tokens.REPLY)])
    vision = Vision(config)
    patches = vision.patchify(batches.normalise(torch.tensor(frames[layout.pairs])))
    side = config.size // config.patch
    return dict(input_ids=ids, attention_mask=torch.ones_like(ids), pixel_values=patches.flatten(0, 1),
                image_grid_thw=torch.tensor([[1, side, side]] * len(patches)),
                mm_token_type_ids=(ids == encode.special("<|image_pad|>")).int())


def ask(model, encode, frames, question, stamps=False):
    """(greedy answer, logits [vocab] of its first token)"""
    given = inputs(encode, frames, question, stamps)
    with torch.no_grad():
        out = model.generate(**given, max_new_tokens=6, do_sample=False, return_dict_in_generate=True, output_logits=True)
    new = out.sequences[0, given["input_ids"].shape[1]:].tolist()
    return encode.tokenizer.decode(new, skip_special_tokens=True), out.logits[0][0]


def main():
    parser = argparse.ArgumentParser(description="Ask the small video model through transformers.")
    parser.add_argument("clip")
    parser.add_argument("questions", nargs="+", metavar="QUESTION")
    parser.add_argument("--model", default=os.path.join(HERE, "..", "tiny", "hf"))
    parser.add_argument("--stamps", action="store_true", help="libmtmd's default timestamps")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(args.model, dtype=torch.float32).eval()
    encode, frames = tokens.Encoder(), read_frames(args.clip)
    said = [dict(question=q, answer=ask(model, encode, frames, q, args.stamps)[0]) for q in args.questions]
    print(json.dumps(dict(video=args.clip, answers=said)) if args.json else "\n".join(s["answer"] for s in said))


if __name__ == "__main__":
    main()
