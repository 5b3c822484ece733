"""The `model` section and the Hugging Face configurations come from one definition."""

import os
import subprocess
import sys
from dataclasses import fields

import pytest
from pydantic import TypeAdapter, ValidationError

from retlab.models import build_model, config_from_section
from retlab.models.configuration import CONFIGS
from retlab.models.fields import FIELDS
from retlab.models.settings import ModelSection

ADAPTER = TypeAdapter(ModelSection)


@pytest.mark.parametrize("architecture", FIELDS)
def test_section_and_configuration_have_the_same_fields_and_defaults(architecture):
    section = ADAPTER.validate_python({"architecture": architecture})
    names = {item.name for item in fields(FIELDS[architecture])}
    assert set(type(section).model_fields) == names | {"architecture", "match_parameters_of"}
    assert all(item.description for item in type(section).model_fields.values())
    config = config_from_section(section, 100, pad_token_id=0, eos_token_id=2)
    assert config.get_params() == {**CONFIGS[architecture]().get_params(), "vocab_size": 100}
    assert (config.pad_token_id, config.bos_token_id, config.eos_token_id) == (0, None, 2)
    assert build_model(section, 100).config.get_params() == config.get_params()


@pytest.mark.parametrize(
    ("values", "place"),
    [
        ({"architecture": "retnet", "hiden_size": 3}, "hiden_size"),
        ({"architecture": "retnet", "dropout": 1.0}, "dropout"),
        ({"architecture": "retnet", "rope_theta": 10.0}, "rope_theta"),
        ({"architecture": "transformer", "hidden_act": "swish"}, "hidden_act"),
        ({"architecture": "transformer", "vocab_size": 0}, "vocab_size"),
        ({"architecture": "gpt"}, "architecture"),
        ({"architecture": "retnet", "hidden_size": 30}, "num_attention_heads"),
        ({"architecture": "retnet", "value_size": 30}, "value_size"),
        ({"architecture": "longnet", "segment_lengths": [4, 2, 8]}, "segment_lengths"),
        ({"architecture": "longnet", "dilation_ratios": [1, 2]}, "dilation_ratios"),
        ({"architecture": "longnet", "dilation_ratios": ["a", 2, 4]}, "dilation_ratios"),
        ({"architecture": "longnet", "hidden_size": 12}, "odd head width"),
        ({"architecture": "hybrid", "blocks": []}, "blocks"),
        ({"architecture": "hybrid", "blocks": [{"name": "mamba"}]}, "mamba"),
        ({"architecture": "hybrid", "blocks": [{"name": "glu", "width": 3}]}, "width"),
        ({"architecture": "hybrid", "blocks": [{"name": "retention", "num_heads": 3}]}, "heads"),
    ],
)
def test_what_cannot_be_is_refused(values, place):
    with pytest.raises(ValidationError, match=place):
        ADAPTER.validate_python(values)


def test_a_section_is_frozen():
    section = ADAPTER.validate_python({"architecture": "retnet"})
    with pytest.raises(ValidationError):
        section.hidden_size = 3


def test_the_vocabulary_must_hold_the_tokenizers():
    section = ADAPTER.validate_python({"architecture": "retnet", "vocab_size": 64})
    assert config_from_section(section, 60).vocab_size == 64
    with pytest.raises(ValueError, match=r"tokenizer has 100 tokens"):
        config_from_section(section, 100)


def test_sections_and_the_package_load_without_torch():
    code = (
        "import sys, retlab, retlab.models.settings; assert not {'torch', 'transformers'} & set(sys.modules); "
        "assert 'RetNetModelHF' in dir(retlab)"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)


def test_unknown_names_of_the_package():
    import retlab

    with pytest.raises(AttributeError, match="RetNet9"):
        _ = retlab.RetNet9
