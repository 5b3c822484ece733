"""Samples: what they count, what they cut, and prompts from files."""

import io
import sys
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from tests.evaluation.trained import write_model, write_other_model

from retlab.errors import UserError
from retlab.evaluation.samples import TerminalStreamer, as_text, continue_prompt, notices, read_prompts
from retlab.evaluation.settings import EvaluateSection, GenerateSection
from retlab.evaluation.trained_model import TrainedModel, load_trained_model


@pytest.fixture(params=["retnet", "transformer", "longnet"])
def trained(request: pytest.FixtureRequest, tmp_path: Path) -> TrainedModel:
    model = load_trained_model(EvaluateSection(device="cpu"), write_model(tmp_path, request.param))
    model.model.config.max_position_embeddings = 24
    return model


def test_a_prompt_longer_than_the_window_is_read_by_a_state_and_cut_for_attention(
    trained: TrainedModel, capfd: pytest.CaptureFixture[str]
) -> None:
    prompt, section = "abcdefghij" * 5, GenerateSection(temperature=0, max_new_tokens=4)
    sample = continue_prompt(trained, section, prompt)
    lines = " ".join(notices(trained, sample))
    assert "reminder" not in capfd.readouterr().err, "what transformers says of windows is no news to a state"
    if trained.config.architecture == "retnet":
        assert (sample.cut_tokens, sample.prompt_tokens, lines) == (0, 50, "")
    else:
        assert (sample.cut_tokens, sample.prompt_tokens) == (27, 23)
        assert "window of 24 tokens: the first 27 of its 50 tokens were left out" in lines
        assert "text of 28 tokens is longer than the model's window of 24" in lines
        kept = continue_prompt(trained, section, prompt[-23:])
        assert (kept.cut_tokens, kept.continuation) == (0, sample.continuation)


def test_it_is_streamed_as_it_is_written(trained: TrainedModel, capsys: pytest.CaptureFixture[str]) -> None:
    section = GenerateSection(max_new_tokens=18, seed=3)
    sample = continue_prompt(trained, section, "ab")
    streamer = TerminalStreamer(trained.tokenizer, skip_prompt=True, skip_special_tokens=True)
    again = continue_prompt(trained, section, "ab", streamer)
    assert capsys.readouterr().out.removesuffix("\n") == again.continuation == sample.continuation
    assert sample.new_tokens == 18 or sample.ended == "end of text"


def test_text_cannot_move_the_cursor_of_a_terminal(
    trained: TrainedModel, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for at_a_terminal, shown in ((True, "a\ufffd[31m b\n"), (False, "a\x1b[31m b\n")):
        monkeypatch.setattr(sys.stdout, "isatty", lambda answer=at_a_terminal: answer)
        streamer = TerminalStreamer(trained.tokenizer)
        streamer.put(torch.tensor(trained.tokenizer("a\x1b[31m b").input_ids))
        streamer.end()
        assert capsys.readouterr().out == shown


def test_sampling_is_transformers_own(trained: TrainedModel) -> None:
    settings = {"temperature": 0.7, "top_k": 9, "top_p": 0.8, "repetition_penalty": 1.4}
    section = GenerateSection(max_new_tokens=12, seed=5, **settings)
    ids = torch.tensor([[trained.eos_id, *trained.tokenizer("ab").input_ids]])
    torch.manual_seed(5)
    output = trained.model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=True, eos_token_id=trained.eos_id,
        pad_token_id=trained.pad_id, **settings,
    )  # fmt: skip
    expected = trained.tokenizer.decode(output[0, 3:], skip_special_tokens=True)
    assert continue_prompt(trained, section, "ab").continuation == expected
    plain = section.model_copy(update={"repetition_penalty": 1.0})
    assert continue_prompt(trained, plain, "ab").continuation != expected


def test_an_empty_prompt_begins_a_document(trained: TrainedModel) -> None:
    sample = continue_prompt(trained, GenerateSection(temperature=0, max_new_tokens=3), "")
    assert sample.prompt_tokens == 0
    assert list(notices(trained, sample)) == ["the prompt is empty: this is how a document begins"]


def test_prompts_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("\ufeffdef \r\n\n  été\n".encode())
    assert read_prompts(tmp_path / "a.txt") == ["def ", "  été"]
    (tmp_path / "a.jsonl").write_text('{"prompt": "two\\nlines", "other": 1}\n{"prompt": ""}\n')
    assert read_prompts(tmp_path / "a.jsonl") == ["two\nlines", ""]


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("a.txt", b"fine\nb\xffd\n", r"a.txt, line 2: byte 0xff at place 2 is no UTF-8 text"),
        ("a.txt", b"\n\n", r"a.txt holds no prompt"),
        ("a.jsonl", b'{"prompt": 3}\n', r"a.jsonl, line 1: no prompt"),
        (
            "a.jsonl",
            b'{"prompt": "ab\\ud800"}\n',
            r"a.jsonl, line 1: U\+D800, half a character, at place 3 is no UTF-8",
        ),
        ("a.jsonl", b"def \n", r"a.jsonl, line 1: no prompt"),
        ("a.jsonl", b"[1]\n", r"a.jsonl, line 1: no prompt"),
        (None, b"", r"a.txt cannot be read \(No such file or directory\)"),
    ],
)
def test_files_that_hold_no_prompts(tmp_path: Path, name: str | None, content: bytes, sentence: str) -> None:
    if name:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=sentence):
        read_prompts(tmp_path / (name or "a.txt"))


@pytest.mark.parametrize("prompt", ["\ud800", b"ab\xe9".decode(errors="surrogateescape")])
def test_a_configuration_holds_text_alone(prompt: str) -> None:
    with pytest.raises(ValidationError, match="holds no text: .* is no UTF-8 text"):
        GenerateSection(prompts=["a", prompt])


def test_words_that_are_no_text() -> None:
    assert as_text("é", "here") == "é"
    with pytest.raises(UserError, match=r"^here: byte 0xe9 at place 3 is no UTF-8 text"):
        as_text(io.TextIOWrapper(io.BytesIO(b"ab\xe9"), "utf-8", errors="surrogateescape").read(), "here")


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_a_model_of_transformers_stays_within_its_window(tmp_path: Path, kind: str) -> None:
    """GPT-2 has no positions beyond."""
    other = load_trained_model(EvaluateSection(device="cpu"), write_other_model(tmp_path, kind, window=32))
    section = GenerateSection(max_new_tokens=100, temperature=0)
    for prompt, cut, new in (("x" * 10, 0, 21), ("x" * 100, 84, 15)):
        sample = continue_prompt(other, section, prompt)
        assert (sample.cut_tokens, sample.new_tokens, sample.ended) == (cut, new, "window")
        said = list(notices(other, sample))
        assert said[-1] == "the text ends where the model's window of 32 tokens does"
        assert len(said) == 1 + bool(cut)
    ids = torch.tensor([[other.opening_id, *other.tokenizer("x" * 10, add_special_tokens=False)["input_ids"]]])
    with torch.no_grad():
        first = int(other.model(ids).logits[0, -1].argmax())
    sample = continue_prompt(other, GenerateSection(max_new_tokens=1, temperature=0), "x" * 10)
    assert sample.continuation == other.tokenizer.decode([first], skip_special_tokens=True)
