"""Which wheels of a folder a machine needs, and what is said of those that are missing."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

pytest.importorskip("packaging")
pytest.importorskip("torch")
from support.wheels import write_wheel

from ensemblead.deploy.wheels import MissingWheelsError, Target, needed_wheels, read_wheels

LINUX = Target((3, 12), "manylinux_2_28_x86_64")
WINDOWS = Target((3, 12), "win_amd64")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """`own` needs `numbers` on all machines, `colours` on Windows, and with the extra `net` also `net`."""
    requires = [
        "numbers>=2",
        'colours; sys_platform == "win32"',
        'net-tools[fast]<3; extra == "net"',
        'old; python_version < "3.10"',
    ]
    write_wheel(tmp_path, "own", "1.0", requires, extras=["net"])
    write_wheel(tmp_path, "numbers", "1.9", tag="cp312-cp312-manylinux_2_17_x86_64.manylinux2014_x86_64")
    write_wheel(tmp_path, "numbers", "2.0", tag="cp312-cp312-manylinux2014_x86_64")
    write_wheel(tmp_path, "numbers", "2.10", tag="cp312-cp312-manylinux_2_28_x86_64")
    write_wheel(tmp_path, "numbers", "2.11", tag="cp313-cp313-manylinux_2_28_x86_64")
    write_wheel(tmp_path, "numbers", "2.12", tag="cp312-cp312-manylinux_2_34_x86_64")
    write_wheel(tmp_path, "numbers", "2.9", tag="cp312-cp312-win_amd64")
    vendored = {"colours/_vendor/other-1.dist-info/METADATA": b"Requires-Dist: nothing"}
    write_wheel(tmp_path, "colours", "0.4", files=vendored)
    write_wheel(
        tmp_path,
        "net-tools",
        "2.5+cpu",
        ['quick; extra == "fast"'],
        extras=["fast"],
        tag="cp38-abi3-linux_x86_64",
    )
    return tmp_path


def names(folder: Path, wanted: list[str], target: Target) -> list[str]:
    return [f"{one.name} {one.version}" for one in needed_wheels(folder, wanted, target)]


def test_the_newest_that_the_machine_takes(folder: Path) -> None:
    assert names(folder, ["own"], LINUX) == ["numbers 2.10", "own 1.0"]
    assert names(folder, ["own"], WINDOWS) == ["colours 0.4", "numbers 2.9", "own 1.0"]
    older = Target((3, 12), "manylinux_2_17_x86_64")
    assert names(folder, ["own"], older) == ["numbers 2.0", "own 1.0"]
    assert names(folder, ["own", "numbers<2.10"], LINUX) == ["numbers 2.0", "own 1.0"]


def test_of_one_version_the_best_tag(folder: Path) -> None:
    """A wheel that was built here, and the same one with its libraries, which goes further."""
    write_wheel(folder, "numbers", "2.10", tag="cp312-cp312-linux_x86_64")
    write_wheel(folder, "numbers", "2.10", tag="cp312-cp312-manylinux_2_17_x86_64")
    assert needed_wheels(folder, ["numbers"], LINUX)[0].path.name.endswith("-manylinux_2_28_x86_64.whl")


def test_what_is_missing_is_named_with_commands(folder: Path) -> None:
    write_wheel(folder, "net-tools", "2.5", ['quick; extra == "fast"'], extras=["fast"])
    with pytest.raises(
        MissingWheelsError, match=r"lacks 1 for Python 3\.12 on manylinux_2_28_x86_64"
    ) as caught:
        needed_wheels(folder, ["own[net]"], LINUX)
    assert "quick (for net-tools): there is none" in str(caught.value)
    (command,) = caught.value.commands
    assert "pip download --dest" in command
    assert "--python-version 3.12 --platform manylinux_2_28_x86_64" in command
    assert "--platform manylinux2014_x86_64" in command
    assert command.endswith(" quick")
    write_wheel(folder, "quick", "1")
    assert "quick 1" in names(folder, ["own[net]"], LINUX)


def test_why_a_wheel_does_not_do(folder: Path) -> None:
    with pytest.raises(
        MissingWheelsError, match=r"net-tools<3 \(for own\): net_tools-2\.5\+cpu.* is for other"
    ):
        needed_wheels(folder, ["own[net]"], WINDOWS)
    with pytest.raises(MissingWheelsError, match=r"numbers>=3: there is version 2\.10"):
        needed_wheels(folder, ["numbers>=3"], LINUX)


def test_the_own_wheel_and_torch_have_commands_of_their_own(tmp_path: Path) -> None:
    with pytest.raises(MissingWheelsError, match="ensemblead: there is none") as caught:
        needed_wheels(tmp_path, ["ensemblead[predict]", "torch>=2.4", "scipy"], WINDOWS)
    built, torch, others = caught.value.commands
    assert built.startswith("python -m pip wheel --no-deps --wheel-dir")
    assert built.endswith("# on win_amd64 with Python 3.12")
    assert "--index-url https://download.pytorch.org/whl/cpu 'torch>=2.4'" in torch
    assert others.endswith("--platform win_amd64 scipy")


def test_an_extra_that_is_none_is_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match="extra of own must be one of net, got 'nte'; did you mean net"):
        needed_wheels(folder, ["own[nte]"], LINUX)


def test_hashes_are_those_of_the_files(folder: Path) -> None:
    import hashlib

    for wheel in read_wheels(folder):
        digest = hashlib.sha256(wheel.path.read_bytes()).hexdigest()
        assert wheel.pinned() == f"{wheel.name}=={wheel.version} --hash=sha256:{digest}\n"


def test_what_is_no_wheel(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such folder"):
        needed_wheels(tmp_path / "none", ["own"], LINUX)
    (folder / "own-1.1-py3-none-any.whl").write_bytes(b"no archive")
    with pytest.raises(ValueError, match=r"own-1\.1-py3-none-any\.whl is damaged"):
        needed_wheels(folder, ["own"], LINUX)
    (folder / "photograph.whl").write_bytes(b"")
    with pytest.raises(ValueError, match="photograph.whl is not named as a wheel"):
        needed_wheels(folder, ["own"], LINUX)


@pytest.mark.parametrize("platform", ["linux", "win", "manylinux_x86_64", "macosx_12_arm64", ""])
def test_platforms_that_are_none(platform: str) -> None:
    with pytest.raises(ValueError, match="platform must be as manylinux_2_28_x86_64"):
        Target((3, 12), platform)


def test_platforms() -> None:
    assert Target((3, 12), "manylinux_2_6_aarch64").platforms() == [
        "manylinux_2_6_aarch64",
        "manylinux_2_5_aarch64",
        "manylinux1_aarch64",
        "linux_aarch64",
    ]
    assert "macosx_11_0_arm64" in Target((3, 12), "macosx_12_0_arm64").platforms()
    here = Target.here()
    assert here.python == sys.version_info[:2]
    assert here.environment()["sys_platform"] == sys.platform
