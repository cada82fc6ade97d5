#!/usr/bin/env python3
"""Accuracy of the small video model on a generated set, by question type and by number of candidates.

    python generate.py --seed 5 --split long --count 20 SET
    python evaluate.py SET [--model tiny/hf] [--noise 0,0.25,0.5,1] [--blank] [--stamps] [--json]

An answer is right when its text is exactly the expected one (greedy decoding). Frames are decoded from the mp4 files and paired
as libmtmd pairs them. --noise S adds Gaussian noise of S times their root mean square (per layer and head)
to the video's keys and values, as a lossy cache does. --stamps inserts libmtmd's default timestamps.
"""
import argparse
import collections
import json
import os
import subprocess
import sys

import numpy as np
import torch
from safetensors.torch import load_file

import batches
from clips import generate as g
import tokens
from network import Config, VideoModel

HERE = os.path.dirname(os.path.abspath(__file__))


def load_model(folder):
    """A transformers folder of this model -> VideoModel in float32."""
    with open(f"{folder}/config.json", encoding="utf-8") as f:
        c = json.load(f)
    v = c["vision_config"]
    config = Config(vocab=c["vocab_size"], hidden=c["hidden_size"], layers=c["num_hidden_layers"], heads=c["num_attention_heads"],
                    kv_heads=c["num_key_value_heads"], ffn=c["intermediate_size"], theta=c["rope_theta"],
                    sections=tuple(c["rope_scaling"]["mrope_section"]), eps=c["rms_norm_eps"], vision_hidden=v["hidden_size"],
                    vision_layers=v["depth"], vision_heads=v["num_heads"], vision_ffn=v["intermediate_size"])
    model = VideoModel(config)
    model.load_state_dict({k: t.float() for k, t in load_file(f"{folder}/model.safetensors").items()})
    return model.eval()


def read_frames(path):
    """Every frame of a clip: uint8 [n, 3, s, s]."""
    raw = subprocess.run(["ffmpeg", "-nostdin", "-loglevel", "error", "-i", path, "-vf", f"fps={g.FPS}", "-f", "rawvideo", "-pix_fmt", "rgb24", "-"],
                         capture_output=True, check=True).stdout
    return np.frombuffer(raw, np.uint8).reshape(-1, g.SIZE, g.SIZE, 3).transpose(0, 3, 1, 2)


def read_set(folder):
    """[(video, [questions])] in file order."""
    by_video = {}
    with open(f"{folder}/questions.jsonl", encoding="utf-8") as f:
        for line in f:
            question = json.loads(line)
            by_video.setdefault(question["video"], []).append(question)
    return list(by_video.items())


def see(model, frames, pairs):
    """Visual tokens [1, 9p, hidden] of the frame pairs."""
    parts = np.array_split(frames[pairs], len(pairs) // 64 + 1)
    return torch.cat([model.visual(model.visual.patchify(batches.normalise(torch.tensor(p)))) for p in parts]).flatten(0, 1)[None]


def noise_hook(scale, prefix, generator):
    """Damages the prefix's keys and values, [b, heads, n, head_dim] each."""
    if not scale:
        return None

    def damage(*tensors):
        out = []
        for t in tensors:
            rms = t[:, :, :prefix].pow(2).mean((2, 3), keepdim=True).sqrt()
            noise = torch.randn(t[:, :, :prefix].shape, generator=generator) * rms * scale
            out.append(torch.cat([t[:, :, :prefix] + noise, t[:, :, prefix:]], 2))
        return out
    return damage


def answers(model, encode, frames, questions, stamps, scales):
    """Per noise scale a list of booleans, one per question: is the greedy answer exactly right?"""
    texts = [(encode(q["question"] + tokens.REPLY), encode(q["answer"] + tokens.END)) for q in questions]
    segment = max(len(q) + len(a) for q, a in texts)
    layout = batches.make_layout(encode, model.c.grid, len(frames), stamps, len(texts), segment)
    ids = torch.zeros(1, layout.prefix + len(texts) * segment, dtype=torch.long)
    ids[0, :layout.prefix] = torch.tensor(layout.ids)
    outputs, targets = [], []
    for k, (q, a) in enumerate(texts):
        at = layout.prefix + k * segment
        ids[0, at:at + len(q) + len(a)] = torch.tensor(q + a)
        outputs += range(at + len(q) - 1, at + len(q) + len(a) - 1)
        targets += a
    visual = see(model, frames, layout.pairs)
    ends = np.cumsum([0] + [len(a) for _, a in texts])
    out = []
    for scale in scales:
        hook = noise_hook(scale, layout.prefix, torch.Generator().manual_seed(1))
        said = model(layout, ids, visual, torch.tensor(outputs)[None], hook)[0].argmax(-1)
        right = said == torch.tensor(targets)
        out.append([bool(right[a:b].all()) for a, b in zip(ends, ends[1:])])
    return out


def main():
    parser = argparse.ArgumentParser(description="Accuracy of the small video model on a generated set.")
    parser.add_argument("set", help="a folder that generate.py wrote")
    parser.add_argument("--model", default=os.path.join(HERE, "..", "tiny", "hf"))
    parser.add_argument("--noise", default="0", help="comma-separated scales")
    parser.add_argument("--blank", action="store_true", help="empty frames in place of the clip's")
    parser.add_argument("--stamps", action="store_true")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    scales = [float(s) for s in args.noise.split(",")]
    model, encode = load_model(args.model), tokens.Encoder()
    by_type, by_candidates = ([collections.defaultdict(list) for _ in scales] for _ in range(2))
    with torch.no_grad():
        for video, questions in read_set(args.set):
            frames = read_frames(os.path.join(args.set, video))
            if args.blank:
                frames = g.blank(frames)
            for i, right in enumerate(answers(model, encode, frames, questions, args.stamps, scales)):
                for q, ok in zip(questions, right):
                    by_type[i][q["type"]].append(ok)
                    by_candidates[i][q["candidates"]].append(ok)

    def share(groups):
        return {k: round(sum(v) / len(v), 4) for k, v in sorted(groups.items())}

    for i, scale in enumerate(scales):
        every = [ok for v in by_type[i].values() for ok in v]
        row = dict(noise=scale, questions=len(every), accuracy=round(sum(every) / len(every), 4), by_type=share(by_type[i]),
                   by_candidates=share(by_candidates[i]))
        if args.json:
            print(json.dumps(row))
        else:
            print(f"noise {scale:<5} accuracy {row['accuracy']:.3f} of {len(every)}  {row['by_type']}  candidates {row['by_candidates']}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
