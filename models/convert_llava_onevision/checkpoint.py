"""A Hugging Face folder of LLaVA-OneVision, in either published layout: llava-hf/* (transformers) and lmms-lab/* (LLaVA-NeXT)."""
import json
import os
import re

TEXT_ARCHITECTURES = ("qwen2",)
SO400M = dict(num_attention_heads=16, layer_norm_eps=1e-6, hidden_act="gelu_pytorch_tanh", num_hidden_layers=27, image_size=384)

# Both layouts' tensor names -> text.*, vision.*, projector.*, image_newline. The first that matches counts.
NAMES = [(re.compile(pattern), name) for pattern, name in (
    (r"^(?:model\.)?vision_tower\.(?:vision_tower\.)?(?:vision_model\.)?(.*)$", r"vision.\1"),
    (r"^(?:model\.)?multi_modal_projector\.linear_([12])\.(.*)$", r"projector.\1.\2"),
    (r"^model\.mm_projector\.0\.(.*)$", r"projector.1.\1"),
    (r"^model\.mm_projector\.2\.(.*)$", r"projector.2.\1"),
    (r"^(?:model\.)?image_newline$", "image_newline"),
    (r"^(?:language_model\.)?lm_head\.(.*)$", r"text.lm_head.\1"),
    (r"^(?:model\.)?language_model\.(?:model\.)?(.*)$", r"text.\1"),
    (r"^model\.(.*)$", r"text.\1"),
)]
# Written by some versions, used by none: SigLIP's pooling head, the norm after its last layer (features are taken before it).
UNUSED = re.compile(r"^vision\.(?:head|post_layernorm)\.|position_ids$|rotary_emb\.inv_freq$")


class BadFolder(Exception):
    """One line that says what is wrong with the folder."""


def read_json(path):
    """The JSON object of a file."""
    try:
        with open(path, encoding="utf-8") as f:
            value = json.load(f)
            if not isinstance(value, dict):
                raise ValueError("no JSON object")
            return value
    except FileNotFoundError:
        raise BadFolder(f"'{path}' is missing: is the download complete?") from None
    except (OSError, ValueError) as error:
        raise BadFolder(f"'{path}' cannot be read ({error}): get it again") from None


def canonical(name):
    for pattern, replacement in NAMES:
        if pattern.match(name):
            return pattern.sub(replacement, name)
    return name


def shard_files(folder):
    """{tensor name: file} of model.safetensors or of the shards that the index names."""
    index = os.path.join(folder, "model.safetensors.index.json")
    if os.path.exists(index):
        weights = read_json(index).get("weight_map")
        if not isinstance(weights, dict) or not all(isinstance(file, str) for file in weights.values()):
            raise BadFolder(f"'{index}' has no weight_map: get it again")
        missing = sorted({f for f in weights.values() if not os.path.exists(os.path.join(folder, f))})
        if missing:
            raise BadFolder(f"{len(missing)} of {len(set(weights.values()))} shards are missing in '{folder}': {', '.join(missing)}")
        return sorted(set(weights.values())), set(weights)
    if os.path.exists(os.path.join(folder, "model.safetensors")):
        return ["model.safetensors"], None
    others = [f for f in sorted(os.listdir(folder)) if f.endswith((".bin", ".safetensors"))]
    hint = f" (there is {others[0]}, but no model.safetensors.index.json)" if others else ""
    raise BadFolder(f"no model.safetensors or model.safetensors.index.json in '{folder}'{hint}")


class Checkpoint:
    """text, vision: configurations under transformers' names; layout: "llava-hf" or "lmms-lab"."""

    def __init__(self, folder):
        if not os.path.isdir(folder):
            raise BadFolder(f"'{folder}' is no folder: name the folder of a LLaVA-OneVision download")
        self.folder = folder
        self.config = read_json(os.path.join(folder, "config.json"))
        self.layout = self._layout()
        self._open_shards()
        self.text = self._text_config()
        self.vision = self._vision_config()

    def _layout(self):
        kinds = [self.config.get("model_type", "no model_type"), *(self.config.get("architectures") or [])]
        if self.config.get("model_type") == "llava_onevision":
            return "llava-hf"
        if "LlavaQwenForCausalLM" in kinds and self.config.get("mm_projector_type"):
            return "lmms-lab"
        raise BadFolder(f"'{self.folder}' is no LLaVA-OneVision: its config.json says {', '.join(map(str, kinds))}")

    def _open_shards(self):
        from safetensors import SafetensorError, safe_open

        files, promised = shard_files(self.folder)
        self.places, seen = {}, set()
        for name in files:
            path = os.path.join(self.folder, name)
            try:
                shard = safe_open(path, framework="pt")
                keys = list(shard.keys())
            except (SafetensorError, OSError) as error:
                raise BadFolder(f"'{path}' is cut off or damaged ({error}): get it again") from None
            seen.update(keys)
            self.places.update({canonical(key): (shard, key) for key in keys})
        lost = sorted((promised or set()) - seen)
        if lost:
            raise BadFolder(f"{len(lost)} tensors that the index of '{self.folder}' names are in no shard, as {lost[0]}")
        self.places = {name: place for name, place in self.places.items() if not UNUSED.search(name)}

    def names(self, prefix):
        return sorted(name for name in self.places if name.startswith(prefix))

    def shape(self, name):
        return self._place(name)[0].get_slice(self._place(name)[1]).get_shape()

    def tensor(self, name):
        """A float32 numpy array."""
        shard, key = self._place(name)
        return shard.get_tensor(key).float().contiguous().numpy()

    def _place(self, name):
        if name not in self.places:
            raise BadFolder(f"'{self.folder}' holds no tensor {name}: a shard is missing, or it is another model")
        return self.places[name]

    def layers(self, prefix):
        numbers = {int(name[len(prefix):].split(".")[0]) for name in self.names(prefix)}
        if numbers != set(range(len(numbers))):
            gap = min(set(range(max(numbers))) - numbers)
            raise BadFolder(f"'{self.folder}' lacks layer {gap} of {prefix}*: a shard is missing")
        return len(numbers)

    def _text_config(self):
        text = self.config.get("text_config") if self.layout == "llava-hf" else self.config
        text = {"model_type": "qwen2", **(text or {})}
        if self.layout == "lmms-lab":
            text["model_type"] = "qwen2"
        if text["model_type"] not in TEXT_ARCHITECTURES:
            raise BadFolder(f"the language model of '{self.folder}' is {text['model_type']}: only Qwen2 is converted")
        for key in ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"):
            if not isinstance(text.get(key), int):
                raise BadFolder(f"config.json of '{self.folder}' does not say {key} of the language model")
        found = self.layers("text.layers.")
        if found != text["num_hidden_layers"]:
            raise BadFolder(f"'{self.folder}' holds {found} of {text['num_hidden_layers']} layers of the language model: a shard is missing")
        self._check_text_widths(text)
        return text

    def _check_text_widths(self, text):
        width, heads = text["hidden_size"], text["num_attention_heads"]
        kv = text.get("num_key_value_heads") or heads
        embedded, keys = self.shape("text.embed_tokens.weight")[1], self.shape("text.layers.0.self_attn.k_proj.weight")[0]
        if embedded != width or min(heads, kv) < 1 or width % heads or keys != kv * (width // heads):
            raise BadFolder(f"the tensors of '{self.folder}' are {embedded} wide with keys of {keys}, and config.json says {width}, {heads} heads and "
                            f"{kv} of keys")

    def _vision_config(self):
        """What config.json does not say is read off the tensors; lmms-lab's folders say nothing but the tower's name."""
        width, _, patch, _ = self.shape("vision.embeddings.patch_embedding.weight")
        positions = self.shape("vision.embeddings.position_embedding.weight")[0]
        vision = dict(SO400M, hidden_size=width, patch_size=patch, num_channels=3,
                      intermediate_size=self.shape("vision.encoder.layers.0.mlp.fc1.weight")[0])
        if self.layout == "llava-hf":
            vision["num_hidden_layers"] = 26  # the published folders leave nothing out but what transformers has as default
        vision.update(self._stated_vision())
        if (vision["image_size"] // vision["patch_size"]) ** 2 != positions:
            raise BadFolder(f"the vision tower of '{self.folder}' has {positions} positions, not those of {vision['image_size']} pixels a side")
        if vision["hidden_size"] != width or width % vision["num_attention_heads"]:
            raise BadFolder(f"the vision tower of '{self.folder}' is {width} wide, which does not fit config.json")
        if vision["hidden_act"] != "gelu_pytorch_tanh":
            raise BadFolder(f"the vision tower of '{self.folder}' has {vision['hidden_act']}: only SigLIP's gelu_pytorch_tanh is converted")
        return vision

    def _stated_vision(self):
        stated = self.config.get("vision_config")
        tower = str(self.config.get("mm_vision_tower") or "")
        local = [os.path.join(base, tower, "config.json") for base in (self.folder, "") if tower]
        if stated is None:
            for path in filter(os.path.exists, local):
                described = read_json(path)
                stated = described.get("vision_config", described)
                break
        side = re.search(r"-(\d{3})$", tower)
        return {**({"image_size": int(side[1])} if side else {}), **(stated or {})}

    def tiles(self, side):
        """([(height, width)] in pixels of the grids that a picture is cut into, how many tiles it may keep); none where it says nothing."""
        stated = self.config.get("image_grid_pinpoints") or []
        if isinstance(stated, str):  # lmms-lab's "(1x1),...,(6x6)": all between, in tiles
            ends = [int(n) for n in re.findall(r"\d+", stated)]
            if len(ends) != 4:
                raise BadFolder(f"image_grid_pinpoints {stated!r} of '{self.folder}' is no range of grids, as in (1x1),...,(6x6)")
            stated = [(side * i, side * j) for i in range(ends[0], ends[2] + 1) for j in range(ends[1], ends[3] + 1)]
        right = lambda grid: isinstance(grid, (list, tuple)) and len(grid) == 2 and all(isinstance(n, int) and n > 0 and n % side == 0 for n in grid)
        if not isinstance(stated, list) or not all(map(right, stated)):
            raise BadFolder(f"image_grid_pinpoints of '{self.folder}' are not in tiles of {side} pixels")
        kind = str(self.config.get("vision_aspect_ratio") or self.config.get("image_aspect_ratio") or "anyres_max_9")
        most = re.fullmatch(r"anyres_max_(\d+)", kind)
        return (stated, int(most[1])) if most and int(most[1]) else ([], 0)

    def feature_layers(self):
        """Numbers of the SigLIP layers whose outputs the projector takes; 0 would be the input of the first."""
        held = self.layers("vision.encoder.layers.")
        if self.layout == "lmms-lab":  # trained without the tower's last layer, which the folder usually leaves out
            return [min(held, self.vision["num_hidden_layers"] - 1)]
        stated, layers = self.config.get("vision_feature_layer", -1), self.vision["num_hidden_layers"]
        listed = stated if isinstance(stated, list) else [stated]
        whole = bool(listed) and all(isinstance(n, int) for n in listed)
        numbers = [n if n >= 0 else layers + 1 + n for n in listed] if whole else [-1]
        if min(numbers) < 0 or max(numbers) > layers:
            raise BadFolder(f"vision_feature_layer {stated} of '{self.folder}' is none of the vision tower's {layers} layers")
        if max(numbers) > held:
            raise BadFolder(f"'{self.folder}' holds {held} of {layers} layers of the vision tower: a shard is missing")
        return numbers
