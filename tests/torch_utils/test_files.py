"""Atomic writes, retention and the download cache."""

import http.server
import json
import os
import subprocess
import sys
import threading
from contextlib import suppress

import pytest

from torch_utils import files
from torch_utils.files import atomic_write, retain, write_json


def test_atomic_write_replaces_or_leaves(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with suppress(RuntimeError), atomic_write(path) as file:
        file.write(b"new")
        raise RuntimeError
    assert path.read_bytes() == b"old"
    with atomic_write(path) as file:
        file.write(b"new")
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"
    write_json(tmp_path / "x.json", {"a": [1, None]})
    assert json.loads((tmp_path / "x.json").read_text()) == {"a": [1, None]}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "x.json"]


def test_new_files_follow_the_umask(tmp_path):
    old = os.umask(0o027)
    try:
        write_json(tmp_path / "x.json", 1)
    finally:
        os.umask(old)
    assert (tmp_path / "x.json").stat().st_mode & 0o777 == 0o640


def test_killed_while_writing(tmp_path):
    (tmp_path / "file").write_bytes(b"old")
    program = (
        "from torch_utils.files import atomic_write; import os\n"
        "with atomic_write('file') as f: f.write(b'new'); f.flush(); os._exit(9)"
    )
    root = os.path.dirname(os.path.dirname(files.__file__))
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, env={**os.environ, "PYTHONPATH": root})
    assert done.returncode == 9
    assert (tmp_path / "file").read_bytes() == b"old"
    (tmp_path / "network-snapshot-000001.pkl").touch()
    assert files.numbered(tmp_path, "network-snapshot-*.pkl") == [tmp_path / "network-snapshot-000001.pkl"]


def test_retain_keeps_the_newest(tmp_path):
    for n in (999_999, 1_000_000, 5, 70, 3):
        (tmp_path / f"state-{n:06d}.pt").touch()
    (tmp_path / "other-000001.pt").touch()
    gone = retain(tmp_path, "state-*.pt", 2)
    assert sorted(p.name for p in gone) == ["state-000003.pt", "state-000005.pt", "state-000070.pt"]
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "other-000001.pt", "state-1000000.pt", "state-999999.pt",
    ]  # fmt: skip
    assert retain(tmp_path, "state-*.pt", 7) == []
    with pytest.raises(ValueError, match="at least one"):
        retain(tmp_path, "state-*.pt", 0)


# Downloads


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
        files.download(f"{address}/net.pkl", sha256=good, verbose=False)
    assert not list((tmp_path / "cache" / "downloads").iterdir())
    path = files.download(f"{address}/net.pkl", verbose=False)
    assert path.name.endswith("-net.pkl")
    assert path.read_bytes() == b"weights"
    (folder / "net.pkl").unlink()
    assert files.download(f"{address}/net.pkl", verbose=False) == path, "no second transfer"
    with pytest.raises(ValueError, match="SHA-256"):
        files.download(f"{address}/net.pkl", sha256=good, verbose=False)


def test_download_failures_are_sentences(server, tmp_path, monkeypatch):
    address, _ = server
    with pytest.raises(ValueError, match="cannot be downloaded"):
        files.download(f"{address}/missing.pkl", verbose=False)
    with pytest.raises(ValueError, match=r"cannot be downloaded|ended after 4 of"):
        files.download(f"{address}/cut.pkl", verbose=False)
    with pytest.raises(ValueError, match=r"cannot be downloaded .*check the connection"):
        files.download("http://127.0.0.1:9/offline.pkl", verbose=False)
    with pytest.raises(ValueError, match="not a web address"):
        files.download("file:///etc/passwd", verbose=False)
    assert not list((tmp_path / "cache" / "downloads").iterdir())
