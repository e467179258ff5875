"""Libraries cache in the home, or in a folder for temporary files where the home is no place for files."""

import os
import subprocess
import sys

CODE = """
import os
from megatron_music.caches import keep_caches_somewhere
keep_caches_somewhere()
for name in ("MPLCONFIGDIR", "NUMBA_CACHE_DIR", "TRITON_CACHE_DIR"):
    print(os.environ.get(name, ""))
    if name in os.environ and not os.environ[name].startswith("/mine"):
        os.makedirs(os.environ[name])
"""


def caches(home, temporary, **variables):
    environment = {"HOME": str(home), "TMPDIR": str(temporary), "PATH": os.environ["PATH"], **variables}
    environment |= {"PYTHONPATH": os.pathsep.join(sys.path)}
    said = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True, env=environment)
    return said.stdout.split("\n")[:3]


def test_a_home_that_takes_files_is_left_alone(tmp_path):
    assert caches(tmp_path, tmp_path) == ["", "", ""] and not list(tmp_path.iterdir())


def test_a_home_that_takes_none_has_a_folder_in_its_place_until_the_end(tmp_path):
    (tmp_path / "home").touch()  # a file: nobody makes folders in it, not even root
    (tmp_path / "temporary").mkdir()
    found = caches(tmp_path / "home", tmp_path / "temporary", NUMBA_CACHE_DIR="/mine")
    assert found[1] == "/mine"
    assert all(path.startswith(str(tmp_path / "temporary" / "megatron-music-caches-")) for path in (found[0], found[2]))
    assert not list((tmp_path / "temporary").iterdir())
