"""What LLaVA-OneVision is fed: a video as transformers' processor prepares it, which wants torchvision and Pillow; torch is enough."""
import json
import os

import torch

SIGLIP = [0.5, 0.5, 0.5]  # mean and deviation of the normalization, where the folder does not say


def _stated(folder, *places):
    """The first of these ((file, key of a part or None)) that states how pixels are normalized."""
    for name, part in places:
        path = os.path.join(folder, name)
        if os.path.exists(path):
            with open(path, encoding="utf-8") as f:
                stated = json.load(f)
            stated = stated.get(part, {}) if part else stated
            if "image_mean" in stated and "image_std" in stated:
                return stated
    return {}


class Reader:
    """Prompts with a video for the model of a folder."""

    def __init__(self, folder, config):
        from transformers import AutoTokenizer

        self.tokenizer, self.config = AutoTokenizer.from_pretrained(folder), config
        self.template = self._template(folder)
        stated = _stated(folder, ("processor_config.json", "video_processor"), ("video_preprocessor_config.json", None),
                         ("preprocessor_config.json", None))
        self.mean, self.deviation = (torch.tensor(stated.get(name, SIGLIP)).view(3, 1, 1) for name in ("image_mean", "image_std"))

    def _template(self, folder):
        """Older folders keep the template that knows videos beside the tokenizer's."""
        path = os.path.join(folder, "chat_template.json")
        if os.path.exists(path):
            with open(path, encoding="utf-8") as f:
                return json.load(f)["chat_template"]
        return None

    def pixels(self, frames):
        """uint8 [frames, height, width, 3] -> float [1, frames, 3, side, side]."""
        side = self.config.vision_config.image_size
        planes = torch.from_numpy(frames).permute(0, 3, 1, 2)
        if planes.shape[-2:] != (side, side):
            planes = torch.nn.functional.interpolate(planes, (side, side), mode="bicubic", antialias=True)
        return ((planes.float() / 255 - self.mean) / self.deviation)[None]

    def inputs(self, frames, question):
        """The arguments of `generate` for a question about frames."""
        side = self.config.vision_config.image_size // self.config.vision_config.patch_size
        visual = len(frames) * ((side + 1) // 2) ** 2 + 1  # pooled, and the newline that ends the video
        talk = [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": question}]}]
        text = self.tokenizer.apply_chat_template(talk, chat_template=self.template, tokenize=False, add_generation_prompt=True)
        token = self.tokenizer.convert_ids_to_tokens(self.config.video_token_id)
        if text.count(token) != 1:
            raise ValueError(f"the chat template of the model does not place a video ({token})")
        ids = torch.tensor([self.tokenizer.encode(text.replace(token, token * visual), add_special_tokens=False)])
        return dict(input_ids=ids, attention_mask=torch.ones_like(ids), pixel_values_videos=self.pixels(frames))

    def decode(self, ids, **options):
        return self.tokenizer.decode(ids, **options)
