"""Kills what takes part in builds, at random moments, and looks what that leaves: the store, the host, the image.

A campaign builds one recipe again and again. Each build is let run until some process of it (the build itself, QEMU,
the storage daemon) is there, and for a random while more; then that process gets SIGKILL. When a build comes through,
its image is compared with one that was built without faults, everything above the base is thrown away, and it begins
anew. ``python -m tests.faults KIND KILLS SEED FOLDER [DISK]`` runs one by hand.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from imagesmith.store import Store
from tests.conftest import Command

TREE = """\
name: faulty
base: {bootstrap: {distribution: debian, suite: bookworm, kernel: none}}
steps:
  - shell: head -c 3000000 /dev/zero | tr '\\\\0' 'a' > /srv/one; sleep 0.3
  - shell: mkdir -p /srv/many; for n in $(seq 400); do echo $n > /srv/many/$n; done
  - shell: rm -rf /srv/many; echo three > /srv/three; sleep 0.3
outputs: [oci]
"""
DISK = """\
name: faulty
base: {disk: {path: ground.qcow2, trusted: true}}
steps:
  - shell: head -c 30000000 /dev/zero | tr '\\\\0' 'a' > /srv/one; sleep 0.5
  - shell: mkdir -p /srv/many; for n in $(seq 2000); do echo $n > /srv/many/$n; done
  - shell: rm -rf /srv/many/1*; echo three > /srv/three; sleep 0.5
  - shell: echo four > /srv/four
    via: guestfs
outputs: [raw]
"""
ONLINE = """\
name: faulty
machine: {memory: 768M}
base: {disk: {path: ground.qcow2, trusted: true}}
steps:
  - shell: rm -f /etc/ssh/sshd_config.d/hardened.conf
  - shell: head -c 30000000 /dev/zero | tr '\\\\0' 'a' > /srv/one
    via: ssh
  - shell: mkdir -p /srv/many; for n in $(seq 500); do echo $n > /srv/many/$n; done
    via: ssh
  - shell: rm -rf /srv/many/1*; echo three > /srv/three
    via: ssh
outputs: [raw]
"""
MOUNTED = DISK.replace("    via: guestfs\n", "")
SMALL = TREE.replace("; sleep 0.3", "").replace("oci", "tar: none")
RECIPES = {"small": SMALL, "tree": TREE, "mounted": MOUNTED, "disk": DISK, "online": ONLINE}
TARGETS = {"build": "", "qemu": "qemu-system", "daemon": "qemu-storage-da"}
"""What is killed: how the names of its processes begin (the build is known by its number)."""
_ALL = ("build", "daemon", "qemu")
HAS = {"small": ("build",), "tree": ("build",), "mounted": ("build", "daemon"), "disk": _ALL, "online": _ALL}
"""What takes part in a build."""
NOISE = ("./etc/machine-id", "./etc/ssh/ssh_host_", "./var/log/", "./var/lib/systemd/", "./var/lib/dbus/", "./var/tmp",
         "./var/cache/ldconfig/aux-cache", "./etc/resolv.conf", "./tmp/", "./boot/grub/grubenv", "./var/spool/",
         "./var/lib/apt/", "./var/lib/logrotate", "./var/lib/private")  # fmt: skip
"""What a system that runs changes by itself; no two boots leave it alike."""


@dataclass
class Figures:
    """What a campaign came to."""

    kills: Counter[str] = field(default_factory=Counter)
    ended: Counter[str] = field(default_factory=Counter)
    """How builds ended whose QEMU or storage daemon was killed: ``failed``, or ``built`` all the same."""
    images: int = 0
    """How many finished images were equal to the one without faults."""
    remains: int = 0
    """After how many kills something lay in the folder for temporary files, to be removed by the next build."""
    findings: list[str] = field(default_factory=list)
    """What was wrong: this must stay empty."""

    def __str__(self) -> str:
        kills = ", ".join(f"{name} {count}" for name, count in sorted(self.kills.items()))
        return (f"kills: {kills}; builds that lost a helper: {dict(self.ended)}; images equal: {self.images}; "
                f"temporary files left to the next build: {self.remains}; findings: {self.findings}")  # fmt: skip


# -- processes, mounts, loop devices ---------------------------------------------------------------------------------


def parents() -> dict[int, tuple[int, str]]:
    """Every process: its parent and its name."""
    found = {}
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            with contextlib.suppress(OSError):  # it has ended meanwhile
                name, _, rest = (process / "stat").read_text().partition("(")[2].rpartition(")")
                if rest.split()[0] != "Z":
                    found[int(process.name)] = (int(rest.split()[1]), name)
    return found


def started_by(pid: int, name: str) -> int | None:
    """A process whose name begins like this, started by ``pid`` or by what it has started."""
    known = parents()
    for candidate, (_, called) in known.items():
        above = candidate if called.startswith(name) else 0
        while above in known:
            above, _ = known[above]
            if above == pid:
                return candidate
    return None


def remains(*folders: Path) -> list[str]:
    """Processes and mounts that have to do with the folders, and loop devices that show what is mounted nowhere.

    Our programs inherit TMPDIR, or name the folders; a guest's processes see them in their tables of mounts.
    """
    found, devices = [], set()
    for process in Path("/proc").iterdir():
        if not process.name.isdigit() or int(process.name) == os.getpid():
            continue
        with contextlib.suppress(OSError):
            mounts = (process / "mountinfo").read_text(errors="replace")
            devices |= {line.split()[2] for line in mounts.splitlines()}
            words = (process / "cmdline").read_bytes().replace(b"\0", b" ") + (process / "environ").read_bytes()
            if any(os.fsencode(folder) in words or str(folder) in mounts for folder in folders):
                found.append((process / "cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")[:200])
    listed = subprocess.run(["losetup", "--json", "--output", "NAME,BACK-MAJ:MIN,BACK-FILE"], capture_output=True,
                            check=False).stdout  # fmt: skip
    loops = json.loads(listed)["loopdevices"] if listed else []
    # one that somebody else detaches at this moment has no file any more
    return found + [str(loop) for loop in loops if (loop["back-maj:min"] or "").strip() not in {"", *devices}]


def gone(*folders: Path) -> list[str]:
    """What is left of a build after the kernel had its moment to end namespaces; empty: nothing."""
    for _ in range(100):
        if not remains(*folders):
            return []
        time.sleep(0.1)
    return remains(*folders)


# -- images ----------------------------------------------------------------------------------------------------------


def contents(image: Path) -> dict[str, str]:
    """All that the last partition of a raw image holds: of each name its mode, owner, and bytes. Needs root."""
    table = json.loads(subprocess.run(["sfdisk", "--json", image], capture_output=True, check=True).stdout)
    offset = table["partitiontable"]["partitions"][-1]["start"] * 512
    script = """
        mount -t tmpfs none /mnt; mkdir /mnt/at
        mount -o ro,loop,noload,offset="$2" "$1" /mnt/at; cd /mnt/at
        find . -xdev -printf '%p\\t%M %U %G %l\\n'
        find . -xdev -type f -print0 | xargs -0 sha256sum | sed 's/^\\([^ ]*\\)  \\(.*\\)$/\\2\\t\\1/'
    """
    argv = ["unshare", "--mount", "--propagation", "private", "sh", "-ec", script, "sh", image, str(offset)]
    found: dict[str, str] = {}
    for line in subprocess.run(argv, capture_output=True, text=True, check=True).stdout.splitlines():
        name, _, what = line.partition("\t")
        found[name] = found.get(name, "") + " " + what
    return found


def difference(kind: str, folder: Path, without_faults: Path) -> str:
    """How the image of a build differs from the one without faults; empty: not at all."""
    if kind in ("small", "tree"):  # made of the same layers: the same bytes
        sums = [(place / "SHA256SUMS").read_text() for place in (folder, without_faults)]
        return "" if sums[0] == sums[1] else f"{sums[0]} != {sums[1]}"
    ours, theirs = (contents(place / "faulty.raw") for place in (folder, without_faults))
    names = sorted(name for name in {*ours, *theirs} if ours.get(name) != theirs.get(name))
    if kind == "online":
        names = [name for name in names if not name.startswith(NOISE)]
    return "\n".join(f"{name}: {ours.get(name)} != {theirs.get(name)}" for name in names[:20])


# -- a campaign ------------------------------------------------------------------------------------------------------


class Campaign:
    """Builds under fire, in a store of their own below ``folder``; ``like`` is a store that may hold the base."""

    def __init__(self, kind: str, folder: Path, *, seed: int, disk: Path | None = None, like: Path | None = None,
                 tell: Callable[[str], object] = print) -> None:  # fmt: skip
        self.kind, self.tell, self.dice, self.figures = kind, tell, random.Random(seed), Figures()
        self.folder = folder
        self.base = ""
        """The key of the base, which stays."""
        self.seconds = 0.0
        """What a build takes where the base is there."""
        self.lives: dict[str, float] = {}
        """What some process was seen to live."""
        self.recipe = folder / "faulty.yaml"
        self.recipe.write_text(RECIPES[kind])
        if disk is not None and not (folder / "ground.qcow2").exists():
            shutil.copy(disk, folder / "ground.qcow2")
        self.command = Command(folder / "store", folder / "output")
        self.like = like
        tell(f"{kind}: FAULT_SEED={seed}")

    @contextlib.contextmanager
    def _temporary(self) -> Iterator[Path]:
        with tempfile.TemporaryDirectory(prefix="faults-") as name:  # short: there will be sockets in it
            yield Path(name)

    def prepare(self) -> None:
        """Build it without faults elsewhere, and let our store begin with the base."""
        reference = Command(self.like or self.folder / "reference-store", self.folder / "reference")
        told = reference("build", self.recipe, "--log-format", "json").err
        events = [json.loads(line) for line in told.splitlines() if line.startswith("{")]
        (self.base,) = {event["key"] for event in events if "key" in event and event["node"].startswith("base ")}
        with contextlib.closing(Store(reference.store)) as there, contextlib.closing(Store(self.command.store)) as ours:
            base = there.find(self.base)
            assert base is not None
            above = [there.find(key) for key in {event["key"] for event in events if "key" in event} - {self.base}]
            self.seconds = 1 + sum(float(str(layer.facts["seconds"])) for layer in above if layer is not None)
            with ours.using() as use, use.making(self.base, gives=base.gives, name=base.name) as slot:
                if slot.layer is None:
                    link = ["-l"] if base.folder.stat().st_dev == slot.folder.stat().st_dev else []
                    subprocess.run(["cp", "-a", *link, f"{base.folder}/.", slot.folder], check=True)
                    slot.commit(base.facts)

    def compare(self) -> None:
        """Hold the image against the one without faults."""
        wrong = difference(self.kind, self.command.output / "faulty", self.folder / "reference" / "faulty")
        if wrong:
            self.figures.findings.append(f"the image differs: {wrong}")
        else:
            self.figures.images += 1

    def begin_anew(self) -> None:
        """Throw away everything above the base, and the image."""
        with contextlib.closing(Store(self.command.store)) as store, store.using() as use:
            assert use.find(self.base) is not None
            store.clear()
        shutil.rmtree(self.command.output / "faulty", ignore_errors=True)

    def run(self, kills: int) -> Figures:
        """Kill so many processes; return what came of it."""
        self.prepare()
        with self._temporary() as scratch:
            while self.figures.kills.total() < kills:
                if not self._attempt(scratch):
                    self.compare()
                    self.begin_anew()
            self._finish(scratch)
        self.tell(f"{self.kind}: {self.figures}")
        return self.figures

    def _attempt(self, scratch: Path) -> bool:
        """One build; whether something was killed in it (else it came through)."""
        figures, store = self.figures, self.command.store
        target = self.dice.choice(HAS[self.kind])
        # A boot takes most of the time: half of the kills wait until it is over.
        booted = self.kind == "online" and self.dice.random() < 0.5
        moment = self.dice.random() * (5 if booted else self.lives.get(target, self.seconds))
        before = {path.name for path in scratch.iterdir()}
        build = subprocess.Popen(self.command.argv("build", self.recipe), stdout=subprocess.DEVNULL, text=True,
                                 stderr=subprocess.PIPE, env=self.command.environment(TMPDIR=str(scratch)))  # fmt: skip
        reader = _Reader(build)
        victim, since = None, 0.0
        while build.poll() is None and (victim is None or time.monotonic() < since + moment):
            if booted and not re.search("^(done  |cached) boot the guest", reader.text, re.MULTILINE):
                time.sleep(0.02)
                continue
            if victim is None or not Path(f"/proc/{victim}").exists():
                if victim is not None:
                    self.lives[target] = time.monotonic() - since
                victim = build.pid if target == "build" else started_by(build.pid, TARGETS[target])
                since = time.monotonic()
            time.sleep(0.02)
        hit = victim is not None and build.poll() is None
        if victim is not None and not hit and not booted:
            self.lives[target] = time.monotonic() - since
        if hit:
            assert victim is not None
            try:
                os.kill(victim, signal.SIGKILL)
            except ProcessLookupError:
                hit = False
        try:
            build.wait(600)
        except subprocess.TimeoutExpired:
            figures.findings.append(f"{target} was killed, and the build never ends: {reader.text[-2000:]}")
            build.kill()
        said = reader.all()
        if hit:
            figures.kills[target] += 1
            if target != "build":
                figures.ended["failed" if build.returncode else "built"] += 1
        good = {0} if not hit else {-9} if target == "build" else {0, 1}
        if "Traceback" in said or build.returncode not in good:
            figures.findings.append(f"{target} was killed: exit {build.returncode}: {said[-2000:]}")
        left = gone(store, scratch)
        if left:
            figures.findings.append(f"{target} was killed; left: {left}")
        stale = before & {path.name for path in scratch.iterdir()}
        if stale and "start " in said:  # else it had hardly begun
            figures.findings.append(f"a build did not remove what an earlier one left: {stale}")
        figures.remains += bool(list(scratch.iterdir()))
        checked = subprocess.run(self.command.argv("cache", "verify"), capture_output=True, text=True, check=False,
                                 env=self.command.environment(TMPDIR=str(scratch)))  # fmt: skip
        if checked.stdout != "sound\n":
            figures.findings.append(f"{target} was killed; verify: {checked.stdout}{checked.stderr}")
        last = [line for line in said.splitlines() if line.startswith(("start", "done", "FAILED"))][-1:]
        self.tell(
            f"{self.kind} {figures.kills.total()}: {target if hit else 'nothing'} after {moment:.2f} s: exit "
            f"{build.returncode}, {''.join(last)}{', temporary files left' if any(scratch.iterdir()) else ''}"
        )
        return hit and build.returncode != 0

    def _finish(self, scratch: Path) -> None:
        """The build after the last kill comes through, and leaves nothing behind."""
        self.command("build", self.recipe, env={"TMPDIR": str(scratch)})
        self.compare()
        if any(scratch.iterdir()):
            self.figures.findings.append(f"in the end there is {[path.name for path in scratch.iterdir()]}")
        if list((self.command.store / "layers").glob("*.*")):
            self.figures.findings.append("in the end there are layers half made")


class FullDisk:
    """Builds in a store on a small ext4 of its own, in a mount namespace of its own, with little room left."""

    def __init__(self, kind: str, folder: Path, disk: Path | None = None, like: Path | None = None) -> None:
        self.kind, self.findings = kind, list[str]()
        self.place = folder / "small"
        self.place.mkdir()
        with (folder / "small.img").open("wb") as stream:
            stream.truncate(4 << 30)
        for argv in (["mkfs.ext4", "-q", "-m", "0", folder / "small.img"],
                     ["mount", "-o", "loop", folder / "small.img", self.place]):  # fmt: skip
            subprocess.run(argv, check=True)
        self.campaign = Campaign(kind, folder, seed=0, disk=disk, like=like)
        self.campaign.command = self.command = Command(self.place / "store", folder / "output")
        self.campaign.prepare()

    def left(self, size: int) -> str:
        """Build with so many bytes left, then with room enough; how the first of them ended."""
        self.campaign.begin_anew()
        filler = self.place / "filler"
        os.sync()
        with filler.open("wb") as stream:
            at, piece = 0, 1 << 28
            while piece >= 1 << 12:
                try:
                    room = os.statvfs(self.place)
                    if room.f_bavail * room.f_frsize - piece >= size:
                        os.posix_fallocate(stream.fileno(), at, piece)
                        at += piece
                        continue
                except OSError:  # its own bookkeeping needs room, too
                    pass
                piece //= 2
        environment = self.command.environment()
        build = subprocess.run(self.command.argv("build", self.campaign.recipe), capture_output=True, text=True,
                               check=False, env=environment)  # fmt: skip
        said = build.stderr
        if "Traceback" in said or build.returncode not in (0, 1) or (build.returncode and not _says_so(said)):
            self.findings.append(f"{size} bytes left: exit {build.returncode}: {said[-2000:]}")
        for words in (["cache", "verify"], ["cache", "gc", "--limit", "100G"], ["cache", "list"]):
            done = subprocess.run(self.command.argv(*words), capture_output=True, text=True, check=False,
                                  env=environment)  # fmt: skip
            if done.returncode or (words[1] == "verify" and done.stdout != "sound\n"):
                self.findings.append(f"{size} bytes left: {words}: {done.stdout}{done.stderr}")
        filler.unlink()
        self.command("build", self.campaign.recipe)
        self.campaign.compare()
        wrong = [line for line in said.splitlines() if _says_so(line)]
        return f"{self.kind}, {size >> 10} KiB left: exit {build.returncode}: {' | '.join(wrong[-2:])}"

    def sweep(self, sizes: Sequence[int]) -> list[str]:
        """Try them all; what was wrong."""
        for size in sizes:
            self.campaign.tell(self.left(size))
        return self.findings + self.campaign.figures.findings


def _says_so(text: str) -> bool:
    return "no space left" in text.lower() or "are free there" in text


class _Reader:
    """Takes what a process says, so that it never waits for us."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        import threading

        self.text = ""
        self._stream = process.stderr
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        assert self._stream is not None
        for line in self._stream:
            self.text += line

    def all(self) -> str:
        self._thread.join(20)
        return self.text


def main() -> None:
    """Run a campaign by hand."""
    kind, kills, seed, folder, *disk = sys.argv[1:]
    place = Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    image = Path(disk[0]) if disk else None
    if kind.startswith("full-"):
        dice = random.Random(int(seed))
        full = FullDisk(kind.removeprefix("full-"), place, image)
        wrong = full.sweep([0, *(int(2 ** (13 + (n + dice.random()) * 14 / int(kills))) for n in range(int(kills)))])
    else:
        wrong = Campaign(kind, place, seed=int(seed), disk=image).run(int(kills)).findings
    print("\n".join(wrong))
    raise SystemExit(bool(wrong))


if __name__ == "__main__":
    main()
