"""The `evaluate` and `generate` sections of the configuration."""

from typing import Literal

from pydantic import Field

from retlab.section import Section


class EvaluateSection(Section):
    """What is measured of the trained model on the test split."""

    batch_size: int = Field(default=16, ge=1)
    "Windows evaluated at once; changes speed and memory, not the result."
    device: Literal["auto", "cpu", "cuda"] = "auto"
    "Where to evaluate; auto takes a GPU where there is one."
    precision: Literal["auto", "float32", "bf16"] = "auto"
    "auto: bf16 on GPUs that have it, else float32."
    form: Literal["auto", "parallel", "chunkwise", "recurrent"] = "auto"
    "Form of recurrent mixers; all give the same numbers, auto takes the fastest."
    reference_points: bool = True
    "Also score a uniform guess, unigram and bigram counts of the train tokens, gzip -9 and xz on the test text."


class GenerateSection(Section):
    """Text that the evaluation lets the model write."""

    prompts: list[str] = ["def "]
    "Prompts, one sample each; an empty list writes none."
    max_new_tokens: int = Field(default=100, ge=1)
    "Length of a sample in tokens; it ends earlier at <eos>."
    temperature: float = Field(default=0.8, ge=0)
    "0 is greedy; higher is more random."
    top_k: int = Field(default=50, ge=0)
    "Sample among the k most likely tokens; 0 takes all."
    top_p: float = Field(default=1.0, gt=0, le=1)
    "Sample among the most likely tokens that together have this probability."
    repetition_penalty: float = Field(default=1.0, gt=0)
    "Divides the scores of tokens that are there already; 1 is none, more than 1 avoids repetition."
    seed: int = Field(default=0, ge=0)
    "Seed of the sampling."
