"""Logs of one JSON object a line; a line that was cut off is dropped from the file."""
import json
import os


def read_lines(path):
    """The whole lines of a log; none without a file."""
    lines, whole = [], 0
    if not path or not os.path.exists(path):
        return lines
    with open(path, "rb") as file:
        for raw in file:
            try:
                line = json.loads(raw)
            except ValueError:
                break
            if not raw.endswith(b"\n"):
                break
            lines.append(line)
            whole += len(raw)
    os.truncate(path, whole)
    return lines


def key_of(line):
    """What an answer, or the likelihood of a given one, is known by."""
    return line["task"], line["doc_id"], line["question"], line.get("choice", "")


def read_log(path):
    """{(task, document, question, given answer or ""): line} of a log of answers."""
    return {key_of(line): line for line in read_lines(path)}
