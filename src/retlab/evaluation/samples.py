"""Text that a model writes, through transformers' own generate()."""

import codecs
import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import torch
from transformers.generation.streamers import BaseStreamer, TextStreamer

from retlab.artifacts import write_json
from retlab.data.tokenizer import text_tokenizer
from retlab.errors import UserError
from retlab.evaluation.settings import GenerateSection, no_text
from retlab.evaluation.trained_model import TrainedModel, quiet_transformers
from retlab.memory import memory_errors
from retlab.progress import visible
from retlab.section import shown_path


@dataclass(frozen=True)
class Sample:
    """What a model wrote after a prompt.

    Attributes:
        cut_tokens: tokens at the beginning of the prompt that the model did not see, since its window is shorter.
        prompt_tokens: tokens of the prompt that it saw, without the end-of-text token before them.
        new_tokens: tokens that it wrote, a closing end-of-text token included.
        ended: whether it ended its text, or at `generate.max_new_tokens`, or where its window does.
        seconds: from the prompt to the last token.
    """

    prompt: str
    continuation: str
    seed: int
    cut_tokens: int
    prompt_tokens: int
    new_tokens: int
    ended: Literal["end of text", "length", "window"]
    seconds: float


def measure_samples(
    trained: TrainedModel,
    section: GenerateSection,
    folder: Path,
    say: Callable[[str], None] = lambda _line: None,
) -> dict[str, Any]:
    """Continue every prompt of the section; writes samples.json into `folder`.

    Each sample is drawn from the section's seed anew, so it does not depend on the other prompts. `say` prints a line
    for people.
    """
    samples = []
    for prompt in section.prompts:
        sample = continue_prompt(trained, section, prompt)
        for notice in notices(trained, sample):
            say(f"{_shown(prompt)}: {notice}")
        samples.append(sample)
    # Without times, so that the same model gives the same file.
    plain = [{"prompt": one.prompt, "continuation": one.continuation, "seed": one.seed} for one in samples]
    write_json(folder / "samples.json", plain)
    return {"samples": len(samples)}


def _shown(prompt: str) -> str:
    """The beginning of a prompt, in quotes."""
    return f"prompt {prompt if len(prompt) <= 30 else prompt[:27] + '...'!r}"


def _too_long(section: GenerateSection, prompt: str) -> tuple[str, str]:
    return (
        f"a sample of {section.max_new_tokens:,} tokens after a prompt of {len(prompt):,} characters",
        "lower generate.max_new_tokens, shorten the prompt, or set evaluate.device to cpu",
    )


def read_prompts(file: Path) -> list[str]:
    """The prompts of a file: of a .jsonl the key `prompt` of each line, of any other a prompt per line.

    Raises:
        UserError: the file is missing, is no text, or has a line without a prompt.
    """
    try:
        content = file.read_bytes()
    except OSError as error:
        raise UserError(
            f"the prompts in {shown_path(file)} cannot be read ({error.strerror}); name another file"
        ) from None
    prompts = []
    # Editors of other systems mark UTF-8 with a sign that is no part of the text.
    for number, line in enumerate(content.removeprefix(codecs.BOM_UTF8).split(b"\n"), start=1):
        if line.strip():
            prompts.append(_prompt_of(line.removesuffix(b"\r"), f"{shown_path(file)}, line {number}", file.suffix))
    if not prompts:
        raise UserError(f"{shown_path(file)} holds no prompt; write one per line")
    return prompts


def _prompt_of(line: bytes, place: str, suffix: str) -> str:
    try:
        text = line.decode()
    except UnicodeDecodeError as error:
        byte = f"byte 0x{line[error.start]:02x} at place {error.start + 1}"
        raise UserError(f"{place}: {byte} is no UTF-8 text; save the file as UTF-8") from None
    if suffix != ".jsonl":
        return text
    try:
        prompt = json.loads(text)["prompt"]
    except (ValueError, KeyError, TypeError):
        prompt = None
    if not isinstance(prompt, str):
        raise UserError(f'{place}: no prompt; write a line such as {{"prompt": "def "}}')
    return as_text(prompt, place)


def as_text(word: str, place: str) -> str:
    """A prompt of the command line, of input or of JSON; a UserError where it holds what is no text."""
    wrong = no_text(word)
    if wrong is not None:
        raise UserError(f"{place}: {wrong}")
    return word


class TerminalStreamer(TextStreamer):
    """Shows text as it is written, but for what would move the cursor of a terminal."""

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        super().on_finalized_text(visible(text) if sys.stdout.isatty() else text, stream_end)


def continue_prompt(
    trained: TrainedModel, section: GenerateSection, prompt: str, streamer: BaseStreamer | None = None
) -> Sample:
    """Let the model write after a prompt, without special tokens.

    The prompt stands at the start of a document, behind the token that opens it, as documents do in training. A model
    whose layers all carry a state reads all of it; one that looks back at tokens reads the last of its window.

    Args:
        trained: the model.
        section: how it writes; its prompts are not looked at.
        prompt: text of any length.
        streamer: is given every token as it is written, the prompt's first.
    """
    # The characters <eos> in a prompt are text, as they are in documents.
    encoded = text_tokenizer(trained.tokenizer).encode(prompt, add_special_tokens=False).ids
    seen, most = _within_window(trained, section, encoded)
    input_ids = torch.tensor([[trained.opening_id, *seen]], device=trained.device)
    started = time.perf_counter()
    # The random state is the caller's again afterwards.
    with (
        memory_errors(lambda: _too_long(section, prompt)),
        # What a window is, transformers does not know of a state.
        quiet_transformers(),
        torch.random.fork_rng(),
        torch.inference_mode(),
        trained.autocast(),
    ):
        torch.manual_seed(section.seed)
        output = cast(Any, trained.model).generate(
            input_ids,
            attention_mask=torch.ones_like(input_ids),
            max_new_tokens=most,
            eos_token_id=trained.eos_id,
            pad_token_id=trained.pad_id,
            streamer=streamer,
            **_sampling(section),
        )
    new = output[0, input_ids.shape[1] :].tolist()
    return Sample(
        prompt=prompt,
        continuation=str(trained.tokenizer.decode(new, skip_special_tokens=True)),
        seed=section.seed,
        cut_tokens=len(encoded) - len(seen),
        prompt_tokens=len(seen),
        new_tokens=len(new),
        ended=_end(trained, section, new),
        seconds=time.perf_counter() - started,
    )


def _within_window(trained: TrainedModel, section: GenerateSection, encoded: list[int]) -> tuple[list[int], int]:
    """The tokens of a prompt that the model reads, and how many it may write after them."""
    if trained.carries_state or not trained.window:
        return encoded, section.max_new_tokens
    if trained.ours is not None:
        return encoded[-(trained.window - 1) :], section.max_new_tokens
    # Other models may have no positions beyond their window: half of it is kept for what they write.
    room = trained.window - 1
    seen = encoded[-(room - min(section.max_new_tokens, room // 2)) :]
    return seen, min(section.max_new_tokens, room - len(seen))


def _end(trained: TrainedModel, section: GenerateSection, new: list[int]) -> Literal["end of text", "length", "window"]:
    if new[-1:] == [trained.eos_id]:
        return "end of text"
    return "length" if len(new) == section.max_new_tokens else "window"


def notices(trained: TrainedModel, sample: Sample) -> Iterator[str]:
    """What a reader of a sample should know, in sentences."""
    window = trained.window
    if sample.cut_tokens:
        yield (
            f"the prompt is longer than the model's window of {window:,} tokens: the first {sample.cut_tokens:,} of its"
            f" {sample.cut_tokens + sample.prompt_tokens:,} tokens were left out"
        )
    length = 1 + sample.prompt_tokens + sample.new_tokens
    if sample.ended == "window":
        yield f"the text ends where the model's window of {window:,} tokens does"
    elif window and not trained.carries_state and length > window:
        yield f"text of {length:,} tokens is longer than the model's window of {window:,}"
    if not sample.prompt:
        yield "the prompt is empty: this is how a document begins"


def _sampling(section: GenerateSection) -> dict[str, Any]:
    penalty = {} if section.repetition_penalty == 1 else {"repetition_penalty": section.repetition_penalty}
    if section.temperature == 0:
        return {"do_sample": False, **penalty}
    return {
        "do_sample": True,
        "temperature": section.temperature,
        "top_k": section.top_k,
        "top_p": section.top_p,
        **penalty,
    }
