"""One request to an OpenAI server."""
import json
import urllib.error
import urllib.request


class Refused(Exception):
    """Why there is no reply, in one line."""


def post(url, body, key=None, timeout=600):
    """The chat completion that a server answers with. Refused if it does not."""
    headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {key}"} if key else {})}
    request = urllib.request.Request(url, json.dumps(body).encode(), headers)
    try:
        with urllib.request.urlopen(request, timeout=timeout) as response:
            text = response.read().decode(errors="replace")
    except urllib.error.HTTPError as error:
        raise Refused(f"it says {error.code}: {error.read(120).decode(errors='replace').strip()}") from None
    except (OSError, ValueError) as error:
        raise Refused(f"{url}: {error}") from None
    try:
        reply = json.loads(text)
        reply["choices"][0]["message"]["content"]
    except (ValueError, KeyError, IndexError, TypeError):
        raise Refused(f"that is no chat completion: {text[:120].strip()}") from None
    return reply
