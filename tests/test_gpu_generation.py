"""Generation on a GPU: every tier writes what transformers' loop writes, in float32 token by token."""

import copy

import pytest
import torch

pytestmark = [
    pytest.mark.component,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU; tests/models/test_decoding.py runs"),
]

RETENTION, ATTENTION = {"name": "retention", "num_heads": 4, "chunk_size": 32}, {"name": "attention", "num_heads": 4}
GLU = {"name": "glu", "intermediate_size": 256}
SIZES = {"vocab_size": 512, "hidden_size": 128, "num_hidden_layers": 2}
MODELS = {
    "retnet": SIZES | {"num_attention_heads": 4, "intermediate_size": 256, "chunk_size": 32},
    "transformer": SIZES | {"num_attention_heads": 4, "intermediate_size": 256},
    "hybrid": SIZES | {"blocks": [RETENTION, GLU, ATTENTION, GLU]},
}


@pytest.fixture(autouse=True)
def _exact_products() -> None:
    torch.backends.cuda.matmul.allow_tf32 = False


@pytest.fixture(params=MODELS)
def model(request):
    from retlab.models.causal_lm import MODELS as CLASSES

    torch.manual_seed(0)
    return CLASSES[request.param](**MODELS[request.param], pad_token_id=0).eval().cuda()


@pytest.fixture
def tiers(monkeypatch):
    """Lets a step be recorded after two calls and compiled after twelve; returns the tiers that calls ran in."""
    from retlab.models import static_steps

    monkeypatch.setattr(static_steps, "COMPILE_AFTER", 12)
    monkeypatch.setattr(static_steps, "COMPILE_PIECES_AFTER", 6)
    monkeypatch.setattr(static_steps, "_kinds_that_do_not_compile", set())
    seen: list[tuple[int, str]] = []
    run = static_steps.Step.run

    def watched(step, *arguments, **named):
        run(step, *arguments, **named)
        assert step._recorder is not None, "recording failed; the warning says why"
        seen.append((step.tokens, step.tier))

    monkeypatch.setattr(static_steps.Step, "run", watched)
    yield seen
    assert not static_steps._kinds_that_do_not_compile, "compiling failed; the warning says why"


def random_ids(batch: int, tokens: int, seed: int = 1) -> torch.Tensor:
    return torch.randint(1, 512, (batch, tokens), generator=torch.Generator().manual_seed(seed)).cuda()


def transformers_writes(model, *inputs, **settings):
    from retlab.models import causal_lm

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(causal_lm, "can_decode", lambda *_: False)
        torch.manual_seed(7)
        return model.generate(*inputs, **settings)


def margins(model, sequences, start: int) -> float:
    """The smallest distance between the largest and the second largest logit that chose a token."""
    logits = model(sequences).logits[:, start - 1 : -1].float().topk(2, dim=-1).values
    return float((logits[..., 0] - logits[..., 1]).min())


@pytest.mark.parametrize("batch", [1, 3])
def test_all_tiers_write_the_same_tokens_in_float32(model, tiers, batch) -> None:
    ids = random_ids(batch, 40)
    # Fewer tokens than the threshold for compiling at once.
    settings = {"max_new_tokens": 12, "do_sample": False}
    expected = transformers_writes(model, ids, **settings)
    for _ in range(3):
        assert torch.equal(model.generate(ids, **settings), expected)
    found = [tier for tokens, tier in tiers if tokens == 1]
    assert found[:2] == ["launched"] * 2
    assert found[2:12] == ["recorded"] * 10
    assert found[-10:] == ["compiled"] * 10
    longer = transformers_writes(model, ids, max_new_tokens=700, do_sample=False)
    written = model.generate(ids, max_new_tokens=700, do_sample=False)
    differs = (written != longer).any(0)
    # Far on, one tie in the rounding is allowed to part them.
    if differs.any():
        place = int(differs.int().argmax())
        assert place > 40 + 100
        assert margins(model, longer[:, : place + 1], place) < 1e-4


@pytest.mark.parametrize("batch", [1, 2])
def test_states_and_logits_agree_in_every_tier(model, tiers, batch) -> None:
    ids = random_ids(batch, 40)
    settings = {"max_new_tokens": 12, "do_sample": False, "return_dict_in_generate": True}
    expected = transformers_writes(model, ids, **settings)
    for _ in range(4):
        found = model.generate(ids, **settings)
        assert torch.equal(found.sequences, expected.sequences)
        for mine, theirs in zip(found.past_key_values.states, expected.past_key_values.states, strict=True):
            for a, b in zip(mine or (), theirs or (), strict=True):
                assert a.shape == b.shape
                assert torch.allclose(a.float(), b.float(), atol=1e-4, rtol=1e-4)
    assert tiers[-1] == (1, "compiled")


@pytest.mark.parametrize("batch", [2, 16])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_close_in_every_tier(model, tiers, dtype, batch) -> None:
    """The logits of the next token after twelve steps, against the whole text in float32.

    Of 16 rows attention runs on PyTorch's own kernel.
    """
    from retlab.models import engines

    exact = copy.deepcopy(model)
    model.to(dtype)
    ids = random_ids(batch, 40)
    for _ in range(4):
        sequences = model.generate(ids, max_new_tokens=12, do_sample=False)
        (lane,) = engines._engines[model].lanes.values()
        expected = exact(sequences[:, :-1]).logits[:, -1]
        error = (lane.logits.float() - expected).abs().max() / expected.abs().max()
        assert error < 5e-2
    # Where all is done by kernels of our own, compiling would change nothing.
    is_ours = dtype == torch.bfloat16 and not any(block.mixer.keeps_tokens for block in model.body.blocks)
    assert lane.fuses == is_ours
    assert tiers[-1] == (1, "recorded" if is_ours else "compiled")


@pytest.mark.usefixtures("tiers")
def test_ends_padding_sampling_and_processors(model) -> None:
    ids = random_ids(3, 30)
    mask = torch.ones_like(ids)
    mask[1, :9] = 0
    plain = transformers_writes(model, ids, attention_mask=mask, max_new_tokens=60, do_sample=False)[:, 30:]
    ends = [int(plain[0, 20]), int(plain[1, 37]), int(plain[2, 3])]
    settings = {"attention_mask": mask, "eos_token_id": ends}
    for new in (2, 5, 9, 60, 60, 60):
        expected = transformers_writes(model, ids, max_new_tokens=new, do_sample=False, **settings)
        assert torch.equal(model.generate(ids, max_new_tokens=new, do_sample=False, **settings), expected)
        expected = transformers_writes(model, ids, max_new_tokens=new, do_sample=True, top_k=0, **settings)
        torch.manual_seed(7)
        assert torch.equal(model.generate(ids, max_new_tokens=new, do_sample=True, top_k=0, **settings), expected)
        expected = transformers_writes(
            model, ids, max_new_tokens=new, do_sample=False, repetition_penalty=1.3, **settings
        )
        found = model.generate(ids, max_new_tokens=new, do_sample=False, repetition_penalty=1.3, **settings)
        assert torch.equal(found, expected)


def test_pieces_of_a_prompt_in_every_tier(tiers, monkeypatch) -> None:
    from retlab import RetNetModelHF
    from retlab.models import prompts, static_steps

    torch.manual_seed(0)
    model = RetNetModelHF(**MODELS["retnet"], pad_token_id=0).eval().cuda()
    monkeypatch.setattr(prompts, "PIECE_TOKENS", (256, 32))
    monkeypatch.setattr(static_steps, "COMPILED_PIECE", 256)
    monkeypatch.setattr(prompts, "SHORTEST_PIECE", 2)
    ids = random_ids(2, 128 * 3 + 16 * 2 + 5)
    expected = transformers_writes(model, ids, max_new_tokens=8, do_sample=False)
    for _ in range(4):
        assert torch.equal(model.generate(ids, max_new_tokens=8, do_sample=False), expected)
    assert {tier for tokens, tier in tiers if tokens == 128} == {"launched", "recorded", "compiled"}
    assert {tier for tokens, tier in tiers if tokens == 16} == {"launched", "recorded"}


@pytest.mark.usefixtures("tiers")
def test_two_batches_and_two_models_in_turn() -> None:
    from retlab import RetNetModelHF, TransformerModelHF

    torch.manual_seed(0)
    models = [RetNetModelHF(**MODELS["retnet"]), TransformerModelHF(**MODELS["transformer"])]
    models = [model.eval().cuda() for model in models]
    shapes = [random_ids(1, 20), random_ids(4, 33), random_ids(1, 50)]
    settings = {"max_new_tokens": 12, "do_sample": False}
    expected = [[transformers_writes(model, ids, **settings) for ids in shapes] for model in models]
    for _ in range(3):
        for model, texts in zip(models, expected, strict=True):
            for ids, text in zip(shapes, texts, strict=True):
                assert torch.equal(model.generate(ids, **settings), text)


@pytest.mark.usefixtures("tiers")
def test_weights_that_change_are_seen(model) -> None:
    ids, settings = random_ids(2, 20), {"max_new_tokens": 10, "do_sample": False}
    for change in (None, "in place", "moved", "dtype"):
        if change == "in place":
            with torch.no_grad():
                model.embed_tokens.weight.mul_(-2)
        elif change == "moved":
            model.cpu().cuda()
        elif change == "dtype":
            model.double()
        expected = transformers_writes(model, ids, **settings)
        for _ in range(2):
            assert torch.equal(model.generate(ids, **settings), expected)
