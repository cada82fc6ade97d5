"""The tokenizer: byte-level BPE with Qwen2's pre-tokenizer pattern (llama.cpp's `qwen2`) and Qwen's special tokens.

It is trained on the generator's own questions, so each of their words is one token. The committed file belongs
to the committed weights: it is built again only where it is missing.
"""
import os

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from clips import generate

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>",
           "<|image_pad|>", "<|video_pad|>"]
VOCAB = 512
_PATTERN = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
TURN = "<|im_start|>user\n"
VIDEO = "Video:"                                # libmtmd writes this before the frames
REPLY = "<|im_end|>\n<|im_start|>assistant\n"
END = "<|im_end|>"
TOKENIZER_FILE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "tiny", "hf", "tokenizer.json")


def build():
    texts = ["user\n", "assistant\n", "system\n", "Video:", "Image:"] * 50
    for i in range(3000):
        rng = generate.generator("vidkv tokenizer v1", i)
        _, events = generate.make_clip(rng, 60)
        for _, question, answer, *_ in generate.questions(events):
            texts += [question + "\n", answer]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(_PATTERN), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=VOCAB - len(SPECIAL), initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
                                  show_progress=False, min_frequency=1)
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens([AddedToken(s, special=True, normalized=False) for s in SPECIAL])
    return tokenizer


def load():
    """The committed tokenizer, built first where there is none."""
    if not os.path.exists(TOKENIZER_FILE):
        os.makedirs(os.path.dirname(TOKENIZER_FILE), exist_ok=True)
        build().save(TOKENIZER_FILE)
    return Tokenizer.from_file(TOKENIZER_FILE)


class Encoder:
    """Text -> token ids, remembered: training asks for the same few hundred strings over and over."""

    def __init__(self):
        self.tokenizer = load()
        self._seen = {}

    def __call__(self, text):
        ids = self._seen.get(text)
        if ids is None:
            ids = self._seen[text] = self.tokenizer.encode(text).ids
        return ids

    def special(self, text):
        return self.tokenizer.token_to_id(text)
