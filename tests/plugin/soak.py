"""Mixed requests to a stock llama-server with its KV cache packed: soak.py [--requests N] [--seed S] [--preset P]... [--keep FOLDER].

The server runs as people start it (four slots in one cache, idle ones saved in RAM, here up to 16 MiB) and is asked for chat completions:
long and short prompts, prompts that go on as an earlier one began, streamed answers, answers that are cancelled midway, images and
videos; through the openai client where that is installed, else by plain HTTP. Answers that are read to their end are compared with those of a
server that answers one request at a time. With the f16 preset they are the same, which shows that conversations keep to themselves. Packed codes
depend on what was written before them: where an answer parts from the other, the two tokens must have been nearly as likely as each other. The
server must answer to the end, and its memory must stay what it was after the first fifth or the first 400 requests. No request is
asked twice. The preset "stock" is the server without the plug-in: what grows there, and which answers part there, is not ours. The environment
is that of stock_tools.py; VIDKV_SOAK_REQUESTS is another way to say how many."""

import argparse
import base64
import contextlib
import http.client
import json
import os
import random
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import stock_tools

ROOT = Path(__file__).parents[2]
WORDS = "red green blue circle square moves left right up down first then last one two three four video shows small large".split()
KINDS = {"plain": 6, "stream": 3, "cancel": 2, "video": 1, "image": 1}
STOCK = "stock"
EQUAL_SHARE = {"f16": 0.98}  # of the answers; products of more rows are rounded otherwise
NEARLY_AS_LIKELY = 0.5  # nats
PACKED_ALIKE_SHARE = 0.85  # these prompts of random words mean nothing to the small model
WARM_UP = 400  # requests, until every slot has held a long prompt and the saved ones fill their room; a server without the plug-in takes as long
GROWTH = 32 << 20


def make_media(folder):
    """Short clips with questions about them, and an image."""
    clips = Path(folder) / "clips"
    generator = [sys.executable, ROOT / "models/clips/generate.py", "--seed", "17", "--split", "short", "--count", "6", clips]
    subprocess.run([*map(str, generator)], check=True)
    image = Path(folder) / "image.png"
    source = ["-f", "lavfi", "-i", "testsrc=size=84x84:rate=1:duration=1", "-frames:v", "1"]
    subprocess.run(["ffmpeg", "-loglevel", "error", "-y", *source, str(image)], check=True)
    questions = [json.loads(line) for line in (clips / "questions.jsonl").read_text().splitlines()]
    videos = {q["video"]: base64.b64encode((clips / q["video"]).read_bytes()).decode() for q in questions}
    return [(videos[q["video"]], q["question"]) for q in questions], base64.b64encode(image.read_bytes()).decode()


def content_of(rng, kind, beginnings, videos, image):
    if kind == "video":
        video, question = rng.choice(videos)
        return [{"type": "input_video", "input_video": {"data": video}}, {"type": "text", "text": question}]
    text = rng.choice(beginnings) + " " + " ".join(rng.choices(WORDS, k=rng.randint(1, 60)))
    if kind == "image":
        return [{"type": "image_url", "image_url": {"url": "data:image/png;base64," + image}}, {"type": "text", "text": text[-80:]}]
    return text


def make_requests(rng, count, media):
    """(kind, body) of each request."""
    beginnings = [" ".join(rng.choices(WORDS, k=rng.randint(20, 300))) for _ in range(max(4, min(count // 12, 40)))]
    out = []
    for _ in range(count):
        kind = rng.choices(list(KINDS), KINDS.values())[0]
        messages = [{"role": "user", "content": content_of(rng, kind, beginnings, *media)}]
        body = {"model": "any", "messages": messages, "max_tokens": rng.randint(4, 40), "temperature": 0, "logprobs": True, "top_logprobs": 3}
        out.append((kind, dict(body, stream=True) if kind in ("stream", "cancel") else body))
    return out


@contextlib.contextmanager
def http_replies(port, body):
    """The reply as one object, or an iterator of its parts if it is streamed."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=3600)
    connection.request("POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"})
    response = connection.getresponse()
    if response.status != 200:
        raise AssertionError(f"{response.status} {response.read().decode(errors='replace')}")
    try:
        lines = (line[6:] for line in response if line.startswith(b"data: ") and line.strip() != b"data: [DONE]")
        yield map(json.loads, lines) if body.get("stream") else json.load(response)
    finally:
        connection.close()


@contextlib.contextmanager
def openai_replies(port, body):
    client = openai_client(port)
    reply = client.chat.completions.create(**body)
    try:
        yield (part.model_dump() for part in reply) if body.get("stream") else reply.model_dump()
    finally:
        if body.get("stream"):
            reply.close()


clients = threading.local()


def openai_client(port):
    """This thread's client: each request has a connection of its own, and none is asked again where that breaks."""
    if getattr(clients, "port", None) != port:
        once = {"timeout": 3600, "max_retries": 0, "default_headers": {"Connection": "close"}}
        clients.port, clients.client = port, openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", **once)
    return clients.client


try:
    import openai
    replies_of = openai_replies
except ImportError:
    openai, replies_of = None, http_replies


def tokens_of(choice):
    """[(token, {token: log-probability})]"""
    listed = (choice.get("logprobs") or {}).get("content") or []
    return [(each["token"], {top["token"]: top["logprob"] for top in each["top_logprobs"]}) for each in listed]


def ask(port, kind, body):
    """The tokens of the answer; None if it was cancelled."""
    with replies_of(port, body) as replies:
        if not body.get("stream"):
            return tokens_of(replies["choices"][0])
        tokens = []
        for n, part in enumerate(replies):
            if kind == "cancel" and n >= 3:
                return None
            if part["choices"]:
                tokens += tokens_of(part["choices"][0])
        return None if kind == "cancel" else tokens


def resident(pid):
    return int(re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())[1]) << 10


def state(call):
    """What became of the server when a request failed: one that crashes closes its connections a moment before it is gone."""
    time.sleep(1)
    return call.death() or "llama-server still runs"


def run(call, requests, clients):
    """All answers, and the resident bytes after each finished request."""
    answers, memory, failures = [None] * len(requests), [], []
    begun = time.monotonic()
    pending = iter(range(len(requests)))
    lock = threading.Lock()

    def client():
        while not failures:
            with lock:
                index = next(pending, None)
            if index is None:
                return
            try:
                answers[index] = ask(call.port, *requests[index])
            except Exception as error:  # noqa: BLE001: told by the main thread
                failures.append(f"request {index} ({requests[index][0]}, not asked again): {error!r}; {state(call)}")
                return
            with lock:
                memory.append(resident(call.pid))
                if len(memory) % 50 == 0:
                    print(f"  {len(memory)} requests, {time.monotonic() - begun:.0f} s, resident {memory[-1] / 2**20:.1f} MiB", flush=True)

    threads = [threading.Thread(target=client) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise AssertionError("\n".join(failures))
    return answers, memory


def parting(together, alone):
    """How much likelier, in nats, the server that answers one at a time found its own token where the answers part; 0 if they do not."""
    for (token, _), (wanted, likely) in zip(together, alone):
        if token != wanted:
            return likely[wanted] - likely.get(token, min(likely.values()))
    return 0.0


def check_memory(memory, count):
    warm = max(count // 5, min(count * 2 // 3, WARM_UP))
    early, late = max(memory[:warm]), max(memory[warm:])
    halves = [statistics.median(memory[: count // 2]), statistics.median(memory[count // 2 :])]
    print(f"  resident: {early / 2**20:.0f} MiB at most in the first {warm} requests, {late / 2**20:.0f} afterwards; "
          f"median of the first half {halves[0] / 2**20:.1f}, of the second {halves[1] / 2**20:.1f}")
    assert late - early <= GROWTH, "memory grows"


def check_answers(together, alone, preset, requests):
    finished = [i for i, answer in enumerate(together) if answer is not None]
    differ = [i for i in finished if [t for t, _ in together[i]] != [t for t, _ in alone[i]]]
    apart = [i for i in differ if parting(together[i], alone[i]) > NEARLY_AS_LIKELY]
    print(f"  {len(finished)} answers: {len(finished) - len(differ)} equal those given one at a time, {len(differ) - len(apart)} part where two tokens "
          f"are within {NEARLY_AS_LIKELY} nats, {len(apart)} elsewhere")
    for i in apart[:5]:
        texts = ["".join(t for t, _ in answer) for answer in (together[i], alone[i])]
        print(f"    {requests[i][0]} {i}: {texts[0]!r} and {texts[1]!r}, {parting(together[i], alone[i]):.2f} nats")
    assert len(finished) >= len(together) // 2, "too few answers"
    assert len(apart) <= (1 - PACKED_ALIKE_SHARE) * len(finished), "answers differ"
    assert len(differ) <= (1 - EQUAL_SHARE.get(preset, 0)) * len(finished), "answers differ"


def kept_in(folder, name):
    """A folder for what a server leaves, or None."""
    if folder:
        (folder / name).mkdir(parents=True, exist_ok=True)
    return folder and folder / name


def soak(count, seed, preset, media, folder=None):
    requests = make_requests(random.Random(seed), count, media)
    model, mmproj = stock_tools.video_model()
    common = ["-m", model, "--mmproj", mmproj, "-c", 8192, "--video-timestamp-interval", 0]
    kind_of_cache = {"preset": None, "device": ["--device", "none"]} if preset == STOCK else {"preset": preset}
    begun = time.monotonic()
    with stock_tools.server(*common, "--cache-ram", 16, **kind_of_cache, folder=kept_in(folder, f"{preset}-together")) as call:
        together, memory = run(call, requests, clients=6)
    seconds = time.monotonic() - begun
    with stock_tools.server(*common, "-np", 1, "--cache-ram", 0, **kind_of_cache, folder=kept_in(folder, f"{preset}-alone")) as call:
        alone, _ = run(call, [("plain" if kind == "cancel" else kind, body) for kind, body in requests if kind != "cancel"], clients=1)
    rest = iter(alone)
    alone = [None if kind == "cancel" else next(rest) for kind, _ in requests]
    kinds = ", ".join(f"{sum(kind == each for kind, _ in requests)} {each}" for each in KINDS)
    client = f"openai {openai.__version__}" if openai else "plain HTTP"
    print(f"{preset}, {count} requests (seed {seed}, {client}, {seconds:.0f} s): {kinds}", flush=True)
    check_answers(together, alone, preset, requests)
    check_memory(memory, count)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=int(os.environ.get("VIDKV_SOAK_REQUESTS") or 24))
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--preset", action="append", help="default: f16 and t1.65; stock: without the plug-in")
    parser.add_argument("--keep", type=Path, help="a folder for the servers' logs, and for the core file of one that crashes")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as made:
        all_media = make_media(made)
    for name in given.preset or ["f16", "t1.65"]:
        soak(given.requests, given.seed, name, all_media, given.keep and given.keep.resolve())
