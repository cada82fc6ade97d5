"""The tokenizer of a folder, as llama.cpp keeps it, and the prompt that the model was trained on."""
import os
import re

from checkpoint import BadFolder, read_json

NEEDED = ("<|im_start|>", "<|im_end|>")
QUESTION = "vidkv-question"
# llava-hf's template for one user message; lmms-lab's folders have only the language model's own.
PUBLISHED = ("<|im_start|>user ", "\n", "<|im_end|><|im_start|>assistant\n")
# For stock tools, which put the picture's marker into the text.
CHATML = ("{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
          "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}")


class Vocabulary:
    """tokens: {id: text}; added: {id: whether it is a control token}; merges: ["a b"]."""

    def __init__(self, folder):
        self.folder = folder
        whole = os.path.join(folder, "tokenizer.json")
        if os.path.exists(whole):
            self._read_whole(whole)
        else:
            self._read_parts()
        texts = set(self.tokens.values())
        missing = [token for token in NEEDED if token not in texts]
        if missing:
            raise BadFolder(f"the tokenizer of '{folder}' lacks {' and '.join(missing)}: it is not that of LLaVA-OneVision")

    def _read_whole(self, path):
        parts = read_json(path)
        bpe = parts.get("model", {})
        whole = isinstance(bpe, dict) and isinstance(bpe.get("vocab"), dict) and isinstance(bpe.get("merges"), list)
        if not whole or bpe.get("type") != "BPE":
            raise BadFolder(f"'{path}' is no byte-pair tokenizer: it is not that of LLaVA-OneVision")
        self.tokens = {number: text for text, number in bpe["vocab"].items()}
        self.merges = [" ".join(merge) if isinstance(merge, list) else merge for merge in bpe["merges"]]
        self._add({token["id"]: token["content"] for token in parts.get("added_tokens", [])})

    def _read_parts(self):
        self.tokens = {number: text for text, number in read_json(os.path.join(self.folder, "vocab.json")).items()}
        path = os.path.join(self.folder, "merges.txt")
        try:
            with open(path, encoding="utf-8") as f:
                self.merges = [line for line in f.read().splitlines() if line and not line.startswith("#version")]
        except OSError:
            raise BadFolder(f"neither tokenizer.json nor merges.txt is in '{self.folder}'") from None
        added = os.path.join(self.folder, "added_tokens.json")
        self._add({number: text for text, number in read_json(added).items()} if os.path.exists(added) else {})

    def _add(self, added):
        self.tokens.update(added)
        self.added = {number: re.fullmatch(r"<.*>", text) is not None for number, text in added.items()}

    def id(self, text):
        return next((number for number, token in self.tokens.items() if token == text), None)

    def listed(self, rows, types):
        """(texts, types) of `rows` rows of the embedding; types: gguf.TokenType."""
        if max(self.tokens) >= rows:
            raise BadFolder(f"the tokenizer of '{self.folder}' has a token {max(self.tokens)}, but the model embeds {rows}")
        texts, kinds = [], []
        for number in range(rows):
            known = number in self.tokens
            texts.append(self.tokens[number] if known else f"[PAD{number}]")
            control = self.added.get(number)
            kinds.append(types.UNUSED if not known else types.NORMAL if control is None else types.CONTROL if control else types.USER_DEFINED)
        return texts, kinds


def chat_template(folder):
    """The folder's chat template, or None."""
    plain = os.path.join(folder, "chat_template.jinja")
    if os.path.exists(plain):
        with open(plain, encoding="utf-8") as f:
            return f.read()
    for name in ("chat_template.json", "processor_config.json", "tokenizer_config.json"):
        path = os.path.join(folder, name)
        template = read_json(path).get("chat_template") if os.path.exists(path) else None
        if isinstance(template, str):
            return template
    return None


def prompt(folder, video_token="<video>"):
    """(text before the video, between it and the question, after the question), by the folder's template where it knows videos."""
    template = chat_template(folder)
    if template is None:
        return PUBLISHED
    from jinja2 import TemplateError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    talk = [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": QUESTION}]}]
    plain = re.sub(r"\{%-?\s*(end)?generation\s*-?%\}", "", template)  # marks what is trained on
    try:
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
        text = environment.from_string(plain).render(messages=talk, add_generation_prompt=True)
    except (TemplateError, TypeError):
        return PUBLISHED  # one for text alone
    before, video, rest = text.partition(video_token)
    between, question, after = rest.partition(QUESTION)
    return (before, between, after) if video and question else PUBLISHED
