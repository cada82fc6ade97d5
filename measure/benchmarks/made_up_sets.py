#!/usr/bin/env python3
"""Made-up samples in the layout of each of the paper's benchmarks: rows, and clips of the project's generator.

    python3 made_up_sets.py OUT [--count N] [--seed S]

OUT is what HF_HOME is for lmms-eval: OUT/<benchmark's folder>/*.mp4, and OUT/rows/<owner>/<name>/ with the rows of the data sets of
those names. Needs numpy and the ffmpeg program."""
import argparse
import json
import os
import shutil
import subprocess
import sys

GENERATOR = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "models", "clips", "generate.py")
DIMENSIONS = ["action", "speed", "direction", "order", "attribute_change"]


def options(sample, samples):
    """Two options, the right one first or second, and the right one's line."""
    wrong = next((s["answer"] for s in samples if s["type"] == sample["type"] and s["answer"] != sample["answer"]), "nothing")
    pair = [sample["answer"], wrong] if len(sample["question"]) % 2 else [wrong, sample["answer"]]
    lines = [f"{letter}. {text}" for letter, text in zip("AB", pair)]
    return lines, lines[pair.index(sample["answer"])]


def temp_compass(samples):
    rows = {kind: [] for kind in ("multi-choice", "yes_no", "caption_matching", "captioning")}
    for i, sample in enumerate(samples):
        lines, right = options(sample, samples)
        base = dict(video_id=sample["name"], dim=DIMENSIONS[i % 5])
        question = sample["question"] + "\n" + "\n".join(lines)
        rows["multi-choice"].append(dict(base, question=question, answer=right))
        rows["yes_no"].append(dict(base, question=f"Is this right? {sample['question']} {sample['answer']}", answer="yes"))
        captions, caption = ([f"Caption {line.replace('.', ':', 1)}" for line in some] for some in (lines, [right]))
        rows["caption_matching"].append(dict(base, question="Which caption fits?\n" + "\n".join(captions), answer=caption[0]))
        rows["captioning"].append(dict(base, question="Describe the video.", mc_question=question, mc_answer=right, answer=right))
    return rows


def video_chat_gpt(samples):
    plain = [dict(video_name=s["name"], question=s["question"], answer=s["answer"]) for s in samples]
    twice = [dict(video_name=s["name"], question_1=one, question_2=two, answer=s["answer"])
             for s in samples for one, two in ((s["question"], "None"), ("None", "Tell me: " + s["question"]))]
    return {"Generic": plain, "Temporal": plain, "Consistency": twice}


def world_qa(samples):
    rows = {"Generation": [], "MC": []}
    for i, sample in enumerate(samples):
        lines, right = options(sample, samples)
        base = dict(video_idx=sample["name"], question_idx=str(i), question=sample["question"], object_description="shapes")
        rows["Generation"].append(dict(base, answer=sample["answer"]))
        rows["MC"].append(dict(base, answer=right, option=lines))
    return rows


def sets(samples):
    """{data set: ({configuration or None: rows}, folder of videos)}."""
    return {
        "lmms-lab/VideoDetailDescription": ({None: [dict(video_name=s["name"], question="Describe the video in detail.", answer=s["answer"])
                                                    for s in samples]}, "videochatgpt/Test_Videos"),
        "lmms-eval/TempCompass": (temp_compass(samples), "tempcompass/videos"),
        "lmms-eval/VideoChatGPT": (video_chat_gpt(samples), "videochatgpt/Test_Videos"),
        "Enxin/lmms_MovieChat_test": ({None: [dict(video_name=s["name"] + ".mp4", question=s["question"], answer=s["answer"], time=8)
                                              for s in samples]}, "moviechat_1k_test/Test_Videos"),
        "lmms-eval/worldqa": (world_qa(samples), "multi-hop-reasoning/videos"),
        "lmms-eval/VATEX": ({"vatex_test": [dict(videoID=s["name"], enCap=[s["answer"], f"something {s['answer']}"]) for s in samples]},
                            "vatex_test"),
    }


def write_rows(folder, by_configuration):
    os.makedirs(folder, exist_ok=True)
    head = ["---", "configs:"]
    for name, rows in by_configuration.items():
        file = f"{name or 'default'}.jsonl"
        head += [f"- config_name: {name or 'default'}", "  data_files:", "  - split: test", f"    path: {file}"]
        with open(os.path.join(folder, file), "w", encoding="utf-8") as out:
            out.writelines(json.dumps(row) + "\n" for row in rows)
    with open(os.path.join(folder, "README.md"), "w", encoding="utf-8") as out:
        out.write("\n".join([*head, "---", "Made up."]) + "\n")


def samples_of(folder):
    """One question a clip: name, question, answer, type."""
    taken = {}
    with open(os.path.join(folder, "questions.jsonl"), encoding="utf-8") as file:
        for line in map(json.loads, file):
            name = os.path.splitext(os.path.basename(line["video"]))[0]
            taken.setdefault(name, dict(name=name, question=line["question"], answer=line["answer"], type=line["type"]))
    return list(taken.values())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out")
    parser.add_argument("--count", type=int, default=5)
    parser.add_argument("--seed", type=int, default=1)
    chosen = parser.parse_args()
    clips = os.path.join(chosen.out, "clips")
    subprocess.run([sys.executable, GENERATOR, "--seed", str(chosen.seed), "--split", "short", "--count", str(chosen.count), clips], check=True)
    samples = samples_of(clips)
    for name, (rows, videos) in sets(samples).items():
        write_rows(os.path.join(chosen.out, "rows", name), rows)
        os.makedirs(os.path.join(chosen.out, videos), exist_ok=True)
        for sample in samples:
            shutil.copy(os.path.join(clips, sample["name"] + ".mp4"), os.path.join(chosen.out, videos))


if __name__ == "__main__":
    main()
