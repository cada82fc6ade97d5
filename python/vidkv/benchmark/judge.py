"""Stands between lmms-eval's tasks and the judge (any OpenAI server). The tasks count an answer that they cannot have or read as 0;
here it is asked for again, and then it is an error that ends the run."""
import ast
import hashlib
import json
import re
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from .answers_log import read_lines
from .http import Refused, post

TRIES, PAUSE = 3, 2.0


def readable(prompt, reply):
    """A judge's reply in the form that the task with this prompt reads, or None if it is none."""
    reply = reply.strip()
    if "Python dictionary string" in prompt:
        found = re.search(r"\{.*?\}", reply, re.DOTALL)
        try:
            verdict = ast.literal_eval(found.group()) if found else None
            score = float(verdict["score"])
        except (ValueError, SyntaxError, TypeError, KeyError):
            return None
        if not 0 <= score <= 5 or ("'pred'" in prompt and str(verdict.get("pred")).lower() not in ("yes", "no")):
            return None
        if "pred" in verdict:
            verdict["pred"] = str(verdict["pred"]).lower()
        return repr(verdict)
    if 'respond "Correct"' in prompt:
        word = re.search(r"\b(in)?correct\b", reply, re.IGNORECASE)
        return word.group().capitalize() if word else None
    if "Keypoint in the ground truth" in prompt:
        points = re.findall(r"(?:Point:\s*|^)(1(?:\.0)?|0(?:\.\d+)?)\s*$", reply, re.MULTILINE)
        return f"Point:\n{points[-1]}" if points else None
    if "single uppercase character" in prompt:
        letter = re.fullmatch(r"\W*([A-E])\b.*", reply, re.DOTALL)
        return letter.group(1) if letter else None
    return reply or None


def reply_of(body, verdict):
    """A chat completion that says a verdict."""
    return dict(choices=[dict(index=0, message=dict(role="assistant", content=verdict), finish_reason="stop")], model=body["model"],
                usage=dict(prompt_tokens=0, completion_tokens=0, total_tokens=0))


class Judge:
    """A server on the loopback that passes questions on to `url`. complaint: why the judge failed, or None. memory: a file of verdicts;
    a question that was judged before gets the same verdict."""

    def __init__(self, url, model=None, key=None, memory=None, pause=PAUSE):
        self.url, self.model, self.key, self.memory, self.pause = url, model, key, memory, pause
        self.complaint, self.asked, self.lock = None, 0, threading.Lock()
        self.known = {line["question"]: line["verdict"] for line in read_lines(memory)}
        judge = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                reply = judge.ask(body)
                data = json.dumps(reply or {"error": {"message": judge.complaint, "type": "judge"}}).encode()
                self.send_response(200 if reply else 502)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server.server_address[1]}/v1/chat/completions"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self):
        self.server.shutdown()
        self.server.server_close()

    def _once(self, body):
        """The judge's verdict, as the task reads it. Refused says why there is none."""
        content = post(self.url, body, self.key)["choices"][0]["message"]["content"] or ""
        read = readable(" ".join(str(message["content"]) for message in body["messages"]), content)
        if read is None:
            raise Refused(f"its answer has no verdict: {content[:120].strip()!r}")
        return read

    def _remember(self, question, verdict):
        with self.lock:
            self.known[question] = verdict
            if self.memory:
                with open(self.memory, "a", encoding="utf-8") as file:
                    file.write(json.dumps(dict(question=question, verdict=verdict)) + "\n")

    def ask(self, body):
        """The reply to a question, or None after TRIES failures, when complaint says why."""
        if self.model:
            body = dict(body, model=self.model)
        question = hashlib.sha256(json.dumps([body["model"], body["messages"]]).encode()).hexdigest()
        if question in self.known:
            return reply_of(body, self.known[question])
        for attempt in range(TRIES):
            try:
                verdict = self._once(body)
                self.asked += 1
                self._remember(question, verdict)
                return reply_of(body, verdict)
            except Refused as error:
                complaint = f"the judge at {self.url} did not answer: {error}"
                if attempt + 1 < TRIES:
                    time.sleep(self.pause)
        self.complaint = complaint
        return None
