"""python -m vidkv.demo and vidkv.bench as a user starts them."""
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from common import TINY

av = pytest.importorskip("av", reason="PyAV is not installed (tests/e2e/requirements.txt)")


def run(module, *arguments):
    return subprocess.run([sys.executable, "-m", module, *arguments], capture_output=True, text=True, env={**os.environ, "PYTHONWARNINGS": "ignore"})


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """Two seconds of a green square that moves to the right."""
    path = str(tmp_path_factory.mktemp("clip") / "clip.mp4")
    with av.open(path, "w") as out:
        stream = out.add_stream("mpeg4", rate=8)
        stream.width = stream.height = 84
        stream.pix_fmt = "yuv420p"
        for i in range(48):
            frame = np.zeros((84, 84, 3), np.uint8)
            frame[30:52, i:i + 22] = (30, 200, 60)
            for packet in stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")):
                out.mux(packet)
        for packet in stream.encode():
            out.mux(packet)
    return path


def test_frames(clip):
    from vidkv.video import read_frames
    frames = read_frames(clip, 12)
    assert frames.shape == (12, 84, 84, 3)
    columns = [float((frame[40, :, 1] > 140).nonzero()[0].mean()) for frame in frames]
    assert columns == sorted(columns) and columns[-1] - columns[0] > 20
    assert read_frames(clip, 500).shape[0] == read_frames(clip, None).shape[0] == 48
    assert read_frames(clip, None, fps=4).shape[0] == 24
    assert read_frames(clip, None, fps=100).shape[0] == 48  # none twice
    assert read_frames(clip, 5, fps=4).shape[0] == 5
    with pytest.raises(ValueError, match="frames must be 1 or more"):
        read_frames(clip, 0)


def test_frames_by_time():
    from vidkv.video import choose_frames
    assert choose_frames([0, 0.1, 0.5, 2.0, 2.1], fps=2) == [0, 2, 3]     # what is on screen at 0, 0.5, 1, 1.5 and 2 s
    assert choose_frames([7.0, 7.5, 7.2, 8.0], fps=1) == [0, 3]             # times that start late and step back
    assert choose_frames([0, 1, 2, 3, 4, 5, 6, 7], 3) == [0, 3, 7]


def test_python_m_vidkv(clip):
    shown = run("vidkv")
    assert shown.returncode == 0 and "demo" in shown.stdout and "bench" in shown.stdout
    assert run("vidkv", "dmeo").returncode == 2
    assert "fps" in run("vidkv", "demo", "--help").stdout


def test_demo_says_that_the_small_model_is_a_toy(clip, tmp_path):
    own = run("vidkv.demo", clip, "What colour is the square?", "--max-new-tokens", "2")
    assert own.returncode == 0 and "toy" not in own.stderr and "24 frames" in own.stderr  # four a second
    assert "nothing is saved on so few tokens" in own.stderr
    foreign = str(tmp_path / "wide.mp4")
    subprocess.run(["ffmpeg", "-v", "error", "-i", clip, "-vf", "scale=128:96", foreign], check=True)
    other = run("vidkv.demo", foreign, "Where are we?", "--max-new-tokens", "2")
    assert other.returncode == 0 and "toy" in other.stderr and "--model DIR" in other.stderr


def test_demo_answers_as_a_dynamic_cache_does(clip):
    answers = {}
    for preset in ("dynamic", "k2v2", "t2.2"):
        done = run("vidkv.demo", clip, "What colour is the square?", "--model", TINY, "--preset", preset, "--fps", "8", "--json")
        assert done.returncode == 0, done.stderr
        answers[preset] = json.loads(done.stdout.splitlines()[-1])
    assert answers["dynamic"]["answer"] and answers["k2v2"]["answer"] == answers["dynamic"]["answer"] == answers["t2.2"]["answer"]
    assert answers["k2v2"]["prompt_tokens"] > 250


def test_demo_takes_a_published_configuration(clip):
    config = json.dumps({"backend": "QuantizedCacheVLMSTP", "nbits": [1.5, 1.58], "vidkv_stp": 0.2})
    done = run("vidkv.demo", clip, "What colour is the square?", "--model", TINY, "--cache-config", config)
    assert done.returncode == 0 and done.stdout.strip(), done.stderr
    assert "cannot read the codes" not in done.stderr


@pytest.mark.parametrize("arguments, says", [
    (["missing.mp4", "?"], "missing.mp4"),
    (["CLIP", "?", "--preset", "t9"], "t9"),
    (["CLIP", "?", "--frames", "0"], "frames must be 1 or more"),
    (["CLIP", "?", "--fps", "0"], "fps must be above 0"),
    (["CLIP", "?", "--cache-config", "{\"nbit\": 2}"], "nbit"),
    (["CLIP", "?", "--max-new-tokens", "0"], "max-new-tokens must be 1 or more"),
    (["CLIP", "?", "--model", "no/such/folder"], "no such folder"),
    ([__file__, "?"], "Invalid data"),
])
def test_demo_says_what_is_wrong(clip, arguments, says):
    done = run("vidkv.demo", "--model", TINY, *[clip if a == "CLIP" else a for a in arguments])
    assert done.returncode == 1 and says in done.stderr and "Traceback" not in done.stderr


def test_bench():
    done = run("vidkv.bench", "--model", "7b-shape", "--layers", "1", "--tokens", "600", "--new-tokens", "3",
               "--caches", "dynamic,vidkv:k2v2,fp8,quanto:4")
    assert done.returncode == 0, done.stderr
    results = {r["cache"]: r for r in json.loads(done.stdout)["results"]}
    assert results["dynamic"]["kl_mean"] == 0 and results["dynamic"]["bytes_held"] == 2 * results["dynamic"]["bytes_f16"]  # it is f32
    assert results["vidkv:k2v2"]["bytes_held"] < 0.6 * results["vidkv:k2v2"]["bytes_f16"]
    assert 0 < results["vidkv:k2v2"]["kl_mean"] < 1
    assert "skipped" in results["quanto:4"] or results["quanto:4"]["kl_mean"] > 0


def test_bench_at_depth():
    done = run("vidkv.bench", "--model", "7b-shape", "--layers", "1", "--tokens", "32", "--depth", "500", "--new-tokens", "2", "--dtype", "bfloat16",
               "--caches", "dynamic,vidkv-torch:t1.65")
    assert done.returncode == 0, done.stderr
    dynamic, ours = json.loads(done.stdout)["results"]
    assert dynamic["tokens"] == ours["tokens"] == 534 and "kl_mean" not in ours  # the keys are random
    assert dynamic["bytes_held"] == dynamic["bytes_f16"] > 1.5 * ours["bytes_held"]
    assert "plain torch operations" in done.stderr
