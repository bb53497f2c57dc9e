"""Under CI=true nothing is skipped quietly, and without node it is said loudly that TypeScript was left out."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.commands import ROOT, environment

pytestmark = pytest.mark.slow

SKIPS = {
    "a test": "import pytest\ndef test_one(): pytest.skip('no time')\n",
    "a marked test": "import pytest\n@pytest.mark.skip(reason='no time')\ndef test_one(): pass\n",
    "a module": "import pytest\npytest.skip('no time', allow_module_level=True)\n",
    "a missing package": "import pytest\npytest.importorskip('no_such_package_anywhere')\n",
}


def pytest_on(file: Path, **env: str) -> subprocess.CompletedProcess[str]:
    argv = [
        sys.executable,
        "-m",
        "pytest",
        "-p",
        "tests.conftest",
        "-p",
        "no:cacheprovider",
        "--rootdir",
        str(ROOT),
        str(file),
    ]
    kept = {name: value for name, value in environment(**env).items() if name != "CI" or "CI" in env}
    return subprocess.run(argv, capture_output=True, text=True, cwd=ROOT, env=kept, timeout=120, check=False)


@pytest.mark.parametrize("code", SKIPS.values(), ids=SKIPS)
def test_a_skip_fails_under_ci_only(tmp_path: Path, code: str) -> None:
    file = tmp_path / "test_skipping.py"
    file.write_text(code)
    under_ci = pytest_on(file, CI="true")
    assert under_ci.returncode != 0
    assert "no skips" in under_ci.stdout
    assert pytest_on(file).returncode in (0, 5)


def test_an_expected_failure_is_no_skip(tmp_path: Path) -> None:
    file = tmp_path / "test_failing.py"
    file.write_text("import pytest\n@pytest.mark.xfail(strict=True)\ndef test_one(): assert 0\n")
    assert pytest_on(file, CI="true").returncode == 0


def test_without_node_it_is_said_loudly_and_fails_under_ci(tmp_path: Path) -> None:
    file = tmp_path / "test_node.py"
    file.write_text("import pytest\n@pytest.mark.node\ndef test_one(): pass\n")
    nowhere = str(tmp_path)
    at_home = pytest_on(file, PATH=nowhere)
    assert at_home.returncode == 0
    assert "NO TYPESCRIPT WAS TESTED" in at_home.stdout
    assert " in " in at_home.stdout.rstrip().splitlines()[-1]
    assert pytest_on(file, PATH=nowhere, CI="true").returncode == 1
