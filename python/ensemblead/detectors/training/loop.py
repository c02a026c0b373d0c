"""The loop: batch after batch through a network, an update by Adam after each."""

from __future__ import annotations

import math
import signal
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any

import torch
from torch import nn

from ensemblead.common.errors import DamagedModelError, NonFiniteLossError
from ensemblead.common.warnings import warn
from ensemblead.detectors.parts import Run
from ensemblead.detectors.training.checkpoint import Checkpoint
from ensemblead.detectors.training.data import TrainingData
from ensemblead.detectors.training.pace import Pace

Tensors = tuple[torch.Tensor, ...]
# Seconds between checkpoints.
CHECKPOINT_SECONDS = 60.0
# Steps between looks at the loss of a GPU, each of which waits for all that is queued there.
_GPU_LOOKS = 20


class Recipe(ABC):
    """What is trained, and how.

    Attributes:
        module: the network, on its device, in float32. All that is learned is in its parameters and buffers.
        steps: updates.
        learning_rate, betas, weight_decay: of Adam.
        precision: of `forward`, under autocast.
        loss_scale: of the loss in float16 at the start. Updates whose gradients overflow are left out, and
            the scale is halved, until they do not.
        identity: what training depends on besides `TrainingData.identity`, by name, in JSON's types.
    """

    module: nn.Module
    steps: int
    learning_rate: float
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0
    precision: torch.dtype = torch.float32
    loss_scale: float = 65536.0
    identity: Mapping[str, Any] = MappingProxyType({})

    @abstractmethod
    def batch(self, step: int) -> Tensors:
        """What update `step` learns from; it depends on `step` alone, see `TrainingData.drawn`."""

    @abstractmethod
    def forward(self, batch: Tensors) -> Tensors:
        """The network's outputs, and what the loss compares them with."""

    @abstractmethod
    def loss(self, outputs: Tensors) -> Mapping[str, torch.Tensor]:
        """The parts of the loss by name; their sum is minimised. Outputs come in float32."""

    def schedule(self, step: int) -> float:
        """What the learning rate is multiplied by."""
        return 1.0


def train(recipe: Recipe, data: TrainingData, run: Run, name: str = "") -> torch.Tensor:
    """Train `recipe.module` in place, which then is in eval mode; returns the loss of every step, float32.

    Given a checkpoint (`run.checkpoint`), it goes on from there, and ends as if it had never stopped. A
    method that trains several networks gives each a `name`.

    Raises NonFiniteLossError, ValueError for images of several sizes, and KeyboardInterrupt at the end of the
    step in which Ctrl-C was pressed.
    """
    data.require_one_size()
    if len(data) < data.batch_size:
        warn(
            f"images: {len(data)} are left to train on, fewer than batch_size {data.batch_size}: a batch "
            "shows some of them more than once"
        )
    kept = run.checkpoint
    loop = _Loop(recipe, data, run, kept.below(name) if kept is not None and name else kept)
    with _reproducible(loop.device):
        loop.run()
    recipe.module.eval()
    return torch.tensor(loop.losses, dtype=torch.float32)


def check_losses(losses: torch.Tensor) -> None:
    """Raise ValueError for those of a saved model that are no float32 `[steps]`."""
    if losses.ndim != 1 or losses.dtype != torch.float32:
        raise ValueError("losses must be one float32 for every step")


class _Loop:
    """One training: where it stands, and how it goes on."""

    def __init__(self, recipe: Recipe, data: TrainingData, run: Run, checkpoint: Checkpoint | None) -> None:
        self._recipe, self._progress, self._note = recipe, run.progress, run.note
        self._checkpoint = checkpoint
        self._parameters = [one for one in recipe.module.parameters() if one.requires_grad]
        self.device = self._parameters[0].device
        self._adam = torch.optim.Adam(
            self._parameters,
            recipe.learning_rate,
            recipe.betas,
            weight_decay=recipe.weight_decay,
            fused=self.device.type in ("cpu", "cuda"),
        )
        self._scaler = torch.amp.GradScaler(
            self.device.type, recipe.loss_scale, enabled=recipe.precision == torch.float16
        )
        self._step = 0
        self.losses: list[float] = []
        self._parts: dict[str, float] = {}  # of the last loss that was read
        self._unread: list[Mapping[str, torch.Tensor]] = []  # losses still on the device
        self._is_whole = True  # no update is half done
        self._written = 0  # the step at which the checkpoint stands
        self._identity = (
            {} if checkpoint is None else {**data.identity(), **recipe.identity, **self._arithmetic()}
        )
        self._resume()

    def run(self) -> None:
        looks = _GPU_LOOKS if self.device.type == "cuda" else 1
        last_write = time.monotonic()
        self._recipe.module.train()
        pace = Pace(self._note, self._recipe.steps, is_slow=self.device.type == "cpu")
        while self._step < self._recipe.steps:
            try:
                batch = self._recipe.batch(self._step)  # which may read all images; it changes nothing here
                with _deferred_interrupt():
                    self._is_whole = False
                    self._update(batch)
                    is_last = self._step == self._recipe.steps
                    if is_last or self._step % looks == 0:
                        self._read_losses()
                    if is_last:
                        self._check_weights()
                    if is_last or time.monotonic() - last_write >= CHECKPOINT_SECONDS:
                        self._write()
                        last_write = time.monotonic()
                    self._is_whole = True
                pace.tell(self._step, self._parts)
                self._progress("train", self._step, self._recipe.steps)
            except KeyboardInterrupt as interrupt:
                if self._is_whole:
                    self._write()
                    interrupt.args = interrupt.args or (self._where(),)
                raise

    def _update(self, batch: Tensors) -> None:
        recipe = self._recipe
        for group in self._adam.param_groups:
            group["lr"] = recipe.learning_rate * recipe.schedule(self._step)
        is_half = recipe.precision != torch.float32
        with torch.autocast(self.device.type, recipe.precision if is_half else None, enabled=is_half):
            outputs = recipe.forward(batch)
        parts = recipe.loss(tuple(one.float() if one.is_floating_point() else one for one in outputs))
        total = torch.stack(list(parts.values())).sum()
        self._adam.zero_grad(set_to_none=True)
        self._scaler.scale(total).backward()  # type: ignore[no-untyped-call]
        self._scaler.step(self._adam)
        self._scaler.update()
        self._unread.append({name: part.detach() for name, part in parts.items()})
        self._step += 1

    def _read_losses(self) -> None:
        if not self._unread:
            return
        rows = torch.stack([torch.stack(list(parts.values())) for parts in self._unread]).tolist()
        for row in rows:
            total = math.fsum(row)
            if not math.isfinite(total):
                shown = ", ".join(
                    f"{name} {part:.6g}" for name, part in zip(self._unread[0], row, strict=True)
                )
                raise NonFiniteLossError(
                    f"the loss of step {len(self.losses) + 1} is not finite ({shown}) at learning_rate "
                    f"{self._recipe.learning_rate:g}; a smaller one may help, or precision='float32'"
                )
            self.losses.append(total)
        self._parts = dict(zip(self._unread[-1], rows[-1], strict=True))
        self._unread = []

    def _check_weights(self) -> None:
        """Before they are kept or given back: no loss tells yet of the update that was the last."""
        for name, tensor in self._recipe.module.state_dict().items():
            if not bool(tensor.isfinite().all()):
                raise NonFiniteLossError(
                    f"after step {self._step} {name} is not finite, at learning_rate "
                    f"{self._recipe.learning_rate:g}; a smaller one may help, or precision='float32'"
                )

    # Checkpoints

    def _write(self) -> None:
        """Keep what is needed to go on; at the end only what was learned."""
        if self._checkpoint is None or self._written == self._step:
            return
        self._read_losses()
        self._check_weights()
        tensors = {f"module.{name}": tensor for name, tensor in self._recipe.module.state_dict().items()}
        if self._step < self._recipe.steps:
            for number, state in self._adam.state_dict()["state"].items():
                tensors |= {f"adam.{number}.{name}": tensor for name, tensor in state.items()}
        values = {"step": self._step, "losses": self.losses, "scaler": self._scaler.state_dict()}
        if self._checkpoint.write(self._identity, values, tensors):
            self._written = self._step

    def _arithmetic(self) -> dict[str, Any]:
        """What the bits depend on besides, by name; of settings such as "auto" what they came to."""
        own: dict[str, Any] = {
            "device": self.device.type,
            "precision": str(self._recipe.precision).removeprefix("torch."),
        }
        return own if self.device.type != "cpu" else own | {"threads": torch.get_num_threads()}

    def _resume(self) -> None:
        if self._checkpoint is None:
            return
        known = self._checkpoint.read(self._identity)
        if known is None:
            return
        with self._checkpoint.as_damage():
            try:
                self._restore(*known)
            except (
                LookupError,
                TypeError,
                ValueError,
                AttributeError,
                ArithmeticError,
                RuntimeError,
            ) as error:
                root = self._checkpoint.root
                raise DamagedModelError(f"what is in {root} does not fit the training: {error!r}") from error

    def _restore(self, values: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
        """Go on from what a checkpoint holds, once all of it has been looked at."""
        step, losses, scale = values["step"], values["losses"], values["scaler"]
        if type(step) is not int or not 0 < step <= self._recipe.steps or len(losses) != step:
            raise ValueError(f"{len(losses)} losses of {step} steps")
        if not all(math.isfinite(one) for one in (*losses, *scale.values())):
            raise ValueError("a number that is not finite")
        module, adam = dict[str, torch.Tensor](), dict[int, dict[str, torch.Tensor]]()
        for name, tensor in tensors.items():
            kind, _, rest = name.partition(".")
            if kind == "module":
                module[rest] = tensor
            elif step < self._recipe.steps:
                number, _, entry = rest.partition(".")
                adam.setdefault(int(number), {})[entry] = tensor
        own = self._recipe.module.state_dict()
        if _forms(module) != _forms(own) or not all(bool(one.isfinite().all()) for one in module.values()):
            raise ValueError("other weights")
        parameters = dict(enumerate(self._parameters))
        for place, moments in adam.items():
            form = _forms({"": parameters[place]})[""]
            if _forms(moments) != {"exp_avg": form, "exp_avg_sq": form, "step": ((), torch.float32)}:
                raise ValueError(f"other moments of parameter {place}")
            for name in ("exp_avg", "exp_avg_sq"):
                # In the memory layout of the parameter, as Adam has made them.
                moments[name] = torch.empty_like(parameters[place]).detach().copy_(moments[name])
        if step < self._recipe.steps and not adam:
            raise ValueError("no moments")
        self._recipe.module.load_state_dict(module)
        self._adam.load_state_dict({"state": adam, "param_groups": self._adam.state_dict()["param_groups"]})
        self._scaler.load_state_dict(scale)
        self._step = self._written = step
        self.losses = list(losses)

    def _where(self) -> str:
        done = f"training was stopped after step {self._step} of {self._recipe.steps}"
        if self._checkpoint is None:
            return f"{done}; nothing of it is kept, which fit(..., checkpoint=FOLDER) would do"
        if not self._step:
            return "training was stopped before its first step; the same call begins with it"
        if not self._written:
            return f"{done}; no checkpoint could be written"
        stands = f"the checkpoint in {self._checkpoint.root} stands at step {self._written}"
        return f"{done}; {stands}: the same call goes on from there"


def _forms(tensors: Mapping[str, torch.Tensor]) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    """Shapes and dtypes."""
    return {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()}


@contextmanager
def _deferred_interrupt() -> Iterator[None]:
    """Inside, Ctrl-C waits for the end, so that no update is left half done; a second one does not wait."""
    pressed, usual = False, signal.default_int_handler
    if (
        threading.current_thread() is not threading.main_thread()
        or signal.getsignal(signal.SIGINT) is not usual
    ):
        yield
        return

    def defer(number: int, frame: Any) -> None:
        nonlocal pressed  # no Event: a second signal in the middle of its `set` would wait for its lock
        if pressed:
            usual(number, frame)
        pressed = True

    signal.signal(signal.SIGINT, defer)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, usual)
    if pressed:
        raise KeyboardInterrupt


@contextmanager
def _reproducible(device: torch.device) -> Iterator[None]:
    """Inside, cuDNN takes algorithms that give the same bits every time."""
    cudnn: Any = torch.backends.cudnn
    before = cudnn.deterministic, cudnn.benchmark
    if device.type == "cuda":
        cudnn.deterministic, cudnn.benchmark = True, False
    try:
        yield
    finally:
        cudnn.deterministic, cudnn.benchmark = before
