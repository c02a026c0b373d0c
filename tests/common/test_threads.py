"""Threads: the cores that count, and what threads do while they wait."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ensemblead.common import threads


def machine(root: Path, groups: str, **limits: str) -> Path:
    """A tree of `proc` and `sys`: what /proc/self/cgroup says, and files by their path, with + for /."""
    own = root / "proc/self/cgroup"
    own.parent.mkdir(parents=True)
    own.write_text(groups)
    for name, text in limits.items():
        path = root / "sys/fs/cgroup" / name.replace("+", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.mark.parametrize(
    ("groups", "limits", "expected"),
    [
        ("0::/\n", {}, None),
        ("0::/\n", {"cpu.max": "max 100000\n"}, None),
        ("0::/\n", {"cpu.max": "250000 100000\n"}, 2.5),
        ("0::/a/b\n", {"a+cpu.max": "300000 100000", "a+b+cpu.max": "max 100000"}, 3.0),
        ("0::/a/b\n", {"a+cpu.max": "100000 100000", "a+b+cpu.max": "200000 100000"}, 1.0),
        # A container's view: the group's path is the host's, and its own group is mounted as the root.
        ("0::/docker/1f\n", {"cpu.max": "50000 100000"}, 0.5),
        ("0::/../out\n", {"cpu.max": "150000 100000"}, 1.5),
        ("5:cpu,cpuacct:/job\n0::/\n", {"cpu,cpuacct+job+cpu.cfs_quota_us": "400000",
                                        "cpu,cpuacct+job+cpu.cfs_period_us": "100000"}, 4.0),
        ("1:cpu:/job\n", {"cpu+job+cpu.cfs_quota_us": "-1", "cpu+job+cpu.cfs_period_us": "100000"}, None),
        ("1:cpu:/\n0::/x\n", {"unified+x+cpu.max": "200000 100000"}, 2.0),
        ("0::/\n", {"cpu.max": "something else"}, None),
        ("nothing of the kind", {"cpu.max": "200000 100000"}, 2.0),
    ],
)  # fmt: skip
def test_the_quota_of_control_groups(
    tmp_path: Path, groups: str, limits: dict[str, str], expected: float | None
) -> None:
    assert threads.cpu_quota(machine(tmp_path, groups, **limits)) == expected


def test_a_machine_without_control_groups(tmp_path: Path) -> None:
    assert threads.cpu_quota(tmp_path) is None


@pytest.mark.parametrize(
    ("affinity", "quota", "cores", "left"),
    [(8, None, 8, 0), (8, 2.5, 2, 2), (8, 0.4, 1, 1), (2, 16.0, 2, 0), (8, 8.0, 8, 0), (4, 3.0, 3, 3)],
)
def test_cores_are_those_of_the_mask_and_of_the_quota(
    monkeypatch: pytest.MonkeyPatch, affinity: int, quota: float | None, cores: int, left: int
) -> None:
    monkeypatch.setattr(threads, "affinity_cores", lambda: affinity)
    monkeypatch.setattr(threads, "cpu_quota", lambda: quota)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert threads.available_cores() == cores
    assert threads.quota_threads() == left
    environment: dict[str, str] = {}
    threads.set_thread_defaults(environment)
    assert environment == {"OMP_WAIT_POLICY": "passive"} | ({"OMP_NUM_THREADS": str(left)} if left else {})
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert threads.quota_threads() == 0


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="the system has no affinity masks")
def test_the_affinity_mask_of_this_process() -> None:
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert threads.available_cores() == threads.affinity_cores() == 1
    finally:
        os.sched_setaffinity(0, before)


@pytest.mark.parametrize("name", ["OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"])
def test_what_the_user_chose_stays(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    environment = {name: "7", "OMP_NUM_THREADS": "64"}
    chosen = dict(environment)
    threads.set_thread_defaults(environment)
    assert environment == chosen
    assert threads.wait_policy(environment) == f"{name}=7"
    for other in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"):
        monkeypatch.delenv(other, raising=False)
    monkeypatch.setenv(name, "7")
    with threads.sleeping_threads():
        assert threads.wait_policy() == f"{name}=7"
    assert os.environ[name] == "7"


def without_a_choice() -> dict[str, str]:
    """The environment without what a user says of waiting threads."""
    chosen = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
    return {name: value for name, value in os.environ.items() if name not in chosen}


def loaded(**environment: str) -> str:
    """What the OpenMP of the compiled core says of itself when it is loaded."""
    outcome = subprocess.run(
        [sys.executable, "-c", "import os, ensemblead; print(os.environ.get('OMP_WAIT_POLICY'))"],
        env={**without_a_choice(), "OMP_DISPLAY_ENV": "true", **environment},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    if "OMP_WAIT_POLICY" not in outcome.stderr:
        pytest.skip("this OpenMP does not show its settings")
    return outcome.stdout + outcome.stderr


def test_threads_of_the_core_sleep_and_the_environment_stays() -> None:
    shown = loaded()
    assert "OMP_WAIT_POLICY = 'PASSIVE'" in shown
    assert shown.startswith("None\n")
    assert "OMP_WAIT_POLICY = 'ACTIVE'" in loaded(OMP_WAIT_POLICY="active")


WAITING = """
import os, time
import torch
from ensemblead.common.threads import end_waiting_threads

def count():
    return len(os.listdir("/proc/self/task"))

torch.set_num_threads(3)
values = torch.rand(4000, 1000)
def work():
    return torch.exp(values)
found = work()
before = count()
end_waiting_threads(3)
ends = time.monotonic() + 5
while count() > before - 2 and time.monotonic() < ends:
    time.sleep(0.01)
print(before - count(), torch.equal(work(), found), torch.get_num_threads(), before - count())
child = os.fork()
if child == 0:  # its OpenMP would wait for threads that it does not have
    end_waiting_threads(3)
    os._exit(7)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.parametrize(("chosen", "ended"), [({}, 2), ({"OMP_WAIT_POLICY": "passive"}, 0)])
def test_threads_that_would_spin_are_ended_and_made_anew(chosen: dict[str, str], ended: int) -> None:
    torch = pytest.importorskip("torch")
    if not list(Path(torch.__file__).parent.glob("lib/libgomp*")):
        pytest.skip("this torch brings another OpenMP")
    code = WAITING if ended else WAITING.replace("+ 5", "+ 0.1")
    outcome = subprocess.run(
        [sys.executable, "-c", code],
        env={**without_a_choice(), **chosen, "OMP_NUM_THREADS": "3"},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert outcome.stdout.split() == [str(ended), "True", "3", "0", "7"]
