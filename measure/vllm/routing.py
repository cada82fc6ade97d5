#!/usr/bin/env python3
"""Simulation: many users ask about the same videos on several nodes; f16 against packed pages, with and without routing by video.

    routing.py [--users 1000] [--videos 100] [--nodes 10] [--hours 1] ...

A question comes with a video of --tokens visual tokens. A node that holds the video's KV cache answers at once; else it fetches it from
the shared store, if that has it, or else computes it and stores it. Videos are asked about by Zipf's law; each user asks again after an
exponentially distributed pause. Nodes and store forget the least recently used. A node computes or restores one video at a time; the
store's line is shared by the transfers that are under way. TTFT: from the question's arrival to its first token."""
import argparse
import heapq
import json
import random
from collections import OrderedDict
from dataclasses import dataclass, field


class Lru:
    """Videos of equal size."""

    def __init__(self, places):
        self.places, self.held = places, OrderedDict()

    def use(self, video):
        if video not in self.held:
            return False
        self.held.move_to_end(video)
        return True

    def put(self, video):
        if self.places < 1:
            return
        self.held[video] = True
        self.held.move_to_end(video)
        if len(self.held) > self.places:
            self.held.popitem(last=False)


@dataclass
class Node:
    cache: Lru
    free_at: float = 0.0


@dataclass
class Tally:
    local: int = 0
    fetched: int = 0
    computed: int = 0
    network_bytes: float = 0.0
    ttft: list = field(default_factory=list)

    def row(self):
        n, ordered = len(self.ttft), sorted(self.ttft)
        return {
            "questions": n,
            "local": round(self.local / n, 3),
            "fetched": round(self.fetched / n, 3),
            "computed": round(self.computed / n, 3),
            "network_gb": round(self.network_bytes / 1e9, 1),
            "ttft_mean": round(sum(ordered) / n, 2),
            "ttft_median": round(ordered[n // 2], 2),
            "ttft_p95": round(ordered[int(n * 0.95)], 2),
        }


class Cluster:
    def __init__(self, arguments, bytes_per_token, by_video):
        self.a, self.by_video = arguments, by_video
        self.video_bytes = bytes_per_token * arguments.tokens
        self.nodes = [Node(Lru(int(arguments.node_gb * 1e9 // self.video_bytes))) for _ in range(arguments.nodes)]
        self.store = Lru(int(arguments.store_gb * 1e9 // self.video_bytes))
        self.line_free = 0.0
        self.tally = Tally()

    def node_for(self, video):
        """By video: the node whose turn it is by the video's number, unless its queue is long; else the one that is free first."""
        first = min(self.nodes, key=lambda node: node.free_at)
        if not self.by_video:
            return first
        own = self.nodes[video % len(self.nodes)]
        return own if own.free_at <= max(first.free_at, self.now) + self.a.patience else first

    def ask(self, now, video):
        self.now = now
        node = self.node_for(video)
        start = max(now, node.free_at)
        ready = start + self.bring(node, video, start)
        done = ready + self.a.question_seconds
        node.free_at = done + self.a.answer_seconds
        self.tally.ttft.append(done - now)

    def bring(self, node, video, start):
        """Seconds until the node has the video's KV cache."""
        if node.cache.use(video):
            self.tally.local += 1
            return 0.0
        node.cache.put(video)
        if self.store.use(video):
            self.tally.fetched += 1
            return self.transfer(start) - start + self.a.tokens / self.a.restore_rate
        self.tally.computed += 1
        self.store.put(video)
        self.transfer(start + self.a.tokens / self.a.compute_rate)  # stored behind the answer
        return self.a.tokens / self.a.compute_rate

    def transfer(self, start):
        """When a transfer that begins at `start` has ended; the store's line carries them one after the other."""
        self.line_free = max(self.line_free, start) + self.video_bytes * 8 / (self.a.network_gbit * 1e9)
        self.tally.network_bytes += self.video_bytes
        return self.line_free


def questions(arguments):
    """(time, video) in order of time."""
    rng = random.Random(arguments.seed)
    weights = [1 / (i + 1) ** arguments.zipf for i in range(arguments.videos)]
    pause = lambda: rng.expovariate(1 / arguments.pause)
    due = [(pause(), user) for user in range(arguments.users)]
    heapq.heapify(due)
    while due[0][0] < arguments.hours * 3600:
        now, user = heapq.heappop(due)
        yield now, rng.choices(range(arguments.videos), weights)[0]
        heapq.heappush(due, (now + pause(), user))


def arguments_from_user():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    number = lambda name, value, text, kind=float: parser.add_argument(name, type=kind, default=value, help=f"{text} ({value})")
    number("--users", 1000, "users", int)
    number("--videos", 100, "videos", int)
    number("--nodes", 10, "nodes", int)
    number("--hours", 1.0, "hours of questions")
    number("--pause", 300.0, "mean seconds between two questions of a user")
    number("--zipf", 0.8, "exponent of the videos' popularity")
    number("--tokens", 8192, "visual tokens of a video", int)
    number("--f16-bytes", 12288.0, "bytes of a token in f16, all layers")
    number("--packed-bytes", 1336.0, "bytes of a token in packed pages, all layers")
    number("--compute-rate", 170.0, "tokens that a node computes in a second")
    number("--restore-rate", 330000.0, "tokens that a node restores in a second, once they are there")
    number("--node-gb", 1.0, "GB for KV caches on a node")
    number("--store-gb", 4.0, "GB of the shared store")
    number("--network-gbit", 1.0, "Gbit/s of the shared store's line")
    number("--question-seconds", 0.6, "seconds to read a question on a KV cache that is there")
    number("--answer-seconds", 0.58, "seconds that a node is taken by an answer after its first token")
    number("--patience", 2.0, "seconds by which a video's own node may be busier than the least busy one")
    number("--seed", 1, "of the random numbers", int)
    return parser.parse_args()


def main():
    arguments = arguments_from_user()
    asked = list(questions(arguments))
    for name, size in (("f16", arguments.f16_bytes), ("packed", arguments.packed_bytes)):
        for by_video in (False, True):
            cluster = Cluster(arguments, size, by_video)
            for now, video in asked:
                cluster.ask(now, video)
            print(json.dumps({"pages": name, "routing": "by video" if by_video else "least busy", **cluster.tally.row()}))


if __name__ == "__main__":
    main()
