#!/usr/bin/env python3
"""Two vLLM processes in two network namespaces and one Redis between them: what one has read the other need not compute; kill -9 of one
and of Redis in the middle; altered and foreign entries. Needs root, `ip` and redis-server (exit 77 without them); prints what it saw, line by
line, and ends with an error where that is not what it should be.

    $(scripts/vllm-environment)/bin/python tests/python/vllm/two_hosts.py"""
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ENGINE = Path(__file__).with_name("engine.py")
BRIDGE, HERE = "vidkv-br", "10.77.0.1"
HOSTS = {"vidkv-a": "10.77.0.2", "vidkv-b": "10.77.0.3"}
PORT = 6399
LONG = {"lengths": [700, 300]}


def ip(*words, check=True):
    subprocess.run(["ip", *words], check=check, stderr=None if check else subprocess.DEVNULL)


def make_network():
    ip("link", "add", BRIDGE, "type", "bridge")
    ip("addr", "add", f"{HERE}/24", "dev", BRIDGE)
    ip("link", "set", BRIDGE, "up")
    for name, address in HOSTS.items():
        ip("netns", "add", name)
        ip("link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", name)
        ip("link", "set", name, "master", BRIDGE, "up")
        for words in (["addr", "add", f"{address}/24", "dev", "eth0"], ["link", "set", "eth0", "up"], ["link", "set", "lo", "up"]):
            ip("-n", name, *words)


def remove_network():
    for name in HOSTS:
        ip("netns", "del", name, check=False)
    ip("link", "del", BRIDGE, check=False)


class Redis:
    def __init__(self, folder):
        self.process = subprocess.Popen(["redis-server", "--port", str(PORT), "--bind", HERE, "--protected-mode", "no", "--save", "", "--dir", folder],
                                        stdout=subprocess.DEVNULL)
        while self.ask("ping", check=False) != "PONG":
            time.sleep(0.1)

    @staticmethod
    def ask(*words, check=True):
        done = subprocess.run(["redis-cli", "-h", HERE, "-p", str(PORT), *words], capture_output=True, text=True)
        assert not check or done.returncode == 0, done.stderr
        return done.stdout.strip()

    def keys(self):
        return int(self.ask("dbsize"))


def start(host, folder, asks):
    extra = {"store": f"redis://{HERE}:{PORT}/0", "ttl": 3600}
    transfer = {"kv_connector": "VidKVConnector", "kv_role": "kv_both", "kv_connector_extra_config": extra}
    plan = {"it": {"preset": "t1.65", "ask": asks, "engine": {"kv_transfer_config": transfer, "max_num_batched_tokens": 256}}}
    return subprocess.Popen(["ip", "netns", "exec", host, sys.executable, str(ENGINE), folder, json.dumps(plan)], stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, text=True, start_new_session=True)


def answers(process):
    out, said = process.communicate()
    assert process.returncode == 0, said[-3000:]
    found = json.loads(out.strip().splitlines()[-1])["it"]
    assert "error" not in found, found["error"]
    return found["answers"], out + said


wrong = []


def report(what, seen, right):
    print(json.dumps({"what": what, **seen, "right": bool(right)}), flush=True)
    if not right:
        wrong.append(what)


def killed_while_it_writes(redis, folder):
    """The first instance dies with kill -9 as soon as it has stored two blocks."""
    process = start("vidkv-a", folder, [{"lengths": [3000, 3000], "seed": 3}])
    while redis.keys() < 2 and process.poll() is None:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    report("kill -9 of the first while it writes", {"entries": redis.keys()}, redis.keys() >= 2)


def missing():
    """Why this machine cannot try it; None if it can."""
    if os.geteuid() != 0:
        return "only root makes network namespaces"
    absent = [name for name in ("ip", "redis-server", "redis-cli") if shutil.which(name) is None]
    if absent:
        return f"{', '.join(absent)} is not installed"
    tried = subprocess.run(["ip", "netns", "add", "vidkv-try"], capture_output=True, text=True)
    ip("netns", "del", "vidkv-try", check=False)
    return None if tried.returncode == 0 else f"no network namespaces here: {tried.stderr.strip()}"


def the_first(folder, redis):
    killed_while_it_writes(redis, folder)
    answer, _ = answers(start("vidkv-a", folder, [LONG]))
    cached = [a["cached"] for a in answer[0]]
    report("the first reads", {"cached": cached, "entries": redis.keys()}, cached == [0, 0] and redis.keys() >= 9)


def the_second(folder, redis):
    cli = f"redis-cli -h {HERE} -p {PORT}"
    spoil = f"for k in $({cli} --scan); do {cli} setrange $k 5000 xxxxxxxx; done >/dev/null"
    foreign = f"a=$({cli} --scan | head -1); for k in $({cli} --scan); do [ $k = $a ] || {cli} copy $a $k replace; done >/dev/null"
    steps = [  # what is asked, and what its prompts find
        ("what the killed one had stored", {"lengths": [3000, 3000], "seed": 3}, lambda cached: cached[0] >= 256),
        ("what the first has read", LONG, lambda cached: cached == [640, 256]),
        ("all entries altered", {**LONG, "forget": True, "before": spoil}, lambda cached: cached == [0, 0]),
        ("written again by the step before", {**LONG, "forget": True}, lambda cached: cached == [640, 256]),
        ("entries of other blocks", {**LONG, "forget": True, "before": foreign}, lambda cached: sum(cached) <= 128),
        ("Redis killed", {**LONG, "forget": True, "before": f"kill -9 {redis.process.pid}"}, lambda cached: cached == [0, 0]),
    ]
    found, said = answers(start("vidkv-b", folder, [asked for _, asked, _ in steps]))
    tokens = [[a["tokens"] for a in answer] for answer in found]
    for i, (name, _, right) in enumerate(steps):
        cached = [a["cached"] for a in found[i]]
        # What is read from codes answers alike, whoever packed them; so does what is computed.
        like = {2: None, 3: tokens[1], 5: tokens[2]}.get(i)
        report(f"the second: {name}", {"cached": cached}, right(cached) and (like is None or tokens[i] == like))
    lines = [line.split("] ")[-1] for line in said.splitlines() if "cannot be used" in line]
    report("lines about Redis", {"lines": lines}, len(lines) in (1, 2))  # the scheduler's half of the connector and the worker's


def main():
    reason = missing()
    if reason:
        print(f"skipped: {reason}")
        return 77
    folder = tempfile.mkdtemp(prefix="vidkv-hosts-")
    remove_network()
    make_network()
    redis = None
    try:
        redis = Redis(folder)
        the_first(folder, redis)
        the_second(folder, redis)
    finally:
        if redis:
            redis.process.kill()
        remove_network()
        shutil.rmtree(folder)
    return f"not as it should be: {', '.join(wrong)}" if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
