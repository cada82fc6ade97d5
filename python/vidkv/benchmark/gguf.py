"""lmms-eval's model vidkv_gguf: any GGUF behind an OpenAI server that takes videos, llama-server with the plug-in above all.

--model_args base_url=http://127.0.0.1:8080/v1 and: frames, fps, preset (a name for the log: the server chose it), log=FILE,
max_new_tokens (a cap). Frames go as pictures, in order: every server with a vision model takes those. A server does not say what its
cache holds, so bytes and bits are not logged."""
import base64
import io

from ..video import read_frames
from .answers import VideoModel
from .http import post


def picture(frame):
    """A frame as a data URL of a PNG."""
    from PIL import Image

    out = io.BytesIO()
    Image.fromarray(frame).save(out, "PNG")
    return "data:image/png;base64," + base64.b64encode(out.getvalue()).decode()


class VidkvGguf(VideoModel):
    def __init__(self, base_url="http://127.0.0.1:8080/v1", frames="32", fps="", preset="", timeout="3600", **others):
        super().__init__(**others)
        self.url, self.frames, self.fps = base_url.rstrip("/"), int(frames), float(fps) if fps else None
        self.preset, self.timeout = preset, float(timeout)

    def answer(self, video, question, settings):
        frames = read_frames(video.path, self.frames, self.fps, until=video.until)
        content = [{"type": "image_url", "image_url": {"url": picture(frame)}} for frame in frames]
        body = dict(messages=[dict(role="user", content=[*content, {"type": "text", "text": question}])], temperature=0,
                    max_tokens=settings["max_new_tokens"])
        reply = post(self.url + "/chat/completions", body, timeout=self.timeout)
        text = reply["choices"][0]["message"].get("content") or ""
        return text.strip(), dict(frames=len(frames), prompt_tokens=reply.get("usage", {}).get("prompt_tokens"), kv=self.preset)
