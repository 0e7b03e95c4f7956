"""Compare `tinyllm data prepare` with Hugging Face `datasets`: same text, same tokenizer, alternating in one run.

    pip install datasets
    python benchmarks/preparation.py [--megabytes 100] [--rounds 3] [--text FILE.jsonl] [--dedup exact|near|none] [--scale 1000]

Prints megabytes of text per second and peak memory of both (the median over rounds), and their ratios. `tinyllm data prepare` is the
whole command: it starts Python, reads and checks JSON lines, removes duplicates, encodes, splits and writes shards. `Dataset.map` is only
`map`, with one process per core, on a data set that `load_dataset` has converted to Arrow files before; a second line includes that. Its
function calls `tokenizers` directly, which is faster than a tokenizer of `transformers`. Memory is that of a process with all its children,
sampled from /proc (Linux only): the sum of the resident sets, and with shared pages divided among the processes that share them (PSS).
--scale also prepares that many megabytes with tinyllm: memory must not grow. The text is generated from a seed (the bundled world, 10 MB/s)
unless --text is given. Everything is written to a temporary folder.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tinyllm.data import world
from tinyllm.data.records.reader import read_rows
from tinyllm.text.tokenizer import Tokenizer

CORES = len(os.sched_getaffinity(0))
VOCABULARY, TRAINED_ON = 4096, 20_000_000  # characters
THEIRS = """
import sys, time
import datasets, tokenizers
text, tokenizer, cores = sys.argv[1], tokenizers.Tokenizer.from_file(sys.argv[2]), int(sys.argv[3])
datasets.disable_progress_bars()
end = tokenizer.token_to_id("<|endoftext|>")
def encode(batch):
    return {"ids": [[*found.ids, end] for found in tokenizer.encode_batch_fast(batch["text"], add_special_tokens=False)]}
data = datasets.load_dataset("json", data_files=text, split="train", cache_dir="cache")
start = time.perf_counter()
print("loaded", flush=True)
data = data.map(encode, batched=True, num_proc=cores, remove_columns=data.column_names)
print(time.perf_counter() - start, flush=True)
"""


@dataclass
class Measured:
    seconds: float
    cpu: float  # seconds of all cores
    rss: float  # megabytes, at the peak
    pss: float
    printed: str


def children(pid: int) -> list[int]:
    """Return a process and all its descendants."""
    found = [pid]
    for parent in found:
        try:
            for task in Path(f"/proc/{parent}/task").iterdir():
                found += [int(child) for child in (task / "children").read_text().split()]
        except OSError:  # it has ended
            continue
    return found


def memory(pid: int) -> tuple[float, float]:
    """Return (sum of resident sets, sum of PSS) of a process tree in megabytes."""
    rss = pss = 0
    for each in children(pid):
        try:
            for line in Path(f"/proc/{each}/smaps_rollup").read_text().splitlines():
                if line.startswith("Rss:"):
                    rss += int(line.split()[1])
                elif line.startswith("Pss:"):
                    pss += int(line.split()[1])
        except OSError:
            continue
    return rss / 1000, pss / 1000


def measured(command: list[str], folder: Path, **environment: str) -> Measured:
    """Run a command and measure it."""
    folder.mkdir()
    before = sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2])
    began = time.perf_counter()
    process = subprocess.Popen(
        command,
        cwd=folder,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    peak = [0.0, 0.0]

    def watch() -> None:
        while process.poll() is None:
            peak[:] = map(max, peak, memory(process.pid))
            time.sleep(0.05)

    watcher = threading.Thread(target=watch)
    watcher.start()
    printed, errors = process.communicate()
    seconds = time.perf_counter() - began
    watcher.join()
    if process.returncode:
        sys.exit(errors)
    cpu = sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2]) - before
    return Measured(seconds, cpu, *peak, printed)


def ours(text: Path, tokenizer: Path, folder: Path, dedup: str) -> Measured:
    settings = {"data.train": json.dumps([str(text)]), "tokenizer": str(tokenizer), "data.dedup": dedup}
    options = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    return measured([sys.executable, "-m", "tinyllm", "data", "prepare", "--json", "--quiet", *options], folder)


def theirs(text: Path, tokenizer: Path, folder: Path) -> Measured:
    command = [sys.executable, "-c", THEIRS, str(text), str(tokenizer / "tokenizer.json"), str(CORES)]
    return measured(command, folder, TOKENIZERS_PARALLELISM="false", HF_HUB_OFFLINE="1", HF_HOME=str(folder / "home"))


def documents() -> Iterator[str]:
    for seed in range(1 << 30):
        yield from (row["text"] for row in world.documents(20_000, seed=seed, split="train"))


def write(path: Path, megabytes: float) -> float:
    """Write JSON lines with this many megabytes of generated text; return the exact number."""
    size = 0
    with path.open("w", encoding="utf-8") as file:
        for number, text in enumerate(documents()):
            text = f"{number}. {text}"  # unique: the world is small and would repeat some documents
            file.write(json.dumps({"text": text}) + "\n")
            size += len(text.encode())
            if size >= megabytes * 1e6:
                return size / 1e6
    raise AssertionError


def report(name: str, found: list[Measured], seconds: list[float], megabytes: float) -> tuple[float, float]:
    speed, rss = megabytes / statistics.median(seconds), statistics.median(m.rss for m in found)
    pss, cpu = (statistics.median(getattr(m, kind) for m in found) for kind in ("pss", "cpu"))
    facts = f"{rss:7,.0f} MB of memory  {pss:7,.0f} MB (PSS)  {cpu:7.1f} s of processor time"
    print(f"{name:44} {speed:7.2f} MB/s  {facts}", flush=True)
    return speed, rss


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--megabytes", type=float, default=100)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--text", type=Path, help='JSON lines with a column "text"')
    parser.add_argument("--dedup", default="exact")
    parser.add_argument("--scale", type=float, default=0, help="also prepare this many megabytes with tinyllm")
    parser.add_argument("--no-datasets", action="store_true", help="only tinyllm")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        text, megabytes = folder / "text.jsonl", options.megabytes
        if options.text:
            text = options.text.absolute()
            megabytes = sum(len(row["text"].encode()) for row in read_rows(text)) / 1e6
        else:
            megabytes = write(text, megabytes)
        sample = (row["text"] for row, _ in zip(read_rows(text), range(TRAINED_ON // 1000), strict=False))
        Tokenizer.train(sample, VOCABULARY).save(folder / "tokenizer", model_max_length=256)
        print(f"{megabytes:,.1f} MB of text, {CORES} cores, {options.rounds} alternating rounds", flush=True)
        found: dict[str, list[Measured]] = {"ours": [], "theirs": []}
        for number in range(options.rounds):
            found["ours"].append(ours(text, folder / "tokenizer", folder / f"ours-{number}", options.dedup))
            if not options.no_datasets:
                found["theirs"].append(theirs(text, folder / "tokenizer", folder / f"theirs-{number}"))
        mine = found["ours"]
        speed, rss = report(f"tinyllm data prepare (dedup {options.dedup})", mine, [m.seconds for m in mine], megabytes)
        if not options.no_datasets:
            other = found["theirs"]
            alone = [float(m.printed.split()[-1]) for m in other]
            their_speed, their_rss = report(f"datasets, map only (num_proc={CORES})", other, alone, megabytes)
            report("datasets, the whole script", other, [m.seconds for m in other], megabytes)
            print(f"tinyllm: {speed / their_speed:.2f} x the speed of map, {rss / their_rss:.2f} x its memory")
        if options.scale:
            large = write(folder / "large.jsonl", options.scale)
            scaled = ours(folder / "large.jsonl", folder / "tokenizer", folder / "ours-large", options.dedup)
            _, more = report(f"tinyllm data prepare, {large:,.0f} MB", [scaled], [scaled.seconds], large)
            print(f"memory for {large / megabytes:.1f} x the text: {more / rss:.2f} x")


if __name__ == "__main__":
    main()
