"""Frames of a video file, by PyAV."""
import numpy as np


def check_video(path: str, count: int | None = None, fps: float | None = None) -> None:
    """What read_frames would refuse, found without decoding."""
    import av

    if count is not None and count < 1:
        raise ValueError(f"frames must be 1 or more, not {count}")
    if fps is not None and not 0 < fps < float("inf"):
        raise ValueError(f"fps must be above 0, not {fps}")
    with av.open(path) as container:
        if not container.streams.video:
            raise ValueError(f"{path} holds no video")


def frame_size(path: str) -> tuple[int, int]:
    """(width, height) that the file names."""
    import av

    with av.open(path) as container:
        context = container.streams.video[0].codec_context
        return context.width, context.height


def _frame_times(path):
    """Seconds at which each frame that can be decoded is shown; frames without a time stamp follow at the file's rate."""
    import av

    times = []
    with av.open(path) as container:
        step = 1 / float(container.streams.video[0].average_rate or 25)
        for frame in container.decode(video=0):
            times.append(frame.time if frame.time is not None else times[-1] + step if times else 0.0)
    return times


def choose_frames(times: list[float], count: int | None = None, fps: float | None = None) -> list[int]:
    """Which of the frames shown at `times` to take: those on screen at every 1/fps seconds (all without fps, none twice), and of them
    at most `count`, evenly, the first and the last among them."""
    chosen = np.arange(len(times))
    if fps is not None:
        shown = np.maximum.accumulate(np.asarray(times))
        last = float(np.median(np.diff(shown))) if len(shown) > 1 else 1e-3  # how long the last frame is shown, about
        ticks = np.arange(shown[0], shown[-1] + max(last, 1e-3) - 1e-6, 1 / fps)
        chosen = np.unique(np.searchsorted(shown, ticks + 1e-6, side="right") - 1)
    if count is not None and count < len(chosen):
        chosen = chosen[np.linspace(0, len(chosen) - 1, count).astype(int)]  # rounded down, as LLaVA-OneVision's own demo does
    return chosen.tolist()


def read_frames(*arguments, **options) -> np.ndarray:
    """The frames of read_video alone."""
    return read_video(*arguments, **options)[0]


def read_video(path: str, count: int | None = 32, fps: float | None = None, size: tuple[int, int] | None = None,
               until: int | None = None) -> tuple[np.ndarray, list[float]]:
    """Frames at `fps` (all without), at most `count` of them (None: no limit), evenly over the video: uint8 [frames, height, width, 3], and
    the seconds at which they are shown. size: (width, height) to scale to; until: the frame, by number, at which the video is taken to end (the first one stays).
    OSError if the file cannot be opened, ValueError if it holds no picture."""
    import av

    check_video(path, count, fps)
    times = _frame_times(path)[:None if until is None else max(until, 1)]
    if not times:
        raise ValueError(f"{path} holds no picture that can be decoded")
    chosen = choose_frames(times, count, fps)
    wanted, frames = set(chosen), []
    with av.open(path) as container:
        for index, frame in enumerate(container.decode(video=0)):
            if index in wanted:
                frame = frame.reformat(*size, format="rgb24") if size else frame
                frames.append(frame.to_ndarray(format="rgb24"))
    return np.stack(frames), [times[index] for index in chosen]
