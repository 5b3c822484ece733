"""The model card: what is known is there, what is not is left out."""

import re

import yaml
from tests.models.small import small_model

from retlab.models.model_card import ModelCardFacts, model_card

FACTS = ModelCardFacts(
    name="quickstart-retnet",
    data_source="python-stdlib",
    train_documents=1234,
    train_tokens=5_000_000,
    train_bytes=18_000_000,
    validation_documents=56,
    validation_tokens=70_000,
    tokenizer="byte-level BPE | trained on the train split",
    bytes_per_token=3.61234,
    steps=400,
    seen_tokens=3_276_800,
    sequence_length=256,
    batch_size=32,
    learning_rate=3e-3,
    precision="float32",
    seed=42,
    exported_step=390,
    validation_loss=2.0,
    energy_kwh=0.00123,
    emissions_kg=0.00046,
    country="USA",
    power_method="cpu estimated from a constant TDP of 16 W",
)


def rows(card: str) -> dict[str, str]:
    return dict(re.findall(r"^\| (.+?) \| (.+) \|$", card, re.MULTILINE))


def test_everything_that_is_known_is_said() -> None:
    config = small_model("retnet").config
    card = model_card(config, FACTS)
    assert "\n# quickstart-retnet\n" in card
    said = rows(card)
    assert said["Source"] == "python-stdlib"
    assert said["Train split"] == "1,234 documents, 5,000,000 tokens, 18,000,000 bytes"
    assert said["Validation split"] == "56 documents, 70,000 tokens"
    # A bar in a value ends no cell.
    assert said["Tokenizer"] == "byte-level BPE &#124; trained on the train split"
    assert said["Bytes per token"] == "3.612"
    assert said["Optimizer steps"] == "400"
    assert said["Tokens seen"] == "3,276,800"
    assert said["Highest learning rate"] == "0.003"
    assert said["Seed"] == "42"
    assert said["Weights of step"] == "390"
    assert said["Validation loss"] == "2.0000 nats per token (perplexity 7.39)"
    assert said["Energy of all stages so far"] == "0.00123 kWh"
    assert said["Emissions"] == "0.00046 kg CO2e"
    assert said["Electricity of"] == "USA"
    assert said["How power was found"] == "cpu estimated from a constant TDP of 16 W"


def test_what_is_unknown_is_left_out() -> None:
    for architecture in ("retnet", "transformer", "longnet", "hybrid"):
        card = model_card(small_model(architecture).config, ModelCardFacts())
        assert "None" not in card
        assert "## Model" in card
        for title in ("Data", "Training", "Energy"):
            assert f"## {title}" not in card


def test_a_longnet_has_its_segments() -> None:
    said = rows(model_card(small_model("longnet").config, FACTS))
    assert (said["Segment lengths"], said["Dilation ratios"]) == ("4, 12", "1, 2")


def test_a_country_alone_is_no_measurement() -> None:
    card = model_card(small_model("retnet").config, ModelCardFacts(country="USA", power_method="not measured"))
    assert "Energy" not in card


def test_sizes_are_the_models() -> None:
    model = small_model("transformer", tie_word_embeddings=True)
    said = rows(model_card(model.config, FACTS))
    assert said["Parameters"].startswith(f"{model.num_parameters():,} ({40 * 16:,} of them")
    assert said["Layers"] == "2"
    assert said["Width"] == "16"
    assert said["Vocabulary"] == "40"


def test_a_diverged_loss_has_a_card() -> None:
    assert "Validation loss" in model_card(small_model("retnet").config, ModelCardFacts(validation_loss=1e6))


def test_the_front_matter_is_yaml_that_the_hub_reads() -> None:
    card = model_card(small_model("retnet").config, FACTS)
    front, rest = re.fullmatch(r"---\n(.*?)\n---\n(.*)", card, re.DOTALL).groups()
    assert yaml.safe_load(front) == {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["retlab", "retnet"],
    }
    assert rest.startswith("\n# ")
