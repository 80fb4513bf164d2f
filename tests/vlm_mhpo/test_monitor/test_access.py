"""Who may start a server where, and which files count as a secret."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from vlm_mhpo.cli import app
from vlm_mhpo.commands.monitor import MonitorError, serve
from vlm_mhpo.commands.monitor.access import access_for, is_loopback, read_token

TOKEN = "0123456789abcdef0123456789abcdef"


@pytest.fixture
def token_file(tmp_path):
    """A good token file."""
    file = tmp_path / "token"
    file.write_text(TOKEN + "\n")
    file.chmod(0o600)
    return file


@pytest.mark.parametrize(
    ("host", "expected"),
    [("127.0.0.1", True), ("127.3.2.1", True), ("::1", True), ("localhost", True), ("LocalHost", True)]
    + [(h, False) for h in ("0.0.0.0", "::", "", "192.168.1.5", "node7", "127.0.0.1.example.org", "localhost.example")],
)
def test_loopback_is_known_by_address_not_by_looks(host, expected):
    assert is_loopback(host) is expected


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "", "192.168.1.5", "node7"])
def test_other_hosts_need_a_token(host, token_file):
    with pytest.raises(MonitorError, match="--token-file"):
        access_for(host, None)
    assert access_for(host, token_file).token == TOKEN.encode()


def test_a_token_on_loopback_is_asked_for_as_well(token_file):
    access = access_for("127.0.0.1", token_file)
    assert access.token == TOKEN.encode() and "localhost" in access.names


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o660, 0o601, 0o610, 0o604])
def test_a_token_that_others_may_touch_is_refused(token_file, mode):
    token_file.chmod(mode)
    with pytest.raises(MonitorError, match="chmod 600"):
        read_token(token_file)


@pytest.mark.parametrize(
    "content", [b"", b"short", b"x" * 31, b" " * 40, b"a b" * 20, b"\xff" * 40, b"x" * 20 + b"\0" * 20]
)
def test_a_short_or_unprintable_token_is_refused(token_file, content):
    token_file.write_bytes(content)
    with pytest.raises(MonitorError, match="at least 32 printable"):
        read_token(token_file)


def test_a_token_must_be_a_regular_file(token_file, tmp_path):
    (tmp_path / "link").symlink_to(token_file)
    for place in (tmp_path / "link", tmp_path / "none"):
        with pytest.raises(MonitorError, match="cannot be read"):
            read_token(place)
    with pytest.raises(MonitorError):
        read_token(tmp_path)


def test_the_command_refuses_what_would_be_open_before_it_listens(tmp_path):
    result = CliRunner().invoke(app, ["monitor", str(tmp_path), "--host", "0.0.0.0", "--port", "0"])
    assert isinstance(result.exception, MonitorError) and "lets other machines read the run" in str(result.exception)
    result = CliRunner().invoke(app, ["monitor", str(tmp_path / "none")])
    assert isinstance(result.exception, MonitorError) and "no run folder" in str(result.exception)


def test_a_taken_port_is_said_in_a_sentence(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(MonitorError, match="choose another --port"):
        serve(tmp_path, host="127.0.0.1", port=taken.getsockname()[1], token_file=None, say=print)


def test_without_its_packages_the_monitor_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.delitem(sys.modules, "vlm_mhpo.commands.monitor.server", raising=False)
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with pytest.raises(MonitorError, match=r"pip install 'vlm-mhpo\[monitor\]'"):
        serve(tmp_path, host="127.0.0.1", port=0, token_file=None, say=print)


def test_the_command_says_its_port_and_ends_in_silence_when_interrupted(tmp_path):
    command = [sys.executable, "-u", "-m", "vlm_mhpo.cli", "monitor", str(tmp_path), "--port", "0"]
    root = Path(__file__).resolve().parents[3]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=root, env=os.environ | {"PYTHONPATH": "."}, **pipes) as server:
        address = server.stdout.readline().strip()
        port = int(address.removeprefix("http://127.0.0.1:").removesuffix("/"))
        # A reader who only holds the line does not keep the server from ending.
        with socket.create_connection(("127.0.0.1", port), timeout=20) as client:
            client.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert client.recv(12) == b"HTTP/1.1 200"
            server.send_signal(signal.SIGINT)
            out, errors = server.communicate(timeout=30)
    assert (server.returncode, out, errors) == (0, "", "")
