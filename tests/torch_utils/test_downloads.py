"""The cache of downloads: once, resumed, checked, and nothing without leave."""

import http.server
import threading

import pytest

from torch_utils import downloads


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A web server on this machine; yields its address and the folder it serves."""
    monkeypatch.setenv("FEWSTEP_CACHE_DIR", str(tmp_path / "cache"))
    folder = tmp_path / "www"
    folder.mkdir()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=str(folder))

        def log_message(self, *_):
            pass

        def do_GET(self):
            if not self.path.startswith("/cut"):
                return super().do_GET()
            self.send_response(200)
            self.send_header("Content-Length", "1000000")
            self.end_headers()
            self.wfile.write(b"half")

    httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=httpd.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{httpd.server_port}", folder
    httpd.shutdown()
    httpd.server_close()
    thread.join()


def test_download_is_cached_and_checked(server, tmp_path):
    address, folder = server
    (folder / "net.pkl").write_bytes(b"weights")
    good = "9a9e7a3d20a1d5b09aa4fb10a8e4b4ce35a2d2a1f0d4bd0a0e5b2a5b2d8b2a62"
    with pytest.raises(ValueError, match=f"expected {good}"):
        downloads.download(f"{address}/net.pkl", sha256=good, verbose=False)
    assert not list((tmp_path / "cache" / "downloads").iterdir())
    path = downloads.download(f"{address}/net.pkl", verbose=False)
    assert path.name.endswith("-net.pkl")
    assert path.read_bytes() == b"weights"
    (folder / "net.pkl").unlink()
    assert downloads.download(f"{address}/net.pkl", verbose=False) == path, "no second transfer"
    with pytest.raises(ValueError, match="SHA-256"):
        downloads.download(f"{address}/net.pkl", sha256=good, verbose=False)


def test_download_failures_are_sentences(server, tmp_path, monkeypatch):
    address, _ = server
    with pytest.raises(ValueError, match="cannot be downloaded"):
        downloads.download(f"{address}/missing.pkl", verbose=False)
    with pytest.raises(ValueError, match=r"cannot be downloaded|ended after 4 of"):
        downloads.download(f"{address}/cut.pkl", verbose=False)
    with pytest.raises(ValueError, match=r"cannot be downloaded .*check the connection"):
        downloads.download("http://127.0.0.1:9/offline.pkl", verbose=False)
    with pytest.raises(ValueError, match="not a web address"):
        downloads.download("file:///etc/passwd", verbose=False)
    assert not list((tmp_path / "cache" / "downloads").iterdir())


CONTENT = bytes(range(256)) * 5000


@pytest.fixture
def moody(tmp_path, monkeypatch):
    """A server that breaks off after `cut` bytes, knows ranges, and notes what it was asked for."""
    monkeypatch.setenv("FEWSTEP_CACHE_DIR", str(tmp_path / "cache"))
    state = {"cut": 300_000, "tag": '"one"', "asked": [], "content": CONTENT}

    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, *_):
            pass

        def do_GET(self):
            want, begin = self.headers.get("Range"), 0
            state["asked"].append(want)
            partial = want is not None and self.headers.get("If-Range") == state["tag"]
            if partial:
                begin = int(want.removeprefix("bytes=").removesuffix("-"))
            self.send_response(206 if partial else 200)
            self.send_header("Content-Length", str(len(state["content"]) - begin))
            if state["tag"]:
                self.send_header("ETag", state["tag"])
            self.end_headers()
            self.wfile.write(state["content"][begin : begin + state["cut"]])

    httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=httpd.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{httpd.server_port}/x.pt", state
    httpd.shutdown()
    httpd.server_close()
    thread.join()


def test_a_broken_transfer_goes_on_where_it_ended(moody):
    url, state = moody
    with pytest.raises(ValueError, match=r"ended after 1200000 of 1280000|cannot be downloaded"):
        downloads.download(url, verbose=False)
    assert state["asked"] == [None, "bytes=300000-", "bytes=600000-", "bytes=900000-"]
    assert downloads.download(url, verbose=False).read_bytes() == CONTENT
    assert state["asked"][4:] == ["bytes=1200000-"]


def test_a_file_that_changed_starts_over(moody, tmp_path):
    url, state = moody
    with pytest.raises(ValueError, match="download"):
        downloads.download(url, verbose=False)
    state |= {"tag": '"two"', "content": CONTENT[::-1], "cut": 1 << 30}
    assert downloads.download(url, verbose=False).read_bytes() == CONTENT[::-1]
    assert [p.name[:1] for p in (tmp_path / "cache" / "downloads").iterdir()].count(".") == 0


def test_a_server_without_versions_starts_over(moody, tmp_path):
    url, state = moody
    state["tag"] = ""
    with pytest.raises(ValueError, match="download"):
        downloads.download(url, verbose=False)
    assert state["asked"] == [None]
    assert not list((tmp_path / "cache" / "downloads").iterdir())


def test_two_at_once_fetch_once(moody):
    url, state = moody
    state["cut"] = 1 << 30
    found = []
    threads = [threading.Thread(target=lambda: found.append(downloads.download(url, verbose=False))) for _ in range(4)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert len(set(found)) == 1
    assert state["asked"] == [None]


def test_what_was_checked_is_not_read_again(moody, monkeypatch):
    import hashlib

    url, state = moody
    state["cut"] = 1 << 30
    good = hashlib.sha256(CONTENT).hexdigest()
    path = downloads.download(url, sha256=good, verbose=False)
    monkeypatch.setattr(hashlib, "file_digest", None)
    assert downloads.download(url, sha256=good.upper(), verbose=False) == path
    monkeypatch.undo()
    path.write_bytes(b"other")
    monkeypatch.setenv("FEWSTEP_CACHE_DIR", str(path.parents[1]))
    with pytest.raises(ValueError, match="SHA-256"):
        downloads.download(url, sha256=good, verbose=False)


def test_offline_is_respected(moody, monkeypatch):
    url, state = moody
    state["cut"] = 1 << 30
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ValueError, match=r"HF_HUB_OFFLINE forbids it.*fetch the file on another machine"):
        downloads.download(url, verbose=False)
    assert state["asked"] == []
    monkeypatch.delenv("HF_HUB_OFFLINE")
    path = downloads.download(url, verbose=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert downloads.download(url, verbose=False) == path


def test_mirrors_in_order(moody, server, monkeypatch):
    import hashlib

    url, state = moody
    address, folder = server
    state["cut"] = 1 << 30
    (folder / "bad.pt").write_bytes(CONTENT[:-1] + b"x")
    good = hashlib.sha256(CONTENT).hexdigest()
    mirrors = [f"{address}/missing.pt", f"{address}/cut.pt", f"{address}/bad.pt", url]
    known = dict.fromkeys(mirrors, good)
    with pytest.warns(UserWarning, match="trying the next address") as said:
        path = downloads.download_first(mirrors, sha256=known, verbose=False)
    assert path.read_bytes() == CONTENT
    assert [word in str(w.message) for w, word in zip(said, ("missing", "cut", "SHA-256"), strict=True)] == [True] * 3
    asked = list(state["asked"])
    assert downloads.download_first(mirrors, sha256=known, verbose=False) == path, "no mirror is asked again"
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert downloads.download_first(mirrors, sha256=known, verbose=False) == path
    assert state["asked"] == asked
    with (
        pytest.warns(UserWarning, match="trying"),
        pytest.raises(ValueError, match=r"none of 2 .*missing.*HF_HUB_OFFLINE.*bad.*HF_HUB"),
    ):
        downloads.download_first([mirrors[0], mirrors[2]], verbose=False)
