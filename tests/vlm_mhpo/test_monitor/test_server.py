"""The monitor over a real loopback socket: two addresses, read-only, closed to whom it is not meant for."""

import base64
import json
import socket
import time

import pytest

from tests.vlm_mhpo.test_monitor.serving import exchange, get, served
from vlm_mhpo.commands.monitor.access import Access
from vlm_mhpo.commands.monitor.server import MAX_CONNECTIONS, Limits
from vlm_mhpo.commands.monitor.view import View

TOKEN = "0123456789abcdef0123456789ABCDEF"
STATE = "GET /state.json HTTP/1.1\r\n"


def basic(password: str) -> str:
    return "Authorization: Basic " + base64.b64encode(password.encode()).decode()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run folder after three steps, with a secret beside it."""
    run = tmp_path_factory.mktemp("runs") / "a_run"
    run.mkdir()
    (run / "metrics.jsonl").write_text("".join(json.dumps({"step": s, "reward": 0.1 * s}) + "\n" for s in (1, 2, 3)))
    (run / "run.json").write_text("{}")
    (run.parent / "secret.txt").write_text("the secret")
    return run


@pytest.fixture(scope="module")
def port(folder):
    """The port of an open loopback server."""
    with served(folder) as port:
        yield port


@pytest.fixture(scope="module")
def closed_port(folder):
    """The port of a server as it listens beyond loopback: any name, but a token."""
    with served(folder, Access(TOKEN.encode(), None)) as port:
        yield port


def test_the_page_and_the_state_are_served(port):
    status, headers, page = get(port, "/")
    assert (status, headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert b"<h1>a_run</h1>" in page and b'id="chart-reward"' in page
    assert "connect-src 'self'" in page.decode() and "default-src 'none'" in page.decode()
    status, headers, body = get(port)
    assert (status, headers["content-type"]) == (200, "application/json")
    state = json.loads(body)
    assert state["step"] == 3 and state["age_s"] >= 0
    assert f'data-version="{state["version"]}"' in page.decode()


def test_head_gives_the_same_headers_without_a_body(port):
    for target in ("/", "/state.json"):
        status, headers, body = get(port, target, method="HEAD")
        assert (status, body) == (200, b"")
        assert int(headers["content-length"]) == len(get(port, target)[2])


@pytest.mark.parametrize("target", ["/", "/state.json", "/nothing"])
def test_every_answer_forbids_framing_sniffing_and_keeping(port, target):
    headers = get(port, target)[1]
    assert headers["x-frame-options"] == "DENY" and headers["x-content-type-options"] == "nosniff"
    assert headers["cache-control"] == "no-store" and headers["connection"] == "close"
    assert headers["cross-origin-resource-policy"] == "same-origin" and headers["referrer-policy"] == "no-referrer"
    assert "access-control-allow-origin" not in headers


@pytest.mark.parametrize(
    "target",
    [
        *("/run.json", "/metrics.jsonl", "/report.html", "/index.html", "//", "/state.json/", "/STATE.JSON"),
        *("/../secret.txt", "/..%2fsecret.txt", "/%2e%2e/secret.txt", "/./state.json", "/%00", "*"),
        *("/state.json/../run.json", "/....//secret.txt", "/..\\secret.txt", "/state.json?x=1", "/?token=x"),
        "http://127.0.0.1/state.json",
    ],
)
def test_nothing_else_has_an_address(port, target):
    status, _, body = get(port, target)
    assert status == 404 and body == b"404 Not Found\n"


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "CONNECT", "get", "PROPFIND"])
def test_only_reading_is_allowed(port, method):
    status, headers, _ = get(port, "/", method=method)
    assert (status, headers["allow"]) == (405, "GET, HEAD")


@pytest.mark.parametrize(
    ("host", "status"),
    [
        *[(host, 200) for host in ("localhost", "LOCALHOST:80", "127.0.0.1:1", "[::1]:8765", "127.0.0.1")],
        *[
            (host, 421)
            for host in ("evil.example", "evil.example:8765", "localhost.evil.example", "127.0.0.1.nip.example")
        ],
        *[(host, 421) for host in ("", "localhost:x", "[::2]", "0.0.0.0", "localhost@evil.example", "192.168.0.1")],
    ],
)
def test_a_foreign_name_for_this_machine_is_refused(port, host, status):
    assert get(port, "/state.json", f"Host: {host}")[0] == status


@pytest.mark.parametrize(
    "given",
    [
        (),
        ("Authorization: Bearer",),
        ("Authorization: Bearer " + TOKEN[:-1],),
        ("Authorization: Bearer " + TOKEN + "0",),
        ("Authorization: Bearer " + TOKEN.swapcase(),),
        ("Authorization: " + TOKEN,),
        ("Authorization: Digest " + TOKEN,),
        ("Authorization: Bearer " + TOKEN, "Authorization: Bearer " + TOKEN),
        (basic(TOKEN),),
        (basic("user:"),),
        (basic("user:wrong"),),
        ("Authorization: Basic !!!",),
        ("Authorization: Bearer \xff\xfe",),
        ("Cookie: token=" + TOKEN,),
        ("Proxy-Authorization: Bearer " + TOKEN,),
    ],
)
def test_without_the_token_there_is_nothing(closed_port, given):
    for target in ("/", "/state.json", "/nothing"):
        status, headers, body = get(closed_port, target, *given)
        assert (status, body) == (401, b"401 Unauthorized\n")
        assert headers["www-authenticate"].startswith("Basic ")
    assert get(closed_port, f"/state.json?token={TOKEN}")[0] == 401


@pytest.mark.parametrize(
    "given", ["Authorization: Bearer " + TOKEN, "authorization: bearer  " + TOKEN, basic("any:" + TOKEN)]
)
def test_with_the_token_the_name_does_not_matter(closed_port, given):
    assert get(closed_port, "/state.json", "Host: node7.example", given)[0] == 200


@pytest.mark.parametrize(
    ("request_text", "status"),
    [
        (STATE + "Host: localhost\r\nContent-Length: 5\r\n\r\nhello", 413),
        (STATE + "Host: localhost\r\nContent-Length: 99999999999\r\n\r\n", 413),
        (STATE + "Host: localhost\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n", 413),
        (STATE + "Host: localhost\r\nTransfer-Encoding: chunked\r\n\r\nno number\r\n", 413),
        (STATE + "Host: localhost\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n", 413),
        (STATE + "Host: localhost\r\nContent-Length: -1\r\n\r\n", 400),
        (STATE + "Host: localhost\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", 400),
        (STATE + "\r\n", 400),  # HTTP/1.1 without a Host
        (STATE + "Host: localhost\r\nHost: localhost\r\n\r\n", 400),
        ("GET /state.json HTTP/1.0\r\n\r\n", 421),
        ("nonsense\r\n\r\n", 400),
        (STATE + "Host: localhost\r\nX: a\0b\r\n\r\n", 400),
        (STATE + "Host: localhost\r\nX: " + "a" * 40_000 + "\r\n\r\n", 431),
        ("GET /" + "a" * 40_000 + " HTTP/1.1\r\nHost: localhost\r\n\r\n", 431),
        (STATE + "X: y\r\n" * 5_000 + "\r\n", 431),
        ("\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 a TLS hello\r\n\r\n", 400),
    ],
)
def test_a_body_or_a_broken_head_is_refused(port, request_text, status, caplog):
    answer = exchange(port, request_text.encode("latin-1"))
    assert answer.startswith(f"HTTP/1.1 {status} ".encode())
    assert answer.count(b"HTTP/1.1") == 1 and caplog.records == []


def test_a_second_request_in_the_same_connection_is_not_answered(port):
    one = (STATE + "Host: localhost\r\n\r\n").encode()
    assert exchange(port, one + one).count(b"HTTP/1.1 ") == 1


def test_a_client_that_leaves_at_once_does_no_harm(port):
    for start in (b"", b"GET /sta", STATE.encode()):
        with socket.create_connection(("127.0.0.1", port)) as client:
            client.sendall(start)
    assert get(port)[0] == 200


@pytest.mark.parametrize("start", [b"", b"GET / HTTP/1.1\r\nHost: localhost\r\n"])
def test_a_client_that_does_not_finish_its_request_is_dropped(folder, start):
    with served(folder, limits=Limits(request_s=0.3)) as port:
        began = time.monotonic()
        with socket.create_connection(("127.0.0.1", port), timeout=30) as client:
            client.sendall(start)
            assert client.recv(1) == b""  # hung up without an answer
        assert time.monotonic() - began >= 0.3


def test_a_client_that_sends_a_byte_now_and_then_is_dropped_too(folder):
    with (
        served(folder, limits=Limits(request_s=0.5)) as port,
        socket.create_connection(("127.0.0.1", port), timeout=0.05) as client,
        pytest.raises(OSError, match=r"reset|Broken pipe"),
    ):
        for _ in range(600):
            client.sendall(b"G")
            try:
                client.recv(1)
            except TimeoutError:
                continue


def test_a_client_that_does_not_read_is_dropped(folder, monkeypatch):
    async def page(self):
        return b"x" * 50_000_000

    monkeypatch.setattr(View, "page", page)
    with (
        served(folder, limits=Limits(chunk_s=0.3)) as port,
        socket.create_connection(("127.0.0.1", port), timeout=30) as client,
    ):
        client.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        # The server answers others while it waits, and has hung up before this one has read everything.
        assert get(port)[0] == 200
        deadline = time.monotonic() + 30
        while client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0:
            assert time.monotonic() < deadline
            try:
                client.sendall(b"x")
            except OSError:
                break


def test_one_client_more_than_the_limit_is_hung_up_on_and_the_others_stay(folder):
    # No one is dropped for being slow before the late one has stopped waiting.
    with served(folder, limits=Limits(request_s=90)) as port:
        waiting = [socket.create_connection(("127.0.0.1", port), timeout=30) for _ in range(MAX_CONNECTIONS)]
        with socket.create_connection(("127.0.0.1", port), timeout=30) as late:
            # It sends nothing: whether the server closes before or after a first byte decides between end and reset.
            assert late.recv(1) == b""
        waiting[0].sendall((STATE + "Host: localhost\r\n\r\n").encode())
        assert waiting[0].recv(12) == b"HTTP/1.1 200"
        for client in waiting:
            client.close()
