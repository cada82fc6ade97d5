"""`vidkv ask` on real footage: it must run, with every kind of cache; what it answers is not judged."""
import glob
import os

from common import ask, skip

EXPECTED = ["bikes.mp4", "bigbuckbunny.mp4", "carphone_pristine.mp4"]


def main():
    folder = os.environ.get("VIDKV_TEST_FOOTAGE", "")
    videos = [v for v in sorted(glob.glob(f"{folder}/**/*.mp4", recursive=True)) if os.path.basename(v) in EXPECTED]
    if not folder or not videos:
        skip("no real footage here: scripts/test fetches it")
    assert len(videos) == len(EXPECTED), f"footage is missing: {videos}"
    for video in videos:
        for kv in ("f16", "k2v2", "k1.5v1.58"):
            report = ask(video, ["What colour is the circle?", "How many squares appear?"], "--kv", kv, "--frames", "24", "-n", "8")
            assert report["frames"] == min(24, report["frames"]) and report["frames"] > 4, report
            assert report["visual_tokens"] > 0 and len(report["answers"]) == 2, report
            print(os.path.basename(video), kv, report["frames"], "frames:", [a["answer"] for a in report["answers"]])


if __name__ == "__main__":
    main()
