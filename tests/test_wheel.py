"""The wheel brings its configs and C++ along."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
def test_the_wheel_holds_every_module_and_every_config(tmp_path):
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(tmp_path), str(ROOT)]
    subprocess.run(command, check=True)
    (wheel,) = tmp_path.glob("odenet-*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    for folder, inside in ((ROOT / "conf", "odenet/conf"), (ROOT / "odenet", "odenet")):
        for path in [*folder.rglob("*.py"), *folder.rglob("*.yaml"), *folder.rglob("*.h")]:
            assert f"{inside}/{path.relative_to(folder)}" in names
    assert any(name.endswith("entry_points.txt") for name in names)
