"""Stores on S3: in obstore's memory, and on a local server process of moto.

``S3_PYTHON`` is the path of a Python with moto, if this environment does not have it.
"""

from __future__ import annotations

import http.client
import http.server
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

import vbfmt
from tests.store.adapters import adapter
from vbfmt import errors
from vbfmt.store import ANY, Store, garbage
from vbfmt.store.s3 import Bucket, cache_folder

obstore = pytest.importorskip("obstore", reason="needs the extra s3")

_SERVER = """
import sys
from moto.server import ThreadedMotoServer
import boto3, time
server = ThreadedMotoServer(ip_address="127.0.0.1", port=int(sys.argv[1]), verbose=False)
server.start()
url = f"http://127.0.0.1:{server.get_host_and_port()[1]}"
boto3.client("s3", endpoint_url=url, region_name="us-east-1").create_bucket(Bucket="bucket")
print(url, flush=True)
time.sleep(3600)
"""


class Server:
    """A server process that can be killed."""

    def __init__(self):
        self.port = 0
        self.start()

    def start(self):
        python = os.environ.get("S3_PYTHON", sys.executable)
        self.process = subprocess.Popen(
            [python, "-c", _SERVER, str(self.port)],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        lines = iter(self.process.stdout.readline, "")
        self.url = next((line.strip() for line in lines if line.startswith("http")), "")
        if not self.url:
            self.kill()
            pytest.skip("needs moto's server: pip install 'moto[server]' boto3")
        self.port = int(self.url.rpartition(":")[2])

    def kill(self):
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        self.process.stdout.close()


@pytest.fixture(scope="module")
def server():
    credentials = {
        "AWS_ACCESS_KEY_ID": "x",
        "AWS_SECRET_ACCESS_KEY": "y",
        "AWS_REGION": "us-east-1",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in credentials.items():
            patch.setenv(name, value)
        server = Server()
        patch.setenv("AWS_ENDPOINT_URL", server.url)
        yield server
        server.kill()


@pytest.fixture
def in_memory(monkeypatch):
    """Replace S3 by buckets in the memory of this process."""
    stores = {}

    def from_url(address, client_options):
        return stores.setdefault(address, obstore.store.MemoryStore())

    monkeypatch.setattr("obstore.store.from_url", from_url)


@pytest.fixture(params=["in_memory", "server"])
def opened(tmp_path, request):
    request.getfixturevalue(request.param)
    address = f"s3://bucket/{request.function.__name__}/"

    def opened(cache="cache"):
        return Store(address, create=True, cache=tmp_path / cache)

    return opened


def test_an_adapter_on_s3_is_opened_by_name_and_digest(opened):
    store = opened()
    digest = store.add(adapter(1), name="team/alice")
    store.add(adapter(2, bank=1), name="bob")
    assert store.resolve("team/alice") == digest == vbfmt.digest(adapter(1))
    assert store.open("team/alice") == adapter(1)
    assert vbfmt.load(store.path(digest), banks=store, digest=digest) == adapter(1)
    other = opened("another machine")
    assert other.open("bob") == adapter(2, bank=1)
    assert {entry.names for entry in other.entries(base_model="base")} == {
        ("team/alice",),
        ("bob",),
    }
    assert (other.stats().adapters, other.stats().banks) == (2, 2)
    assert all(report.ok for report in other.verify())


def test_a_name_changes_by_compare_and_swap_and_can_be_removed(opened):
    store = opened()
    one, two = store.add(adapter(1), name="x"), store.add(adapter(2))
    for replaces in (None, two):
        with pytest.raises(errors.ConflictError):
            store.tag("x", two, replaces=replaces)
    store.tag("x", two, replaces=one)
    with pytest.raises(errors.ConflictError, match="differs only in case"):
        store.tag("X", two)
    store.untag("x", expected=two)
    assert opened("other").names() == {}
    with pytest.raises(errors.UnknownError):
        store.resolve("x")
    store.tag("x", one)
    store.tag("x", two, replaces=ANY)
    assert opened("other").names() == {"x": two}


def test_one_of_two_concurrent_changes_of_a_name_wins(opened):
    stores = [opened(f"{number}") for number in range(4)]
    digests = [store.add(adapter(number)) for number, store in enumerate(stores)]
    won = []

    def work(store, digest):
        try:
            store.tag("x", digest)
            won.append(digest)
        except errors.ConflictError:
            pass

    threads = [
        threading.Thread(target=work, args=pair) for pair in zip(stores, digests, strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert won == [stores[0].resolve("x")]


def test_garbage_and_leases(opened):
    store = opened()
    digest = store.add(adapter(1), name="x")
    kept = store.add(adapter(2, bank=1), name="y")
    store.untag("x")
    assert store.gc().removed == ()
    with store.lease(digest):
        assert store.gc(grace=0).removed == ()
    assert len(store.gc(grace=0).removed) == 2
    with pytest.raises(errors.UnknownError):
        store.open(digest)
    assert [entry.digest for entry in opened("other").entries()] == [kept]
    assert store.open(store.add(adapter(1), name="x")) == adapter(1)
    assert garbage.mark_of(store._backend, "banks/x", time.time()) is None
    with pytest.raises(errors.UnknownError, match="no such adapter"):
        store.path("sha256:" + "0" * 64)


def test_a_lost_server_is_one_line_and_the_next_run_continues(server, tmp_path, monkeypatch):
    store = Store("s3://bucket/gone", create=True, cache=tmp_path / "cache")
    monkeypatch.setattr(
        "vbfmt.store.s3._OPTIONS", {"connect_timeout": "1s", "timeout": "1s", "allow_http": True}
    )
    store.add(adapter(1), name="x")
    server.kill()
    start = time.monotonic()
    with pytest.raises(errors.StorageError) as error:
        store.add(adapter(2), name="y")
    assert "\n" not in str(error.value)
    assert "s3://bucket/" in str(error.value)
    assert time.monotonic() - start < 300
    server.start()  # moto keeps data in memory, so it is empty
    again = Store("s3://bucket/gone", create=True, cache=tmp_path / "cache")
    assert again.open(again.add(adapter(2), name="y")) == adapter(2)


class Throttled(http.server.ThreadingHTTPServer):
    """A proxy that answers every third request with S3's "slow down", and drops the answer to every
    fifth of the other requests."""

    def __init__(self, behind):
        self.behind, self.count, self.refused, self.lost = behind, 0, 0, 0
        super().__init__(("127.0.0.1", 0), Between)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_address[1]}"


class Between(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def pass_on(self):
        proxy = self.server
        proxy.count += 1
        content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if proxy.count % 3 == 0:
            proxy.refused += 1
            slow = b"<Error><Code>SlowDown</Code><Message>Reduce your rate.</Message></Error>"
            self.answer(503, {"Content-Type": "application/xml"}, slow)
            return
        host, _, port = proxy.behind.removeprefix("http://").partition(":")
        connection = http.client.HTTPConnection(host, int(port), timeout=30)
        connection.request(self.command, self.path, content, dict(self.headers))
        answer = connection.getresponse()
        body = answer.read()
        if proxy.count % 5 == 0:
            proxy.lost += 1
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        self.answer(answer.status, dict(answer.getheaders()), body)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = pass_on  # noqa: N815

    def answer(self, status, headers, body):
        self.send_response(status)
        for name, value in headers.items():
            if name.lower() not in ("content-length", "connection", "transfer-encoding", "date"):
                self.send_header(name, value)
        length = headers.get("Content-Length") if self.command == "HEAD" else len(body)
        self.send_header("Content-Length", str(length))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def test_nothing_is_lost_if_a_server_throttles_and_loses_answers(server, tmp_path, monkeypatch):
    """A request whose answer was lost is sent again, and finds its own change."""
    between = Throttled(server.url)
    monkeypatch.setenv("AWS_ENDPOINT_URL", between.url)
    store = Store("s3://bucket/throttled", create=True, cache=tmp_path / "cache")
    digests = {}
    for number in range(8):
        name = f"user-{number % 3}"
        digests[name] = store.add(adapter(number), name=name, replaces=ANY)
    monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
    between.shutdown()
    assert between.refused > 5
    assert between.lost > 5
    other = Store("s3://bucket/throttled", cache=tmp_path / "other")
    assert other.names() == digests
    assert (other.stats().adapters, other.stats().banks) == (8, 1)
    assert all(report.ok for report in other.verify())


def test_without_obstore_the_error_names_the_extra(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "obstore", None)
    with pytest.raises(errors.MissingExtraError, match=r"pip install 'vbfmt\[s3\]'"):
        Store("s3://bucket/x", cache=tmp_path)


@pytest.fixture
def bucket(in_memory, tmp_path):
    return Bucket("s3://bucket/keys", str(tmp_path))


@pytest.mark.parametrize(
    ("key", "mine"),
    [("adapters/00/x", False), ("banks/00/x", False), ("names/00/x", True), ("leases/x", True)],
)
def test_an_existing_equal_object_counts_as_created_only_if_it_may_change(bucket, key, mine):
    """The answer to the request that created it may have been lost before the request was sent
    again."""
    assert bucket.create(key, [b"a", b"b"])
    assert bucket.create(key, [b"ab"]) is mine
    assert not bucket.create(key, [b"other"])
    assert bucket.content(key) == b"ab"


def test_a_change_whose_answer_was_lost_counts_as_made(bucket):
    bucket.create("names/00/x", [b"one"])
    before = bucket.found("names/00/x").version
    assert bucket.replace("names/00/x", b"two", before)
    assert bucket.replace("names/00/x", b"two", before)
    assert not bucket.replace("names/00/x", b"three", before)
    assert bucket.content("names/00/x") == b"two"


def test_a_removed_object_is_missing_and_can_be_created_again(bucket):
    bucket.create("names/00/x", [b"one"])
    assert not bucket.remove("names/00/x", '"another"')
    assert bucket.remove("names/00/x", bucket.found("names/00/x").version)
    assert bucket.found("names/00/x") is None
    assert not bucket.exists("names/00/x")
    assert list(bucket.entries("names")) == []
    assert bucket.create("names/00/x", [b"two"])
    assert [(one.key, one.size) for one in bucket.entries("names")] == [("names/00/x", 3)]
    bucket.delete("names/00/x")
    bucket.delete("names/00/x")
    assert not bucket.exists("names/00/x")
    assert bucket.stamps("names") == {"names": None}


def test_a_file_is_downloaded_once(bucket):
    bucket.create("banks/00/x", [b"bank"])
    path = bucket.file("banks/00/x")
    bucket.delete("banks/00/x")
    assert bucket.file("banks/00/x") == path
    with open(path, "rb") as stream:
        assert stream.read() == b"bank"


def test_what_a_suspended_collector_removes_too_late_is_written_again(
    in_memory, tmp_path, monkeypatch
):
    """Earlier, if the collector slept before its request to delete, an adapter was lost that had
    been named meanwhile."""
    store = Store("s3://bucket/suspended", create=True, cache=tmp_path / "cache")
    other = Store("s3://bucket/suspended", cache=tmp_path / "other")
    digest, now, delete = store.add(adapter(1)), time.time(), Bucket.delete

    def after_a_long_sleep(bucket, key):
        if key.startswith(("adapters/", "banks/")):
            with monkeypatch.context() as later:
                later.setattr(garbage.time, "time", lambda: now + garbage._PATIENCE + 60)
                assert other.add(adapter(1), name="x") == digest
        delete(bucket, key)

    monkeypatch.setattr(Bucket, "delete", after_a_long_sleep)
    assert store.gc(grace=0).removed == ()
    monkeypatch.undo()
    assert other.open("x") == adapter(1)
    assert all(report.ok for report in other.verify())


@pytest.mark.parametrize("address", ["s3://", "s3://bucket with spaces/x", "s3://[x"])
def test_an_invalid_url_is_one_line(tmp_path, address):
    with pytest.raises(errors.StorageError, match="cannot open s3:") as error:
        Store(address, cache=tmp_path)
    assert "\n" not in str(error.value)


def test_the_location_of_the_cache(tmp_path, monkeypatch):
    assert cache_folder("s3://a/b", tmp_path) == str(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    one, two = (cache_folder(f"s3://a/{name}", None) for name in "bc")
    assert one != two
    assert os.path.dirname(one) == str(tmp_path / "vbfmt")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/me")
    assert cache_folder("s3://a/b", None).startswith("/home/me/.cache/vbfmt/")


def test_a_cache_that_cannot_be_created_is_one_line(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(errors.StorageError, match="cannot write .*file/cache"):
        Store("s3://bucket/x", cache=tmp_path / "file" / "cache")
