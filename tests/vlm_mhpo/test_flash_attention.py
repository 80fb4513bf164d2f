"""flash_attention_2: refused where it cannot run; where it runs, what it cannot be told by a mask goes by pieces.

No GPU here, so the package's two kernels are written out in plain products; masks, unpadding and the choice between
them are transformers' own.
"""

import sys
from types import ModuleType

import pytest
import torch
import transformers.integrations.flash_attention as integration
import transformers.modeling_flash_attention_utils as flash_utils
from transformers.modeling_utils import PreTrainedModel

from tests.builders import build_and_load, plain_log_probs, prompts_of
from tests.vlm_mhpo.test_packing import LENGTHS, groups_of, packed, plain
from vlm_mhpo.errors import ModelError
from vlm_mhpo.models.loading import load_policy
from vlm_mhpo.rollout.base import SamplingParams
from vlm_mhpo.rollout.hf.sampler import HfSampler

FLASH = "flash_attention_2"


def kernel(q, k, v, dropout_p=0.0, softmax_scale=None, causal=False, **_):
    """[B, S, H, D]: what flash_attn_func computes; a causal triangle stands in the lower right corner."""
    assert dropout_p == 0
    share = q.shape[2] // k.shape[2]
    q, k, v = (x.transpose(1, 2) for x in (q, k.repeat_interleave(share, 2), v.repeat_interleave(share, 2)))
    scores = q @ k.transpose(2, 3) * softmax_scale
    if causal:
        hidden = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1 + k.shape[2] - q.shape[2])
        scores = scores.masked_fill(hidden, -torch.inf)
    return (scores.softmax(-1) @ v).transpose(1, 2)


def kernel_of_lengths(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q=0, max_seqlen_k=0, **options):
    """[N, H, D]: what flash_attn_varlen_func computes, one sequence behind the other."""
    of_q, of_k = cu_seqlens_q.tolist(), cu_seqlens_k.tolist()
    places = zip(of_q[:-1], of_q[1:], of_k[:-1], of_k[1:], strict=True)
    return torch.cat([kernel(q[None, a:b], k[None, c:d], v[None, c:d], **options)[0] for a, b, c, d in places])


@pytest.fixture
def installed(monkeypatch):
    """As if flash-attn were installed and ran here."""
    package, padding = ModuleType("flash_attn"), ModuleType("flash_attn.bert_padding")
    package.flash_attn_func, package.flash_attn_varlen_func = kernel, kernel_of_lengths
    package.flash_attn_with_kvcache = None
    padding.pad_input, padding.unpad_input = flash_utils._pad_input, flash_utils._unpad_input
    monkeypatch.setitem(sys.modules, "flash_attn", package)
    monkeypatch.setitem(sys.modules, "flash_attn.bert_padding", padding)
    monkeypatch.setattr(flash_utils, "is_flash_attn_2_available", lambda *_, **__: True)
    monkeypatch.setattr(flash_utils, "_loaded_implementation", None)
    monkeypatch.setattr("transformers.utils.is_flash_attn_2_available", lambda *_, **__: True)
    monkeypatch.setattr(PreTrainedModel, "_flash_attn_can_dispatch", lambda *_, **__: True)
    # transformers looks for it when it is imported.
    monkeypatch.setattr(integration, "_use_top_left_mask", False)


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl", "qwen2"])
def test_packed_and_sampled_log_probs_are_those_of_sdpa(installed, tmp_path, family):
    model = build_and_load(tmp_path / family, family)
    prompts, groups = prompts_of(model), groups_of(model)
    policy, codec = load_policy(str(model.folder), attn_implementation=FLASH)
    flash = type(model)(family, model.folder, policy, codec)
    tower = getattr(policy.model.config, "vision_config", None)
    assert tower is None or tower._attn_implementation == FLASH
    expected = plain(model, prompts, groups)
    for max_tokens in (100_000, 40):
        found, _ = packed(flash, prompts, groups, max_tokens=max_tokens)
        assert max(abs(found[key] - expected[key]) for key in expected) <= 1e-5
    for side in ("left", "right"):
        sampler = HfSampler(policy, codec, max_batch_tokens=100_000, padding_side=side)
        params = SamplingParams(temperature=0.7, max_tokens=5, num_samples=2)
        for group in sampler.sample(prompts, params, (3,)):
            for one in group.completions:
                known = plain_log_probs(model, group.prompt, one.token_ids, 0.7)
                assert (one.log_probs - known).abs().max() <= 1e-5
    assert len(LENGTHS) == len(prompts)


def test_it_is_refused_where_there_is_no_gpu(tmp_path):
    model = build_and_load(tmp_path / "model", "qwen2")
    with pytest.raises(
        ModelError, match=r"flash_attention_2 needs an NVIDIA GPU .* there is no GPU here: leave it at sdpa"
    ):
        load_policy(str(model.folder), attn_implementation=FLASH)
