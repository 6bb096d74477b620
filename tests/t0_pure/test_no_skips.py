"""With FUSESTORE_NO_SKIP=1 a skipped test, or file, is a failed one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]

SKIPS = {
    "mark": "import pytest\n@pytest.mark.skip(reason='because')\ndef test_it(): pass\n",
    "call": "import pytest\ndef test_it(): pytest.skip('because')\n",
    "fixture": "import pytest\n@pytest.fixture\ndef f(): pytest.skip('because')\ndef test_it(f): pass\n",
    "file": "import pytest\npytest.skip('because', allow_module_level=True)\n",
    "import": "import pytest\npytest.importorskip('because')\n",
}


def run(place, environment):
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", place]
    command += ["--continue-on-collection-errors", place]
    paths = f"{TESTS}:{TESTS.parent}"
    return subprocess.run(
        command,
        env=os.environ | {"PYTHONPATH": paths} | environment,
        capture_output=True,
        text=True,
        cwd=place,
        timeout=60,
    )


def test_skips_are_failures(tmp_path):
    (tmp_path / "conftest.py").write_bytes((TESTS / "conftest.py").read_bytes())
    (tmp_path / "test_sound.py").write_text("def test_it(): pass\n")
    for name, code in SKIPS.items():
        (tmp_path / f"test_{name}.py").write_text(code)
    strict = run(tmp_path, {"FUSESTORE_NO_SKIP": "1"})
    assert strict.returncode != 0
    assert "skipped" not in strict.stdout.splitlines()[-1]
    for name in SKIPS:
        assert f"test_{name}.py" in strict.stdout.partition("short test summary")[2]
    assert strict.stdout.count("which FUSESTORE_NO_SKIP=1 forbids: ") >= len(SKIPS)
    assert "because" in strict.stdout
    lenient = run(tmp_path, {"FUSESTORE_NO_SKIP": ""})
    assert lenient.returncode == 0
    assert f"1 passed, {len(SKIPS)} skipped" in lenient.stdout


def test_an_expected_failure_is_no_skip(tmp_path):
    (tmp_path / "conftest.py").write_bytes((TESTS / "conftest.py").read_bytes())
    (tmp_path / "test_it.py").write_text("import pytest\n@pytest.mark.xfail\ndef test_it(): assert False\n")
    assert "1 xfailed" in run(tmp_path, {"FUSESTORE_NO_SKIP": "1"}).stdout


@pytest.mark.parametrize("fixture", ["store", "store_root", "runroot"])
def test_fixtures_of_all_tiers(fixture, request):
    assert request.getfixturevalue(fixture) is not None
