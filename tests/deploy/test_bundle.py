"""A bundle has all that a machine without a network needs, and is checked there."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import sysconfig
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("packaging")
pytest.importorskip("torch")
from PIL import Image
from support.networks import TinyNet
from support.wheels import write_own_wheel, write_wheel

import ensemblead as ead
from ensemblead.common.errors import DamagedModelError
from ensemblead.common.manifests import checksum_of
from ensemblead.deploy.bundle import _is_exact, needed_packages, write_bundle
from ensemblead.deploy.checking import BundleError, check_bundle
from ensemblead.deploy.wheels import MissingWheelsError, Target

IMAGES = np.random.default_rng(0).integers(90, 110, (12, 48, 48, 3), dtype=np.uint8)
COMMON = {"resize": None, "image_size": None, "coreset_fraction": 0.1, "device": "cpu"}


@pytest.fixture(scope="module")
def detector() -> ead.PatchCore:
    return ead.PatchCore("gabor", **COMMON).fit(IMAGES)


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("image") / "part.png"
    pixels = IMAGES[0].copy()
    pixels[10:30, 10:30] = 200
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture
def wheels(tmp_path: Path) -> Path:
    """Wheels that pin what is installed here, empty but for their names."""
    folder = tmp_path / "wheels"
    requires = ['numpy; extra == "predict"', 'web; extra == "serve"', 'faiss-gpu; extra == "gpu"']
    write_wheel(folder, "ensemblead", ead.__version__, requires, extras=["predict", "serve", "gpu"])
    write_wheel(folder, "numpy", metadata.version("numpy"))
    return folder


def restate(folder: Path, **values: object) -> None:
    """Let a bundle state other values."""
    path = folder / "bundle.json"
    changed = {**json.loads(path.read_text()), **values}
    del changed["checksum"]
    path.write_text(json.dumps({**changed, "checksum": checksum_of(changed)}))


def test_what_is_in_a_bundle(detector: ead.PatchCore, image: Path, wheels: Path, tmp_path: Path) -> None:
    out, seen = tmp_path / "bundle", []
    document = write_bundle(
        detector, wheels, out, image=image, target=Target.here(), progress=lambda *given: seen.append(given)
    )
    assert sorted(path.name for path in out.iterdir()) == [
        *("README.txt", "bundle.json", "check.bat", "check.sh", "image.png", "install.bat", "install.sh"),
        *("model", "requirements.txt", "wheels"),
    ]
    assert seen[-1] == ("copying wheels", 2, 2)
    pins = (out / "requirements.txt").read_text().splitlines()
    assert [line.split(" ")[0] for line in pins] == [
        f"ensemblead=={ead.__version__}",
        f"numpy=={metadata.version('numpy')}",
    ]
    for line, wheel in zip(pins, sorted((out / "wheels").iterdir()), strict=True):
        assert line.endswith(hashlib.sha256(wheel.read_bytes()).hexdigest())
    scored = ead.load(out / "model").predict([image])
    assert document["score"] == pytest.approx(float(scored.anomaly_score[0]))
    assert document["is_anomalous"] is True
    here = f"{sys.version_info[0]}.{sys.version_info[1]}"
    for name in ("install.sh", "install.bat", "README.txt"):
        text = (out / name).read_bytes()
        assert b"@" not in text.replace(b"@echo", b"")
        assert here.encode() in text
        assert (b"\r\n" in text) == name.endswith(".bat")
    assert os.access(out / "install.sh", os.X_OK)
    with pytest.raises(ValueError, match="exists"):
        write_bundle(detector, wheels, out, image=image, target=Target.here())


def test_nothing_is_written_where_something_is_missing(
    detector: ead.PatchCore, image: Path, wheels: Path, tmp_path: Path
) -> None:
    options = {"image": image, "target": Target.here()}
    before = sorted(tmp_path.iterdir())
    with pytest.raises(FileNotFoundError, match="image: no such file"):
        write_bundle(detector, wheels, tmp_path / "b", image=tmp_path / "none.png", target=Target.here())
    with pytest.raises(MissingWheelsError, match="faiss-cpu: there is none"):
        write_bundle(ead.PatchCore("gabor", index="ivf", **COMMON), wheels, tmp_path / "b", **options)
    (wheels / f"ensemblead-{ead.__version__}-py3-none-any.whl").unlink()
    write_wheel(wheels, "ensemblead", "99.0", extras=["predict"])
    with pytest.raises(MissingWheelsError, match=r"ensemblead==\S+: there is version 99\.0") as caught:
        write_bundle(detector, wheels, tmp_path / "b", **options)
    assert len(caught.value.commands) == 1
    assert sorted(tmp_path.iterdir()) == before


def test_extras_come_beside_predict(
    detector: ead.PatchCore, image: Path, wheels: Path, tmp_path: Path
) -> None:
    out, options = tmp_path / "bundle", {"image": image, "target": Target.here()}
    with pytest.raises(MissingWheelsError, match="web .for ensemblead.: there is none"):
        write_bundle(detector, wheels, out, extras=["serve"], **options)
    with pytest.raises(ValueError, match="must be one of gpu, predict, serve, got 'srve'"):
        write_bundle(detector, wheels, out, extras=["srve"], **options)
    for name in ("web", "faiss-gpu"):
        write_wheel(wheels, name, "1")
    write_bundle(detector, wheels, out, extras=["serve"], **options)
    assert [path.name.split("-")[0] for path in sorted((out / "wheels").iterdir())] == [
        *("ensemblead", "numpy", "web"),
    ]
    # FAISS for GPUs is FAISS: that for CPUs is not asked for.
    approximate = ead.PatchCore("gabor", index="hnsw", **COMMON).fit(IMAGES)
    write_bundle(approximate, wheels, tmp_path / "gpu", extras=["gpu"], **options)


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The source tree counts as installed."""
    monkeypatch.setattr(
        metadata,
        "version",
        lambda name, known=metadata.version: ead.__version__ if name == "ensemblead" else known(name),
    )


@pytest.mark.usefixtures("installed")
def test_the_check_finds_what_was_changed(
    detector: ead.PatchCore, image: Path, wheels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "bundle"
    write_bundle(detector, wheels, out, image=image, target=Target.here())
    assert "anomalous, as when the bundle was written" in check_bundle(out)
    document = json.loads((out / "bundle.json").read_text())

    def broken(name: str, data: bytes) -> Path:
        copy = tmp_path / "copy"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(out, copy)
        (copy / name).write_bytes(data)
        return copy

    def stated(**values: object) -> Path:
        copy = broken("image.png", (out / "image.png").read_bytes())
        restate(copy, **values)
        return copy

    damaged = [
        ("image.png", b"x" * 10),
        ("requirements.txt", (out / "requirements.txt").read_bytes()[::-1]),
        ("bundle.json", b"{"),
        ("bundle.json", b"[]"),
        ("bundle.json", json.dumps({**document, "score": 0.0}).encode()),
        ("model/model.json", b"{}"),
    ]
    for name, data in damaged:
        with pytest.raises(DamagedModelError):
            check_bundle(broken(name, data))
    with pytest.raises(DamagedModelError, match="is no bundle"):
        check_bundle(tmp_path)
    with pytest.raises(BundleError, match="here, but had"):
        check_bundle(stated(score=document["score"] * 1.01))
    with pytest.raises(BundleError, match="is called anomalous here, but was called normal"):
        check_bundle(stated(is_anomalous=False))
    with pytest.raises(BundleError, match="is called anomalous here, but was called neither"):
        check_bundle(stated(is_anomalous=None))
    monkeypatch.setattr(metadata, "version", lambda name: "0")
    with pytest.raises(BundleError, match="numpy is 0, not "):
        check_bundle(out)


@pytest.mark.usefixtures("installed")
def test_a_small_score_may_move_by_a_thousandth_of_the_threshold(
    image: Path, wheels: Path, tmp_path: Path
) -> None:
    detector, out = ead.PatchCore("gabor", **COMMON).fit(IMAGES), tmp_path / "bundle"
    score = float(detector.predict([image]).anomaly_score[0])
    detector.threshold_ = 100 * score
    write_bundle(detector, wheels, out, image=image, target=Target.here())
    restate(out, score=score * 1.05)
    assert "normal, as when the bundle was written" in check_bundle(out)
    restate(out, score=score * 1.2)
    with pytest.raises(BundleError, match=r"moves by 0\.002 of itself or of the thresh"):
        check_bundle(out)


def test_what_a_model_needs_beside() -> None:
    assert needed_packages(ead.PatchCore("gabor", **COMMON)) == []
    assert needed_packages(ead.PatchCore("gabor", index="hnsw", **COMMON)) == ["faiss-cpu"]
    ensemble = ead.BackboneEnsemble(
        [ead.PatchCore("gabor", index="ivf", **COMMON), ead.PaDiM("gabor", device="cpu")]
    )
    assert needed_packages(ensemble) == ["faiss-cpu"]
    with pytest.raises(ValueError, match=r"torch\.nn\.Module"):
        needed_packages(ead.PatchCore(TinyNet(), ("first",), **COMMON))


def test_how_far_a_score_may_move_follows_from_all_networks() -> None:
    rounded = ead.PatchCore("gabor", precision="bfloat16", **COMMON)
    tiled = ead.TiledEnsemble(rounded, 32, 32, image_size=64)
    assert not _is_exact(tiled)
    assert not _is_exact(ead.DRAEM(4, precision="bfloat16", device="cpu"))
    assert _is_exact(ead.BackboneEnsemble([ead.DRAEM(4, device="cpu"), ead.PatchCore("gabor", **COMMON)]))


def test_networks_with_a_structure_need_no_zoo(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("timm")
    named = ead.PatchCore("test_resnet", ("layer1",), weights=None, **COMMON)
    assert needed_packages(named) == []
    extractor = named._networks()[0].network.extractor
    monkeypatch.setattr(type(extractor), "description", lambda self: None)
    assert needed_packages(named) == ["timm", "torchvision"]


@pytest.mark.slow
@pytest.mark.skipif(
    sys.platform != "linux", reason="the script is for Linux, and unshare takes the network away"
)
def test_a_bundle_is_installed_without_network_and_home(
    detector: ead.PatchCore, image: Path, tmp_path: Path
) -> None:
    """The script of a bundle, in a namespace without a network where the system lets us, without a home.

    Large packages are not packed: their wheels have a file that names the folder in which they are here.
    """
    wheels, tag = tmp_path / "wheels", f"cp{sys.version_info[0]}{sys.version_info[1]}"
    abi = sysconfig.get_config_var("SOABI").split("-")[1]
    assert abi == tag[2:]
    heavy = ["numpy", "torch", "safetensors", "pillow", "scipy", "typer", "rich"]
    here = sysconfig.get_paths()["purelib"]
    write_own_wheel(wheels, heavy, ["predict"], f"{tag}-{tag}-linux_{os.uname().machine}")
    for name in heavy:
        files = {f"{name}_here.pth": f"{here}\n".encode()}
        write_wheel(wheels, name, metadata.version(name), files=files)
    out = tmp_path / "bundle"
    write_bundle(detector, wheels, out, image=image, target=Target.here())
    shutil.rmtree(wheels)
    command = ["sh", str(out / "install.sh")]
    alone = ["unshare", "--net", "--map-root-user"]
    if (
        shutil.which("unshare")
        and subprocess.run([*alone, "true"], capture_output=True, check=False).returncode == 0
    ):
        command = [*alone, *command]
    environment = {"PATH": os.environ["PATH"], "PYTHON": sys.executable, "HOME": "/proc/none"}
    outcome = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert outcome.returncode == 0, outcome.stdout + outcome.stderr
    assert "image.png: score" in outcome.stdout
    (out / "image.png").write_bytes(b"")
    again = subprocess.run(
        ["sh", str(out / "check.sh")], env=environment, capture_output=True, text=True, check=False
    )
    assert again.returncode == 1
    assert "check failed: " in again.stderr
    assert "image.png has 0 bytes" in again.stderr
