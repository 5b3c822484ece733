"""The `evaluate` and `generate` sections of the configuration."""

from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from retlab.section import ProjectPath, Section, relation_errors

Measurement = Literal["perplexity", "samples", "tasks", "latency"]


def _number_or_auto(size: Any) -> Any:
    if size != "auto" and (not isinstance(size, int) or isinstance(size, bool) or size < 1):
        raise ValueError("must be a whole number of at least 1, or auto")
    return size


BatchSize = Annotated[int | Literal["auto"], BeforeValidator(_number_or_auto)]


def _each_once(values: list[Any]) -> list[Any]:
    twice = [value for number, value in enumerate(values) if value in values[:number]]
    if twice:
        raise ValueError(f"holds {twice[0]} twice; name each once")
    return values


EachOnce = AfterValidator(_each_once)


LARGEST_SEED = 2**63 - 1
"""The largest that torch takes."""


def no_text(text: str) -> str | None:
    """What of a string is no text, in words; None where it can be written in UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        code = ord(text[error.start])
        # Python keeps a byte that is no text as one half of a pair of surrogates.
        what = f"byte 0x{code & 0xFF:02x}" if 0xDC80 <= code <= 0xDCFF else f"U+{code:04X}, half a character,"
        return f"{what} at place {error.start + 1} is no UTF-8 text; write it in UTF-8"
    return None


def _is_text(text: str) -> str:
    wrong = no_text(text)
    if wrong is not None:
        raise ValueError(f"holds no text: {wrong}")
    return text


class TasksSection(Section):
    """Tasks of lm-evaluation-harness."""

    names: list[Annotated[str, Field(min_length=1)]] = []
    "Tasks and groups of the harness, tasks of `include_path`, or '*': all whose data can be reached."
    include_path: ProjectPath | None = None
    "Folder with task files of your own."
    num_fewshot: int | None = Field(default=None, ge=0)
    "Examples before each question; null takes each task's own number."
    limit: int | None = Field(default=None, ge=1)
    "So many examples of each task; null takes all."
    batch_size: BatchSize = 16
    "Requests at once; auto takes the largest that fits."
    seed: int = Field(default=1234, ge=0, le=LARGEST_SEED)
    "Seed of the few-shot examples."
    log_samples: bool = True
    "Keep every request with its answer, <task>.samples.jsonl."


_Context = Annotated[int, Field(ge=1, le=2**31 - 1)]
_BatchSize = Annotated[int, Field(ge=1, le=2**20)]


class LatencySection(Section):
    """Time to the first token, time per token, and memory."""

    contexts: Annotated[list[_Context], EachOnce] = Field(default=[256, 1024, 4096], min_length=1)
    "Tokens that have been read before the first one is written; each length is measured."
    batch_sizes: Annotated[list[_BatchSize], EachOnce] = Field(default=[1], min_length=1)
    "Sequences at once; each number is measured."
    new_tokens: int = Field(default=32, ge=1, le=2**20)
    "Tokens to write after the first one, over which the time per token is taken."
    trials: int = Field(default=10, ge=1, le=10_000)
    "Repetitions, of which median and 95th percentile are told."
    warmup: int = Field(default=1, ge=0, le=10_000)
    "Repetitions before those that count."
    naive: bool = True
    "Also measure a full forward for every token, without state or cache."
    longest_trial_seconds: float = Field(default=120, gt=0)
    "A context whose trials would take longer, judged from the shorter ones, is left out, and said to be."


class EvaluateSection(Section):
    """What is measured of the trained model."""

    model: str | None = Field(default=None, min_length=1)
    "Another model to measure in its place: a folder or a hub name, such as EleutherAI/pythia-70m."
    measure: Annotated[list[Measurement], EachOnce] = ["perplexity", "samples"]
    "What to measure: perplexity of the test split, samples (section generate), tasks of lm-eval, latency."
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
    carry_state: bool = False
    "Read every document from its first to its last token with its state carried across windows (recurrent models)."
    tasks: TasksSection = TasksSection()
    "Tasks of lm-evaluation-harness."
    latency: LatencySection = LatencySection()
    "Latency and memory."

    @model_validator(mode="after")
    def _names_tasks(self) -> Self:
        if "tasks" in self.measure and not self.tasks.names:
            sentence = "lists tasks, but evaluate.tasks.names is empty; name some, such as [hellaswag]"
            raise relation_errors("evaluate", [((("measure",), ("tasks", "names")), sentence)])
        return self


class GenerateSection(Section):
    """Text that the evaluation lets the model write."""

    prompts: list[Annotated[str, AfterValidator(_is_text)]] = ["def "]
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
    seed: int = Field(default=0, ge=0, le=LARGEST_SEED)
    "Seed of the sampling."
