"""Fuzz the ingest of layer tars, guided by coverage (atheris): `tests/support/arena.py` has the rules.

Two targets, one after the other, each in a process of its own: ``parse`` reads every member and its data,
``unpack`` makes a layer of them, in turn on a base and on a lower layer, and walks it.  Inputs are tars; the
mutator knows their structure (`tests/support/wild.py`) or is libFuzzer's own, with checksums put right.

What breaks a rule is kept among the findings, one file for each place in the code, and the search goes on;
``tests/t1_core/test_corpus.py`` replays them ever after.  Exits 1 when something was found.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import re
import subprocess
import sys
import tempfile
import traceback
from contextlib import suppress
from pathlib import Path

TESTS = Path(__file__).parents[1] / "tests"
CORPUS = TESTS / "corpus"
TARGETS = ("parse", "unpack")


def main() -> None:
    arguments = _arguments()
    if arguments.child:
        _fuzz(arguments.child, arguments)
        return
    before = set(arguments.findings.glob("finding-*"))
    failed = False
    for target in arguments.target or TARGETS:
        failed |= _run(target, arguments)
    found = sorted(set(arguments.findings.glob("finding-*")) - before)
    for path in found:  # libFuzzer's own, of time and memory, have no suffix
        print(f"found: {path.rename(path.with_suffix('.tar'))}")
    sys.exit(1 if found or failed else 0)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Fuzz the ingest of layer tars.")
    parser.add_argument("--seconds", type=int, default=60, help="for each target (default: 60)")
    parser.add_argument("--target", action="append", choices=TARGETS, help="only this one")
    parser.add_argument("--corpus", type=Path, help="where to keep what reaches new code (else: nowhere)")
    parser.add_argument("--findings", type=Path, default=CORPUS, help="where to put what breaks a rule")
    parser.add_argument("--place", type=Path, help="where to unpack (default: /dev/shm, which is fast)")
    parser.add_argument("--seed", type=int, default=0, help="of the randomness (default: another each time)")
    parser.add_argument("--child", choices=TARGETS, help=argparse.SUPPRESS)
    return parser.parse_args()


def _run(target: str, arguments: argparse.Namespace) -> bool:
    """Run one target in a child; say how much it did.  True when the child itself broke down."""
    shared = Path("/dev/shm") if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=arguments.place or shared) as place:
        kept = (arguments.corpus or Path(place) / "corpus").absolute() / target
        kept.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, __file__, "--child", target, "--findings", arguments.findings]
        command += ["--corpus", kept, "--seconds", str(arguments.seconds), "--seed", str(arguments.seed)]
        command += ["--place", place]
        child = subprocess.run(command, stderr=subprocess.PIPE, text=True, errors="replace")
    counts = dict(re.findall(r"stat::(\w+): +(\d+)", child.stderr))
    runs = int(counts.get("number_of_executed_units", 0))
    covered = re.findall(r"cov: (\d+)", child.stderr) or ["?"]
    print(f"{target}: {runs} executions, {runs // max(arguments.seconds, 1)} a second,", end=" ")
    print(f"{covered[-1]} edges, {counts.get('peak_rss_mb', '?')} MB at most", flush=True)
    broken = child.returncode != 0 or not runs
    if broken:
        print(child.stderr[-8000:], file=sys.stderr)
    return broken


def _fuzz(target: str, arguments: argparse.Namespace) -> None:
    """What the child does; does not return."""
    import atheris

    sys.path.insert(0, str(TESTS))
    with atheris.instrument_imports(include=["fusestore"], enable_loader_override=False):
        from support.arena import Arena
    from support import wild
    from support.tars import BLOCK, read

    from fusestore.driver.whiteout import Spelling
    from fusestore.errors import InvalidLayer

    def mutate(data: bytes, max_size: int, seed: int) -> bytes:
        numbers = random.Random(seed)
        if seed % 4 == 0:
            return wild.sealed(atheris.Mutate(data, max_size))[:max_size]
        if seed % 64 == 1 or not data:
            return wild.archive(numbers)[:max_size]
        return wild.mutated(numbers, data)[:max_size]

    arenas = [Arena(arguments.place / spelling.value, spelling=spelling) for spelling in Spelling]

    def unpack(data: bytes) -> None:
        """Which arena, and whether on a lower layer, is for the fuzzer to choose, by the length."""
        way = len(data) // BLOCK
        arenas[way % 2].ingest(data, on_lower=bool(way // 2 % 2))

    def parse(data: bytes) -> None:
        with suppress(InvalidLayer):
            read(data, 700)

    run = {"parse": parse, "unpack": unpack}[target]

    def test(data: bytes) -> None:
        try:
            run(data)
        except Exception as exc:
            _keep(exc, data, arguments.findings)

    options = [f"-max_total_time={arguments.seconds}", "-max_len=16384", "-timeout=20", "-rss_limit_mb=512"]
    options += ["-print_final_stats=1", "-reload=0", f"-artifact_prefix={arguments.findings}/finding-"]
    options += [f"-seed={arguments.seed}"] if arguments.seed else []
    atheris.Setup([sys.argv[0], *options, str(arguments.corpus), str(CORPUS)], test, custom_mutator=mutate)
    atheris.Fuzz()


def _keep(exc: Exception, data: bytes, findings: Path) -> None:
    """Keep the smallest input for each place in our code, and say once what it was."""
    frames = traceback.extract_tb(exc.__traceback__)
    where = "".join(f"{f.filename}:{f.name};" for f in frames[-3:])
    name = hashlib.sha256(f"{type(exc).__name__} {where}".encode()).hexdigest()[:8]
    path = findings / f"finding-{type(exc).__name__}-{frames[-1].name.strip('_')}-{name}.tar"
    if not path.exists() or path.stat().st_size > len(data):
        path.write_bytes(data)
        traceback.print_exception(exc, file=sys.stderr)


if __name__ == "__main__":
    main()
