#!/usr/bin/env python3
"""A judge for tests: an OpenAI server on the loopback that compares texts. Prints its address.

    python3 stub_judge.py [--behave well|mute|nonsense]"""
import argparse
import json
import re
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


def after(name, prompt):
    """The line of a prompt that begins with a name and a colon."""
    found = re.search(rf"^\s*{name}:[ \t]*(.*)$", prompt, re.MULTILINE)
    return found.group(1).strip().lower() if found else ""


def verdict(prompt):
    if "Python dictionary string" in prompt:
        right = after("Correct Answer", prompt) == after("Predicted Answer", prompt)
        return repr({"pred": "yes" if right else "no", "score": 5 if right else 1})
    if 'respond "Correct"' in prompt:
        right = after("Model Prediction", prompt) in after("Ground-Truth Answer", prompt)
        return "Correct" if right else "Incorrect"
    if "Keypoint in the ground truth" in prompt:
        return f"Keypoint in the ground truth response:\nall\nRationale:\nequal or not\nPoint:\n{int(after('ground truth', prompt) == after('candidate', prompt))}"
    if "single uppercase character" in prompt:
        return "E"
    return "Reasoning: the first is as good as any.\nAnswer: None of the choices are correct"


def handler(behave):
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            prompt = "\n".join(str(message["content"]) for message in body["messages"])
            content = verdict(prompt) if behave == "well" else "I would rather talk about the weather."
            data = json.dumps(dict(model=body["model"], choices=[dict(message=dict(role="assistant", content=content))],
                                   usage=dict(total_tokens=1))).encode()
            self.send_response(503 if behave == "mute" else 200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_):
            pass
    return Handler


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--behave", choices=["well", "mute", "nonsense"], default="well")
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler(parser.parse_args().behave))
    print(f"http://127.0.0.1:{server.server_address[1]}/v1/chat/completions", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
