"""Networks by name: which library has them, with which weights. The only file that imports a model zoo."""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ensemblead.common.errors import MissingExtraError, WeightsUnavailableError
from ensemblead.common.files import sha256_of
from ensemblead.common.validation import near_names
from ensemblead.networks.modes import own_generator
from ensemblead.networks.pdn import NAMES as PDN_NAMES
from ensemblead.networks.pdn import PDN
from ensemblead.networks.weights import as_state_dict, load_weights, read_weights

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

# The spellings of the PatchCore reference implementation.
ALIASES = {
    "wideresnet50": "wide_resnet50_2",
    "wideresnet101": "wide_resnet101_2",
    "resnext101": "resnext101_32x8d",
}
# The weights that the papers used, where there is a choice.
_PREFERRED_TAG = {"timm": "tv_in1k", "torchvision": "IMAGENET1K_V1"}
# GoogLeNet's published weights expect its own input transform; without init_weights it warns.
_TORCHVISION_ARGUMENTS: dict[str, dict[str, Any]] = {
    "googlenet": {"init_weights": True, "transform_input": True}
}
_REACH_TIMEOUT = 5.0  # seconds to wait for the hub before calling it unreachable

Weights = str | os.PathLike[str] | Mapping[str, Tensor] | None


@dataclass(frozen=True)
class BackboneInfo:
    """The properties of a loaded backbone.

    `mean` and `std` are for RGB in 0..1. `source` says in JSON's types where the network came from.
    `missing` names the tensors that the weights lacked: fine as long as they are never run. `file` is where
    published weights lie on this machine, if that is known.
    """

    name: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    input_size: int | None
    source: dict[str, Any]
    missing: frozenset[str] = field(default=frozenset(), repr=False)
    file: str | None = field(default=None, repr=False)


@dataclass(frozen=True)
class _Zoo:
    library: Literal["timm", "torchvision", "ensemblead"]
    name: str
    tag: str  # "" where no weights are published

    @property
    def full(self) -> str:
        return f"{self.name}.{self.tag}" if self.tag else self.name


def load_backbone(
    name: str, weights: Weights = "default", *, seed: int = 0
) -> tuple[nn.Module, BackboneInfo]:
    """Build a network by name, in eval mode and without gradients, and load its weights.

    Args:
        name: "pdn_small", "pdn_medium", or looked up in timm, then in torchvision; `name.tag` chooses the
            weights, else timm's `tv_in1k` (torchvision's `IMAGENET1K_V1`) where they exist, else the
            library's default. `ALIASES` are accepted.
        weights: "default" takes the published ones from the local cache or the network; a path reads
            a safetensors or torch file; a state dict is taken as it is; None initialises at random.
        seed: of the random initialisation; the global generators are left as they were.

    Raises ValueError for an unknown name or tag (near matches suggested) and for weights that do not belong
    to the network, FileNotFoundError, WeightsUnavailableError if "default" cannot be had.
    """
    zoo = _look_up(name)
    if isinstance(weights, str) and weights == "default":
        with own_generator(seed):
            module = _build_pretrained(zoo)
        source: dict[str, Any] = {"kind": "zoo"}
        missing = frozenset[str]()
    elif weights is None:
        with own_generator(seed):
            module = _build(zoo)
        source, missing = {"kind": "state", "seed": seed}, frozenset()
    else:
        state, source = given_weights(weights)
        with own_generator(seed):
            module = _build(zoo)
        missing = _load(module, state, str(weights) if "path" in source else "the state dict given")
    module.eval().requires_grad_(False)
    mean, std, input_size = _configuration(zoo, module)
    file = _file_of(zoo) if source["kind"] == "zoo" else None
    source |= {"name": zoo.name, "tag": zoo.tag}
    return module, BackboneInfo(zoo.name, mean, std, input_size, source, missing, file)


def given_weights(weights: Any) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors of a file, or of a state dict, and where they came from in JSON's types."""
    if isinstance(weights, (str, os.PathLike)):
        state, path = read_weights(weights), os.path.abspath(weights)
        return state, {"kind": "file", "path": path, "sha256": sha256_of(path)}
    if isinstance(weights, Mapping):
        return as_state_dict(weights, "the mapping given"), {"kind": "state"}
    raise TypeError(f'weights must be "default", None, a path or a state dict, got {type(weights).__name__}')


def _file_of(zoo: _Zoo) -> str | None:
    """Where published weights, just read, lie on this machine; None where that is not known."""
    if zoo.library == "torchvision":
        url = str(_torchvision_models().get_model_weights(zoo.name)[zoo.tag].url)
    else:
        cfg = _timm().get_pretrained_cfg(f"{zoo.name}.{zoo.tag}")
        if cfg.hf_hub_id:
            return _cached_on_disk(cfg)
        url = str(cfg.url)
    path = os.path.join(torch.hub.get_dir(), "checkpoints", os.path.basename(url))
    return path if os.path.isfile(path) else None


def _load(module: nn.Module, state: Mapping[str, Tensor], what: str) -> frozenset[str]:
    return load_weights(module, module.own_names(state) if isinstance(module, PDN) else state, what)


def module_configuration(
    module: nn.Module,
) -> tuple[tuple[float, float, float], tuple[float, float, float], int | None]:
    """Mean, std and input size of any module: timm's own record if it carries one, else ImageNet's and
    None.
    """
    cfg = getattr(module, "pretrained_cfg", None)
    if not isinstance(cfg, Mapping):
        return IMAGENET_MEAN, IMAGENET_STD, None
    size = cfg.get("input_size")
    mean, std = cfg.get("mean") or IMAGENET_MEAN, cfg.get("std") or IMAGENET_STD
    return _triple(mean), _triple(std), int(size[-1]) if size else None


def _triple(values: Any) -> tuple[float, float, float]:
    r, g, b = (float(value) for value in values)
    return r, g, b


def _timm() -> Any:
    try:
        import timm
    except ImportError as error:
        raise MissingExtraError('backbones by name need timm: pip install "ensemblead[cpu]"') from error
    return timm


def _torchvision_models() -> Any:
    try:
        import torchvision.models
    except ImportError as error:
        raise MissingExtraError(
            'backbones by name need torchvision: pip install "ensemblead[cpu]"'
        ) from error
    return torchvision.models


def _look_up(name: str) -> _Zoo:
    if not isinstance(name, str):
        raise TypeError(f"backbone must be a name or a torch.nn.Module, got {type(name).__name__}")
    if name in PDN_NAMES:
        return _Zoo("ensemblead", name, "")
    timm, models = _timm(), _torchvision_models()
    architecture, _, tag = name.partition(".")
    architecture = ALIASES.get(architecture, architecture)
    if timm.is_model(architecture):
        tags = [full.partition(".")[2] for full in timm.list_pretrained(f"{architecture}.*")]
        default = getattr(timm.get_pretrained_cfg(architecture), "tag", None) or ""
        return _Zoo("timm", architecture, _choose_tag(name, tag, tags, _PREFERRED_TAG["timm"], default))
    if architecture in models.list_models(module=models):
        tags = list(models.get_model_weights(architecture).__members__)
        default = tags[0] if tags else ""
        return _Zoo(
            "torchvision", architecture, _choose_tag(name, tag, tags, _PREFERRED_TAG["torchvision"], default)
        )
    known = [*timm.list_models(), *models.list_models(module=models), *ALIASES, *PDN_NAMES, "gabor"]
    near = near_names(architecture, sorted(set(known)), most=5)
    hint = f"; did you mean {', '.join(near)}?" if near else ""
    raise ValueError(f"backbone {name!r} is known neither to timm nor to torchvision{hint}")


def _choose_tag(name: str, tag: str, tags: list[str], preferred: str, default: str) -> str:
    if not tag:
        return preferred if preferred in tags else default
    if tag not in tags:
        raise ValueError(f"backbone {name!r}: no weights of that tag; there are {', '.join(tags) or 'none'}")
    return tag


def _build(zoo: _Zoo) -> nn.Module:
    if zoo.library == "ensemblead":
        return PDN(zoo.name.removeprefix("pdn_"))
    if zoo.library == "torchvision":
        arguments = _TORCHVISION_ARGUMENTS.get(zoo.name, {})
        module: nn.Module = _torchvision_models().get_model(zoo.name, weights=None, **arguments)
        return module
    return _create_timm(zoo, pretrained=False)


def _create_timm(zoo: _Zoo, **arguments: Any) -> nn.Module:
    _, extra = _timm_blueprint(zoo.full)
    module: nn.Module = _timm().create_model(zoo.full, **arguments, **extra)
    return module


# Transformers are built for one input size unless they are told otherwise. The names of these arguments
# differ between architectures and versions of timm, and only those that know them can be told.
_ANY_SIZE: tuple[dict[str, Any], ...] = ({"dynamic_img_size": True}, {"strict_img_size": False})


@functools.lru_cache(maxsize=32)
def _timm_blueprint(full: str) -> tuple[nn.Module, dict[str, Any]]:
    """A network of timm on the meta device, and the arguments with which it takes images of most sizes."""
    timm = _timm()
    with torch.device("meta"):
        for extra in _ANY_SIZE:
            try:
                return timm.create_model(full, pretrained=False, **extra), extra
            except (TypeError, RuntimeError, NotImplementedError, ValueError):
                continue
        return timm.create_model(full, pretrained=False), {}


def blueprint(name: str) -> nn.Module:
    """The network of that name on the meta device: all layers and shapes, without weights or values.

    Nothing is downloaded. Callers share it, and must not change it. Raises as `load_backbone` does for an
    unknown name.
    """
    zoo = _look_up(name)
    with own_generator(0):
        return _timm_blueprint(zoo.full)[0] if zoo.library == "timm" else _other_blueprint(zoo)


@functools.lru_cache(maxsize=32)
def _other_blueprint(zoo: _Zoo) -> nn.Module:
    try:
        with torch.device("meta"):
            return _build(zoo)
    except NotImplementedError:  # RegNets compute their widths with tensors
        return _build(zoo).to("meta")


def _build_pretrained(zoo: _Zoo) -> nn.Module:
    if not zoo.tag:
        raise WeightsUnavailableError(
            f"no weights are published for {zoo.name}; pass weights=PATH or, for random ones, weights=None"
        )
    try:
        if zoo.library == "torchvision":
            return _torchvision_pretrained(zoo)
        return _timm_pretrained(zoo)
    except WeightsUnavailableError:
        raise
    except Exception as error:
        # The hub's client, urllib and a broken cache raise many kinds; callers get one.
        raise _unavailable(zoo, error) from error


def _unavailable(zoo: _Zoo, error: Exception) -> WeightsUnavailableError:
    reason = (str(error) or type(error).__name__).strip().splitlines()[0]
    return WeightsUnavailableError(
        f"the weights {zoo.name}.{zoo.tag} are not in the local cache and cannot be downloaded ({reason}). "
        f"Without a network, fetch them elsewhere, from {_weights_url(zoo)}, and pass weights=PATH "
        '(safetensors or a state dict); backbone="gabor" needs none'
    )


def _weights_url(zoo: _Zoo) -> str:
    """The address of published weights."""
    if zoo.library == "torchvision":
        return str(_torchvision_models().get_model_weights(zoo.name)[zoo.tag].url)
    cfg = _timm().get_pretrained_cfg(f"{zoo.name}.{zoo.tag}")
    if not cfg.hf_hub_id:
        return str(cfg.url)
    from huggingface_hub import hf_hub_url

    repository, _, revision = cfg.hf_hub_id.partition("@")
    return hf_hub_url(repository, cfg.hf_hub_filename or "model.safetensors", revision=revision or None)


def _timm_pretrained(zoo: _Zoo) -> nn.Module:
    timm = _timm()
    cfg = timm.get_pretrained_cfg(f"{zoo.name}.{zoo.tag}")
    if cfg.hf_hub_id:
        cached = _cached_on_disk(cfg)
        if cached and not cfg.custom_load:
            # Straight from the cache: asking the hub first would wait out its retries when there is no
            # network.
            return _create_timm(zoo, pretrained=True, pretrained_cfg_overlay={"file": cached})
        if not cached:
            _require_hub(zoo)
    elif isinstance(cfg.url, str):
        _require_url(zoo, cfg.url)
    return _create_timm(zoo, pretrained=True)


def _cached_on_disk(cfg: Any) -> str | None:
    from huggingface_hub import try_to_load_from_cache

    repository, _, revision = cfg.hf_hub_id.partition("@")
    for filename in (
        [cfg.hf_hub_filename] if cfg.hf_hub_filename else ["model.safetensors", "pytorch_model.bin"]
    ):
        found = try_to_load_from_cache(repository, filename, revision=revision or None)
        if isinstance(found, str):
            return found
    return None


def _require_hub(zoo: _Zoo) -> None:
    from huggingface_hub import constants, get_session

    try:
        # Any answer will do. The hub's own client retries for a minute before it gives up.
        get_session().head(constants.ENDPOINT, timeout=_REACH_TIMEOUT)
    except Exception as error:
        raise _unavailable(zoo, error) from error


def _require_url(zoo: _Zoo, url: str) -> None:
    import urllib.error
    import urllib.request

    if os.path.exists(os.path.join(torch.hub.get_dir(), "checkpoints", os.path.basename(url))):
        return
    try:
        urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=_REACH_TIMEOUT).close()
    except urllib.error.HTTPError:
        return  # reachable; what it answers to a download is for the download to say
    except OSError as error:
        raise _unavailable(zoo, error) from error


def _torchvision_pretrained(zoo: _Zoo) -> nn.Module:
    weights = _torchvision_models().get_model_weights(zoo.name)[zoo.tag]
    _require_url(zoo, weights.url)
    module = _build(zoo)
    module.load_state_dict(weights.get_state_dict(progress=True, check_hash=True))
    return module


def _configuration(
    zoo: _Zoo, module: nn.Module
) -> tuple[tuple[float, float, float], tuple[float, float, float], int | None]:
    if zoo.library == "timm" or not zoo.tag:
        return module_configuration(module)
    transforms = _torchvision_models().get_model_weights(zoo.name)[zoo.tag].transforms()
    return _triple(transforms.mean), _triple(transforms.std), int(transforms.crop_size[0])
