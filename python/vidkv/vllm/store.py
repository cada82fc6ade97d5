"""Where entries are kept: a folder or Redis. Neither ever raises: what cannot be read is not there, what cannot be written is not
written, and the first failure in a row is said in one line."""
import logging
import os
import tempfile
import time
from urllib.parse import urlsplit

logger = logging.getLogger("vllm.vidkv")
PAUSE = 5.0  # seconds without another attempt after a failure


class Store:
    def __init__(self, place):
        self.place = place
        self._down_until = 0.0
        self._said = False

    def _guard(self, action, otherwise):
        if time.monotonic() < self._down_until:
            return otherwise
        try:
            result = action()
            if self._said:
                logger.info("VidKV: %s is there again", self.place)
            self._said = False
            return result
        except Exception as error:  # a cache that is away is no reason to fail
            self._down_until = time.monotonic() + PAUSE
            if not self._said:
                logger.warning("VidKV: %s cannot be used, going on without it: %s", self.place, str(error).splitlines()[0] if str(error) else repr(error))
            self._said = True
            return otherwise

    def get(self, name):
        return self._guard(lambda: self._get(name), None)

    def has(self, name):
        return self._guard(lambda: self._has(name), False)

    def put(self, name, data):
        return self._guard(lambda: self._put(name, data), False)


class Folder(Store):
    """A file for each entry. ttl: seconds since the last use; max_bytes: the least recently used files go first."""

    SUFFIX = ".vidkvblock"

    def __init__(self, path, ttl=None, max_bytes=None):
        super().__init__(path)
        self.ttl, self.max_bytes = ttl, max_bytes
        self._held = None  # bytes, about: other processes write too
        self._guard(lambda: os.makedirs(path, exist_ok=True), None)

    def _path(self, name):
        return os.path.join(self.place, name[:2], name + self.SUFFIX)

    def _fresh(self, path):
        stat = os.stat(path)
        return self.ttl is None or time.time() - stat.st_mtime <= self.ttl

    def _get(self, name):
        path = self._path(name)
        try:
            if not self._fresh(path):
                return None
            with open(path, "rb") as file:
                data = file.read()
        except FileNotFoundError:
            return None
        try:
            os.utime(path)
        except OSError:
            pass  # evicted by another process in between
        return data

    def _has(self, name):
        try:
            return self._fresh(self._path(name))
        except FileNotFoundError:
            return False

    def _put(self, name, data):
        if self.max_bytes is not None and len(data) > self.max_bytes:
            return False
        path = self._path(name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=os.path.dirname(path), prefix=".writing-")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
            os.replace(temporary, path)  # whole or not at all, whoever else writes it
        except BaseException:
            if os.path.exists(temporary):
                os.unlink(temporary)
            raise
        self._make_room(len(data))
        return True

    def _make_room(self, added):
        if self.max_bytes is None:
            return
        if self._held is not None and self._held + added <= self.max_bytes:
            self._held += added
            return
        files = []
        for folder, _, names in os.walk(self.place):
            for name in names:
                path = os.path.join(folder, name)
                try:
                    stat = os.stat(path)
                except FileNotFoundError:
                    continue
                if name.startswith(".writing-"):  # of a process that was killed
                    if time.time() - stat.st_mtime > 3600:
                        os.unlink(path)
                elif name.endswith(self.SUFFIX):
                    files.append((stat.st_mtime, stat.st_size, path))
        held = sum(size for _, size, _ in files)
        for _, size, path in sorted(files):
            if held <= self.max_bytes * 0.9 or (held <= self.max_bytes and self._held is None):
                break
            try:
                os.unlink(path)
            except FileNotFoundError:
                pass
            held -= size
        self._held = held


class Redis(Store):
    """ttl: seconds since the last use. How much is kept, and that the least recently used goes first, is the server's to say
    (maxmemory, maxmemory-policy allkeys-lru)."""

    PREFIX = b"vidkv:"

    def __init__(self, url, ttl=None):
        parts = urlsplit(url)
        super().__init__(f"redis at {parts.hostname}:{parts.port or 6379}")
        self._milliseconds = max(1, round(ttl * 1000)) if ttl else None
        try:
            import redis
        except ImportError as error:
            raise ValueError("VidKV: a store in Redis needs the package redis (pip install redis)") from error
        self._full, self._said_full = redis.exceptions.OutOfMemoryError, False
        self._client = redis.Redis.from_url(url, socket_timeout=5, socket_connect_timeout=2)

    def _get(self, name):
        key = self.PREFIX + name.encode()
        return self._client.getex(key, px=self._milliseconds) if self._milliseconds else self._client.get(key)

    def _has(self, name):
        return bool(self._client.exists(self.PREFIX + name.encode()))

    def _put(self, name, data):
        try:
            return bool(self._client.set(self.PREFIX + name.encode(), data, px=self._milliseconds))
        except self._full:  # it can still be read
            if not self._said_full:
                logger.warning("VidKV: %s is full, nothing is added (maxmemory-policy allkeys-lru makes room)", self.place)
            self._said_full = True
            return False


def open_store(place, ttl=None, max_bytes=None):
    if not isinstance(place, str):
        raise ValueError(f"VidKV: store is a folder or redis://host:port/0, not {place!r}")
    for name, value in (("ttl", ttl), ("max_bytes", max_bytes)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0):
            raise ValueError(f"VidKV: {name} must be a number greater than 0, not {value!r}")
    if place.startswith(("redis://", "rediss://", "unix://")):
        if max_bytes is not None:
            raise ValueError("VidKV: max_bytes is for folders; Redis limits itself (maxmemory and maxmemory-policy allkeys-lru)")
        return Redis(place, ttl)
    if "://" in place.removeprefix("file://"):
        raise ValueError(f"VidKV: a store is a folder or redis://host:port/0: {place} is neither")
    return Folder(place.removeprefix("file://"), ttl, max_bytes)
