#!/usr/bin/env python3
"""Train the small video model, in stages (see README.md for the order and how long each takes):

    python train.py vision --out DIR      the tower: frame pairs -> sums of symbols
    python train.py recall --out DIR      the language model: recall on symbol clips, ever longer (may run beside `vision`)
    python train.py mix    --out DIR      the language model on symbol clips of all lengths
    python train.py join   --out DIR      the language model on what the trained tower makes of rendered clips, up to 444 pairs

Each stage continues from DIR/<stage>.pt where it exists, else from the stages before it. Every clip is drawn afresh and
used once, so the logged accuracy is on unseen clips.
"""
import argparse
import collections
import dataclasses
import json
import os
import time

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F

import batches
from clips import generate as g
import pixels
import tokens
from network import Config, VideoModel, rotate

DOMAIN = "vidkv train v1"        # user sets use another: no training clip can appear in them

# recall: (pairs, clips per step, questions per clip, accuracy that ends the level, most steps)
LEVELS = [(12, 20, 10, 0.85, 300), (20, 12, 14, 0.86, 400), (40, 6, 24, 0.89, 200), (90, 3, 28, 0.90, 150), (220, 1, 40, 0.90, 120), (444, 1, 40, 0.95, 300)]


class Run:
    """One stage: model, optimizer, schedule, log and checkpoint."""

    def __init__(self, args, stage, before, parts):
        self.stage, self.out, self.started = stage, args.out, time.time()
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        os.makedirs(args.out, exist_ok=True)
        torch.manual_seed(args.seed)
        self.seed, self.config = args.seed, Config()
        self.model = VideoModel(self.config).to(self.device)
        self.encode = tokens.Encoder()
        self.symbols = batches.symbol_table(self.config.hidden)
        batches.name_symbols(self.model, self.symbols, self.encode)
        self.step, self.level, self.spent = 0, 0, 0.0
        # Throw-away heads for batches.LINKS; not part of the model, but kept with the checkpoint.
        self.heads = nn.Linear(self.config.hidden, sum(n for _, n in batches.LINKS)).to(self.device)
        self.head_optimizer = torch.optim.AdamW(self.heads.parameters(), lr=1e-3)
        state = None
        own = f"{args.out}/{stage}.pt"
        for path in [own] + [f"{args.out}/{name}.pt" for name in before]:
            if not os.path.exists(path):
                continue
            state = torch.load(path, map_location=self.device, weights_only=True)
            if path == own:
                if "heads" in state:
                    self.heads.load_state_dict(state["heads"])
                self.model.load_state_dict(state["model"])
                self.step, self.level, self.spent = state["step"], state["level"], state["spent"]
                break
            if "heads" in state and stage != "vision":
                self.heads.load_state_dict(state["heads"])
            # Of an earlier stage only what that stage trained.
            part = {"vision": "visual.", "recall": "model.", "mix": "model."}.get(os.path.basename(path)[:-3], "")
            self.model.load_state_dict({k: v for k, v in state["model"].items() if k.startswith(part)}, strict=False)
        self.groups = [dict(params=[p for n, p in self.model.named_parameters() if n.startswith(prefix)], scale=scale)
                       for prefix, scale in parts]
        self.optimizer = torch.optim.AdamW(self.groups, lr=1e-3, betas=(0.9, 0.98), weight_decay=0.02)
        if state and os.path.exists(own):
            self.optimizer.load_state_dict(state["optimizer"])
        self.log = open(f"{args.out}/{stage}.jsonl", "a", encoding="utf-8")
        self.history = collections.defaultdict(lambda: collections.deque(maxlen=400))

    def rng(self):
        """The generator of this step: a resumed run draws the same clips."""
        return g.generator(DOMAIN, self.seed, sum(map(ord, self.stage)), self.step)

    def minutes(self):
        return self.spent + (time.time() - self.started) / 60

    def update(self, loss, lr):
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group["scale"]
        self.optimizer.zero_grad(set_to_none=False)
        self.head_optimizer.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_([p for group in self.groups for p in group["params"]], 1.0)
        if torch.isfinite(norm):
            self.optimizer.step()
            self.head_optimizer.step()
        self.step += 1

    def save(self):
        path = f"{self.out}/{self.stage}.pt"
        torch.save(dict(model=self.model.state_dict(), heads=self.heads.state_dict(), optimizer=self.optimizer.state_dict(), config=dataclasses.asdict(self.config),
                        step=self.step, level=self.level, spent=self.minutes()), path + ".part")
        os.replace(path + ".part", path)

    def report(self, **values):
        line = json.dumps(dict(step=self.step, minutes=round(self.minutes(), 2), **values,
                               accuracy={k: round(sum(v) / len(v), 3) for k, v in sorted(self.history.items())}))
        print(line, flush=True)
        self.log.write(line + "\n")
        self.log.flush()

    def answer(self, batch, visual):
        """Loss on answers and ends; notes accuracy by type. Returns (loss, accuracy)."""
        d = self.device
        layout = dataclasses.replace(batch.layout, visual_at=batch.layout.visual_at.to(d), positions=batch.layout.positions.to(d),
                                     mask=batch.layout.mask.to(d))
        taps = []
        logits = self.model(layout, batch.ids.to(d), visual, batch.outputs.to(d), taps=taps)
        targets = batch.targets.to(d)
        loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
        loss = loss + 0.5 * self.links(batch, taps[1]) + 0.3 * self.attention(batch, layout, taps)
        right = (logits.argmax(-1) == targets).view(len(targets), -1, 3)[:, :, 1:].all(-1).cpu()
        for asked, row in zip(batch.questions, right.tolist()):
            for question, ok in zip(asked, row):
                self.history[question[0]].append(ok)
        return loss, right.float().mean().item()


    def attention(self, batch, layout, taps):
        """Guides the third layer's attention at the key words: head 0 to the moment asked for, head 1, for counting, to a
        share that tells the number. taps: each layer's output [b, n, hidden]."""
        layer, hidden = self.model.model.layers[2], taps[1]
        d = hidden.device
        c, rows, target = self.config, batch.outputs[:, 0::3].to(d), batch.evidence.to(d)
        x = layer.input_layernorm(hidden)
        cos, sin = self.model.rope(layout.positions)
        asked = x.gather(1, rows[:, :, None].expand(-1, -1, x.shape[-1]))
        q = layer.self_attn.q_proj(asked).unflatten(-1, (c.heads, -1))
        q = rotate(q, cos[rows][:, :, None], sin[rows][:, :, None])                          # [b, questions, heads, head_dim]
        k = rotate(layer.self_attn.k_proj(x).unflatten(-1, (c.kv_heads, -1)), cos[:, None], sin[:, None])
        score = torch.einsum("bqhd,bnhd->bhqn", q, k) * c.head_dim ** -0.5
        score = score.masked_fill(~layout.mask[rows - layout.prefix][:, None], float("-inf")).log_softmax(-1)[..., :layout.prefix]
        counting = torch.tensor([[q[0] == "count" for q in asked] for asked in batch.questions], device=d)
        find = -score[:, 0].masked_fill(target == 0, float("-inf")).logsumexp(-1)            # -log of the mass on the evidence
        count = -(score[:, 1] * target).sum(-1)
        # Then the prompt's last token is to read the key word in the fourth layer, where the answer must already stand.
        with_key = self.read_key(layout, rows, batch, taps[2])
        self.history["~find"] += (find.detach() < 0.7)[~counting].tolist()
        return torch.where(counting, 8 * count - 16, find).mean() + with_key

    def read_key(self, layout, keys, batch, hidden):
        """Loss: the answer at the key word after the third layer, and head 0 of the fourth layer from the last token to it."""
        layer, d, c = self.model.model.layers[3], hidden.device, self.config
        here = hidden.gather(1, keys[:, :, None].expand(-1, -1, hidden.shape[-1]))
        words = self.model.model.embed_tokens.weight
        answer = F.cross_entropy(F.linear(self.model.model.norm(here), words).flatten(0, 1), batch.targets[:, 0::3].flatten().to(d))
        last = batch.outputs[:, 1::3].to(d)
        x = layer.input_layernorm(hidden)
        cos, sin = self.model.rope(layout.positions)
        q = layer.self_attn.q_proj(x.gather(1, last[:, :, None].expand(-1, -1, x.shape[-1]))).unflatten(-1, (c.heads, -1))[:, :, 0]
        k = layer.self_attn.k_proj(x).unflatten(-1, (c.kv_heads, -1))[:, :, 0]
        score = rotate(q, cos[last], sin[last]) @ rotate(k, cos, sin).transpose(1, 2) * c.head_dim ** -0.5          # [b, questions, n]
        score = score.masked_fill(~layout.mask[last - layout.prefix], float("-inf")).log_softmax(-1)
        return answer - 0.5 * score.gather(-1, keys[:, :, None]).mean()

    def links(self, batch, hidden):
        """Loss of the throw-away heads on the video part of one layer's output [b, n, hidden]."""
        pairs = batch.layout.pairs
        labels = torch.tensor(np.stack([batches.link_labels(t, pairs) for t in batch.tables]), device=hidden.device)    # [b, p, 2]
        tokens_ = hidden[:, batch.layout.visual_at.to(hidden.device)].unflatten(1, (len(pairs), -1))                    # [b, p, 9, hidden]
        loss, start = 0, 0
        for i, (name, classes) in enumerate(batches.LINKS):
            on = labels[:, :, i] >= 0
            if on.any():
                shown, truth = tokens_[on], labels[:, :, i][on]
                logits = F.linear(shown, self.heads.weight[start:start + classes], self.heads.bias[start:start + classes])
                loss = loss + F.cross_entropy(logits.flatten(0, 1), truth.repeat_interleave(shown.shape[1]))
                self.history["~" + name] += (logits.mean(1).argmax(-1) == truth).tolist()
            start += classes
        return loss


def vision(args):
    run = Run(args, "vision", [], [("visual", 1.0)])
    table = run.symbols.to(run.device)
    pool = pixels.Pool(g.generator(DOMAIN, run.seed, 77, run.step), 60)
    spans = {name: (batches.FIRST[name], batches.FIRST[name] + n) for name, n in batches.GROUPS if n > 1}
    steps = args.steps or 1 << 20
    while run.step < steps and run.minutes() < args.minutes:
        if run.step % 2 == 0:
            pool.refresh()
        pixels_, weights = (t.to(run.device) for t in pool.pairs(96))
        seen = run.model.visual(run.model.visual.patchify(pixels_))
        error = (seen - (weights @ table)[:, None]) / batches.SYMBOL_RMS
        loss = error.pow(2).mean()
        read = (seen.mean(1) @ table.T) / table.pow(2).sum(1)            # [n, SYMBOLS]: 1 where a symbol is present
        for name, (a, b) in spans.items():
            on = weights[:, a:b].amax(1) > 0.99
            if on.any():
                truth = weights[on, a:b].argmax(1)
                loss = loss + 0.1 * F.cross_entropy(read[on, a:b] * 6, truth)
                run.history[name] += (read[on, a:b].argmax(1) == truth).tolist()
        run.update(loss, (args.lr or 1.5e-3) * min(1, (run.step + 1) / 50) * max(0.02, 1 - run.minutes() / args.minutes))
        if run.step % 50 == 0:
            run.report(loss=round(loss.item(), 4), error=round(error.pow(2).mean().item(), 5))
        if run.step % 200 == 0:
            run.save()
    run.save()


def recall(args):
    run = Run(args, "recall", [], [("model", 1.0)])
    recent, begun, _fresh = collections.deque(maxlen=25), run.step, True
    while run.level < len(LEVELS) and run.minutes() < args.minutes:
        most, clips, count, goal, limit = LEVELS[run.level]
        rng = run.rng()
        pairs = most if rng.random() < 0.6 else int(rng.integers(10, most + 1))
        batch = batches.make_batch(rng, run.encode, run.config, max(1, clips * most // (pairs + 12)) if pairs < most else clips,
                                   pairs, count, stamps=rng.random() < 0.15 and run.level > 1)
        visual = batches.symbol_tokens(batch, run.symbols, run.config, float(rng.uniform(0.02, 0.1))).to(run.device)
        loss, accuracy = run.answer(batch, visual)
        run.update(loss, (1.5e-3 if most < 60 else 6e-4) * min(1, (run.step + 1) / 60))
        if pairs == most:
            recent.append(accuracy)
        if run.step % 25 == 0:
            run.report(pairs=most, loss=round(loss.item(), 3), recent=round(sum(recent) / len(recent), 3) if recent else 0)
        if run.step % 100 == 0:
            run.save()
        if (len(recent) == recent.maxlen and sum(recent) / len(recent) > goal) or run.step - begun >= limit:
            run.level, begun = run.level + 1, run.step
            recent.clear()
            run.save()
    run.save()


class TowerClips(torch.utils.data.Dataset):
    """Step -> (batch, visual tokens) as the tower at rest makes them, or of symbols where there is no tower. Used by worker processes, so that rendering and
    the tower run beside the language model."""

    def __init__(self, visual, seed, config, blend):
        self.visual, self.seed, self.config, self.blend = visual, seed, config, blend
        self.symbols = batches.symbol_table(config.hidden)

    def __len__(self):
        return 1 << 30

    def __getitem__(self, step):
        torch.set_num_threads(1)
        rng = g.generator(DOMAIN, self.seed, 5150, step)
        encode = tokens.Encoder() if not hasattr(self, "encode") else self.encode
        self.encode = encode
        clips, low, high, count = self.blend[rng.choice(len(self.blend), p=[b[0] for b in self.blend])][1:]
        pairs = int(rng.integers(low, high + 1))
        batch = batches.make_batch(rng, encode, self.config, clips, pairs, count, stamps=rng.random() < 0.2)
        if self.visual is None:
            return batch, batches.symbol_tokens(batch, self.symbols, self.config, float(rng.uniform(0.02, 0.1)))
        visual = []
        for table in batch.tables:
            frames = pixels.draw(rng, table)[batch.layout.pairs]
            with torch.no_grad():
                made = [self.visual(self.visual.patchify(batches.normalise(torch.tensor(part)))) for part in np.array_split(frames, len(frames) // 48 + 1)]
            visual.append(torch.cat(made).flatten(0, 1))
        return batch, torch.stack(visual)


# mix and join: (share of steps, clips per step, fewest pairs, most pairs, questions per clip)
BLEND = [(0.45, 4, 20, 33, 32), (0.2, 2, 34, 150, 36), (0.35, 1, 200, 444, 48)]


def mix(args):
    tune(args, Run(args, "mix", ["recall"], [("model", 1.0)]), False)


def join(args):
    tune(args, Run(args, "join", ["vision", "mix"], [("model", 1.0)]), True)


def tune(args, run, pixels_):
    """The language model on clips of all lengths, of pixels through the tower or of symbols."""
    steps = args.steps or 1 << 20
    tower = TowerClips(VideoModel(run.config).visual if pixels_ else None, run.seed, run.config, BLEND)
    if pixels_:
        tower.visual.load_state_dict(run.model.visual.state_dict())
        tower.visual.requires_grad_(False)
    loader = torch.utils.data.DataLoader(tower, batch_size=None, sampler=range(run.step, steps), num_workers=args.workers,
                                         prefetch_factor=3 if args.workers else None)
    for batch, visual in loader:
        loss, accuracy = run.answer(batch, visual.to(run.device))
        long = len(batch.layout.pairs) > 150
        run.history["[long]" if long else "[short]"].append(accuracy)
        run.update(loss, (args.lr or 5e-4) * min(1, (run.step + 1) / 30) * max(0.03, 1 - run.minutes() / args.minutes))
        if run.step % 20 == 0:
            run.report(loss=round(loss.item(), 3))
        if run.step % 50 == 0:
            run.save()
        if run.minutes() > args.minutes:
            break
    run.save()


STAGES = {"vision": (vision, 25), "recall": (recall, 30), "mix": (mix, 15), "join": (join, 20)}


def main():
    parser = argparse.ArgumentParser(description="Train the small video model, one stage at a time.")
    parser.add_argument("stage", choices=list(STAGES))
    parser.add_argument("--out", required=True, help="folder of checkpoints and logs")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, help="stop (and save) after so many minutes of this stage")
    parser.add_argument("--steps", type=int, help="stop after so many steps")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--workers", type=int, default=1, help="mix and join: processes that make clips")
    parser.add_argument("--lr", type=float, help="highest learning rate (vision, join)")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    run, minutes = STAGES[args.stage]
    args.minutes = args.minutes or minutes
    run(args)


if __name__ == "__main__":
    main()
