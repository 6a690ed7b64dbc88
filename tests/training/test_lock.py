"""One process a folder: refused while another holds it, free again when that one ends, however it ends."""

import subprocess
import sys
from pathlib import Path

import pytest

from discrete_distill.training import FolderInUse, folder_lock

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the lock is that of POSIX")

HOLDER = """
import sys
from pathlib import Path
from discrete_distill.training import folder_lock

with folder_lock(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.readline()
"""


def hold(folder: Path) -> subprocess.Popen[str]:
    child = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "held\n"
    return child


def test_a_second_process_is_refused_and_told_of_the_first_until_that_one_is_killed(tmp_path: Path) -> None:
    child = hold(tmp_path / "run")
    with pytest.raises(FolderInUse, match=str(child.pid)), folder_lock(tmp_path / "run"):
        pass
    with folder_lock(tmp_path / "other"):
        pass
    child.kill()
    child.wait()
    with folder_lock(tmp_path / "run"):
        pass


def test_a_process_may_enter_its_own_folder_again(tmp_path: Path) -> None:
    with folder_lock(tmp_path):
        with folder_lock(tmp_path / "." / "."):
            pass
        done = subprocess.run([sys.executable, "-c", HOLDER, str(tmp_path)], input="\n", capture_output=True, text=True)
        assert done.returncode != 0
        assert "FolderInUse" in done.stderr
    child = hold(tmp_path)
    child.communicate("\n")
    assert child.returncode == 0


def test_an_error_inside_releases_it(tmp_path: Path) -> None:
    with pytest.raises(KeyError), folder_lock(tmp_path):
        raise KeyError
    child = hold(tmp_path)
    child.communicate("\n")
    assert child.returncode == 0
