"""The wheel in an environment of its own, beside the locked packages: what a user installs."""

import os
import resource
import shutil
import statistics
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
IMPORT_SECONDS = 0.3
PACKAGES = {"core", "stream", "adapters", "encoders", "index", "monitoring", "qshift"}

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def uv() -> str:
    """What `make install` installs with; it has the build backend since then."""
    beside = Path(sys.prefix).resolve().parent / ".uv" / "bin" / "uv"
    found = shutil.which("uv") or (str(beside) if beside.exists() else None)
    if found is None:
        pytest.skip("no uv: `make install` brings it")
    return found


@pytest.fixture(scope="module")
def wheel(uv: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    built = subprocess.run(
        [uv, "build", "--offline", "--wheel", "--quiet", "--out-dir", str(folder), str(ROOT)],
        capture_output=True, text=True,
    )  # fmt: skip
    if built.returncode and "hatchling" in built.stderr:
        pytest.skip(f"the build backend is not at hand: {built.stderr.splitlines()[-1]}")
    assert built.returncode == 0, built.stderr
    return next(folder.glob("qshift-*.whl"))


@pytest.fixture(scope="module")
def installed(uv: str, wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """bin/ of a new environment that holds the wheel alone and sees the locked packages."""
    place = tmp_path_factory.mktemp("environment") / "venv"
    subprocess.run([uv, "venv", "--quiet", "--offline", "--python", sys.executable, str(place)], check=True)
    python = place / "bin" / "python"
    install = [uv, "pip", "install", "--quiet", "--offline", "--no-deps", "--python", str(python), str(wheel)]
    subprocess.run(install, check=True)
    (home,) = place.glob("lib/python*/site-packages")
    # Lines of a .pth are folders: .pth files inside those, an editable install's among them, do not count.
    (home / "locked.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    return place / "bin"


@pytest.fixture
def empty(tmp_path: Path) -> Path:
    (tmp_path / "empty").mkdir()
    return tmp_path / "empty"


def run(folder: Path, *arguments: object, path: str = "") -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"PYTHONPATH": path} if path else {}
    return subprocess.run(
        list(map(str, arguments)), cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )


def test_the_wheel_holds_the_packages_with_their_data_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.partition("/")[0] for name in names} - {
        f"{wheel.name.rsplit('-', 3)[0]}.dist-info"
    } == PACKAGES
    tracked = subprocess.run(
        ["git", "ls-files", *sorted(PACKAGES)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert set(tracked.stdout.split()) <= set(names), "a file of a package is not in the wheel"


def test_import_is_light(installed: Path, empty: Path) -> None:
    """In seconds of the processor: what else runs on the machine takes no part."""
    code = "import qshift; print(qshift.__file__)"
    seconds = []
    for _ in range(5):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = run(empty, installed / "python", "-c", code)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert done.returncode == 0, done.stderr
        assert Path(done.stdout.strip()).is_relative_to(installed.parent)
        seconds.append(after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime)
    print(f"import qshift: {statistics.median(seconds):.3f} s, median of {len(seconds)}")
    assert statistics.median(seconds) < IMPORT_SECONDS


def test_the_example_runs_from_an_empty_folder(installed: Path, empty: Path) -> None:
    done = run(empty, installed / "python", ROOT / "examples" / "own_loop.py")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("served") == 6 and not list(empty.iterdir())


def test_the_command_is_there(installed: Path, empty: Path) -> None:
    done = run(empty, installed / "qshift", "--help")
    assert done.returncode == 0 and "replay" in done.stdout


@pytest.mark.parametrize("command", [False, True])
def test_a_foreign_package_is_named_in_one_sentence(installed: Path, empty: Path, command: bool) -> None:
    foreign = empty / "adapters"
    foreign.mkdir()
    (foreign / "__init__.py").write_text("")
    called = ["qshift", "--help"] if command else ["python", "-c", "import qshift; qshift.Session"]
    done = run(empty, installed / called[0], *called[1:], path=str(empty))
    assert done.returncode != 0
    said = " ".join((done.stdout + done.stderr).split())
    assert f"the module 'adapters' is {foreign / '__init__.py'}" in said
    assert "give qshift an environment of its own" in said
    if command:
        assert "Traceback" not in said
