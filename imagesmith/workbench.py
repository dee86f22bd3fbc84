"""Puts the parts together for this host: what the engine works with, the store, and what doctor looks at."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, cast

from imagesmith.errors import BuildError, ImagesmithError
from imagesmith.events import Progress
from imagesmith.host import Host
from imagesmith.interfaces import Disk, Driver, Files, Guest, Installation, Layered, Log, Root
from imagesmith.inventory import FILE
from imagesmith.kinds import Base
from imagesmith.plan import DEFAULT_DISK
from imagesmith.store import Store, Use

if TYPE_CHECKING:
    from imagesmith.doctor import Finding
    from imagesmith.inventory import File
    from imagesmith.look.inventory import Listing
    from imagesmith.plan import Node
    from imagesmith.probe import Accelerator


def open_store(*, rebuild: bool = False) -> Store:
    """Open this user's store; with ``rebuild``, an index that cannot be read is made anew."""
    if os.geteuid() == 0:
        return Store(Store.default_root(), rebuild=rebuild)
    from imagesmith import tree

    host = Host()  # a host of its own: what is half made is removed after Ctrl-C, too
    return Store(Store.default_root(), remove=lambda path: tree.remove(host, path),
                 measure=lambda path: tree.measure(host, path),
                 contents=lambda path: tree.contents(host, path), rebuild=rebuild)  # fmt: skip


def keep_small(store: Store, build: Use) -> list[str]:
    """Collect, where the store has grown larger than $IMAGESMITH_CACHE_LIMIT (a size; 50G): what was done, in words.

    What running builds use stays, also what ``build`` has made, which is at its end; but not its checkpoints.
    """
    from pydantic import TypeAdapter, ValidationError

    from imagesmith.kinds import Size

    word = os.environ.get("IMAGESMITH_CACHE_LIMIT", "50G")
    try:
        limit: int = TypeAdapter(Size).validate_python(word)
    except ValidationError:
        return [f"IMAGESMITH_CACHE_LIMIT={word} is no size such as 20G; the store is left as large as it is"]
    try:  # what the build came to counts, and not this
        before = store.size()
        if before <= limit:
            return []
        removed = store.collect(limit, done=build)
    except (OSError, ImagesmithError) as error:
        return [f"the store could not be kept small: {error}"]
    return [f"the store had grown beyond {word}: {len(removed)} layers and {(before - store.size()) >> 20} MiB removed"]


def moved(store: Store, host: Host, note: Log) -> Callable[[str, str], bool]:
    """Whether what is at an address is not what has this SHA-256; each address is asked for once.

    What cannot be asked, because this host does not reach it or may not, has not moved.
    """
    import hashlib

    from imagesmith.fetch_http import Http

    known: dict[str, str] = {}

    def ask(url: str, digest: str) -> bool:
        if url not in known:
            known[url] = ""
            try:
                with tempfile.TemporaryDirectory(prefix="imagesmith-") as folder:
                    part = Path(folder, "file")
                    Http(lambda: host.cancelled, note, delays=(1.0, 5.0), every=60).download(url, part, limit=1 << 26)
                    known[url] = hashlib.sha256(part.read_bytes()).hexdigest()
            except BuildError as error:
                note(f"whether it has moved is not known: {error.message}")
        return known[url] not in ("", digest)

    return ask


def examine() -> tuple[list[Finding], str]:
    """What this host can do and what it lacks; and what is missing where nothing can be built, or an empty text."""
    from imagesmith import doctor

    found = doctor.examine(Host(), Store.default_root())
    return found, doctor.hopeless(found)


class Bench:
    """Implements engine.Workbench with the real parts; each is imported when it is first needed."""

    def __init__(self, store: Store, host: Host, *, epoch: int, note: Log) -> None:
        from imagesmith.drivers.packed import PackedDisks

        self._store, self._host, self._epoch, self._note = store, host, epoch, note
        self._packed = PackedDisks(host)

    @cached_property
    def accelerator(self) -> Accelerator:
        """The host's verdict on KVM, asked for when it is first needed."""
        from imagesmith import probe

        return probe.accelerator(self._host, self._store.root, self._note)

    def driver(self, node: Node) -> Driver:
        """See engine.Workbench."""
        from imagesmith.drivers.guestfs import Guestfs
        from imagesmith.drivers.native_disk import NativeDisk
        from imagesmith.drivers.native_tree import NativeTree

        made: dict[tuple[str, str], Callable[[], Driver]] = {
            ("native", "tree"): lambda: NativeTree(self._host),
            ("native", "disk"): lambda: NativeDisk(self._host),
            ("guestfs", "disk"): lambda: Guestfs(self._host, accelerator=self.accelerator.name),
            ("ssh", "disk"): lambda: self._ssh(node),
            ("winrm", "disk"): lambda: self._ssh(node),
        }  # fmt: skip
        return made[node.driver, node.gives]()

    def _ssh(self, node: Node) -> Driver:
        from imagesmith.drivers.ssh import SshDriver
        from imagesmith.machine.ssh_login import Credentials

        machine, login = node.recipe.machine, node.recipe.login
        credentials = None if login is None else Credentials(
            user=login.user, password=login.password, key=login.key.read_bytes() if login.key else b"",
            port=login.port or (5986 if login.type == "winrm" else 22), winrm=login.type == "winrm",
            sudo=login.become == "sudo" or (login.become == "auto" and login.user != "root"),
        )  # fmt: skip
        return SshDriver(
            self._host, accelerator=self.accelerator.name, cpu=machine.cpu, cpus=machine.cpus, memory=machine.memory,
            arch=node.recipe.arch, firmware=machine.firmware[0], login=credentials, tpm=machine.tpm,  # type: ignore[arg-type]
        )  # fmt: skip

    def make_base(
        self, node: Node, into: Path, log: Log, progress: Callable[[Progress], object]
    ) -> Mapping[str, object]:
        """See engine.Workbench."""
        base = cast(Base, node.kind)
        shop = Shop(self._store, self._host, node, log, progress, epoch=self._epoch, bench=self)
        if base.gives == "tree":
            (into / "upper").mkdir()
            seen = base.make(into / "upper", shop)
        else:
            seen = base.make(into / "disk.qcow2", shop)
        return {**({"downloads": shop.downloads} if shop.downloads else {}), **({"seen": dict(seen)} if seen else {})}

    def assemble(self, node: Node, below: Sequence[Path], into: Path, log: Log) -> None:
        """See engine.Workbench."""
        from imagesmith import tree
        from imagesmith.disk.assemble import DiskSpec, assemble

        secure = "uefi-secure" in node.recipe.machine.firmware
        spec = DiskSpec(size=node.disk_size, arch=node.recipe.arch, seed=node.key, epoch=self._epoch, secure=secure)
        mount = tree.OverlayMount(tuple(str(folder / "upper") for folder in below))
        with tree.open_root(self._host, mount, epoch=self._epoch, log=log) as root:
            assemble(root, into / "disk.qcow2", spec, self._host, log)

    def disk(self, below: Sequence[Path]) -> Disk:
        """See engine.Workbench."""
        from imagesmith.disk.attach import newest, read_header
        from imagesmith.disk.bootable import boots_with
        from imagesmith.machine.firmware import store_name

        path = below[-1] / "disk.qcow2"
        variables = {name: store for name in ("uefi", "uefi-secure") if (store := newest(below, store_name(name)))}

        def drivers() -> frozenset[str] | None:
            from imagesmith.look.image import drivers_of

            return drivers_of(path, self._host)

        return Disk(path, read_header(path).virtual_size, boots_with(path, self._host), variables, drivers=drivers)

    @contextmanager
    def files(self, node: Node, below: Sequence[Path], log: Log) -> Iterator[Layered]:
        """See engine.Workbench."""
        assert node.below is not None
        chain = [one for one in node.below.chain if one.gives == node.below.gives]
        own = sum(one.verb == "step" and one.recipe is node.recipe for one in chain)
        first, gives = below[: max(1, len(below) - own)], node.below.gives
        trusted = node.below.trusted
        with self._files(gives, below, trusted, log) as found:
            yield _Layered(found, lambda: self._files(gives, first, trusted, log))

    @contextmanager
    def _files(self, gives: str, below: Sequence[Path], trusted: bool, log: Log) -> Iterator[Files]:
        """The root file system of a chain of layers. The host's kernel mounts those alone whose origin is trusted."""
        if gives == "tree":
            from imagesmith import tree

            mount = tree.OverlayMount(tuple(str(folder / "upper") for folder in below))
            with tree.open_root(self._host, mount, epoch=self._epoch, log=log) as root:
                yield root
        else:
            from imagesmith.drivers import native_disk

            with ExitStack() as stack:
                try:
                    if not trusted or os.geteuid() != 0:
                        raise BuildError("the disk is not this host's kernel's to mount")
                    found = stack.enter_context(native_disk.open_files(below, self._host, epoch=self._epoch, log=log))
                except BuildError as error:
                    log(error.message)
                    found = self._packed.files(self.disk(below), accelerator=lambda: self.accelerator.name, log=log)
                yield found

    def inventory(self, node: Node, below: Sequence[Path], into: Path, log: Log) -> None:
        """See engine.Workbench."""
        from imagesmith.look.inventory import of_disk, of_tar

        assert node.below is not None
        if node.below.gives == "disk":
            found = of_disk(self.disk(below).path, self._host)
        else:
            with self._files("tree", below, True, log) as files, tempfile.TemporaryFile(dir=into) as packed:
                files.pack(packed)
                packed.seek(0)
                found = of_tar(packed)
        for note in found.notes:
            log(note)
        log(f"{len(found.files)} files, {len(found.packages)} packages")
        found.public().write(into / FILE)

    def booted(
        self, node: Node, disk: Disk, keep: Path, log: Log, *, control: bool = True
    ) -> AbstractContextManager[Guest]:
        """See engine.Workbench; without ``control`` it boots as it is, and takes no requests."""
        from imagesmith.archive import contents
        from imagesmith.drivers.guestfs import inject
        from imagesmith.machine.guest import booted

        def unpack(overlay: Path, archive: BinaryIO) -> None:
            log("debugfs cannot write this disk's root file system; starting the libguestfs appliance")
            files, links = contents(archive)
            inject(overlay, files, links, self._host, accelerator=self.accelerator.name)

        machine = node.recipe.machine
        scratch = Path(tempfile.gettempdir())
        return cast(AbstractContextManager[Guest], booted(
            disk, firmware=node.firmware, arch=node.recipe.arch, cpu=machine.cpu,  # type: ignore[arg-type]
            cpus=machine.cpus, memory=machine.memory, host=self._host, accelerator=self.accelerator.name,
            tpm=machine.tpm, log=log, keep=keep, scratch=scratch, unpack=unpack, control=control,
        ))  # fmt: skip


def appliance_reader(host: Host) -> Callable[[Path], AbstractContextManager[Listing]]:
    """Gives access to the files of a qcow2's system through the libguestfs appliance."""
    from imagesmith.drivers.guestfs import open_files

    @contextmanager
    def reader(image: Path) -> Iterator[Listing]:
        bench = Bench(open_store(), host, epoch=0, note=lambda line: None)
        with open_files(Disk(image, 0), host, accelerator=bench.accelerator.name) as files:
            yield _Listed(files, files.names)

    return reader


@dataclass(frozen=True)
class _Listed:
    """Implements look.inventory.Listing with files that can only be packed as a whole."""

    whole: Files
    names: Callable[[str], Sequence[str]]

    def read(self, path: str) -> bytes:
        return self.whole.read(path)

    def files(self) -> dict[str, File]:
        from imagesmith.look.reader import TarReader

        with tempfile.TemporaryFile() as packed:
            self.whole.pack(packed)
            packed.seek(0)
            return TarReader([packed]).files()


@dataclass(frozen=True)
class _Layered:
    """Implements interfaces.Layered."""

    whole: Files
    base: Callable[[], AbstractContextManager[Files]]

    def pack(self, out: BinaryIO, *, exclude: Sequence[str] = ()) -> None:
        self.whole.pack(out, exclude=exclude)

    def read(self, path: str) -> bytes:
        return self.whole.read(path)


class Shop:
    """Implements interfaces.Workshop for one base."""

    def __init__(self, store: Store, host: Host, node: Node, log: Log, progress: Callable[[Progress], object], *,
                 epoch: int, bench: Bench) -> None:  # fmt: skip
        self.host, self.log, self.epoch, self._progress = host, log, epoch, progress
        self.arch, self.seed = node.recipe.arch, node.key
        self.downloads: list[dict[str, str]] = []
        self._store, self._node, self._bench = store, node, bench

    @contextmanager
    def tree(self, directory: Path) -> Iterator[Root]:
        """See interfaces.Workshop."""
        from imagesmith import tree

        mount = tree.DirectoryMount(str(directory))
        with tree.open_root(self.host, mount, epoch=self.epoch, log=self.log) as root:
            yield root

    def inside(self, argv: Sequence[str], *, purpose: str, env: Mapping[str, str] | None = None) -> None:
        """See interfaces.Workshop."""
        from imagesmith import tree

        tree.inside(self.host, argv, purpose=purpose, env=env, log=self.log)

    def fetch(self, url: str, *, checksum: str, signature: str = "", keyring: Path | None = None) -> Path:
        """See interfaces.Workshop."""
        from imagesmith.fetch import Fetcher
        from imagesmith.fetch_http import shown
        from imagesmith.kinds import file_digest

        fetcher = Fetcher(self._store.blobs, self.host, self.log, progress=self._progress)
        path = fetcher.fetch(url, checksum, signature, keyring)
        self.downloads.append({"url": shown(url), "checksum": shown(checksum), "digest": file_digest(path)})
        return path

    def import_disk(self, source: Path, into: Path, *, format: str = "") -> None:
        """See interfaces.Workshop."""
        from imagesmith.disk.image import import_image

        if not source.exists():
            raise BuildError(f"there is no image {source}")
        import_image(source, into, self.host, self.log, format=format, size=self._node.disk_size or None)

    def install(self, installation: Installation, into: Path) -> None:
        """See interfaces.Workshop."""
        from imagesmith.installer.install import Hardware, install

        machine = self._node.recipe.machine
        hardware = Hardware(
            arch=self._node.recipe.arch, accelerator=self._bench.accelerator.name,  # type: ignore[arg-type]
            cpu=machine.cpu, cpus=machine.cpus, memory=machine.memory, disk=self._node.disk_size or DEFAULT_DISK,
            firmware=machine.firmware[0], tpm=machine.tpm,
        )  # fmt: skip
        install(installation, into, hardware, self.host, self.log, keep=into.parent / "guest")
