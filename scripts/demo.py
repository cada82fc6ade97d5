"""The demo itself: generated clips through `vidkv ask` with several presets, as a table or as JSON."""
import argparse
import json
import os
import shutil
import subprocess
import sys

QUESTIONS = {"long": 6, "short": 6}
LEAST_TOKENS = 400  # with fewer, window and unfilled pages are nearly all of a cache
NOTES = {"f16": "reference", "k1.5v1.58": "the paper's"}


def make_set(vidkv, folder, split, seed):
    """One clip with its questions; made once."""
    out = os.path.join(folder, f"{split}-{seed}")
    listing = os.path.join(out, "questions.jsonl")
    if not os.path.exists(listing):
        shutil.rmtree(out, ignore_errors=True)
        run([vidkv, "data", "--seed", str(seed), "--split", split, "--count", "1", out])
    with open(listing, encoding="utf-8") as f:
        questions = [json.loads(line) for line in f][:QUESTIONS[split]]
    return os.path.join(out, questions[0]["video"]), questions


def run(command):
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(done.returncode)
    return done.stdout


def ask(vidkv, video, questions, kv):
    report = json.loads(run([vidkv, "ask", video, *(q["question"] for q in questions), "--kv", kv, "--no-cache", "--json", "-n", "16"]))
    for answer, question in zip(report["answers"], questions):
        answer["expected"] = question["answer"]
    return report


def print_table(split, reports):
    first = reports[0]
    print(f"\nA {split} clip: {os.path.relpath(first['video'])}, {first['frames']} frames, {first['visual_tokens']} visual tokens\n")
    width = max(len(a["question"]) for a in first["answers"]) + 2

    def row(name, texts):
        print(" " * 2 + name.ljust(width + 12) + "".join(t.ljust(16) for t in texts).rstrip())

    print(" " * 2 + "question".ljust(width) + "expected".ljust(12) + "".join(r["kv"].ljust(16) for r in reports).rstrip())
    row("", (NOTES.get(r["kv"], "") for r in reports))
    for i, answer in enumerate(first["answers"]):
        given = (r["answers"][i]["answer"] for r in reports)
        marked = (text + (" " if text == answer["expected"] else " x") for text in given)
        print(" " * 2 + answer["question"].ljust(width) + answer["expected"].ljust(12) + "".join(t.ljust(16) for t in marked).rstrip())
    row("right", (f"{sum(a['answer'] == a['expected'] for a in r['answers'])} of {len(r['answers'])}" for r in reports))
    row("KV bytes held", (f"{r['kv_bytes']:,}" for r in reports))
    row("true bits per element", (f"{r['true_bits']:.2f}" for r in reports))
    if first["visual_tokens"] >= LEAST_TOKENS:
        row("  of what f16 takes", (f"{r['kv_bytes'] / r['kv_bytes_f16']:.0%}" for r in reports))
    else:
        print(f"\n  Under {LEAST_TOKENS} tokens nothing is packed yet, or next to nothing: pages of 128 tokens are packed when they are full and\n"
              "  128 newer tokens have followed. Until then every cache holds them in f16.")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--vidkv", required=True)
    parser.add_argument("--clips", required=True, help="folder to keep clips in")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--kv", default="f16,k1.5v1.58,t2.2,t1.65,t1.15")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    runs = []
    for split in QUESTIONS:
        video, questions = make_set(args.vidkv, args.clips, split, args.seed)
        reports = [ask(args.vidkv, video, questions, kv) for kv in args.kv.split(",")]
        runs += reports
        if not args.json:
            print_table(split, reports)
    if args.json:
        print(json.dumps({"runs": runs}, indent=2))


if __name__ == "__main__":
    main()
