"""Whatever bytes come as a layer: it is unpacked or refused with InvalidLayer, and nothing else happens.

`support.arena` says what else must not happen.  Three kinds of input: archives made by rules that are now and
then broken, and changes of such archives (`support.wild`, driven by hypothesis); the corpus, which holds what
the coverage-guided fuzzer found worth keeping, findings among it; and that fuzzer itself, for a few seconds
(``scripts/fuzz`` runs it for longer).
"""

import os
import re
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import wild
from support.arena import Arena
from support.tars import read

from fusestore.driver.whiteout import Spelling
from fusestore.errors import InvalidLayer

ROOT = Path(__file__).parents[2]
CORPUS = sorted((ROOT / "tests" / "corpus").glob("*.tar"))


@pytest.fixture(scope="module", params=Spelling, ids=lambda spelling: spelling.value)
def arena(request, tmp_path_factory):
    arena = Arena(tmp_path_factory.mktemp("arena"), spelling=request.param)
    yield arena
    arena.close()


@settings(max_examples=200)
@given(st.randoms(use_true_random=False), st.booleans())
def test_wild_archives(arena, random, on_lower):
    arena.ingest(wild.archive(random), on_lower=on_lower)


@settings(max_examples=200)
@given(st.randoms(use_true_random=False), st.booleans())
def test_changed_archives(arena, random, on_lower):
    arena.ingest(wild.mutated(random, wild.archive(random)), on_lower=on_lower)


@pytest.mark.parametrize("path", CORPUS, ids=[path.stem for path in CORPUS])
def test_the_corpus(arena, path):
    data = path.read_bytes()
    with suppress(InvalidLayer):
        read(data, 700)
    for on_lower in (False, True):
        arena.ingest(data, on_lower=on_lower)


if sys.version_info < (3, 14) and os.uname().machine == "x86_64":  # where pyproject.toml installs it

    @pytest.mark.timeout(60)
    def test_the_coverage_guided_fuzzer_finds_nothing(tmp_path):
        command = [sys.executable, ROOT / "scripts" / "fuzz.py", "--seconds", "4", "--findings", tmp_path]
        answer = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=50)
        assert answer.returncode == 0, answer.stdout + answer.stderr
        assert list(tmp_path.iterdir()) == []
        counts = {name: int(runs) for name, runs in re.findall(r"(\w+): (\d+) executions", answer.stdout)}
        assert counts.keys() == {"parse", "unpack"}
        assert min(counts.values()) > 200
