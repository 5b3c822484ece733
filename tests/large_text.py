"""Take a gigabyte of text through stages 1 to 4 and measure memory and speed:

python tests/large_text.py --folder /tmp/large [--gigabytes 1] [--cores 2]

The text is that of the standard library, repeated with changes, in JSON lines files. Prints each stage's
seconds and the peak of the memory that all its processes hold together, the tokeniser's tokens per second, and beside
it those of a per-row map of the Hugging Face tokenizer over a sample of the same text.
"""

import argparse
import contextlib
import json
import os
import random
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[1]
STAGES = ("download_data", "split_data", "train_tokenizer", "tokenize_data")
SAMPLE_SECONDS = 0.1


def write_text(folder: Path, size: int) -> None:
    """Files of about 100 MB; every repetition renames words and shuffles lines, so that documents differ."""
    sources = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    texts = [file.read_text(encoding="utf-8", errors="replace") for file in sources]
    chance, written, part = random.Random(0), 0, 0
    folder.mkdir(parents=True)
    while written < size:
        with open(folder / f"text-{part:03d}.jsonl", "w") as file:
            in_file = 0
            while in_file < 100_000_000 and written < size:
                lines = chance.choice(texts).splitlines()
                start = chance.randrange(max(1, len(lines) - 120))
                chosen = lines[start : start + chance.randrange(20, 120)]
                text = "\n".join(chosen).replace("self", f"own{chance.randrange(1000)}")
                line = json.dumps({"text": f"# {chance.random()}\n{text}"}) + "\n"
                file.write(line)
                in_file += len(text)
                written += len(text)
        part += 1


def run_measured(command: list[str]) -> tuple[float, float]:
    """Seconds of a command, and the peak in GiB of what it and all its descendants hold together."""
    started, peak = time.monotonic(), 0
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(command, stdout=output)
        while process.poll() is None:
            peak = max(peak, memory_of(process.pid))
            time.sleep(SAMPLE_SECONDS)
        output.seek(0)
        if process.returncode:
            raise SystemExit(f"{' '.join(command)} failed:\n{output.read()}")
    return time.monotonic() - started, peak / 2**30


def memory_of(pid: int) -> int:
    """Bytes of a process and its descendants; a page that several of them share counts once (PSS)."""
    size = 0
    # Processes end, also between being listed and being asked.
    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        for one in [process, *process.children(recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                size += one.memory_full_info().pss
    return size


def per_row_rate(folder: Path, sample_bytes: int) -> float:
    """Tokens per second of a per-row map of the Hugging Face tokenizer over the first part of the train split."""
    import pyarrow.parquet as pq
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder / "data" / "tokenizer")
    texts, size = [], 0
    for batch in pq.ParquetFile(sorted((folder / "data/splits/train").glob("*.parquet"))[0]).iter_batches(1000):
        texts += batch.column("text").to_pylist()
        size = sum(map(len, texts))
        if size > sample_bytes:
            break
    started = time.monotonic()
    tokens = sum(len(row) for row in (tokenizer(text)["input_ids"] for text in texts))
    return tokens / (time.monotonic() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--gigabytes", type=float, default=1.0)
    parser.add_argument("--cores", type=int, default=2)
    options = parser.parse_args()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.cores])
    folder = options.folder.resolve()
    write_text(folder / "text", int(options.gigabytes * 1e9))
    config = folder / "large.yaml"
    config.write_text(
        f"name: large\noutput_dir: {folder}/runs\n"
        f"data: {{source: {folder}/text, folder: {folder}/data}}\nemissions: {{enabled: false}}\n"
    )
    for stage in STAGES:
        seconds, memory = run_measured([sys.executable, str(ROOT / "src" / f"{stage}.py"), str(config)])
        print(f"{stage:16} {seconds:8.1f} s   peak {memory:5.2f} GiB", flush=True)
    manifests = [json.loads(file.read_text()) for file in sorted((folder / "data/tokens").glob("*/manifest.json"))]
    tokens = sum(manifest["report"]["tokens"] for manifest in manifests)
    spent = sum(manifest["volatile"]["seconds"] for manifest in manifests)
    rate, per_row = tokens / spent, per_row_rate(folder, 20_000_000)
    print(f"tokenize_data: {tokens:,} tokens at {rate:,.0f} tokens/s; per-row map: {per_row:,.0f} tokens/s")
    print(f"ratio {rate / per_row:.1f}")


if __name__ == "__main__":
    main()
