"""Rollouts on servers: right answers, weights that arrive, faults that are mended, settings that are refused."""

from __future__ import annotations

import time
from contextlib import ExitStack, nullcontext

import pytest
import torch
from starlette.responses import PlainTextResponse

from tests.builders import QWEN_VL_FAMILIES, Tiny, allowed_ids, picture, plain_log_probs, problem_row, prompts_of
from tests.vlm_mhpo.test_servers.fake_server import FakeServer, fake_of, serving
from vlm_mhpo.config import VllmConfig
from vlm_mhpo.errors import NoServerError, RolloutError
from vlm_mhpo.rollout.base import SamplingParams
from vlm_mhpo.rollout.vllm import sampler as sampling
from vlm_mhpo.rollout.vllm import sync as syncing
from vlm_mhpo.rollout.vllm.sampler import VllmSampler
from vlm_mhpo.rollout.vllm.sync import FilesSync

PARAMS = SamplingParams(num_samples=3, max_tokens=6, temperature=0.8)
SEED = (3, "rollout", 0)
GENERATE = "/inference/v1/generate"


@pytest.fixture(autouse=True)
def quick_probes(monkeypatch):
    monkeypatch.setattr(sampling, "PROBE_S", 0.05)


@pytest.fixture
def start(tmp_path):
    """`start(model, number, **options of config)`: a sampler with so many servers, synced as after step 0."""
    with ExitStack() as stack:

        def begin(model: Tiny, number: int = 1, *, syncs: bool = True, step: int | None = 0, **options):
            servers = [
                stack.enter_context(serving(fake_of(model, token_file=options.get("file")))) for _ in range(number)
            ]
            urls = [server.url for server in servers]
            token = {"token_file": str(options.pop("file"))} if "file" in options else {}
            values = {
                "request_timeout": 20,
                "sync_timeout": 20,
                "give_up_after": 0.5,
                "sync_dir": str(tmp_path / "sync"),
            }
            config = VllmConfig(servers=urls, **token, **values | options)
            weights = FilesSync(config, model.policy, lambda _=(): nullcontext()) if syncs else None
            sampler = VllmSampler(config, model.policy, model.codec, sync=weights, is_collective=True)
            stack.callback(sampler.close)
            if step is not None:
                sampler.sync(step)
            return sampler, servers

        yield begin


def moved(model: Tiny, scale: float = 0.3, part: str = "") -> None:
    """As a large update would: every weight whose name has `part` in it moves."""
    random = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, weight in model.policy.model.named_parameters():
            if part in name:
                weight.add_(scale * weight.abs().mean() * torch.randn(weight.shape, generator=random))


def largest_gap(model: Tiny, groups) -> float:
    """Nats between the recorded log-probs and stock transformers."""
    gaps = [
        float(
            (one.log_probs - plain_log_probs(model, group.prompt, one.token_ids, PARAMS.temperature).detach())
            .abs()
            .max()
        )
        for group in groups
        for one in group.completions
    ]
    return max(gaps)


@pytest.mark.parametrize("family", [*QWEN_VL_FAMILIES, "qwen2"])
def test_log_probs_are_the_trainers_also_after_its_weights_have_moved(tiny, start, family):
    model = tiny(family).copy()
    sampler, (server,) = start(model)
    prompts, arrived, ticks = prompts_of(model), [], []
    groups = sampler.sample(prompts, PARAMS, SEED, arrived.extend, lambda: ticks.append(1))
    assert [group.prompt for group in groups] == prompts
    assert sorted(map(id, arrived)) == sorted(map(id, groups)) and ticks
    assert largest_gap(model, groups) < 1e-4
    moved(model)
    assert largest_gap(model, groups) > 0.1
    sampler.sync(1)
    again = sampler.sample(prompts, PARAMS, SEED)
    assert largest_gap(model, again) < 1e-4
    assert server.pushes == 2 and server.version.endswith(":1") and not server.is_paused
    figures = sampler.metrics()
    assert figures["sampling/fingerprint/max"] < 1e-4 < 0.1 < figures["sampling/fingerprint/moved"]
    # The same step again needs no push.
    sampler.sync(1)
    assert server.pushes == 2


def test_greedy_completions_are_the_most_likely_ones(tiny, start):
    from vlm_mhpo.rollout.hf.sampler import HfSampler

    model = tiny("qwen2_5_vl")
    sampler, _ = start(model)
    greedy = SamplingParams(num_samples=2, max_tokens=6, temperature=0.0)
    groups = sampler.sample(prompts_of(model), greedy, SEED)
    ours = HfSampler(model.policy, model.codec, max_batch_tokens=100_000).sample(prompts_of(model), greedy, SEED)
    ids = [[one.token_ids for one in group.completions] for group in groups]
    assert ids == [[one.token_ids for one in group.completions] for group in ours]


# ---- what goes over --------------------------------------------------------------------------------------------


def test_layers_in_which_nothing_learns_are_not_sent(tiny, start):
    model = tiny("qwen2_5_vl").copy()
    for name, weight in model.policy.model.named_parameters():
        weight.requires_grad_("layers.1.mlp.up" in name)
    sampler, (server,) = start(model)
    # The whole layer, since a server fuses matrices and loads all of a fused one or none.
    # By the names of the folder, in which this family's text layers stand a level higher.
    names = [name for name, _ in model.policy.model.named_parameters() if "language_model.layers.1." in name]
    layer = {name.replace("language_model.", "") for name in names}
    assert set(server.loaded) == layer and len(layer) > 5
    moved(model, part="layers.1.mlp.up")
    sampler.sync(1)
    assert largest_gap(model, sampler.sample(prompts_of(model), PARAMS, SEED)) < 1e-4


def test_adapters_are_sent_as_the_weights_that_they_make(tmp_path, start):
    from vlm_mhpo.models.adapters import merge_adapters
    from vlm_mhpo.models.loading import load_policy
    from vlm_mhpo.models.tiny import build_tiny

    folder = build_tiny(tmp_path / "base", "qwen2_5_vl", hidden_size=64)
    base = Tiny("qwen2_5_vl", folder, *load_policy(str(folder)))
    from vlm_mhpo.config import LoraConfig

    policy, codec = load_policy(str(folder), lora=LoraConfig(r=2).model_dump())
    model = Tiny("qwen2_5_vl", folder, policy, codec)
    with torch.no_grad():
        for name, weight in policy.model.named_parameters():
            if ".lora_B" in name:
                weight.normal_(0, 0.3, generator=torch.Generator().manual_seed(len(name)))
    with serving(fake_of(base)) as server:
        config = VllmConfig(servers=[server.url], sync_dir=str(tmp_path / "sync"), give_up_after=0.01)
        sampler = VllmSampler(config, policy, codec, sync=FilesSync(config, policy, lambda _=(): nullcontext()))
        sampler.sync(0)
        groups = sampler.sample(prompts_of(model), PARAMS, SEED)
        sampler.close()
    assert not any("lora" in name or "base_layer" in name for name in server.loaded)
    assert not any("visual" in name for name in server.loaded)
    merged = model.copy()
    merge_adapters(merged.policy.model)
    assert largest_gap(merged, groups) < 1e-4 < 0.01 < largest_gap(base, groups)
    expected = dict(merged.policy.model.named_parameters())
    for name, weight in server.model.policy.model.named_parameters():
        assert torch.allclose(weight, expected[name], atol=1e-6), name


def test_old_weights_leave_the_folder_and_the_run_leaves_nothing(tiny, start, tmp_path):
    sampler, _ = start(tiny("qwen2"))
    for step in (1, 2, 3):
        sampler.sync(step)
    assert sorted(path.name for path in (tmp_path / "sync").glob("*/step_*")) == ["step_2", "step_3"]
    sampler.close()
    assert not list((tmp_path / "sync").iterdir())


# ---- faults that are mended --------------------------------------------------------------------------------------


def hang(server: FakeServer, path: str, body) -> None:
    if path == GENERATE:
        server.fault = None
        time.sleep(1.5)


def engine_dies(server: FakeServer, path: str, body):
    if path == GENERATE:
        server.fault = None
        return PlainTextResponse("EngineCore encountered an issue", 500)
    return None


def restarted(server: FakeServer, path: str, body) -> None:
    """Before it answers, it has come back with the weights of the disk."""
    if path == GENERATE:
        server.fault, server.version = None, "default"
        moved(server.model, 0.5)


def garbage(server: FakeServer, path: str, body):
    if path == GENERATE:
        server.fault = None
        return PlainTextResponse("<html>no json</html>")
    return None


TWISTS = {
    "broken off by a pause": lambda answer: answer["choices"][0].update(finish_reason="abort"),
    "weights of another run": lambda answer: answer["choices"][1]["weight_versions"][0].update(version="other:0"),
    "weights changed meanwhile": lambda answer: answer["choices"][1]["weight_versions"].append({"version": "x:9"}),
    "a completion is missing": lambda answer: answer.update(choices=answer["choices"][:-1]) or None,
    "not a number": lambda answer: answer["choices"][0]["logprobs"]["content"][0].update(logprob=float("nan")),
    "a log-prob above 0": lambda answer: answer["choices"][0]["logprobs"]["content"][0].update(logprob=0.5),
    "log-probs of other tokens": lambda answer: answer["choices"][0]["logprobs"]["content"][0].update(token_id=3),
    "a token beyond the vocabulary": lambda answer: _with_token(answer, 10**6),
    "a banned token": lambda answer: _with_token(answer, "banned"),
    "stop without an end token": lambda answer: answer["choices"][0].update(finish_reason="stop"),
    "another form": lambda answer: answer["choices"][0].update(logprobs=None),
}
FAULTS = {"hangs": hang, "its engine dies": engine_dies, "restarted": restarted, "garbage": garbage}


def _with_token(answer, token) -> None:
    first = answer["choices"][0]
    index = BANNED[0] if token == "banned" else token
    first["token_ids"][0] = first["logprobs"]["content"][0]["token_id"] = index


BANNED: list[int] = []


def of_groups(groups):
    return [[(one.token_ids, one.log_probs.tolist()) for one in group.completions] for group in groups]


@pytest.mark.parametrize("what", [*FAULTS, *TWISTS])
def test_a_fault_changes_no_result_and_the_server_gets_its_weights_again(tiny, start, what):
    model = tiny("qwen2")
    BANNED[:] = sorted(set(range(len(model.codec.tokenizer))) - set(allowed_ids(model)))
    sampler, (server, other) = start(model, 2, request_timeout=0.8 if what == "hangs" else 20)
    undisturbed = of_groups(sampler.sample(prompts_of(model), PARAMS, SEED))
    server.fault, server.twist = FAULTS.get(what), TWISTS.get(what)
    found = sampler.sample(prompts_of(model) * 2, PARAMS, SEED)
    assert of_groups(found) == undisturbed * 2
    assert server.fault is None and server.twist is None
    assert sampler.metrics()["sampling/num_retries"] >= 1
    # It was lost; before it is asked again its weights are looked at, and those that are not current are replaced.
    for _ in range(50):
        if len(sampler.servers.fit) == 2:
            break
        sampler.sample(prompts_of(model), PARAMS, SEED)
    assert len(sampler.servers.fit) == 2 and server.pushes == (2 if what == "restarted" else 1)
    assert other.pushes == 1
    assert of_groups(sampler.sample(prompts_of(model), PARAMS, SEED)) == undisturbed


def test_a_server_that_is_killed_in_a_request_changes_no_result(tiny, start):
    model = tiny("qwen2")
    sampler, (server,) = start(model)
    undisturbed = of_groups(sampler.sample(prompts_of(model), PARAMS, SEED))
    with ExitStack() as alive:
        doomed = alive.enter_context(serving(fake_of(model)))
        config = sampler.config.model_copy(update={"servers": [doomed.url, server.url]})
        weights = FilesSync(config, model.policy, lambda _=(): nullcontext())
        both = VllmSampler(config, model.policy, model.codec, sync=weights)
        both.sync(0)
        both.sample(prompts_of(model), PARAMS, SEED)
        doomed.fault = lambda server, path, body: time.sleep(1.0) if path == GENERATE else None
        assert of_groups(both.sample(prompts_of(model) * 2, PARAMS, SEED, on_token=alive.close)) == undisturbed * 2
        assert GENERATE in doomed.calls and both.metrics()["sampling/num_retries"] >= 1
        both.close()


# ---- what stops a run ----------------------------------------------------------------------------------------------


def answers(status: int, text: str):
    return lambda server, path, body: PlainTextResponse(text, status) if path == GENERATE else None


STOPS = {
    "wrong token": (answers(401, "token missing or wrong"), "check rollout.vllm.token_file"),
    "wrong model": (answers(404, "no such model"), "check rollout.vllm.servers"),
    "refused": (answers(400, "Token id 430 is out of vocabulary"), "row two: .*Token id 430 is out of vocabulary"),
    "images and placeholders": (answers(500, "Failed to apply prompt replacement for image"), "row two: "),
}


@pytest.mark.parametrize("what", STOPS)
def test_what_no_server_would_do_stops_the_run_and_is_asked_once(tiny, start, what):
    model = tiny("qwen2_5_vl")
    fault, words = STOPS[what]
    sampler, (server, other) = start(model, 2)
    sampler.sample(prompts_of(model), PARAMS, SEED)
    asked = server.calls.count(GENERATE) + other.calls.count(GENERATE)
    server.fault = other.fault = fault
    with pytest.raises(RolloutError, match=words):
        sampler.sample(prompts_of(model)[:1], PARAMS, SEED)
    assert server.calls.count(GENERATE) + other.calls.count(GENERATE) == asked + 1


def test_another_prompt_than_the_trainers_stops_the_run(tiny, start):
    model = tiny("qwen2_5_vl")
    sampler, (server,) = start(model)
    sampler.sample(prompts_of(model), PARAMS, SEED)
    server.twist = lambda answer: answer["prompt_token_ids"].append(5)
    with pytest.raises(RolloutError, match=r"row two: .* reads 42 prompt tokens and the trainer 41.*--min-pixels"):
        sampler.sample(prompts_of(model)[:1], PARAMS, SEED)


LIMITS = {
    "context": ({"max_model_len": 46}, "row two: 41 prompt tokens and 6 to sample .* --max-len 47 or more"),
    "samples": ({"max_num_seqs": 2}, "3 completions per prompt .* --max-seqs 3 or more"),
    "images": ({"max_images": 1}, "row two has 2 images, .* --images 2 or more"),
}


@pytest.mark.parametrize("what", LIMITS)
def test_what_a_server_cannot_take_is_refused_with_the_row(tiny, start, what):
    model = tiny("qwen2_5_vl")
    identity, words = LIMITS[what]
    sampler, (server,) = start(model, step=None)
    server.identity = identity
    sampler.sync(0)
    sampler.probes = prompts_of(model)[2:]
    with pytest.raises(RolloutError, match=words):
        sampler.sample(prompts_of(model)[:1], PARAMS, SEED)


@pytest.mark.parametrize(
    "identity",
    [{"logprobs_mode": "raw_logprobs"}, {"dtype": "bfloat16"}, {"generation_config": "auto"}, {"backend": "gloo"}],
)
def test_a_server_that_was_started_otherwise_is_refused(tiny, start, identity):
    sampler, (server,) = start(tiny("qwen2"), step=None)
    server.identity = identity
    ((key, value),) = identity.items()
    with pytest.raises(RolloutError, match=f"has {key} {value} and must have .*serve_rollouts.sh"):
        sampler.sync(0)


def test_a_context_that_cuts_completions_is_told(tiny, start):
    model = tiny("qwen2")
    sampler, (server,) = start(model)
    sampler.sample(prompts_of(model), PARAMS, SEED)

    def cut(answer) -> bool:
        for choice in answer["choices"]:
            choice["token_ids"], content = choice["token_ids"][:2], choice["logprobs"]["content"][:2]
            choice["logprobs"]["content"], choice["finish_reason"] = content, "length"
        return True

    server.twist = cut
    with pytest.raises(RolloutError, match=r"cuts completions at 2 tokens, and 6 were asked for"):
        sampler.sample(prompts_of(model), PARAMS, SEED)


def test_wrong_answers_without_end_stop_the_run(tiny, start):
    model = tiny("qwen2")
    sampler, (server,) = start(model)
    sampler.sample(prompts_of(model), PARAMS, SEED)
    server.twist = lambda answer: answer["choices"][0]["logprobs"]["content"][0].update(logprob=float("inf")) or True
    with pytest.raises(RolloutError, match=r"row long: 3 answers of rollout servers are wrong, .* not finite"):
        sampler.sample(prompts_of(model)[:1], PARAMS, SEED)


def test_without_a_server_the_run_ends_with_a_code_of_its_own(tiny, start):
    model = tiny("qwen2")
    sampler, (server,) = start(model, give_up_after=0.005)
    sampler.sample(prompts_of(model), PARAMS, SEED)
    server.fault = lambda server, path, body: PlainTextResponse("EngineCore encountered an issue", 500)
    with pytest.raises(NoServerError, match=r"no rollout server has been fit .*EngineCore") as caught:
        sampler.sample(prompts_of(model), PARAMS, SEED)
    assert caught.value.exit_code == 8


def test_what_asks_the_run_to_stop_ends_the_sampling_at_once(tiny, start):
    class Asked(Exception):
        pass

    def stop() -> None:
        raise Asked

    model = tiny("qwen2")
    sampler, (server,) = start(model)
    sampler.sample(prompts_of(model), PARAMS, SEED)
    server.fault = lambda server, path, body: time.sleep(1.0) if path == GENERATE else None
    begun = time.monotonic()
    with pytest.raises(Asked):
        sampler.sample(prompts_of(model), PARAMS, SEED, on_token=stop)
    assert time.monotonic() - begun < 0.9


# ---- what lies -----------------------------------------------------------------------------------------------------


def skipped(server: FakeServer, path: str, body):
    """Says that it has loaded what it was given, and has not."""
    if path == "/update_weights":
        server.loaded = dict(body["update_info"]["sums"])
        return {}
    return None


LIES = {
    "skipped push": lambda server: setattr(server, "fault", skipped),
    "half a push": lambda server: setattr(server, "ignores", "visual"),
}


@pytest.mark.parametrize("what", LIES)
def test_weights_that_did_not_arrive_are_found_by_log_probs(tiny, start, what):
    model = tiny("qwen2_5_vl").copy()
    sampler, (server,) = start(model)
    sampler.sample(prompts_of(model), PARAMS, SEED)
    LIES[what](server)
    moved(model)
    sampler.sync(1)
    with pytest.raises(RolloutError, match=r"do not hold the policy: .* differs by"):
        sampler.sample(prompts_of(model), PARAMS, SEED)
    # Once more was tried before.
    assert server.version.endswith(":1") and server.pushes == 3


def test_a_cache_that_was_not_reset_is_found_by_log_probs(tiny, start, monkeypatch):
    model = tiny("qwen2_5_vl").copy()
    sampler, _ = start(model)
    monkeypatch.setattr(syncing, "CACHES", ("prefix",))
    sampler.sync(1)
    with pytest.raises(RolloutError, match=r"do not hold the policy"):
        sampler.sample(prompts_of(model), PARAMS, SEED)


def test_a_push_that_arrived_in_part_by_its_own_word_is_not_taken(tiny, start):
    sampler, (server,) = start(tiny("qwen2"), step=None)
    server.fault = lambda server, path, body: (
        {"results": [{"num_tensors": 3, "total": "0" * 16}]} if body.get("method") == "mhpo_loaded" else None
    )
    sampler.sync(0)
    assert not sampler.servers.fit
    assert "has loaded other weights than it was given (3 tensors)" in sampler.servers.told()


def test_an_update_that_a_dead_trainer_began_is_ended_first(tiny, start):
    sampler, (server,) = start(tiny("qwen2"), step=None)

    def active(server: FakeServer, path: str, body):
        if path == "/start_weight_update":
            server.fault = None
            return PlainTextResponse("a weight update is already active", 500)
        return None

    server.fault = active
    sampler.sync(0)
    assert sampler.servers.fit and server.pushes == 2


def test_a_folder_that_cannot_be_written_is_told(tiny, start, tmp_path):
    (tmp_path / "file").write_text("")
    sampler, _ = start(tiny("qwen2"), step=None, sync_dir=str(tmp_path / "file" / "below"))
    with pytest.raises(RolloutError, match=r"rollout.vllm.sync_dir=.*cannot be written"):
        sampler.sync(0)


# ---- tokens --------------------------------------------------------------------------------------------------------


def test_a_guarded_server_takes_the_token_and_nobody_else(tiny, start, tmp_path, capsys):
    (tmp_path / "token").write_text("sesame-open-9731\n")
    model = tiny("qwen2")
    sampler, _ = start(model, file=tmp_path / "token")
    sampler.sample(prompts_of(model), PARAMS, SEED)
    (tmp_path / "wrong").write_text("something-else")
    config = sampler.config.model_copy(update={"token_file": str(tmp_path / "wrong")})
    stranger = VllmSampler(config, model.policy, model.codec, sync=None)
    with pytest.raises(RolloutError, match=r"status 401 .*check rollout.vllm.token_file") as caught:
        stranger.sample(prompts_of(model), PARAMS, SEED)
    stranger.close()
    assert "sesame" not in str(caught.value) + capsys.readouterr().out


def test_a_server_that_lets_everyone_in_is_refused_where_a_token_is_set(tiny, start, tmp_path):
    (tmp_path / "token").write_text("sesame-open-9731")
    model = tiny("qwen2")
    _, (server,) = start(model)
    config = VllmConfig(servers=[server.url], token_file=str(tmp_path / "token"), sync_dir=str(tmp_path))
    weights = FilesSync(config, model.policy, lambda _=(): nullcontext())
    sampler = VllmSampler(config, model.policy, model.codec, sync=weights)
    with pytest.raises(RolloutError, match=r"answers whoever asks.*--token-file"):
        sampler.sync(0)
    sampler.close()


# ---- read only -----------------------------------------------------------------------------------------------------


def test_servers_of_somebody_else_are_read_and_not_written(tiny, start):
    model = tiny("qwen2_5_vl").copy()
    sampler, (server,) = start(model, syncs=False)
    assert largest_gap(model, sampler.sample(prompts_of(model), PARAMS, SEED)) < 1e-4
    assert server.pushes == 0 and "/pause" not in server.calls
    moved(model)
    other = VllmSampler(sampler.config, model.policy, model.codec)
    with pytest.raises(RolloutError, match=r"do not hold the policy"):
        other.sample(prompts_of(model), PARAMS, SEED)
    other.close()


def test_a_palette_image_goes_as_the_pixels_that_the_trainer_saw(tiny, start):
    import io

    from PIL import Image

    stream = io.BytesIO()
    Image.open(io.BytesIO(picture(61, 50, seed=4))).convert("P").save(stream, "PNG")
    model = tiny("qwen2_5_vl")
    prompts = prompts_of(model, [problem_row("palette", "<image>What is red?", [stream.getvalue()])])
    sampler, _ = start(model)
    assert largest_gap(model, sampler.sample(prompts, PARAMS, SEED)) < 1e-4


# ---- doctor --------------------------------------------------------------------------------------------------------


def test_doctor_tells_of_each_server_what_is_wrong_with_it(tiny, start):
    from tests.vlm_mhpo.config_cases import minimal
    from vlm_mhpo.commands.doctor.servers import examine_servers
    from vlm_mhpo.config import parse_config

    _, (good, short, narrow, old) = start(tiny("qwen2"), 4, step=None)
    short.identity, narrow.identity = {"max_model_len": 100}, {"max_num_seqs": 2}
    old.fault = lambda server, path, body: PlainTextResponse("not found", 404)
    for server in (good, short, narrow):
        server.identity |= {"class": "Qwen2ForCausalLM"}
    gone = "http://127.0.0.1:9"
    urls = [good.url, short.url, narrow.url, old.url, gone]
    values = minimal(rollout={"engine": "vllm", "vllm": {"servers": urls}, "max_completion_length": 64})
    values["model"]["dtype"], values["data"]["max_prompt_length"] = "float32", 64
    found = {
        check.subject: (check.state, check.exit_code, check.text) for check in examine_servers(parse_config(values))
    }
    assert found[good.url][0] == "ok" and "512 tokens, 2 images" in found[good.url][2]
    for url, code, words in (
        (short.url, 2, "--max-len 128"),
        (narrow.url, 2, "--max-seqs 8 or more"),
        (old.url, 2, "check rollout.vllm.servers"),
        (gone, 8, "cannot be reached"),
    ):
        assert found[url][:2] == ("error", code) and words in found[url][2], found[url]


def test_an_address_without_its_kind_is_refused():
    with pytest.raises(ValueError, match=r"rollout.vllm.servers is no http:// or https:// address"):
        VllmConfig(servers=["127.0.0.1:8101"])
