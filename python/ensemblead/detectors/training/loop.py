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

from ensemblead.common.errors import NonFiniteLossError
from ensemblead.common.warnings import warn
from ensemblead.detectors.parts import Run
from ensemblead.detectors.training.checkpoint import Checkpoint
from ensemblead.detectors.training.data import TrainingData

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
        identity: what training depends on besides `TrainingData.identity`, by name, in JSON's types.
    """

    module: nn.Module
    steps: int
    learning_rate: float
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0
    precision: torch.dtype = torch.float32
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

    Raises NonFiniteLossError, and KeyboardInterrupt at the end of the step in which Ctrl-C was pressed.
    """
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


class _Loop:
    """One training: where it stands, and how it goes on."""

    def __init__(self, recipe: Recipe, data: TrainingData, run: Run, checkpoint: Checkpoint | None) -> None:
        self._recipe, self._progress, self._checkpoint = recipe, run.progress, checkpoint
        self._parameters = [one for one in recipe.module.parameters() if one.requires_grad]
        self.device = self._parameters[0].device
        self._adam = torch.optim.Adam(
            self._parameters,
            recipe.learning_rate,
            recipe.betas,
            weight_decay=recipe.weight_decay,
            fused=self.device.type in ("cpu", "cuda"),
        )
        self._scaler = torch.amp.GradScaler(self.device.type, enabled=recipe.precision == torch.float16)
        self._step = 0
        self.losses: list[float] = []
        self._unread: list[Mapping[str, torch.Tensor]] = []  # losses still on the device
        self._written = 0  # the step at which the checkpoint stands
        self._identity = {} if checkpoint is None else {**data.identity(), **recipe.identity}
        self._resume()

    def run(self) -> None:
        looks = _GPU_LOOKS if self.device.type == "cuda" else 1
        last_write = time.monotonic()
        self._recipe.module.train()
        with _deferred_interrupts() as interrupted:
            while self._step < self._recipe.steps:
                self._update()
                is_last = self._step == self._recipe.steps
                if is_last or self._step % looks == 0:
                    self._read_losses()
                if is_last:
                    self._check_weights()
                try:
                    self._progress("train", self._step, self._recipe.steps)
                    if interrupted.is_set():
                        raise KeyboardInterrupt
                except KeyboardInterrupt as interrupt:
                    self._write()
                    interrupt.args = interrupt.args or (self._where(),)
                    raise
                if is_last or time.monotonic() - last_write >= CHECKPOINT_SECONDS:
                    self._write()
                    last_write = time.monotonic()
            if interrupted.is_set():  # while the last checkpoint was written
                raise KeyboardInterrupt(self._where())

    def _update(self) -> None:
        recipe = self._recipe
        for group in self._adam.param_groups:
            group["lr"] = recipe.learning_rate * recipe.schedule(self._step)
        batch = recipe.batch(self._step)
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
        self._unread = []

    def _check_weights(self) -> None:
        """After the last update, which no loss tells of."""
        for name, tensor in self._recipe.module.state_dict().items():
            if not bool(tensor.isfinite().all()):
                raise NonFiniteLossError(
                    f"after step {self._step} {name} is not finite, at learning_rate "
                    f"{self._recipe.learning_rate:g}; a smaller one may help, or precision='float32'"
                )

    # Checkpoints

    def _write(self) -> None:
        """Keep what is needed to go on; at the end only what was learned."""
        if self._checkpoint is None:
            return
        self._read_losses()
        tensors = {f"module.{name}": tensor for name, tensor in self._recipe.module.state_dict().items()}
        if self._step < self._recipe.steps:
            for number, state in self._adam.state_dict()["state"].items():
                tensors |= {f"adam.{number}.{name}": tensor for name, tensor in state.items()}
        values = {"step": self._step, "losses": self.losses, "scaler": self._scaler.state_dict()}
        if self._checkpoint.write(self._identity, values, tensors):
            self._written = self._step

    def _resume(self) -> None:
        known = None if self._checkpoint is None else self._checkpoint.read(self._identity)
        if known is None:
            return
        values, tensors = known
        module, adam = dict[str, torch.Tensor](), dict[int, dict[str, torch.Tensor]]()
        for name, tensor in tensors.items():
            kind, _, rest = name.partition(".")
            if kind == "module":
                module[rest] = tensor
            else:
                number, _, entry = rest.partition(".")
                adam.setdefault(int(number), {})[entry] = self._as_laid_out(int(number), tensor)
        self._recipe.module.load_state_dict(module)
        if adam:
            groups = self._adam.state_dict()["param_groups"]
            self._adam.load_state_dict({"state": adam, "param_groups": groups})
        self._scaler.load_state_dict(values["scaler"])
        self._step = self._written = values["step"]
        self.losses = list(values["losses"])

    def _as_laid_out(self, number: int, tensor: torch.Tensor) -> torch.Tensor:
        """A moment in the memory layout of its parameter, as Adam has made it."""
        parameter = self._parameters[number]
        if tensor.shape != parameter.shape:
            return tensor  # the number of its steps
        return torch.empty_like(parameter, requires_grad=False).copy_(tensor)

    def _where(self) -> str:
        done = f"training was stopped after step {self._step} of {self._recipe.steps}"
        if self._checkpoint is None:
            return f"{done}; nothing of it is kept, which fit(..., checkpoint=FOLDER) would do"
        if not self._written:
            return f"{done}; no checkpoint could be written"
        stands = f"the checkpoint in {self._checkpoint.root} stands at step {self._written}"
        return f"{done}; {stands}: the same call goes on from there"


@contextmanager
def _deferred_interrupts() -> Iterator[threading.Event]:
    """Inside, Ctrl-C sets an event, so that no update is left half done; a second one interrupts at once."""
    pressed = threading.Event()
    usual = signal.default_int_handler
    if (
        threading.current_thread() is not threading.main_thread()
        or signal.getsignal(signal.SIGINT) is not usual
    ):
        yield pressed
        return

    def defer(number: int, frame: Any) -> None:
        if pressed.is_set():
            usual(number, frame)
        pressed.set()

    signal.signal(signal.SIGINT, defer)
    try:
        yield pressed
    finally:
        signal.signal(signal.SIGINT, usual)


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
