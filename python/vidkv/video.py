"""Frames of a video file, by PyAV."""
import numpy as np


def check_video(path: str, count: int = 32) -> None:
    """What read_frames would refuse, found without decoding."""
    import av

    if count < 1:
        raise ValueError(f"frames must be 1 or more, not {count}")
    with av.open(path) as container:
        if not container.streams.video:
            raise ValueError(f"{path} holds no video")


def read_frames(path: str, count: int = 32, size: tuple[int, int] | None = None) -> np.ndarray:
    """`count` frames evenly over the video (all of them if it has fewer): uint8 [frames, height, width, 3]. size: (width, height) to
    scale to. OSError if the file cannot be opened, ValueError if it holds no picture."""
    import av

    check_video(path, count)
    with av.open(path) as container:
        total = sum(1 for _ in container.decode(video=0))
    if total == 0:
        raise ValueError(f"{path} holds no picture that can be decoded")
    wanted = set(np.linspace(0, total - 1, min(count, total)).round().astype(int).tolist())
    frames = []
    with av.open(path) as container:
        for index, frame in enumerate(container.decode(video=0)):
            if index in wanted:
                frame = frame.reformat(*size, format="rgb24") if size else frame
                frames.append(frame.to_ndarray(format="rgb24"))
    return np.stack(frames)
