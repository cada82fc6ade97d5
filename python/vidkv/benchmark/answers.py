"""One answer after the other, as lmms-eval asks for them. Every answer is a line of JSON; after a stop the lines are read again."""
import json
import os
import time

from lmms_eval.api.model import lmms

from .answers_log import read_log


def video_of(visuals):
    """The path of the one video that a task's doc_to_visual gave."""
    if len(visuals) == 1 and isinstance(visuals[0], str):
        return visuals[0]
    raise ValueError(f"one video file a question is wanted, not {len(visuals)} of {type(visuals[0]).__name__ if visuals else 'nothing'}")


class VideoModel(lmms):
    """What both models share. A subclass answers one question: answer(video, question, settings) -> (text, figures)."""

    is_simple = True

    def __init__(self, log="", max_new_tokens=0, **unknown):
        super().__init__()
        strange = sorted(set(unknown) - {"batch_size", "max_batch_size", "device"})  # those lmms-eval gives to every model
        if strange:
            raise ValueError(f"unknown model argument {strange[0]!r}")
        self.log, self.cap = log, int(max_new_tokens)
        self.known = read_log(log)

    def answer(self, video, question, settings):
        raise NotImplementedError

    def _new(self, task, doc_id, question, visuals, settings):
        video = video_of(visuals)
        started = time.perf_counter()
        text, figures = self.answer(video, question, settings)
        seconds = round(time.perf_counter() - started, 3)
        line = dict(task=task, doc_id=doc_id, question=question, video=os.path.basename(video), answer=text, seconds=seconds, **figures)
        if self.log:
            with open(self.log, "a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        return line

    def generate_until(self, requests):
        answers = []
        for request in requests:
            question, settings, doc_to_visual, doc_id, task, split = request.args
            line = self.known.get((task, doc_id, question))
            if line is None:
                settings = dict(settings, max_new_tokens=min(settings.get("max_new_tokens", 64), self.cap or 1 << 20))
                line = self._new(task, doc_id, question, doc_to_visual(self.task_dict[task][split][doc_id]), settings)
                self.known[task, doc_id, question] = line
            answers.append(cut(line["answer"], settings.get("until") or []))
        return answers

    def loglikelihood(self, requests):
        raise NotImplementedError("VidKV's models write answers; tasks that compare likelihoods of given ones are not supported")

    def generate_until_multi_round(self, requests):
        raise NotImplementedError("VidKV's models answer one question at a time; tasks of several rounds are not supported")


def cut(text, until):
    """A text up to the first of the strings that end it."""
    for end in [until] if isinstance(until, str) else until:
        text = text.split(end)[0] if end else text
    return text.strip()
