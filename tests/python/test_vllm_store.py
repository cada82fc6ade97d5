"""Entries and stores of vidkv.vllm that need no vLLM: what is altered, foreign, cut off, too old or too much."""
import contextlib
import os
import shutil
import socket
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

import vidkv.vllm
from vidkv.vllm import entries, keys, versions
from vidkv.vllm.store import Folder, open_store

ABOUT = {"preset": "t1.65", "layers": 2}
PARTS = [b"first layer" * 50, b"second layer" * 40]


def test_an_entry_comes_back_as_it_was():
    data = entries.write("name", ABOUT, PARTS)
    assert entries.read(data, "name", ABOUT) == PARTS


@pytest.mark.parametrize("other", [("another", ABOUT), ("name", {**ABOUT, "preset": "t2.2"}), ("name", {**ABOUT, "layers": 3})])
def test_foreign_entries_are_no_hit(other):
    assert entries.read(entries.write("name", ABOUT, PARTS), *other) is None


def test_altered_and_cut_entries_are_no_hit():
    data = entries.write("name", ABOUT, PARTS)
    for at in range(0, len(data), 7):
        spoiled = bytearray(data)
        spoiled[at] ^= 4
        assert entries.read(bytes(spoiled), "name", ABOUT) is None
        assert entries.read(data[:at], "name", ABOUT) is None
    assert entries.read(data + b"x", "name", ABOUT) is None
    assert entries.read(None, "name", ABOUT) is None


class Request:
    def __init__(self, tokens, extra=None):
        self.all_token_ids, self.extra = tokens, extra


def extra_keys(request, first, end, media):
    return request.extra, media


def test_keys_depend_on_all_tokens_before_and_on_what_is_not_tokens():
    tokens = list(range(512))
    base = keys.of_request(Request(tokens), 4, extra_keys)
    assert len(set(base)) == 4
    other = keys.of_request(Request([7, *tokens[1:]]), 4, extra_keys)
    assert not set(base) & set(other)
    late = keys.of_request(Request(tokens[:300] + [9] + tokens[301:]), 4, extra_keys)
    assert late[:2] == base[:2] and not set(late[2:]) & set(base)
    assert not set(base) & set(keys.of_request(Request(tokens, ("salt",)), 4, extra_keys))
    roots = {keys.root(f, p, [2, 2, 64], r, n) for f in ("a", "b") for p in ("t1.65", "t2.2") for r, n in ((0, 1), (0, 2), (1, 2))}
    assert len(roots) == 12


def test_a_folder_forgets_the_least_recently_used_and_the_old(tmp_path):
    store = Folder(str(tmp_path), ttl=100, max_bytes=5000)
    names = [f"{i:02}" + "0" * 30 for i in range(8)]
    for i, name in enumerate(names):
        assert store.put(name, bytes([i]) * 1000)
        os.utime(store._path(name), (time.time() - 50 + i, time.time() - 50 + i))
        if i == 3:
            assert store.get(names[0]) is not None  # used again: it stays
    held = [name for name in names if store.has(name)]
    assert len(held) <= 5 and names[0] in held and names[7] in held and names[1] not in held
    os.utime(store._path(names[7]), (1, 1))
    assert not store.has(names[7]) and store.get(names[7]) is None
    assert not store.put("ff" + "0" * 30, b"x" * 6000)


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path, caplog):
    blocked = tmp_path / "file"
    blocked.write_text("")
    store = Folder(str(blocked / "inside"))
    assert not store.put("ab" + "0" * 30, b"data") and store.get("ab" + "0" * 30) is None
    assert len([r for r in caplog.records if "going on without it" in r.message]) == 1


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@contextlib.contextmanager
def redis_server(port, folder, *options):
    command = ["redis-server", "--port", str(port), "--save", "", "--dir", str(folder), *options]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        for line in server.stdout:
            if "Ready to accept" in line:
                break
        yield server
    finally:
        server.kill()
        server.wait()


@pytest.fixture
def port():
    pytest.importorskip("redis", reason="the package redis is not installed")
    if not shutil.which("redis-server"):
        pytest.skip("Debian's redis-server is not installed")
    return free_port()


def test_redis_comes_and_goes(tmp_path, caplog, port):
    store = open_store(f"redis://127.0.0.1:{port}/0", ttl=100)
    assert store.get("name") is None and not store.put("name", b"data")
    assert len([r for r in caplog.records if "going on without it" in r.message]) == 1
    with redis_server(port, tmp_path) as server:
        store._down_until = 0
        assert store.put("name", b"data") and store.has("name") and store.get("name") == b"data"
        assert store._client.ttl(b"vidkv:name") > 90
        server.kill()
        server.wait()
        assert store.get("name") is None and not store.has("name")


def test_a_full_redis_is_one_line_and_is_still_read(tmp_path, caplog, port):
    with redis_server(port, tmp_path, "--maxmemory", "3mb", "--maxmemory-policy", "noeviction"):
        store = open_store(f"redis://127.0.0.1:{port}/0")
        assert store.put("first", b"1" * 1000)
        stored = [store.put(f"more {i}", b"2" * 500_000) for i in range(12)]
        assert not all(stored) and store.get("first") == b"1" * 1000
    assert len([r for r in caplog.records if "is full" in r.message]) == 1


def test_many_writers_of_one_key_leave_whole_entries(tmp_path):
    name, made = "ab" + "0" * 30, [entries.write("name", ABOUT, [bytes([i]) * 200_000]) for i in range(4)]
    stores = [Folder(str(tmp_path)) for _ in made]
    stores[0].put(name, made[0])
    with ThreadPoolExecutor(5) as pool:
        writing = [pool.submit(lambda s, d: [s.put(name, d) for _ in range(40)], s, d) for s, d in zip(stores, made)]
        while not all(w.done() for w in writing):
            assert entries.read(stores[0].get(name), "name", ABOUT) is not None
    assert all(all(w.result()) for w in writing) and [p.name for p in tmp_path.rglob("*.*")] == [name + Folder.SUFFIX]


def test_many_writers_of_one_key_in_redis_leave_whole_entries(tmp_path, port):
    made = [entries.write("name", ABOUT, [bytes([i]) * 100_000]) for i in range(4)]
    with redis_server(port, tmp_path):
        stores = [open_store(f"redis://127.0.0.1:{port}/0", ttl=100) for _ in range(5)]
        stores[4].put("name", made[0])
        with ThreadPoolExecutor(5) as pool:
            writing = [pool.submit(lambda s, d: [s.put("name", d) for _ in range(20)], s, d) for s, d in zip(stores, made)]
            while not all(w.done() for w in writing):
                assert entries.read(stores[4].get("name"), "name", ABOUT) is not None
        assert all(all(w.result()) for w in writing) and stores[4]._client.dbsize() == 1


def test_another_version_of_vllm_is_one_line(monkeypatch, caplog):
    monkeypatch.setattr(versions, "version_of_vllm", lambda: "0.99.0")
    vidkv.vllm.register()
    assert [r.message for r in caplog.records] == [
        "VidKV: not used: this is vLLM 0.99.0, tested are 0.32.0; vLLM goes on without it (VIDKV_VLLM_ANY_VERSION=1 tries it all the same)"
    ]


def test_bad_places_are_refused():
    with pytest.raises(ValueError, match="max_bytes is for folders"):
        open_store("redis://127.0.0.1:1/0", max_bytes=5)
