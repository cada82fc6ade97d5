"""The small video model that comes with VidKV: a Qwen2.5-VL of 3.8 million parameters, fed two frames at a time."""
from pathlib import Path

import numpy as np

SIZE, PATCH, MERGE, FPS = 84, 14, 2, 4  # what it has seen
MEAN = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)
STD = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)


def folder() -> str:
    """Where its weights are: in the package, or in the source tree it runs from."""
    for place in (Path(__file__).parent / "models" / "tiny", Path(__file__).parents[2] / "models" / "tiny" / "hf"):
        if (place / "config.json").exists():
            return str(place)
    raise FileNotFoundError("the small model is not installed with this package: give --model DIR")


def is_small_model(config):
    """Whether a config is that of the small model: its pictures are 84 x 84."""
    return config.model_type == "qwen2_5_vl" and config.get_text_config().hidden_size <= 256


def _patches(pair):
    """Two frames [2, 84, 84, 3] -> patches in the order the vision tower wants: [36, 3 * 2 * 14 * 14]."""
    side = SIZE // PATCH // MERGE
    pixels = ((pair.astype(np.float32) / 255 - MEAN) / STD).transpose(0, 3, 1, 2)
    blocks = pixels.reshape(2, 3, side, MERGE, PATCH, side, MERGE, PATCH)
    return blocks.transpose(2, 5, 3, 6, 1, 0, 4, 7).reshape(-1, 3 * 2 * PATCH * PATCH)


def inputs(tokenizer, config, frames, question):
    """What generate takes, for frames [n, 84, 84, 3] and a question: each pair of frames is one image of nine tokens."""
    import torch

    pairs = [np.stack([frames[i], frames[min(i + 1, len(frames) - 1)]]) for i in range(0, len(frames), 2)]
    image = "<|vision_start|>" + "<|image_pad|>" * (SIZE // PATCH // MERGE) ** 2 + "<|vision_end|>"
    parts = ["<|im_start|>user\n", "Video:", image * len(pairs), question + "<|im_end|>\n<|im_start|>assistant\n"]
    ids = torch.tensor([[token for part in parts for token in tokenizer.encode(part, add_special_tokens=False)]])
    side = SIZE // PATCH
    return dict(input_ids=ids, attention_mask=torch.ones_like(ids), mm_token_type_ids=(ids == config.image_token_id).int(),
                pixel_values=torch.from_numpy(np.concatenate([_patches(pair) for pair in pairs])),
                image_grid_thw=torch.tensor([[1, side, side]] * len(pairs)))
