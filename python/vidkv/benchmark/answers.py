"""One answer after the other, as lmms-eval asks for them. Every answer is a line of JSON; after a stop the lines are read again."""
import json
import os
import re
import time
from dataclasses import dataclass

from lmms_eval.api.instance import GenerationResult
from lmms_eval.api.model import lmms

from .answers_log import key_of, read_log


@dataclass(frozen=True)
class Video:
    path: str
    until: int | None = None  # its frames before this one, by number; None: all


def _moment(number):
    try:
        return int(number)
    except (TypeError, ValueError):
        raise ValueError(f"a row's moment is a number of frames, not {number!r}") from None


def video_of(visuals):
    """The one video that a task's doc_to_visual gave, or its part up to a moment (moviechat_breakpoint)."""
    given = visuals[0] if len(visuals) == 1 else None
    if isinstance(given, dict) and {"video_path", "timestep"} == set(given):
        given, until = given["video_path"], _moment(given["timestep"])
    else:
        until = None
    if not isinstance(given, str):
        raise ValueError(f"one video file a question is wanted, not {len(visuals)} of {type(visuals[0]).__name__ if visuals else 'nothing'}")
    there = given if os.path.exists(given) else in_another_container(given)
    if not there:
        raise FileNotFoundError(f"video path:{given} does not exist")
    return Video(there, until)


CONTAINERS = (".mp4", ".mkv", ".webm", ".mov", ".avi", ".m4v", ".flv", ".ts")


def in_another_container(path):
    """The video of the same name that ends otherwise, or None: tasks look for .mp4, and downloads are not all of them."""
    folder, name = os.path.split(path)
    stem = os.path.splitext(name)[0]
    others = sorted(os.listdir(folder)) if os.path.isdir(folder) else []
    return next((os.path.join(folder, other) for other in others if os.path.splitext(other)[0] == stem and other.lower().endswith(CONTAINERS)), None)


def visuals_of(task, doc_to_visual, document):
    """What a task gives to be looked at."""
    try:
        return doc_to_visual(document)
    except SystemExit as end:
        missing = re.search(r"video path: ?(.*?) does not exist", str(end.code))
        other = in_another_container(missing.group(1)) if missing else None
        if not other:
            raise
        return [{"video_path": other, "timestep": document["time"]} if task == "moviechat_breakpoint" else other]


class VideoModel(lmms):
    """What both models share. A subclass answers one question: answer(video, question, settings) -> (text, figures); and may say how likely
    a given answer is: likelihood(video, question, choice) -> (mean negative log-likelihood, whether it is the likeliest, figures)."""

    is_simple = True
    bare = False  # asked a document's own question, without what tasks put around it

    def __init__(self, log="", max_new_tokens=0, **unknown):
        super().__init__()
        strange = sorted(set(unknown) - {"batch_size", "max_batch_size", "device"})  # those lmms-eval gives to every model
        if strange:
            raise ValueError(f"unknown model argument {strange[0]!r}")
        self.log, self.cap = log, int(max_new_tokens)
        self.known = read_log(log)

    def answer(self, video, question, settings):
        raise NotImplementedError

    def likelihood(self, video, question, choice):
        raise NotImplementedError("this model writes answers; tasks that compare the likelihoods of given ones need --model (vidkv_hf)")

    def _log(self, started, **line):
        """Keeps a line for this run and, in the log, for one after a stop."""
        line["seconds"] = round(time.perf_counter() - started, 3)
        self.known[key_of(line)] = line
        if self.log:
            with open(self.log, "a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        return line

    def _answer(self, task, doc_id, question, document, doc_to_visual, settings):
        video, started = video_of(visuals_of(task, doc_to_visual, document)), time.perf_counter()
        asked = document["question"].split("\n")[0] if self.bare and document.get("question") else question  # choices stand on lines of their own
        text, figures = self.answer(video, asked, settings)
        return self._log(started, task=task, doc_id=doc_id, question=question, video=os.path.basename(video.path), answer=text, **figures)

    def _likelihood(self, task, doc_id, question, visuals, choice):
        video, started = video_of(visuals), time.perf_counter()
        loss, likeliest, figures = self.likelihood(video, question, choice)
        return self._log(started, task=task, doc_id=doc_id, question=question, video=os.path.basename(video.path), choice=choice, loss=loss,
                         likeliest=likeliest, **figures)

    def generate_until(self, requests):
        answers = []
        for request in requests:
            question, settings, doc_to_visual, doc_id, task, split = request.args
            line = self.known.get((task, doc_id, question, ""))
            if line is None:
                settings = dict(settings, max_new_tokens=min(settings.get("max_new_tokens", 64), self.cap or 1 << 20))
                line = self._answer(task, doc_id, question, self.task_dict[task][split][doc_id], doc_to_visual, settings)
            answers.append(cut(line["answer"], settings.get("until") or []))
        return answers

    def loglikelihood(self, requests):
        """[(mean negative log-likelihood, whether it is the likeliest)]: lmms-eval's tasks take the least."""
        given = []
        for request in requests:
            question, choice, doc_to_visual, doc_id, task, split = request.args
            document = self.task_dict[task][split][doc_id]
            choice = choice if isinstance(choice, str) else choice(document)
            line = self.known.get((task, doc_id, question, choice)) or self._likelihood(
                task, doc_id, question, visuals_of(task, doc_to_visual, document), choice)
            given.append(GenerationResult((line["loss"], line["likeliest"])))  # a bare pair is made text of, in 0.7.3
        return given

    def generate_until_multi_round(self, requests):
        raise NotImplementedError("VidKV's models answer one question at a time; tasks of several rounds are not supported")


def cut(text, until):
    """A text up to the first of the strings that end it."""
    for end in [until] if isinstance(until, str) else until:
        text = text.split(end)[0] if end else text
    return text.strip()
