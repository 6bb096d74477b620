"""What holds for fusestore-overlay through fusermount3 holds inside ``unshare -Urm``, where podman is."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support_real.commands import IN_NAMESPACE

HERE = Path(__file__).parent


@pytest.mark.parametrize(
    "file",
    [
        "test_overlay_program.py",
        "test_overlay_refusals.py",
        "test_overlay_life.py",
        "test_overlay_layers.py",
        "test_overlay_options.py",
        "test_upstream_issues.py",
    ],
)
def test_the_same_inside_a_user_namespace(file, tmp_path):
    """fusermount3 must not be used there, so it is hidden."""
    hide = 'mount --bind /dev/null /usr/bin/fusermount3 && exec "$@"'
    pytest_in = [sys.executable, "-bb", "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist"]
    result = subprocess.run(
        [*IN_NAMESPACE, "sh", "-c", hide, "sh", *pytest_in, f"--basetemp={tmp_path / 'inside'}", HERE / file],
        env={k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
        | {"PYTHONPATH": os.pathsep.join([str(HERE.parent), *filter(None, [os.environ.get("PYTHONPATH")])])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert "skipped" not in result.stdout, result.stdout
