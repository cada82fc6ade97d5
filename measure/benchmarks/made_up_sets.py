#!/usr/bin/env python3
"""Made-up samples in the layout of each of the paper's benchmarks, and of newer ones: rows, and clips of the project's generator.

    python3 made_up_sets.py OUT [--count N] [--seed S] [--split long]

OUT is what HF_HOME is for lmms-eval: OUT/<benchmark's folder>/*.mp4, and OUT/rows/<owner>/<name>/ with the rows of the data sets of
those names. Needs numpy and the ffmpeg program."""
import argparse
import json
import os
import shutil
import subprocess
import sys

GENERATOR = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "models", "clips", "generate.py")
# MVBench's kinds of questions and where their videos are.
MVBENCH = {
    "star/Charades_segment": ("object_interaction", "action_sequence", "action_prediction"), "sta/sta_video_segment": ("action_localization",),
    "clevrer/video_validation": ("moving_count", "moving_direction", "moving_attribute", "counterfactual_inference", "object_existence"),
    "nturgbd_convert": ("fine_grained_pose",), "perception/videos": ("character_order", "object_shuffle", "state_change", "action_count"),
    "vlnqa": ("egocentric_navigation",), "tvqa/video_fps3_hq_segment": ("episodic_reasoning",),
    "Moments_in_Time_Raw/videos": ("fine_grained_action",), "scene_qa/video": ("scene_transition",), "ssv2_video_mp4": ("action_antonym",),
    "FunQA_test/test": ("unexpected_action",)}
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
    rows = {"Generation": [], "MC": [], "MC_PPL": []}
    for i, sample in enumerate(samples):
        lines, right = options(sample, samples)
        base = dict(video_idx=sample["name"], question_idx=str(i), question=sample["question"], object_description="shapes")
        rows["Generation"].append(dict(base, answer=sample["answer"]))
        for kind in ("MC", "MC_PPL"):
            rows[kind].append(dict(base, answer=right, option=lines))
    return rows


def mvbench(samples):
    rows = {}
    for kind in (kind for kinds in MVBENCH.values() for kind in kinds):
        rows[kind] = [dict(video=s["name"] + ".mp4", question=s["question"], answer=s["answer"],
                           candidates=[line[3:] for line in options(s, samples)[0]]) for s in samples[:1]]
    return rows


def video_mme(samples):
    base = dict(duration="short", domain="Knowledge", sub_category="Geography", task_type="Action Recognition")
    return [dict(base, question_id=str(i), videoID=s["name"], question=s["question"], options=options(s, samples)[0],
                 answer=options(s, samples)[1][0]) for i, s in enumerate(samples)]


def long_video_bench(samples):
    rows = []
    for i, sample in enumerate(samples):
        lines, right = options(sample, samples)
        choices = {f"option{n}": (lines[n][3:] if n < len(lines) else "N/A") for n in range(5)}
        rows.append(dict(choices, id=str(i), video_path=sample["name"] + ".mp4", question=sample["question"], duration=8.0, duration_group=15,
                         question_category="S2E", correct_choice=lines.index(right)))
    return rows


def ego_schema(samples):
    rows = []
    for sample in samples:
        lines, right = options(sample, samples)
        rows.append(dict(video_idx=sample["name"], question=sample["question"], option=lines + [f"{letter}. neither" for letter in "CDE"],
                         answer=str(lines.index(right))))
    return rows


def newer_sets(samples):
    """As `sets`; a third part is the split, where it is not "test"."""
    letters = [dict(video_name=s["name"] + ".mp4", question=s["question"] + "\n" + "\n".join(options(s, samples)[0]), task_type="order",
                    answer=options(s, samples)[1][0]) for s in samples]
    return {
        "lmms-eval/VATEX_ZH": ({"vatex_val_zh": [dict(videoID=s["name"], chCap=[s["answer"], f"{s['answer']} again"]) for s in samples]},
                               ["vatex_val_zh"], "validation"),
        "OpenGVLab/MVBench": (mvbench(samples), [f"mvbench_video/{folder}" for folder in MVBENCH], "train"),
        "lmms-eval/Video-MME": ({None: video_mme(samples)}, ["videomme/data"]),
        "sy1998/MLVU_dev": ({None: letters}, ["mlvu"]),
        "longvideobench/LongVideoBench": ({None: long_video_bench(samples)}, ["datasets/longvideobench/videos"], "validation"),
        "lmms-eval/egoschema": ({"Subset": ego_schema(samples)}, ["egoschema/videos"]),
    }


def sets(samples):
    """{data set: ({configuration or None: rows}, folders of videos)}."""
    return {
        "lmms-lab/VideoDetailDescription": ({None: [dict(video_name=s["name"], question="Describe the video in detail.", answer=s["answer"])
                                                    for s in samples]}, ["videochatgpt/Test_Videos"]),
        "lmms-eval/TempCompass": (temp_compass(samples), ["tempcompass/videos"]),
        "lmms-eval/VideoChatGPT": (video_chat_gpt(samples), ["videochatgpt/Test_Videos"]),
        "Enxin/lmms_MovieChat_test": ({None: [dict(video_name=s["name"] + ".mp4", question=s["question"], answer=s["answer"], time=8)
                                              for s in samples]}, ["moviechat_1k_test/Test_Videos"]),
        "lmms-eval/worldqa": (world_qa(samples), ["multi-hop-reasoning/videos"]),
        "lmms-eval/VATEX": ({"vatex_test": [dict(videoID=s["name"], enCap=[s["answer"], f"something {s['answer']}"]) for s in samples]},
                            ["vatex_test"]),
        **newer_sets(samples),
    }


def write_rows(folder, by_configuration, split="test"):
    os.makedirs(folder, exist_ok=True)
    head = ["---", "configs:"]
    for name, rows in by_configuration.items():
        file = f"{name or 'default'}.jsonl"
        head += [f"- config_name: {name or 'default'}", "  data_files:", f"  - split: {split}", f"    path: {file}"]
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
    parser.add_argument("--split", default="short", help="of the generator (default short)")
    chosen = parser.parse_args()
    clips = os.path.join(chosen.out, "clips")
    subprocess.run([sys.executable, GENERATOR, "--seed", str(chosen.seed), "--split", chosen.split, "--count", str(chosen.count), clips], check=True)
    samples = samples_of(clips)
    for name, (rows, folders, *split) in sets(samples).items():
        write_rows(os.path.join(chosen.out, "rows", name), rows, *split)
        for folder in folders:
            shutil.copytree(clips, os.path.join(chosen.out, folder), ignore=shutil.ignore_patterns("*.jsonl"), dirs_exist_ok=True)


if __name__ == "__main__":
    main()
