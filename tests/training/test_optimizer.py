import pytest
import torch
from torch import nn

from retlab.errors import UserError
from retlab.models import build_model
from retlab.models.configuration import DecoderConfig, RetNetConfig
from retlab.training.optimizer import build_optimizer, freeze_parameters, set_learning_rate, undecayed_names
from retlab.training.settings import ParameterGroup, TrainSection

SIZES = {"vocab_size": 11, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}


def settings_by_name(model: nn.Module, train: TrainSection) -> dict[str, tuple[float, float]]:
    """Learning rate and weight decay of every trained parameter."""
    freeze_parameters(model, train.parameter_groups)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {
        names[id(parameter)]: (group["lr"], group["weight_decay"])
        for group in build_optimizer(model, train).param_groups
        for parameter in group["params"]
    }


@pytest.mark.parametrize("config", [RetNetConfig(**SIZES), DecoderConfig(**SIZES)])
def test_norms_and_embeddings_are_not_decayed_and_matrices_are(config):
    model = build_model(config)
    found = settings_by_name(model, TrainSection(weight_decay=0.3))
    assert found.keys() == dict(model.named_parameters()).keys()
    for name, parameter in model.named_parameters():
        expected = 0.0 if parameter.ndim == 1 or name == "embed_tokens.weight" else 0.3
        assert found[name] == (1e-3, expected), name


def test_biases_recurrence_parameters_and_a_tied_head_are_not_decayed():
    model = nn.ModuleDict({"embedding": nn.Embedding(5, 4), "head": nn.Linear(4, 5), "mixer": nn.Linear(4, 4)})
    model["head"].weight = model["embedding"].weight
    model["mixer"].weight.no_weight_decay = True
    assert undecayed_names(model) == {"embedding.weight", "head.bias", "mixer.weight", "mixer.bias"}


def test_groups_by_name_change_rate_and_decay_or_freeze():
    model = build_model(RetNetConfig(**SIZES))
    groups = [
        ParameterGroup(match="embed_tokens", frozen=True),
        ParameterGroup(match=r"blocks\.0\.", learning_rate=0.5, weight_decay=0.2),
        ParameterGroup(match="norm", weight_decay=0.7),
    ]
    found = settings_by_name(model, TrainSection(learning_rate=0.1, weight_decay=0.3, parameter_groups=groups))
    assert "embed_tokens.weight" not in found
    assert not model.embed_tokens.weight.requires_grad
    assert found["body.blocks.0.norm.weight"] == (0.5, 0.2)
    assert found["body.blocks.1.norm.weight"] == (0.1, 0.7)
    assert found["lm_head.weight"] == (0.1, 0.3)


@pytest.mark.parametrize(
    ("match", "frozen", "message"),
    [("nothing", False, "matches no parameter"), (".", True, "every parameter")],
)
def test_groups_that_cannot_be_meant_are_named(match, frozen, message):
    model = build_model(RetNetConfig(**SIZES))
    with pytest.raises(UserError, match=message):
        freeze_parameters(model, [ParameterGroup(match=match, frozen=frozen)])


def test_the_schedule_scales_every_group_by_its_own_highest_rate():
    model = build_model(RetNetConfig(**SIZES))
    groups = [ParameterGroup(match="lm_head", learning_rate=0.5)]
    optimizer = build_optimizer(model, TrainSection(learning_rate=0.1, parameter_groups=groups))
    set_learning_rate(optimizer, 0.5)
    set_learning_rate(optimizer, 0.1)
    assert {round(group["lr"], 9) for group in optimizer.param_groups} == {0.05, 0.01}
    assert isinstance(optimizer, torch.optim.AdamW)


@pytest.mark.parametrize("highest", [1e-3, 0.5, 1e3])
def test_clipping_inside_the_step_is_clipping_before_it(highest):
    models = [build_model(DecoderConfig(**SIZES)) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    ours, plain = (build_optimizer(model, TrainSection(learning_rate=0.1)) for model in models)
    for step in range(4):
        for model in models:
            torch.manual_seed(step)
            for parameter in model.parameters():
                parameter.grad = torch.randn_like(parameter)
        ours.clip(nn.utils.get_total_norm(ours.gradients()), highest)
        nn.utils.clip_grad_norm_(models[1].parameters(), highest)
        for optimizer in (ours, plain):
            optimizer.step()
        for one, other in zip(*(model.parameters() for model in models), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
            torch.testing.assert_close(ours.state[one]["exp_avg_sq"], plain.state[other]["exp_avg_sq"])
