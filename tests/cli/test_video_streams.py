"""Videos that come through pipes and from servers, that arrive once, late or damaged."""
import contextlib
import http.server
import json
import os
import signal
import socket
import socketserver
import ssl
import struct
import subprocess
import tempfile
import threading
import time
import unittest

from video_case import SECONDS, VIDKV, Videos, vidkv


class Streams(Videos):
    def test_one_key_frame(self):
        # Times of decoding lie before the start, and no key frame after it: a jump must find the first.
        for name, options in (("one.ts", ["-c:v", "libx264", "-bf", "3"]), ("one.m2ts", ["-c:v", "libx264", "-output_ts_offset", "95000"]),
                              ("one.mpg", ["-c:v", "mpeg2video", "-r", "25", "-g", "600"]), ("one.flv", ["-c:v", "libx264"])):
            video = self.make(name, *options)
            with self.subTest(name):
                for seconds, wanted in zip(self.times(video, "--frames", "4"), (0, 1.5, 3, 4.5), strict=True):
                    self.assertAlmostEqual(seconds, wanted, delta=0.05)
                self.assertAlmostEqual(self.times(video, "--start", "4", "--fps", "1")[0], 4, delta=0.05)

    def test_standard_input(self):
        for name, options in (("in.mp4", ["-c:v", "libx264"]), ("in.webm", ["-c:v", "libvpx"]), ("in.ts", ["-c:v", "libx264", "-g", "10"])):
            video = self.make(name, *options)
            with open(video, "rb") as f:
                content = f.read()
            for options in (("--frames", "6"), ("--fps", "1")):
                with tempfile.TemporaryDirectory() as out:
                    done = vidkv("frames", "-", "--json", "--out", out, *options, stdin=None, input=content)
                    self.assertEqual((done.returncode, done.stderr), (0, b""))
                    frames = self.read(json.loads(done.stdout)["frames"])
                self.assertEqual(len(frames), 6)
                self.assert_colours(frames, 12)

    def test_pipe_with_a_name(self):
        pipe = self.path("pipe")
        os.mkfifo(pipe)
        writer = subprocess.Popen(["sh", "-c", f"sleep 0.3; cat '{self.h264}' > '{pipe}'"])
        self.assertEqual(len(self.times(pipe, "--frames", "6")), 6)
        writer.wait()

    @contextlib.contextmanager
    def served(self, family=socket.AF_INET, tls=None):
        """The port of a web server for the folder."""
        folder = self.folder

        class Handler(http.server.SimpleHTTPRequestHandler):
            def __init__(self, *arguments):
                super().__init__(*arguments, directory=folder)

            def log_message(self, *arguments):
                pass

        class Server(socketserver.ThreadingTCPServer):
            address_family = family

            def handle_error(self, *arguments):
                pass  # a client that does not trust the certificate

        with Server(("::1" if family == socket.AF_INET6 else "127.0.0.1", 0), Handler) as server:
            if tls:
                server.socket = tls.wrap_socket(server.socket, server_side=True)
            threading.Thread(target=server.serve_forever, daemon=True).start()
            yield server.server_address[1]
            server.shutdown()

    def test_http(self):
        self.make("served.ts", "-c", "copy", source=self.h264)
        self.make("list.m3u8", "-c", "copy", "-hls_time", "1", "-hls_list_size", "0", source=self.h264)
        with self.served() as port:
            address = f"http://127.0.0.1:{port}/"
            for name in ("h264.mp4", "served.ts", "list.m3u8"):  # the index of h264.mp4 is at its end, and this server sends no ranges
                with self.subTest(name):
                    frames = self.frames(address + name, "--frames", "6")
                    self.assertEqual(len(frames), 6)
                    self.assert_colours(frames, 6)
            self.assert_fails("404", "frames", address + "none.mp4")
        self.assert_fails("cannot be opened", "frames", address + "h264.mp4")
        self.assert_fails("does not know", "frames", "nonsense://x/y.mp4")

    def test_ipv6(self):
        try:
            socket.create_server(("::1", 0), family=socket.AF_INET6).close()
        except OSError as error:
            self.skipTest(f"no IPv6 on the loopback: {error}")
        with self.served(socket.AF_INET6) as port:
            self.assert_colours(self.frames(f"http://[::1]:{port}/h264.mp4", "--frames", "6"), 6)

    def test_https(self):
        key, certificate = self.path("key.pem"), self.path("certificate.pem")
        subprocess.run(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost", "-addext",
                        "subjectAltName=IP:127.0.0.1,DNS:localhost", "-keyout", key, "-out", certificate], check=True, capture_output=True)
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(certificate, key)
        with self.served(tls=tls) as port:
            address = f"https://localhost:{port}/h264.mp4"
            trusting = {**os.environ, "SSL_CERT_FILE": certificate}
            self.assert_colours(self.frames(address, "--frames", "6", env=trusting), 6)
            self.assert_fails("certificate is not trusted", "frames", address)

    def test_rtsp(self):
        ts = self.make("rtsp.ts", "-c:v", "libx264", "-g", "10", "-bf", "0")
        with open(ts, "rb") as f:
            content = f.read()

        class Camera(socketserver.StreamRequestHandler):
            """MPEG-TS in RTP packets within the connection (RFC 2326, section 10.12)."""
            DESCRIPTION = b"v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=test\r\nt=0 0\r\nm=video 0 RTP/AVP 33\r\na=control:track\r\n"

            def handle(self):
                while request := self.request_lines():
                    method = request[0].split()[0]
                    more, body = b"", self.DESCRIPTION if method == b"DESCRIBE" else b""
                    if method == b"DESCRIBE":
                        more = b"Content-Type: application/sdp\r\nContent-Length: %d\r\n" % len(body)
                    if method == b"SETUP":
                        more = b"Transport: RTP/AVP/TCP;unicast;interleaved=0-1\r\n"
                    sequence = next(line for line in request if line.lower().startswith(b"cseq"))
                    self.wfile.write(b"RTSP/1.0 200 OK\r\n" + sequence + b"\r\nSession: 1\r\n" + more + b"\r\n" + body)
                    if method == b"PLAY":
                        return self.play()
                return None

            def request_lines(self):
                lines = []
                while (line := self.rfile.readline()) not in (b"\r\n", b""):
                    lines.append(line.strip())
                return lines

            def play(self):
                packet = 7 * 188
                for n, start in enumerate(range(0, len(content), packet)):
                    rtp = struct.pack(">BBHII", 0x80, 33, n & 0xffff, n * 900, 1) + content[start:start + packet]
                    self.wfile.write(struct.pack(">cBH", b"$", 0, len(rtp)) + rtp)

        with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Camera) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            frames = self.frames(f"rtsp://127.0.0.1:{server.server_address[1]}/camera", "--fps", "1")
            server.shutdown()
        self.assertGreaterEqual(len(frames), SECONDS - 1)
        self.assert_colours(frames, 12)

    def test_stream_that_comes_once(self):
        self.make("once-only.ts", "-c:v", "libx264", "-g", "10")
        with open(self.path("once-only.ts"), "rb") as f:
            content = f.read()

        class Sender(socketserver.BaseRequestHandler):
            def handle(self):
                self.request.sendall(content)

        with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Sender) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            address = f"tcp://127.0.0.1:{server.server_address[1]}"
            self.assertEqual(len(self.times(address)), 24)
            for count in (1, 5, 6, 24, 60):
                frames = self.frames(address, "--frames", str(count))
                self.assertEqual(len(frames), min(count, 24))
                self.assert_colours(frames, 12)
                if count > 1:
                    self.assertGreater(frames[-1][0], SECONDS * (1 - 2 / min(count, 24)))  # over all of it
            server.shutdown()

    @staticmethod
    def catches(pid, signum):
        with open(f"/proc/{pid}/status", encoding="ascii") as f:
            caught = next(line for line in f if line.startswith("SigCgt:"))
        return int(caught.split()[1], 16) >> (signum - 1) & 1

    def stopped(self, arguments, signum, **more):
        child = subprocess.Popen([VIDKV, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, **more)
        while not self.catches(child.pid, signum) and child.poll() is None:
            time.sleep(0.01)
        child.send_signal(signum)
        child.communicate(timeout=30)  # the end comes, however busy the machine is
        return child.returncode

    def test_signals_end_the_waiting(self):
        with socketserver.TCPServer(("127.0.0.1", 0), socketserver.BaseRequestHandler) as silent:  # takes connections and says nothing
            for signum in (signal.SIGINT, signal.SIGTERM):
                self.assertEqual(self.stopped(["frames", f"http://127.0.0.1:{silent.server_address[1]}/a.mp4"], signum), 130)
                self.assertEqual(self.stopped(["frames", "-"], signum, stdin=subprocess.PIPE), 130)

    def test_signal_leaves_no_half_a_file(self):
        out = self.path("half")
        child = subprocess.Popen([VIDKV, "frames", self.h264, "--fps", "10", "--out", out], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while child.poll() is None and not (self.catches(child.pid, signal.SIGTERM) and os.path.isdir(out) and os.listdir(out)):
            time.sleep(0.001)
        child.send_signal(signal.SIGTERM)
        child.wait(timeout=30)
        for name in os.listdir(out):
            self.assertTrue(name.endswith(".png"), name)
            self.pixels(os.path.join(out, name))


class Damaged(Videos):
    def test_cut(self):
        for name, options in (("cut.mp4", ["-c:v", "libx264", "-movflags", "faststart"]), ("cut.mkv", ["-c:v", "ffv1"]), ("cut.webm", ["-c:v", "libvpx"]),
                              ("cut.flv", ["-c:v", "flv"]), ("late-cut.mp4", ["-c:v", "libx264"]), ("cut.gif", []), ("cut.y4m", ["-pix_fmt", "yuv420p"])):
            video = self.make(name, *options)
            with open(video, "rb") as f:
                whole = f.read()
            for share in (0.1, 0.5, 0.8):
                with open(video, "wb") as f:
                    f.write(whole[:int(len(whole) * share)])
                for options in ((), ("--frames", "6")):
                    with self.subTest(f"{name} {share} {options}"):
                        done = vidkv("frames", video, "--json", *options)
                        self.assertEqual((done.returncode, done.stdout), (1, b""), done.stderr)
                        self.assertIn(b"cut off", done.stderr)
                        self.assertEqual(done.stderr.count(b"\n"), 1)

    def test_taken_on_request(self):
        video = self.make("half.mkv", "-c:v", "ffv1")
        with open(video, "r+b") as f:
            f.truncate(os.path.getsize(video) // 2)
        self.assertGreater(len(self.times(video, "--accept-damaged")), 5)
        self.assertEqual(len(self.times(video, "--accept-damaged", "--frames", "4")), 4)

    def test_refused(self):
        empty, words, noise, text = (self.path(name) for name in ("empty.mp4", "words.mp4", "noise.mp4", "words.txt"))
        for path, content in ((empty, b""), (words, b"These are words.\n" * 100), (noise, bytes(range(256)) * 40), (text, b"These are words.\n" * 100)):
            with open(path, "wb") as f:
                f.write(content)
        bare = self.path("bare")
        os.mkdir(bare)
        for path, reason in ((empty, "is empty"), (words, "not a video"), (noise, "not a video"), (text, "text file"), (bare, "folder without images"),
                             (self.path("none.mp4"), "no such file"), (self.path("*.none"), "no such file")):
            self.assert_fails(reason, "frames", path)
        self.assert_fails("not a video", "frames", "-", stdin=None, input=b"words" * 1000)
        animated = self.make("animated.webp", "-loop", "0")
        os.truncate(animated, os.path.getsize(animated) - 100)
        self.assert_fails("is cut off", "frames", animated)


if __name__ == "__main__":
    unittest.main()
