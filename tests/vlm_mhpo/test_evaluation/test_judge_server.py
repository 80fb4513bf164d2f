"""A judge over a real connection: what it says is kept, what it does to us is bounded, and nobody learns the token."""

from __future__ import annotations

import gzip
import json
import logging
import pickle
import socket
import traceback

import pytest
from pydantic import ValidationError

from tests.vlm_mhpo.config_cases import minimal
from tests.vlm_mhpo.test_evaluation.judge_server import SERVED, completion, judge_server, says, send
from vlm_mhpo.config import JudgeConfig, parse_config
from vlm_mhpo.errors import ConfigError, JudgeError
from vlm_mhpo.evaluation.judge import server as server_module
from vlm_mhpo.evaluation.judge.asking import JudgeModel, open_judge
from vlm_mhpo.evaluation.judge.server import Server, read_token

TOKEN = "sk-very-secret-0123456789"


def model(played, tmp_path, *, token: str | None = None, served: str = SERVED, **change) -> JudgeModel:
    """A judge that hardly waits between tries."""
    return JudgeModel(Server(played.config(tmp_path, **change), token, first_pause_s=0.01), served)


def texts(answers) -> dict[str, str | None]:
    return {prompt: answer.text for prompt, answer in answers.items()}


# ---- what is asked, and how often


def test_each_prompt_is_asked_once_and_a_rerun_asks_nothing(tmp_path):
    with judge_server(says(lambda prompt: prompt.upper())) as played:
        judge = open_judge(played.config(tmp_path))
        assert judge.served == SERVED
        assert texts(judge.ask(["a", "b", "a", "c"], "t")) == {"a": "A", "b": "B", "c": "C"}
        assert sorted(played.prompts) == ["a", "b", "c"]
        path, headers, body = played.requests[-1]
        assert path == "/v1/chat/completions"
        assert (body["model"], body["temperature"], body["max_tokens"]) == ("judge", 0, 1024)
        assert "authorization" not in headers
        before = len(played.requests)
        again = open_judge(played.config(tmp_path))
        assert texts(again.ask(["c", "b", "a"], "t")) == {"a": "A", "b": "B", "c": "C"}
        assert len(played.requests) == before
        # Another address is the same judge; another name or budget is not.
        with judge_server(says(lambda prompt: "new")) as other:
            assert texts(open_judge(other.config(tmp_path)).ask(["a"], "t")) == {"a": "A"}
            assert other.requests == []
            assert texts(open_judge(other.config(tmp_path, model="other")).ask(["a"], "t")) == {"a": "new"}
            assert texts(open_judge(other.config(tmp_path, max_tokens=None)).ask(["a"], "t")) == {"a": "new"}
            assert "max_tokens" not in other.requests[-1][2]


def test_a_damaged_answer_on_disk_is_asked_again(tmp_path):
    with judge_server(says(lambda prompt: "yes")) as played:
        judge = model(played, tmp_path)
        judge.ask(["a"], "t")
        (file,) = (tmp_path / "answers").glob("*/*.json")
        for damage in (b"", b'{"text": "no"', b'{"text": 1, "served": "x"}', b"[]", b"\xff"):
            file.write_bytes(damage)
            assert texts(judge.ask(["a"], "t")) == {"a": "yes"}
        assert len(played.prompts) == 6
        assert list((tmp_path / "answers").glob("*/*.tmp")) == []


def test_what_was_answered_before_an_error_is_not_asked_again(tmp_path):
    prompts, broken = [str(i) for i in range(6)], {"4", "5"}

    def reply(handler, played, prompt):
        send(handler, *((b"", 503) if prompt in broken else (completion("1"),)))

    with judge_server(reply) as played:
        judge = model(played, tmp_path, concurrency=1, max_tries=2)
        with pytest.raises(JudgeError, match="status 503"):
            judge.ask(prompts, "t")
        assert played.prompts[:6] == ["0", "1", "2", "3", "4", "4"]
        broken.clear()
        assert texts(judge.ask(prompts, "t")) == dict.fromkeys(prompts, "1")
        assert [played.prompts.count(prompt) for prompt in "0123"] == [1, 1, 1, 1]


def test_no_more_questions_are_open_than_allowed(tmp_path):
    open_now, most = [], []

    def reply(handler, played, prompt):
        open_now.append(prompt)
        most.append(len(open_now))
        played.done.wait(0.05)
        open_now.remove(prompt)
        send(handler, completion("1"))

    with judge_server(reply) as played:
        model(played, tmp_path, concurrency=2).ask([str(i) for i in range(9)], "t")
    assert max(most) == 2


# ---- a hostile server


def refused_after(played, tmp_path, **change) -> str:
    """The sentence in which asking one question ends."""
    with pytest.raises(JudgeError) as ended:
        model(played, tmp_path, **change).ask(["a"], "t")
    assert ended.value.exit_code == 7
    assert list((tmp_path / "answers").glob("*/*")) == []
    return str(ended.value)


def hang(handler, played, prompt):
    played.done.wait(30)


def drip(handler, played, prompt):
    """Headers that never end, a byte at a time."""
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nx-slow: ")
    while not played.done.wait(0.02):
        handler.wfile.write(b"a")
        handler.wfile.flush()


def drip_body(handler, played, prompt):
    handler.wfile.write(b"HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\n")
    while not played.done.wait(0.02):
        handler.wfile.write(b" ")
        handler.wfile.flush()


@pytest.mark.parametrize("reply", [hang, drip, drip_body])
def test_whoever_keeps_us_waiting_is_left(tmp_path, reply):
    with judge_server(reply) as played:
        said = refused_after(played, tmp_path, timeout_s=0.3, max_tries=2)
        assert len(played.requests) == 2
    assert "did not answer within 0.3 s (eval.judge.timeout_s) (tries: 2)" in said


def cut(handler, played, prompt):
    handler.wfile.write(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n" + completion("1"))
    handler.close_connection = True


def no_http(handler, played, prompt):
    handler.wfile.write(b"\x00\xff" * 100 + b"\r\n\r\n")
    handler.close_connection = True


@pytest.mark.parametrize(
    ("reply", "sentence"),
    [
        (lambda h, p, q: send(h, b"<html>busy</html>"), "no chat completion"),
        (lambda h, p, q: send(h, b"[" * 200_000), "no chat completion"),
        (lambda h, p, q: send(h, b'{"choices": []}'), "no chat completion"),
        (lambda h, p, q: send(h, b'{"choices": {"0": {"message": {"content": "1"}}}}'), "no chat completion"),
        (lambda h, p, q: send(h, completion(1)), "no chat completion"),
        (lambda h, p, q: send(h, b"\xff\xfe"), "no chat completion"),
        (lambda h, p, q: send(h, completion("1" * (5 << 20))), "more than 4 MiB"),
        (lambda h, p, q: send(h, gzip.compress(b" " * (6 << 20)), content_encoding="gzip"), "compressed"),
        (lambda h, p, q: send(h, b"down", 500), "status 500"),
        (lambda h, p, q: send(h, b"", 429), "status 429"),
        (cut, "breaks off"),
        (no_http, "breaks off"),
    ],
    ids=["html", "nested", "empty", "mapping", "number", "bytes", "huge", "bomb", "500", "429", "cut", "no http"],
)
def test_what_is_no_answer_is_asked_again_and_then_said(tmp_path, reply, sentence):
    with judge_server(reply) as played:
        said = refused_after(played, tmp_path, max_tries=3)
        assert len(played.requests) == 3
    assert sentence in said and "(tries: 3)" in said and "start the same command again" in said


def test_nobody_at_the_address_is_said(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(JudgeError, match="cannot be reached"):
        open_judge(JudgeConfig(url=f"http://127.0.0.1:{port}", model="m", max_tries=1, cache_dir=str(tmp_path)))


def test_a_passing_failure_is_forgotten(tmp_path):
    def reply(handler, played, prompt):
        number = len(played.requests)
        if number < 4:
            send(handler, b"{}", (429, 503, 500)[number - 1], retry_after=("0", "soon", "-1e999")[number - 1])
        else:
            send(handler, completion("1"))

    with judge_server(reply) as played:
        assert texts(model(played, tmp_path, max_tries=4).ask(["a"], "t")) == {"a": "1"}
        assert len(played.requests) == 4


def test_pauses_double_and_the_server_may_ask_for_more_within_bounds(tmp_path, monkeypatch):
    waited = []

    async def sleep(seconds):
        waited.append(seconds)

    monkeypatch.setattr(server_module.asyncio, "sleep", sleep)
    after = iter(["", "0.5", "7", "86400", ""])
    with judge_server(lambda h, p, q: send(h, b"", 429, retry_after=next(after))) as played:
        config = played.config(tmp_path, max_tries=5)
        with pytest.raises(JudgeError):
            JudgeModel(Server(config, None, first_pause_s=1.0), SERVED).ask(["a"], "t")
    assert waited == [1, 2, 7, 60]


@pytest.mark.parametrize(
    ("status", "advice"),
    [(401, "check eval.judge.token_file"), (403, "check eval.judge.token_file"), (404, "eval.judge.model"), (402, "")],
)
def test_what_no_second_try_can_mend_is_tried_once(tmp_path, status, advice):
    body = json.dumps({"error": {"message": "no\nsuch  thing"}}).encode()
    with judge_server(lambda h, p, q: send(h, body, status)) as played:
        said = refused_after(played, tmp_path)
        assert len(played.requests) == 1
    assert f"status {status} (no such thing)" in said and advice in said


def test_a_redirect_is_not_followed(tmp_path):
    with (
        judge_server(says(lambda prompt: "1")) as elsewhere,
        judge_server(lambda h, p, q: send(h, b"", 307, location=elsewhere.url + "/chat/completions")) as played,
    ):
        said = refused_after(played, tmp_path, token=TOKEN)
        assert (len(played.requests), elsewhere.requests) == (1, [])
    assert "redirects are not followed" in said


def test_proxies_of_the_environment_are_not_used(tmp_path, monkeypatch):
    with judge_server(says(lambda prompt: "proxy")) as proxy, judge_server(says(lambda prompt: "1")) as played:
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
            monkeypatch.setenv(name, proxy.url.removesuffix("/v1"))
        for name in ("NO_PROXY", "no_proxy"):
            monkeypatch.delenv(name, raising=False)
        assert texts(model(played, tmp_path).ask(["a"], "t")) == {"a": "1"}
        assert proxy.requests == []


def test_a_question_that_is_refused_is_no_failure_of_the_others(tmp_path):
    def reply(handler, played, prompt):
        send(handler, b'{"error": {"message": "too long"}}', 400) if prompt == "long" else send(
            handler, completion("1")
        )

    with judge_server(reply) as played:
        judge = model(played, tmp_path)
        assert texts(judge.ask(["a", "long", "b"], "t")) == {"a": "1", "long": None, "b": "1"}
        # It may be taken another time.
        judge.ask(["a", "long", "b"], "t")
        assert sorted(played.prompts) == ["a", "b", "long", "long"]
    # But whoever refuses the first question refuses all.
    with (
        judge_server(lambda h, p, q: send(h, b'{"message": "max_tokens is unknown"}', 400)) as played,
        pytest.raises(JudgeError, match=r"status 400 \(max_tokens is unknown\) to its first question"),
    ):
        open_judge(played.config(tmp_path, cache_dir=str(tmp_path / "none")))


def test_answers_of_two_models_are_not_mixed(tmp_path):
    names = iter([SERVED, SERVED, "judge-7b-2026-09"])
    with judge_server(lambda h, p, q: send(h, completion("1", next(names)))) as played:
        judge = open_judge(played.config(tmp_path))
        judge.ask(["a"], "t")
        with pytest.raises(JudgeError, match="'judge-7b-2026-09' and as 'judge-7b-2026-05'"):
            judge.ask(["b"], "t")
        assert len(list((tmp_path / "answers").glob("*/*.json"))) == 2
    # A server that does not say its name is the one that was asked.
    with judge_server(lambda h, p, q: send(h, completion("1", None))) as played:
        assert open_judge(played.config(tmp_path, cache_dir=str(tmp_path / "none"))).served == "judge"


def test_null_text_and_lone_surrogates_are_answers(tmp_path):
    said = {"null": None, "half": "a\ud800b"}
    with judge_server(says(said.get)) as played:
        judge = model(played, tmp_path)
        found = texts(judge.ask(list(said), "t"))
        assert found == {"null": "", "half": "a?b"}
        assert texts(judge.ask(list(said), "t")) == found and len(played.prompts) == 2


# ---- the token


def test_the_token_is_sent_and_shown_nowhere(tmp_path, caplog, capfd):
    """A server that repeats the token wherever it can."""
    caplog.set_level(logging.DEBUG)
    secret = tmp_path / "token"
    secret.write_text(f"{TOKEN}\n")

    def reply(handler, played, prompt):
        given = handler.headers["authorization"]
        if prompt == "fail":
            return send(handler, json.dumps({"error": {"message": f"bad {given}"}}).encode(), 401, x_echo=given)
        if prompt == "refuse":
            return send(handler, json.dumps({"detail": given}).encode(), 400, x_echo=given)
        return send(handler, completion(f"1 {given}", f"m {given}"), x_echo=given)

    with judge_server(reply) as played:
        config = played.config(tmp_path, token_file=str(secret))
        judge = open_judge(config)
        found = judge.ask(["a", "refuse"], "t")
        with pytest.raises(JudgeError) as ended:
            judge.ask(["fail"], "t")
        assert {headers["authorization"] for _, headers, _ in played.requests} == {f"Bearer {TOKEN}"}
    assert found["a"].text == "1 Bearer ***" and judge.served == "m Bearer ***"
    assert "bad Bearer ***" in str(ended.value)
    kept = b"".join(file.read_bytes() for file in (tmp_path / "answers").glob("*/*"))
    shown = [repr(found), repr(judge), str(config.model_dump()), kept.decode(), caplog.text, *capfd.readouterr()]
    shown += traceback.format_exception(ended.value)
    error = ended.value
    while error is not None:
        shown += [str(error), repr(error.args)]
        error = error.__cause__ or error.__context__
    shown += [pickle.dumps((found, ended.value.args)).decode("latin-1")]
    assert [text for text in shown if TOKEN in text] == []


@pytest.mark.parametrize("content", ["", " \n", "two words", "Zürich", "a\nb", "a\x00b", "x" * 5000])
def test_a_file_without_a_token_is_refused_without_its_text(tmp_path, content):
    file = tmp_path / "token"
    file.write_text(content)
    with pytest.raises(ConfigError, match="holds no access token") as refused:
        read_token(JudgeConfig(url="http://a", model="m", token_file=str(file)))
    assert not content.strip() or content.strip() not in str(refused.value)


def test_a_missing_token_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"token_file=.*/none: No such file"):
        open_judge(JudgeConfig(url="http://127.0.0.1:1", model="m", token_file=str(tmp_path / "none")))


# ---- the address


@pytest.mark.parametrize(
    "url",
    ["file:///etc/passwd", "ftp://a/v1", "127.0.0.1:8000", "http://", "http:///v1", "", "http://a b/", "http://a:99999",
     "http://a:x", "http://a\n/v1", "gopher://a", "http://[::1", "http://ä/v1", "unix:///run/judge.sock"],
)  # fmt: skip
def test_other_addresses_than_http_are_refused(url):
    with pytest.raises(ConfigError, match=r"eval\.judge\.url is no http:// or https:// address"):
        parse_config(minimal() | {"eval": {"judge": {"url": url, "model": "m"}}})


@pytest.mark.parametrize("url", ["http://me:hunter22@a/v1", "https://hunter22@a", "http://a/v1?key=hunter22",
                                 "http://a/v1#hunter22"])  # fmt: skip
def test_an_address_with_a_secret_is_refused_without_it(url):
    with pytest.raises(ConfigError, match=r"put an access token into eval\.judge\.token_file") as refused:
        parse_config(minimal() | {"eval": {"judge": {"url": url, "model": "m"}}})
    assert "hunter22" not in str(refused.value)


def test_an_address_may_be_given_whole():
    for url in ("http://a/v1", "http://a/v1/", "http://a/v1/chat/completions"):
        assert Server(JudgeConfig(url=url, model="m"), None).address == "http://a/v1/chat/completions"
    assert JudgeConfig(url="https://[::1]:8000/v1", model="m").url == "https://[::1]:8000/v1"
    with pytest.raises(ValidationError):
        JudgeConfig(url="http://a", model="")
