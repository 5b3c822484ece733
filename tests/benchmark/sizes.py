"""A plan so small that every measurement takes moments."""

import dataclasses

from retlab.benchmark.plan import Plan, Shape, default_plan
from retlab.config import ExperimentConfig
from retlab.training.settings import TrainSection

SIZES = {"vocab_size": 300, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
MODELS = {
    "retnet": SIZES | {"architecture": "retnet", "chunk_size": 16},
    "transformer": SIZES | {"architecture": "transformer", "intermediate_size": 48, "tie_word_embeddings": True},
}


def tiny_plan(*architectures: str) -> Plan:
    """The CPU's plan with smaller models and shapes."""
    plan = default_plan("cpu", TrainSection(device="cpu"))
    subjects = tuple(
        dataclasses.replace(
            plan.subjects[0], model=ExperimentConfig.model_validate({"model": MODELS[name]}).model, vocab_size=300
        )
        for name in architectures
    )
    return dataclasses.replace(
        plan,
        subjects=subjects,
        training=(Shape(2, 32),),
        generation=(Shape(2, 16),),
        text_bytes=300_000,
        timed_steps=3,
        seconds=0.01,
        most_new_tokens=8,
    )
