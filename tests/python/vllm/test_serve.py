"""`vllm serve` as docs/vllm.md starts it, asked with the openai client."""
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import engine
import pytest

pytest.importorskip("vllm", reason="vLLM is not installed (scripts/vllm-environment makes an environment with it)")


def add_tokenizer(folder):
    """Bytes are tokens, so that any text can be asked about."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(letters)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder, log = tmp_path_factory.mktemp("model"), tmp_path_factory.mktemp("log") / "serve.log"
    engine.make_model(str(folder))
    add_tokenizer(folder)
    port = free_port()
    command = [Path(sys.executable).with_name("vllm"), "serve", folder, "--max-num-seqs", "8", "--port", str(port), "--enforce-eager",
               "--max-model-len", "4096", "--served-model-name", "small", "--enable-prompt-tokens-details"]
    env = {**os.environ, "VIDKV_PRESET": "t1.65", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1",
           "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    with open(log, "w") as out:
        process = subprocess.Popen([str(c) for c in command], env=env, stdout=out, stderr=subprocess.STDOUT)
    try:
        while True:
            assert process.poll() is None, log.read_text()[-3000:]
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health")
                break
            except (urllib.error.URLError, ConnectionError):
                time.sleep(0.5)
        yield f"http://127.0.0.1:{port}/v1", log
    finally:
        process.terminate()
        process.wait()


def test_openai_client_is_answered_from_packed_blocks(server):
    from openai import OpenAI

    address, log = server
    client = OpenAI(base_url=address, api_key="none", timeout=None)
    long_text = "A word of the text. " * 40  # 800 tokens: six full blocks

    def ask(question):
        return client.completions.create(model="small", prompt=long_text + question, max_tokens=12, temperature=0)

    assert ask("What?").usage.prompt_tokens_details.cached_tokens == 0
    again = ask("What?")
    assert again.usage.prompt_tokens_details.cached_tokens == 768 == ask("Who?").usage.prompt_tokens_details.cached_tokens
    with ThreadPoolExecutor(4) as pool:
        at_once = list(pool.map(ask, ["What?", "Who?", "Where?", "When?"]))
    assert [a.usage.completion_tokens for a in at_once] == [12] * 4
    assert at_once[0].choices[0].text == again.choices[0].text
    said = log.read_text()
    assert "VidKV: t1.65:" in said and "times less than f16" in said and "KV cache size" in said
