"""Tasks, the columns of the paper's table made of them, and the paper's own figures (arXiv 2503.16257)."""
from dataclasses import dataclass


@dataclass(frozen=True)
class Column:
    """One figure of a table: the mean over parts (task, metric), times scale."""
    name: str
    parts: tuple
    scale: float = 1


TEMPCOMPASS = ("multi_choice", "yes_no", "caption_matching", "captioning")
GENERIC = ("correctness", "detailed_orientation", "context")
PAPER = (
    Column("VideoDC", (("video_dc499", "gpt_eval_score"),)),
    Column("TempCompass", tuple((f"tempcompass_{kind}", "avg_accuracy") for kind in TEMPCOMPASS)),
    Column("VideoChat-GPT", (*(("videochatgpt_gen", f"gpt_eval_score_{kind}") for kind in GENERIC),
                             ("videochatgpt_temporal", "gpt_eval_score_temporal"), ("videochatgpt_consistency", "gpt_eval_score_consistency"))),
    Column("MovieChat score", (("moviechat_global", "gpt_eval_score"),)),
    Column("MovieChat acc", (("moviechat_global", "gpt_eval_acc"),), 100),
    Column("WorldQA", (("worldqa_gen", "gpt_eval"),)),
    Column("VATEX CIDEr", (("vatex_test", "vatex_CIDEr"),), 100),
)
MVBENCH = ("action_sequence", "moving_count", "action_prediction", "episodic_reasoning", "action_antonym", "action_count", "scene_transition",
           "object_shuffle", "object_existence", "fine_grained_pose", "unexpected_action", "moving_direction", "state_change",
           "object_interaction", "character_order", "action_localization", "counterfactual_inference", "fine_grained_action",
           "moving_attribute", "egocentric_navigation")
LETTERS = (
    Column("Video-MME", (("videomme", "videomme_perception_score"),)),
    Column("MLVU", (("mlvu_dev", "mlvu_percetion_score"),)),
    Column("MVBench", tuple((f"mvbench_{kind}", "mvbench_accuracy") for kind in MVBENCH)),
    Column("LongVideoBench", (("longvideobench_val_v", "lvb_acc"),), 100),
    Column("EgoSchema subset", (("egoschema_subset", "score"),), 100),
)
# What the paper's benchmarks have beside what its table shows.
MORE = (
    Column("MovieChat breakpoint score", (("moviechat_breakpoint", "gpt_eval_score"),)),
    Column("MovieChat breakpoint acc", (("moviechat_breakpoint", "gpt_eval_acc"),), 100),
    Column("WorldQA MC", (("worldqa_mc", "gpt_eval"),), 100),
    Column("WorldQA MC, likelihoods", (("worldqa_mc_ppl", "acc"),), 100),
    Column("VATEX zh CIDEr", (("vatex_val_zh", "vatex_CIDEr"),), 100),
)
SUITES = {"paper": PAPER, "letters": LETTERS, "more": MORE}

# (model, key bits / value bits): the paper's row. None: not in the paper.
FIGURES = {
    ("LLaVA-OV-7B", "16/16"): (3.01, 49.05, 3.27, 3.09, 47.87, .328, 27.42),
    ("LLaVA-OV-7B", "KIVI 2/2"): (3.00, 49.70, 3.24, 3.05, 46.63, .326, 26.27),
    ("LLaVA-OV-7B", "VidKV 2/2"): (3.03, 50.69, 3.27, 3.08, 47.68, .327, 27.57),
    ("LLaVA-OV-7B", "1.5/2"): (2.95, 50.45, 3.23, 3.12, 48.28, .322, 25.91),
    ("LLaVA-OV-7B", "1.5/1.58"): (2.79, 47.35, 3.06, 3.11, 47.08, .313, 20.09),
    ("LLaVA-OV-7B", "1.25/1.58"): (2.53, 45.21, 3.01, 3.06, 47.21, .309, None),
    ("LLaVA-OV-7B", "1.5/1.66 STP"): (2.89, 47.55, 3.10, 3.11, 47.25, .319, 23.06),
    ("LLaVA-OV-7B", "1.75/1.66 STP"): (2.92, 48.25, 3.13, 3.12, 47.87, .312, 24.30),
    ("Qwen2.5-VL-7B", "16/16"): (2.93, 56.53, 3.10, 2.95, 44.23, .334, 41.87),
    ("Qwen2.5-VL-7B", "KIVI 2/2"): (2.93, 55.63, 3.17, 2.85, 43.28, .330, 41.98),
    ("Qwen2.5-VL-7B", "VidKV 2/2"): (2.94, 55.39, 3.18, 2.92, 45.01, .332, 43.15),
    ("Qwen2.5-VL-7B", "1.5/2"): (2.88, 54.24, 3.15, 2.92, 44.56, .311, 41.86),
    ("Qwen2.5-VL-7B", "2/1.58"): (3.01, 52.03, 3.03, 2.92, 42.99, .309, 28.86),
    ("Qwen2.5-VL-7B", "1.5/1.58"): (2.68, 49.10, 3.00, 2.91, 43.36, .310, 29.76),
    ("Qwen2.5-VL-7B", "1.5/1.66 STP"): (2.87, 49.20, 3.10, 2.92, 44.17, .321, 31.72),
}


def tasks_of(columns):
    """The tasks that columns need, in order, each once."""
    return list(dict.fromkeys(task for column in columns for task, _ in column.parts))


# Tasks that never ask a judge; all others may.
WITHOUT_JUDGE = {"vatex_test", "vatex_val_zh", "worldqa_mc_ppl", *tasks_of(LETTERS)}
NEEDS_JAVA = {"vatex_test", "vatex_val_zh"}  # their tokenizer and METEOR are Java programs
