"""Let a trained model write:

    python src/generate_text.py CONFIG [key.path=value ...] [--prompt TEXT ...] [--prompts FILE] [--interactive]

Reads runs/<name>/model, or the model that evaluate.model names. The prompts are those of the section generate, or in
their place those of the command line; with --interactive a prompt stays open. What is written appears as it is
written; with --json each sample is a line of JSON instead, and --output FILE.csv or FILE.jsonl keeps them all.
"""

import argparse
import csv
import io
import json
import signal
import sys
from collections.abc import Iterator
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING

import retlab.script_start  # noqa: F401
from retlab.artifacts import write_atomic
from retlab.command import StageCommand, run_stage
from retlab.config import ExperimentConfig
from retlab.errors import Interrupted, UserError
from retlab.evaluation.settings import GenerateSection
from retlab.progress import counted, visible
from retlab.section import shown_path
from retlab.subject import find_subject
from retlab.upstream import outdated_model

if TYPE_CHECKING:
    from retlab.evaluation.samples import Sample
    from retlab.evaluation.trained_model import TrainedModel

PROMPT = ">>> "


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of this script alone."""
    parser.add_argument("--prompt", metavar="TEXT", action="append", help="a prompt; may be given several times")
    parser.add_argument("--prompts", metavar="FILE", type=Path, help="prompts, one per line; or .jsonl with key prompt")
    parser.add_argument("--interactive", action="store_true", help="ask for prompts until Ctrl-D")
    parser.add_argument("--json", action="store_true", help="print each sample as a line of JSON")
    parser.add_argument("--output", metavar="FILE", type=Path, help="keep all samples in a .csv or .jsonl file")


def main(config: ExperimentConfig, command: StageCommand) -> None:
    """Write a sample for each prompt."""
    options = command.options
    output = _checked_output(options.output)
    if options.interactive and (options.prompt or options.prompts):
        raise UserError("command line: --interactive asks for its prompts; leave --prompt and --prompts out")
    section = config.generate
    prompts = _typed() if options.interactive else iter(_asked(section, options))

    trained = find_subject(config).load()
    for line in outdated_model(config) if config.evaluate.model is None else []:
        print(line, file=sys.stderr)
    samples, stopped = [], False
    # Ctrl-C ends a text that is being written, and at a prompt the program.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for prompt in prompts:
        sample = _write(trained, section, prompt, shows=not options.json)
        if sample is None:
            stopped = not options.interactive
            if stopped:
                break
            continue
        samples.append(sample)
        if options.json:
            print(json.dumps(asdict(sample), ensure_ascii=False), flush=True)
    if output is not None:
        write_atomic(output, as_table(samples, output.suffix))
        print(f"{counted(len(samples), 'sample')}: {shown_path(output)}", file=sys.stderr)
    if stopped:
        raise Interrupted(f"SIGINT received, {counted(len(samples), 'sample')} finished before")


def _checked_output(named: Path | None) -> Path | None:
    """The file for the samples, of which all that can be wrong is said before any of them is written."""
    if named is None:
        return None
    file, where = named.expanduser().absolute(), f"command line: --output {named}"
    if file.suffix not in (".csv", ".jsonl"):
        raise UserError(f"{where} ends with neither .csv nor .jsonl; name such a file")
    if file.is_dir():
        raise UserError(f"{where} is a folder; name a file")
    if not file.parent.is_dir():
        raise UserError(f"{where}: there is no folder {shown_path(file.parent)}; make it, or name another file")
    return file


def _asked(section: GenerateSection, options: argparse.Namespace) -> list[str]:
    from retlab.evaluation.samples import as_text, read_prompts

    given = [as_text(word, "command line: --prompt") for word in options.prompt or []]
    given += read_prompts(options.prompts.expanduser().absolute()) if options.prompts else []
    prompts = given or section.prompts
    if not prompts:
        raise UserError("generate.prompts is empty; give a prompt there, with --prompt, or ask for --interactive")
    return prompts


def _typed() -> Iterator[str]:
    """Lines of the terminal, or of what is piped in, until there are no more."""
    from retlab.evaluation.samples import as_text

    if sys.stdin.isatty():
        # Arrow keys and what was typed before.
        import readline  # noqa: F401

        print("Ctrl-C ends a text, Ctrl-D the program", file=sys.stderr)
    while True:
        try:
            line = input(PROMPT if sys.stdin.isatty() else "")
        except (EOFError, KeyboardInterrupt):
            print(file=sys.stderr)
            return
        try:
            yield as_text(line, "the prompt")
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)


def _write(trained: "TrainedModel", section: GenerateSection, prompt: str, shows: bool) -> "Sample | None":
    """A sample, shown as it is written; None where Ctrl-C ended it."""
    from retlab.evaluation.samples import TerminalStreamer, continue_prompt, notices

    streamer = None
    if shows:
        print(visible(prompt) if sys.stdout.isatty() else prompt, end="", flush=True)
        streamer = TerminalStreamer(trained.tokenizer, skip_prompt=True, skip_special_tokens=True)
    try:
        sample = continue_prompt(trained, section, prompt, streamer)
    except KeyboardInterrupt:
        print("\n[ended by Ctrl-C]", file=sys.stderr)
        return None
    for notice in notices(trained, sample):
        print(f"note: {notice}", file=sys.stderr)
    if shows:
        each = f", {1000 * sample.seconds / sample.new_tokens:.2f} ms each" if sample.new_tokens else ""
        print(f"[{sample.new_tokens:,} tokens{each}, {sample.ended}]\n", file=sys.stderr, flush=True)
    return sample


def as_table(samples: "list[Sample]", suffix: str) -> str:
    """The samples as CSV with a header, or as lines of JSON."""
    if suffix == ".jsonl":
        return "".join(json.dumps(asdict(sample), ensure_ascii=False) + "\n" for sample in samples)
    from retlab.evaluation.samples import Sample

    table = io.StringIO()
    writer = csv.DictWriter(table, [field.name for field in fields(Sample)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(sample) for sample in samples)
    return table.getvalue()


if __name__ == "__main__":
    # Into `head` or a pager that is left, the text ends as the output of any other command does.
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    run_stage(main, configure=add_options, makes=False)
