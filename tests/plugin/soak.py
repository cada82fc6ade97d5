"""Mixed requests to a stock llama-server with its KV cache packed: soak.py [--requests N] [--seed S] [--preset P]....

Four slots in one cache, idle ones saved in RAM: long and short prompts, conversations that go on, streamed answers, answers that are
cancelled midway, and videos. Answers that are read to their end are compared with those of a server that answers one request at
a time. With the f16 preset they are the same, which shows that conversations keep to themselves; packed codes depend on what was
written before them, and these prompts of random words have many answers that are nearly as good as each other. The server must answer to
the end, and its memory must stay what it was after the first fifth. The environment is that of stock_tools.py."""

import argparse
import base64
import http.client
import json
import random
import re
import tempfile
import threading
from pathlib import Path

import stock_tools

WORDS = "red green blue circle square moves left right up down first then last one two three four video shows small large".split()
EQUAL_SHARE = {"f16": 0.98}
PACKED_EQUAL_SHARE = 0.8
GROWTH = 32 << 20


def prompts(rng, count):
    """(kind, body) of each request. Some begin as an earlier one did, as conversations do."""
    beginnings = [" ".join(rng.choices(WORDS, k=rng.randint(20, 500))) for _ in range(max(4, count // 12))]
    out = []
    for _ in range(count):
        kind = rng.choices(["plain", "stream", "cancel", "video"], [6, 3, 2, 1])[0]
        text = rng.choice(beginnings) + " " + " ".join(rng.choices(WORDS, k=rng.randint(1, 60)))
        body = {"prompt": text, "n_predict": rng.randint(4, 40), "temperature": 0, "cache_prompt": True, "ignore_eos": True}
        out.append((kind, body))
    return out


def as_video(body, video):
    content = [{"type": "input_video", "input_video": {"data": video}}, {"type": "text", "text": body["prompt"][-80:]}]
    return {"messages": [{"role": "user", "content": content}], "max_tokens": 8, "temperature": 0}


def read_stream(response, stop_after=None):
    text = ""
    for n, line in enumerate(response):
        if line.startswith(b"data: ") and line.strip() != b"data: [DONE]":
            text += json.loads(line[6:]).get("content", "")
        if stop_after is not None and n >= stop_after:
            return None
    return text


def ask(port, kind, body, video):
    """The answer; None if it was cancelled."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
    path = "/v1/chat/completions" if kind == "video" else "/completion"
    if kind == "video":
        body = as_video(body, video)
    elif kind != "plain":
        body = dict(body, stream=True)
    connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
    response = connection.getresponse()
    if response.status != 200:
        raise AssertionError(f"{path}: {response.status} {response.read().decode(errors='replace')}")
    try:
        if kind == "video":
            return json.load(response)["choices"][0]["message"]["content"]
        if kind == "plain":
            return json.load(response)["content"]
        return read_stream(response, stop_after=4 if kind == "cancel" else None)
    finally:
        connection.close()


def resident(pid):
    return int(re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())[1]) << 10


def run(port, pid, requests, video, clients):
    """All answers, and the resident bytes after each finished request."""
    answers, memory, failures = [None] * len(requests), [], []
    pending = iter(range(len(requests)))
    lock = threading.Lock()

    def client():
        while not failures:
            with lock:
                index = next(pending, None)
            if index is None:
                return
            try:
                answers[index] = ask(port, *requests[index], video)
            except Exception as error:  # noqa: BLE001: told by the main thread
                failures.append(f"request {index}: {error!r}")
            memory.append(resident(pid))

    threads = [threading.Thread(target=client) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise AssertionError("\n".join(failures))
    return answers, memory


def soak(count, seed, preset):
    requests = prompts(random.Random(seed), count)
    model, mmproj = stock_tools.video_model()
    common = ["-m", model, "--mmproj", mmproj, "-c", 8192]
    with tempfile.TemporaryDirectory() as folder:
        video = base64.b64encode(stock_tools.make_clip(folder).read_bytes()).decode()
    with stock_tools.server(*common, "-np", 4, "--kv-unified", "--cache-ram", 16, preset=preset) as call:
        together, memory = run(call.port, call.pid, requests, video, clients=6)
    with stock_tools.server(*common, "-np", 1, "--cache-ram", 0, preset=preset) as call:
        alone, _ = run(call.port, call.pid, requests, video, clients=1)
    finished = [i for i, answer in enumerate(together) if answer is not None and alone[i] is not None]
    differ = [i for i in finished if together[i] != alone[i]]
    early, late = max(memory[: max(8, count // 5)]), max(memory[count // 5 :])
    print(f"{count} requests (seed {seed}, {preset}): {len(finished)} answers, {len(differ)} differ from those given one at a time; "
          f"resident {early >> 20} MiB after the first fifth, {late >> 20} MiB at most afterwards")
    for i in differ[:3]:
        print(f"  {requests[i][0]} {i}: {together[i]!r} and {alone[i]!r}")
    assert len(finished) >= count // 2, "too few answers"
    share = EQUAL_SHARE.get(preset, PACKED_EQUAL_SHARE)
    assert len(differ) <= (1 - share) * len(finished), "answers differ"
    assert late - early <= GROWTH, "memory grows"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=60)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--preset", action="append", help="default: f16 and t1.65")
    given = parser.parse_args()
    for name in given.preset or ["f16", "t1.65"]:
        soak(given.requests, given.seed, name)
