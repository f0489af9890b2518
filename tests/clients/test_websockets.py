"""Python's `websockets`: raw frames and pushline.v1, and a reader that is cut and resumes.

Each test has a server of its own. PUSHLINE_BIN: the binary; PUSHLINE_DRIVER: its driver.
Run: python -m unittest test_websockets (in this folder).
"""

import contextlib
import http.client
import json
import os
import pathlib
import select
import signal
import socket
import subprocess
import tempfile
import threading
import time
import unittest

from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

ROOT = pathlib.Path(__file__).resolve().parents[2]
BINARY = ROOT / os.environ.get("PUSHLINE_BIN", "target/debug/pushline")
DEADLINE_S = 20


class Server:
    """A Pushline of its own, on port 0, in an empty directory."""

    def __init__(self, **settings):
        self.dir = tempfile.TemporaryDirectory(prefix="pushline-clients-")
        args = [str(BINARY), "serve", "--listen", "127.0.0.1:0", "--workers", "2", "--set", "log.format=json"]
        if driver := os.environ.get("PUSHLINE_DRIVER"):
            args += ["--driver", driver]
        for key, value in settings.items():
            args += ["--set", f"{key.replace('__', '.')}={value}"]
        env = {name: value for name, value in os.environ.items() if not name.startswith("PUSHLINE_")}
        self.child = subprocess.Popen(
            args, cwd=self.dir.name, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        self.log = []
        self.admin_listens = threading.Event()
        serving = threading.Event()
        self.reader = threading.Thread(target=self._follow, args=(serving,), daemon=True)
        self.reader.start()
        if not serving.wait(DEADLINE_S) or self.port is None:
            self.close()
            raise AssertionError("the server did not serve:\n" + "\n".join(self.log))

    port = None
    _admin_port = None

    def admin_port(self):
        """Where operators look in, with admin.listen on 127.0.0.1."""
        assert self.admin_listens.wait(DEADLINE_S) and self._admin_port, "\n".join(self.log)
        return self._admin_port

    def _follow(self, serving):
        for line in self.child.stderr:
            line = line.decode("utf-8", "replace").rstrip()
            self.log.append(line)
            try:
                said = json.loads(line)
            except ValueError:
                continue
            fields = {**said, **said.get("fields", {})}
            if fields.get("message") == "serving":
                self.port = int(str(fields["listen"]).split(",")[0].rsplit(":", 1)[1])
                serving.set()
            if fields.get("message") == "admin":
                self._admin_port = int(str(fields["listen"]).rsplit(":", 1)[1])
                self.admin_listens.set()
        serving.set()
        self.admin_listens.set()

    def stop(self):
        """Its exit code after SIGTERM."""
        self.child.send_signal(signal.SIGTERM)
        return self.child.wait(DEADLINE_S)

    def close(self):
        self.child.kill()
        self.child.wait()
        self.reader.join(DEADLINE_S)
        self.child.stderr.close()
        self.dir.cleanup()
        panics = [line for line in self.log if "panicked at" in line]
        assert not panics, panics

    def request(self, method, path, body=None, headers=None):
        http_connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=DEADLINE_S)
        try:
            http_connection.request(method, path, body, headers or {})
            answer = http_connection.getresponse()
            return answer.status, answer.read()
        finally:
            http_connection.close()

    def publish(self, channel, text):
        status, body = self.request("POST", f"/channels/{channel}", text.encode(), {"Content-Type": "text/plain"})
        assert status == 201, (status, body)
        return json.loads(body)["published"][0]["id"]

    def head(self, channel):
        return json.loads(self.request("GET", f"/channels/{channel}?limit=0")[1])["cursor"]


class Cutter:
    """A TCP proxy that cuts each connection after so many bytes of the server; the last budget stands for all later ones."""

    def __init__(self, port, budgets):
        self.target, self.budgets, self.cuts = port, list(budgets), 0
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            budget = self.budgets.pop(0) if self.budgets else None
            threading.Thread(target=self._carry, args=(client, budget), daemon=True).start()

    def _carry(self, client, budget):
        with client, socket.create_connection(("127.0.0.1", self.target)) as server:
            while True:
                for ready in select.select([client, server], [], [])[0]:
                    data = ready.recv(4096)
                    if not data:
                        return
                    try:
                        if ready is client:
                            server.sendall(data)
                            continue
                        client.sendall(data if budget is None else data[:budget])
                    except OSError:
                        return
                    if budget is not None:
                        budget -= len(data)
                        if budget <= 0:
                            self.cuts += 1
                            return

    def close(self):
        self.listener.close()


class WebSockets(unittest.TestCase):
    def serve(self, **settings):
        server = Server(**settings)
        self.addCleanup(server.close)
        return server

    def raw(self, server, path="/channels/echo", **options):
        stack = contextlib.ExitStack()
        peer = stack.enter_context(connect(f"ws://127.0.0.1:{server.port}{path}", open_timeout=DEADLINE_S, max_size=None, **options))
        self.addCleanup(stack.close)
        return peer

    def v1(self, server, path="/channels", **options):
        peer = self.raw(server, path, subprotocols=["pushline.v1"], **options)
        self.assertEqual(peer.subprotocol, "pushline.v1")
        self.assertEqual(self.json(peer)["type"], "open")
        return peer

    @staticmethod
    def json(peer):
        return json.loads(peer.recv(timeout=DEADLINE_S))

    @staticmethod
    def say(peer, **frame):
        peer.send(json.dumps(frame))

    def closed(self, peer):
        with self.assertRaises(ConnectionClosed) as caught:
            while True:
                peer.recv(timeout=DEADLINE_S)
        return caught.exception.rcvd.code

    def test_raw_echo(self):
        peer = self.raw(self.serve())
        for sent in ["hello", "", "☃ 😀", b"\x00\xff", b"", "x" * 65_536]:
            peer.send(sent)
            self.assertEqual(peer.recv(timeout=DEADLINE_S), sent)

    def test_fragments_and_ping(self):
        peer = self.raw(self.serve())
        peer.send(iter(["one ", "", "two ", "☃"]))
        self.assertEqual(peer.recv(timeout=DEADLINE_S), "one two ☃")
        peer.send(iter([b"\x01", b"\x02"]))
        self.assertEqual(peer.recv(timeout=DEADLINE_S), b"\x01\x02")
        self.assertTrue(peer.ping().wait(DEADLINE_S), "a pong")

    def test_close_codes(self):
        server = self.serve(drain__window_seconds=0.2)
        peer = self.raw(server)
        peer.close(3001, "bye")
        self.assertEqual(peer.close_code, 3001)
        peer = self.raw(server)
        peer.send("x" * 65_537)
        self.assertEqual(self.closed(peer), 1009)
        peer = self.v1(server)
        peer.send(b"{}")
        self.assertEqual(self.closed(peer), 1003)
        peer = self.raw(server)
        self.assertEqual(server.stop(), 0)
        self.assertEqual(self.closed(peer), 1012)

    def test_refusals(self):
        server = self.serve()
        for path, options, status in [
            ("/channels/x", {"subprotocols": ["chat"]}, 400),
            ("/channels/a,b", {}, 400),
            ("/channels/x", {"origin": "http://evil.test"}, 403),
            ("/nowhere", {}, 404),
        ]:
            with self.subTest(path=path, status=status), self.assertRaises(InvalidStatus) as caught:
                self.raw(server, path, **options)
            self.assertEqual(caught.exception.response.status_code, status)

    def test_v1(self):
        server = self.serve()
        peer = self.v1(server)
        self.say(peer, type="subscribe", channel="room", seq=1)
        subscribed = self.json(peer)
        self.assertEqual((subscribed["type"], subscribed["channel"], subscribed["gap"], subscribed["seq"]), ("subscribed", "room", False, 1))
        first = server.publish("room", "from http")
        message = self.json(peer)
        self.assertEqual((message["type"], message["id"], message["data"]), ("message", first, "from http"))
        self.say(peer, type="publish", channel="room", data={"n": 1}, event="tick", seq=2)
        frames = {frame["type"]: frame for frame in (self.json(peer), self.json(peer))}
        self.assertEqual(frames["published"]["id"], frames["message"]["id"])
        self.assertEqual((frames["published"]["seq"], frames["message"]["event"], frames["message"]["data"]), (2, "tick", {"n": 1}))
        self.say(peer, type="nonsense", seq=3)
        error = self.json(peer)
        self.assertEqual((error["type"], error["seq"]), ("error", 3))
        self.say(peer, type="ping")
        self.assertEqual(self.json(peer), {"type": "pong"})

    def test_not_json_is_refused_and_harms_no_other(self):
        server = self.serve()
        other = self.v1(server, "/channels/calm")
        self.assertEqual(self.json(other)["type"], "subscribed")
        peer = self.v1(server)
        peer.send("{not json")
        try:
            self.assertEqual(self.json(peer)["type"], "error")
        except ConnectionClosed as closed:
            self.assertIn(closed.rcvd.code, (1002, 1003, 1007, 1008))
        server.publish("calm", "still here")
        self.assertEqual(self.json(other)["data"], "still here")

    def test_cut_and_resumed(self):
        server = self.serve()
        total = 300
        cursor = server.head("cut")
        cutter = Cutter(server.port, [50, 180, 300, 301, 450, 1_000, 4_000])
        self.addCleanup(cutter.close)
        publisher = threading.Thread(target=lambda: [server.publish("cut", str(n)) for n in range(1, total + 1)])
        publisher.start()
        self.addCleanup(publisher.join)
        got, end = [], time.monotonic() + 60
        while len(got) < total and time.monotonic() < end:
            try:
                with connect(f"ws://127.0.0.1:{cutter.port}/channels", subprotocols=["pushline.v1"]) as peer:
                    self.say(peer, type="subscribe", channel="cut", cursor=cursor)
                    while len(got) < total:
                        frame = self.json(peer)
                        if frame["type"] == "subscribed":
                            self.assertFalse(frame["gap"])
                            cursor = frame["cursor"]
                        elif frame["type"] == "message":
                            cursor = frame["id"]
                            got.append(frame["data"])
            except (ConnectionClosed, EOFError, OSError, http.client.HTTPException) as cut:
                self.assertNotIsInstance(cut, TimeoutError)
            except Exception as cut:  # a handshake cut in its head, which `websockets` wraps
                self.assertEqual(type(cut).__name__, "InvalidMessage")
        self.assertEqual(got, [str(n) for n in range(1, total + 1)])
        self.assertEqual(cutter.cuts, 7)


if __name__ == "__main__":
    unittest.main()
