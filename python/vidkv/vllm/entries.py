"""What is stored for a block: a line of JSON that says what it is, the bytes of each layer, and a digest over all of it."""
import hashlib
import json

MAGIC = b"VIDKV-BLOCK 1\n"
DIGEST = 32


def write(name, about, parts):
    """about: what must be equal when it is read again. parts: bytes of each layer, in order."""
    head = json.dumps({"name": name, "about": about, "sizes": [len(p) for p in parts]}, sort_keys=True).encode() + b"\n"
    body = MAGIC + head + b"".join(parts)
    return body + hashlib.sha256(body).digest()


def read(data, name, about):
    """The parts; None if these are not the bytes that were written under that name for that."""
    if data is None or len(data) < len(MAGIC) + DIGEST or not data.startswith(MAGIC):
        return None
    body, digest = data[:-DIGEST], data[-DIGEST:]
    if hashlib.sha256(body).digest() != digest:
        return None
    end = body.find(b"\n", len(MAGIC))
    head = json.loads(body[len(MAGIC) : end])
    if head["name"] != name or head["about"] != about:
        return None
    parts, at = [], end + 1
    for size in head["sizes"]:
        parts.append(body[at : at + size])
        at += size
    return parts if at == len(body) else None
