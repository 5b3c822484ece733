"""The causal language models: outputs, padding, documents, losses, construction."""

import json

import pytest
import torch
from tests.mixers.oracles import relative_error
from tests.models.small import padded, small_ids, small_model
from torch.nn import functional as F

from retlab import (
    DecoderConfig,
    HybridModelHF,
    LongNetConfig,
    LongNetModelHF,
    RetNetConfig,
    RetNetModelHF,
    TransformerModelHF,
)
from retlab.mixers.retention_forms import FORMS
from retlab.models.causal_lm import MODELS


@pytest.fixture(params=MODELS)
def model(request):
    return small_model(request.param)


def _logits_and_gradients(model, **inputs):
    model.zero_grad()
    logits = model(**inputs).logits
    weight = torch.randn(logits.shape, generator=torch.Generator().manual_seed(3))
    real = inputs.get("attention_mask", torch.ones(logits.shape[:2]))[..., None]
    (logits * weight * real).sum().backward()
    return {"logits": logits * real, **{name: p.grad.clone() for name, p in model.named_parameters()}}


@pytest.mark.parametrize("tokens", [50, 600])
@pytest.mark.parametrize("case", ["plain", "left", "right", "documents"])
def test_the_forms_of_the_default_retnet_agree(tokens, case):
    """Logits and the gradient of every weight, at default settings, to 1e-5."""
    torch.manual_seed(0)
    model = RetNetModelHF(vocab_size=40, num_hidden_layers=2, hidden_size=64)
    inputs = {"input_ids": small_ids(2, tokens)}
    if case in ("left", "right"):
        inputs["input_ids"], inputs["attention_mask"] = padded(inputs["input_ids"], [0, tokens // 3], case)
    if case == "documents":
        inputs["segment_ids"] = torch.stack((torch.arange(tokens) // 77, torch.arange(tokens) // 400))
    results = {}
    for form in (None, *FORMS):
        model.set_form(form)
        results[form] = _logits_and_gradients(model, **inputs)
    for form in FORMS:
        for name, expected in results[None].items():
            assert relative_error(results[form][name], expected) < 1e-5, (form, name)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_nothing(model, side):
    ids = small_ids()
    batch, mask = padded(ids, [0, 17], side)
    logits = model(batch, attention_mask=mask).logits
    assert relative_error(logits[0], model(ids[:1]).logits[0]) < 1e-5
    alone = model(ids[1:, :33]).logits[0]
    assert relative_error(logits[1, 17:] if side == "left" else logits[1, :33], alone) < 1e-5


def test_a_mask_of_ones_is_no_mask(model):
    ids = small_ids()
    assert torch.equal(model(ids, attention_mask=torch.ones_like(ids)).logits, model(ids).logits)


def test_documents_do_not_see_each_other(model):
    """Whatever numbers the documents carry, also where one comes back or padding lies in between."""
    ids = small_ids(1, 50)
    segment_ids = torch.tensor([[7] * 20 + [-1] * 3 + [7] * 2 + [3] * 15 + [7] * 10])
    logits = model(ids, segment_ids=segment_ids).logits[0]
    first = model(torch.cat((ids[:, :20], ids[:, 23:25]), 1)).logits[0]
    assert relative_error(torch.cat((logits[:20], logits[23:25])), first) < 1e-5
    assert relative_error(logits[25:40], model(ids[:, 25:40]).logits[0]) < 1e-5
    assert relative_error(logits[40:], model(ids[:, 40:]).logits[0]) < 1e-5


@pytest.mark.parametrize("sizes", [[1] * 4 + [46], [16, 16, 18], [49, 1], [7, 30, 13]])
@pytest.mark.parametrize("case", ["plain", "left", "documents"])
def test_a_prompt_in_pieces_gives_the_same_logits(model, sizes, case):
    ids = small_ids()
    mask = segments = None
    if case == "left":
        ids, mask = padded(ids, [0, 20], "left")
    if case == "documents":
        segments = torch.stack((torch.arange(50) // 12, 5 - torch.arange(50) // 21))
    whole = model(ids, attention_mask=mask, segment_ids=segments).logits
    cache, logits, start = model.new_cache(), [], 0
    for size in sizes:
        end = start + size
        out = model(
            ids[:, start:end],
            attention_mask=None if mask is None else mask[:, :end],
            segment_ids=None if segments is None else segments[:, start:end],
            past_key_values=cache,
        )
        assert out.past_key_values is cache
        logits.append(out.logits)
        start = end
    assert cache.get_seq_length() == 50
    real = torch.ones(2, 50, 1) if mask is None else mask[..., None]
    assert relative_error(torch.cat(logits, 1) * real, whole * real) < 1e-5


def test_labels_are_shifted_here_and_minus_100_is_left_out(model):
    ids = small_ids()
    labels = ids.clone()
    labels[0, 10:20] = -100
    out = model(ids, labels=labels)
    targets = torch.cat((labels[:, 1:], torch.full((2, 1), -100)), 1)
    expected = F.cross_entropy(out.logits.flatten(0, 1), targets.flatten(), ignore_index=-100)
    assert torch.allclose(out.loss, expected)
    assert torch.allclose(
        model(ids, labels=labels, num_items_in_batch=1000).loss * 1000, expected * (targets >= 0).sum()
    )


def test_hidden_states_are_those_of_the_layers(model):
    ids = small_ids()
    out = model(ids, output_hidden_states=True)
    assert len(out.hidden_states) == model.config.num_hidden_layers + 1
    assert all(hidden.shape == (2, 50, 16) for hidden in out.hidden_states)
    assert torch.equal(out.hidden_states[0], model.embed_tokens(ids))
    assert torch.equal(model.lm_head(out.hidden_states[-1]), out.logits)
    assert model(ids).hidden_states is None


def test_body_and_head_are_apart(model):
    ids = small_ids()
    segment_ids = torch.arange(50)[None].expand(2, -1) // 20
    hidden = model.encode(ids, segment_ids=segment_ids).hidden
    assert torch.equal(model.lm_head(hidden), model(ids, segment_ids=segment_ids).logits)
    assert torch.equal(model.lm_head(model.body(model.embed_tokens(ids)).hidden), model(ids).logits)


def test_logits_to_keep(model):
    ids = small_ids()
    logits = model(ids).logits
    assert torch.allclose(model(ids, logits_to_keep=1).logits, logits[:, -1:], atol=1e-6)
    assert torch.allclose(model(ids, logits_to_keep=torch.tensor([3, 40])).logits, logits[:, [3, 40]], atol=1e-6)


def test_bfloat16_stays_close(model):
    ids = small_ids(2, 300)
    expected = model(ids).logits
    logits = model.bfloat16()(ids).logits
    assert logits.dtype == torch.bfloat16
    assert relative_error(logits, expected) < 8e-2
    cache = model.new_cache()
    pieces = [model(ids[:, i : i + 100], past_key_values=cache).logits for i in (0, 100, 200)]
    assert relative_error(torch.cat(pieces, 1), expected) < 8e-2


def test_attentions_are_none(model):
    assert model(small_ids(), output_attentions=True).attentions is None


def test_dropout_acts_in_training_alone():
    model = small_model("retnet", dropout=0.3, activation_dropout=0.2)
    ids = small_ids()
    assert torch.equal(model(ids).logits, model(ids).logits)
    model.train()
    assert not torch.equal(model(ids).logits, model(ids).logits)


def test_torchscales_normaliser_generates_without_cache():
    model = small_model("retnet", torchscale_normalizer=True)
    ids = small_ids(1, 5)
    assert model(ids).past_key_values is None
    assert model.generate(ids, max_new_tokens=3, do_sample=False).shape == (1, 8)
    with pytest.raises(ValueError, match="use_cache=False"):
        model.generate(ids, max_new_tokens=3, do_sample=False, use_cache=True)
    plain = small_model("retnet")
    assert relative_error(model(ids).logits, plain(ids).logits) > 1e-6


def test_state_memory_is_independent_of_the_length():
    model = small_model("retnet")
    sizes = {model(small_ids(2, n), use_cache=True).past_key_values.nbytes() for n in (1, 10, 100)}
    assert len(sizes) == 1
    transformer = small_model("transformer")
    sizes = {transformer(small_ids(2, n), use_cache=True).past_key_values.nbytes() for n in (10, 100)}
    assert len(sizes) == 2
    # Its longest segment has 12 tokens.
    longnet = small_model("longnet")
    sizes = {n: longnet(small_ids(2, n), use_cache=True).past_key_values.nbytes() for n in (4, 12, 13, 100)}
    assert sizes[4] < sizes[12] == sizes[13] == sizes[100]


def test_construction_from_nothing_a_config_a_folder_and_files(tmp_path):
    assert RetNetModelHF().config.hidden_size == RetNetConfig().hidden_size
    config = RetNetConfig(embed_dim=32, heads=2, layers=1, ffn_dim=24, value_embed_dim=40, seq_len=99, vocab_size=50)
    model = RetNetModelHF(config)
    model.save_pretrained(tmp_path / "folder")
    (tmp_path / "config.json").write_text(json.dumps(config.get_params()))
    (tmp_path / "experiment.yaml").write_text(
        "name: x\ntokenizer: {vocab_size: 50}\n"
        "model: {architecture: retnet, hidden_size: 32, num_attention_heads: 2, num_hidden_layers: 1,\n"
        "  intermediate_size: 24, value_size: 40, max_position_embeddings: 99, rms_norm_eps: 1e-6}\n"
    )
    for source in (tmp_path / "folder", str(tmp_path / "config.json"), tmp_path / "experiment.yaml"):
        assert RetNetModelHF(source).get_params() == model.get_params()
    assert RetNetModelHF(config, dropout=0.5).get_params() == {**model.get_params(), "dropout": 0.5}
    assert RetNetModelHF(**model.get_params()).get_params() == model.get_params()
    (tmp_path / "hybrid.yaml").write_text(
        "model: {architecture: hybrid, vocab_size: 50, blocks: [{name: attention, rope_theta: 1e5}]}\n"
    )
    assert HybridModelHF(tmp_path / "hybrid.yaml").config.blocks[0]["rope_theta"] == 100_000


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("x.yaml", "model: {hidden\n  - x: [\n", "cannot be read"),
        ("x.json", "{", "cannot be read"),
        ("x.yaml", "\udcff", "cannot be read"),
        ("x.yaml", "- 1\n", "holds no configuration"),
        ("x.yaml", "model: [1]\n", "holds no configuration"),
        ("x.yaml", "model: {}\ntokenizer: 3\n", "holds no configuration"),
        ("x.yaml", "model: {rms_norm_eps: small, vocab_size: 9}\n", "rms_norm_eps must be a number"),
        ("x.yaml", "model:\n", "names no vocab_size"),
        ("x.yaml", "model: {architecture: transformer, vocab_size: 9}\n", "describes a transformer"),
        ("x.json", '{"model_type": "llama"}', "describes a llama model"),
        ("x.json", '{"decoder_embed_dim": 8, "transformers_version": "4"}', "301r_retnet or TorchScale"),
    ],
)
def test_configuration_files_that_cannot_be_used(tmp_path, name, text, sentence):
    (tmp_path / name).write_text(text, encoding="utf-8", errors="surrogateescape")
    with pytest.raises(ValueError, match=sentence) as error:
        RetNetModelHF(tmp_path / name)
    assert "\n" not in str(error.value)


def test_get_params_are_plain_values(model):
    params = model.get_params()
    assert params["hidden_size"] == 16
    assert params["architecture"] == model.config.architecture
    assert json.loads(json.dumps(params)) == params


def test_301rs_names_are_aliases():
    config = RetNetConfig(embed_dim=64, value_embed_dim=96, seq_len=77)
    assert (config.hidden_size, config.value_size, config.max_position_embeddings) == (64, 96, 77)
    config.heads = 8
    assert config.num_attention_heads == 8
    assert DecoderConfig(ffn_dim=24).intermediate_size == 24
    longnet = LongNetConfig(segment_length=[8, 24], dilated_ratio=[1, 3], heads=2)
    assert (longnet.segment_lengths, longnet.dilation_ratios, longnet.num_attention_heads) == ([8, 24], [1, 3], 2)


def _with_the_cache_of_another_batch(model):
    return model(small_ids(), past_key_values=model(small_ids(1)).past_key_values)


@pytest.mark.parametrize(
    ("build", "sentence"),
    [
        (lambda: RetNetModelHF(hidden_size=12, num_attention_heads=4), "odd head width"),
        (lambda: RetNetModelHF(hidden_size=16, num_attention_heads=3), "must divide hidden_size"),
        (lambda: RetNetModelHF(value_size=30), "must divide value_size"),
        (lambda: TransformerModelHF(hidden_size=18, num_attention_heads=4), "must divide hidden_size"),
        (lambda: LongNetModelHF(hidden_size=18, num_attention_heads=4), "must divide hidden_size"),
        (lambda: LongNetModelHF(hidden_size=12, num_attention_heads=4), "odd head width"),
        (lambda: LongNetConfig(segment_lengths=[8]), "lists of the same length"),
        (lambda: LongNetConfig(segment_lengths=[8, 4, 16]), "must increase"),
        (lambda: LongNetConfig(dilation_ratios=[1, 2, 0]), "at least 1"),
        (lambda: LongNetConfig(dilation_ratios=[1, 2, 2000]), "must not exceed its segment length"),
        (lambda: LongNetConfig(dilation_ratios=[8, 8, 8]), "must not exceed the number of heads"),
        (lambda: LongNetConfig(segment_lengths=64), "segment_lengths must be a list of whole numbers"),
        (lambda: LongNetConfig(segment_lengths=[1, 2.5, True]), "must be a list of whole numbers"),
        (lambda: MODELS["hybrid"](blocks=[{"name": "dilated_attention", "dilation_ratios": "1"}]), "list of whole"),
        (lambda: MODELS["hybrid"](blocks=[{"name": "mamba"}]), "no block named 'mamba'"),
        (lambda: MODELS["hybrid"](blocks=[{"name": "glu", "width": 3}]), "no setting 'width'"),
        (lambda: MODELS["hybrid"](blocks=[]), "blocks must list"),
        (lambda: MODELS["hybrid"](blocks=3), "blocks must list"),
        (lambda: MODELS["hybrid"](blocks=[{"name": "retention", "num_heads": "4"}]), "num_heads of the block"),
        (lambda: MODELS["hybrid"](blocks=[{"name": "retention", "value_size": 33}]), "must divide the value size"),
        (lambda: MODELS["hybrid"](blocks=[{"name": "attention", "dropout": 2}]), "dropout of the block .* below 1"),
        (lambda: MODELS["hybrid"](blocks=["glu"]), "needs the name"),
        (lambda: RetNetConfig(hiden_size=3), "no key 'hiden_size'"),
        (lambda: RetNetModelHF(RetNetConfig(), hiden_size=3), "no key 'hiden_size'"),
        (lambda: RetNetConfig(architecture="transformer"), "describes a retnet, not a transformer"),
        (lambda: RetNetConfig(hidden_size="big"), "whole number"),
        (lambda: RetNetConfig(hidden_size=None), "whole number"),
        (lambda: RetNetConfig(vocab_size=9, pad_token_id=9), "pad_token_id must be below 9"),
        (lambda: RetNetConfig(dropout=1.0), "below 1"),
        (lambda: RetNetConfig(num_hidden_layers=0), "at least 1"),
        (lambda: RetNetConfig(hidden_act="swish"), "gelu, silu, relu"),
        (lambda: RetNetModelHF("no/such/folder"), "no configuration file"),
        (lambda: RetNetModelHF(DecoderConfig()), "needs a RetNetConfig"),
        (lambda: small_model("retnet")(small_ids() + 30), "vocabulary has 40 tokens"),
        (lambda: small_model("retnet")(small_ids() - 5), "vocabulary has 40 tokens"),
        (lambda: small_model("retnet")(small_ids(), attention_mask=torch.ones(2, 49)), "attention_mask has the shape"),
        (lambda: small_model("retnet")(small_ids(), attention_mask=torch.ones(2, 1, 50, 50)), "attention_mask has"),
        (lambda: small_model("retnet")(small_ids(), segment_ids=torch.ones(2, 49)), "segment_ids has the shape"),
        (lambda: small_model("retnet")(small_ids(), attention_mask=torch.ones(2, 50) - 2), "negative numbers"),
        (lambda: small_model("retnet")(small_ids()[0]), r"shape \(batch, tokens\)"),
        (lambda: small_model("retnet")(small_ids()[:, :0]), "one token or more"),
        (lambda: small_model("retnet")(inputs_embeds=torch.ones(2, 5, 8)), r"\(batch, tokens, 16\)"),
        (lambda: _with_the_cache_of_another_batch(small_model("retnet")), "cache holds 1 rows"),
        (lambda: small_model("retnet")(), "either input_ids or inputs_embeds"),
        (lambda: small_model("transformer").set_form("parallel"), "no mixer with more than one form"),
        (lambda: small_model("retnet").set_form("square"), "must be one of parallel"),
    ],
)
def test_bad_use_gives_a_sentence(build, sentence):
    with pytest.raises(ValueError, match=sentence) as error:
        build()
    assert "\n" not in str(error.value)


def test_another_architectures_folder_is_refused(tmp_path):
    small_model("transformer").save_pretrained(tmp_path)
    for load in (RetNetModelHF, RetNetModelHF.from_pretrained):
        with pytest.raises(ValueError, match="retlab_transformer"):
            load(tmp_path)


def test_compiles_without_graph_breaks(model):
    ids, segments = small_ids(), torch.arange(50)[None].expand(2, -1) // 20

    def run(ids, segments):
        return model(input_ids=ids, segment_ids=segments, use_cache=False).logits

    compiled = torch.compile(run, backend="eager", fullgraph=True)
    assert torch.allclose(compiled(ids, segments), run(ids, segments), atol=1e-6)
