"""A Debian or Ubuntu system made of packages."""

from __future__ import annotations

import hashlib
import re
import shlex
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from imagesmith.apt import release
from imagesmith.archive import Archive, archive_of
from imagesmith.bases import _bootable
from imagesmith.bases._mirrors import Mirrors, host_mirrors, sources
from imagesmith.errors import BuildError
from imagesmith.interfaces import Root, Workshop
from imagesmith.kinds import Base, RecipeFile, Seen, secrets_in

Package = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9+.:-]+$")]
Url = Annotated[str, Field(pattern=r"^(https?|file|copy)://?[^\s\[\]]+$")]

_ARCHES = {"x86_64": "amd64", "aarch64": "arm64"}
_COMPONENTS = {"debian": ["main"], "ubuntu": ["main", "universe"]}
_HOST_KEYRING = "/usr/share/keyrings/{distribution}-archive-keyring.gpg"
_OWN_KEYRING = "/etc/apt/keyrings/bootstrap.gpg"
_SETUP = """
printf 'Acquire::Languages "none";\\nAcquire::Retries "3";\\n' >> "$MMDEBSTRAP_APT_CONFIG"
mkdir -p "$1/etc/dpkg/dpkg.cfg.d"
echo force-unsafe-io > "$1/etc/dpkg/dpkg.cfg.d/bootstrap"
"""


class Bootstrap(Base, name="bootstrap", version=1):
    """Make a system of a distribution's packages, with mmdebstrap: no installer, no virtual machine, no root.

    Signatures are always verified. The packages come from the mirrors that this host's apt uses itself, unless
    `mirror` names another. With a kernel (the default) the system boots on any disk that imagesmith makes of it: DHCP
    on every Ethernet card (systemd-networkd, systemd-resolved), a serial console, a root that grows to the disk's
    size, SSH host keys made at first boot where openssh-server is installed, the root user's password locked. With
    `kernel: none` it holds only what `variant` and `packages` say, for containers.
    """

    gives: ClassVar[Literal["tree", "disk"]] = "tree"

    distribution: Literal["debian", "ubuntu"] = Field(description="Whose packages.")
    suite: str = Field(pattern=r"^[a-z][a-z0-9-]*$", description="The release's code name: bookworm, noble.")
    packages: list[Package] = Field([], description="Packages to install besides.")
    variant: Literal["apt", "minbase", "buildd", "important", "standard"] = Field(
        "minbase", description="How much to begin with, as mmdebstrap names it."
    )
    components: list[Annotated[str, Field(pattern=r"^[a-z][a-z-]*$")]] | None = Field(
        None, description="Parts of the archive; main for Debian, main and universe for Ubuntu."
    )
    mirror: Url | None = Field(
        None, description="The archive's address; by default that of the host's own apt sources."
    )
    security_mirror: Url | None = Field(
        None, description="The address of Debian's security updates, where `mirror` is given."
    )
    keyring: RecipeFile | None = Field(
        None, description="The public keys that the archive is signed with; by default the distribution's keyring."
    )
    kernel: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9+.-]+$")] | None = Field(
        None, description="The kernel's package; by default the one for virtual machines; none for containers."
    )
    hostname: Annotated[str, Field(pattern=r"^[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?$")] | None = Field(
        None, description="The host's name; by default that of the distribution."
    )

    @property
    def trusted_origin(self) -> bool:
        """It is made here, of signed packages."""
        return True

    @model_validator(mode="after")
    def _no_secrets(self) -> Self:
        if secrets_in(self):
            raise ValueError("cannot take secrets: its options are in argument lists and in the image's sources.list")
        return self

    def describe(self) -> str:
        """Name distribution and suite."""
        return f"{self.distribution} {self.suite}"

    @property
    def _boots(self) -> bool:
        return self.kernel != "none"

    def wanted(self, arch: str) -> tuple[str, ...]:
        """The packages to install, sorted. ``arch`` as Debian names it."""
        names = set(self.packages)
        if self._boots:
            kernel = self.kernel or _bootable.KERNELS[self.distribution].format(arch=arch)
            names |= {*_bootable.PACKAGES, *_bootable.SEPARATE, kernel}
        return tuple(sorted(names))

    @property
    def worldly(self) -> bool:
        """Packages come from mirrors."""
        return True

    def make(self, into: Path, shop: Workshop) -> Seen:
        """Do it; return what the mirrors' Release files were."""
        arch = _ARCHES[shop.arch]
        keyring = self._keyring()
        lines = self._sources(shop, str(keyring))
        begun = time.time()
        with tempfile.TemporaryDirectory(prefix="imagesmith-") as scratch:
            first = Path(scratch, "first.tar")
            with first.open("wb") as out, Archive(out, epoch=shop.epoch) as archive:
                if self._boots:
                    _bootable.before(archive)
            shop.inside(
                self.arguments(arch, into, lines, first, lists=Path(scratch)),
                purpose=f"bootstrap {self.describe()}",
                env={"SOURCE_DATE_EPOCH": str(shop.epoch), "TMPDIR": scratch},
            )
            seen = _releases(lines, Path(scratch))
        # the host's find and touch: their files are the guest's, but no link is followed
        newer = ["-newermt", f"@{int(begun) - 1}", "-exec", "touch", "--no-dereference", f"--date=@{shop.epoch}"]
        shop.inside(["find", str(into), "-xdev", *newer, "{}", "+"], purpose="set the files' times")
        with shop.tree(into) as root:
            self._finish(root, lines, keyring)
        return seen

    def _keyring(self) -> Path:
        path = self.keyring or Path(_HOST_KEYRING.format(distribution=self.distribution))
        if not path.is_file():
            raise BuildError(
                f"{path} is not here: {self.distribution.capitalize()}'s packages cannot be verified without its keys",
                hint=f"install {self.distribution}-archive-keyring or {self.distribution}-keyring, or name a keyring "
                "in the recipe: bootstrap: {keyring: FILE}",
            )
        return path.absolute()

    def _sources(self, shop: Workshop, keyring: str) -> tuple[str, ...]:
        if self.mirror is not None:
            mirrors = Mirrors(_seen_inside(self.mirror), _seen_inside(self.security_mirror or ""))
        else:
            mirrors = host_mirrors(shop.host, self.distribution)
        if self.distribution == "debian" and not mirrors.security:
            shop.log("no mirror of Debian's security updates is known: the image will have none")
        components = self.components or _COMPONENTS[self.distribution]
        return sources(self.distribution, self.suite, mirrors, components, keyring)

    def arguments(self, arch: str, into: Path, lines: tuple[str, ...], first: Path, *, lists: Path) -> list[str]:
        """The mmdebstrap command.

        ``first`` is a tar of files that must be there before any package; ``lists`` takes copies of Release files.
        """
        setup = f'{_SETUP}tar -C "$1" -xf {shlex.quote(str(first))}'
        keep = f'cp "$1"/var/lib/apt/lists/*_InRelease {shlex.quote(str(lists))} 2>/dev/null || true'
        hooks = [f"--setup-hook={setup}", f"--customize-hook={keep}",
                 '--customize-hook=rm "$1/etc/dpkg/dpkg.cfg.d/bootstrap"']  # fmt: skip
        return [
            "mmdebstrap", "--mode=root", "--format=directory", f"--variant={self.variant}", f"--architectures={arch}",
            *(f"--include={name}" for name in self.wanted(arch)), *hooks, self.suite, str(into), *lines,
        ]  # fmt: skip

    def _finish(self, root: Root, lines: tuple[str, ...], keyring: Path) -> None:
        resolved = _bootable.has_resolved(root)
        _bootable.own_state(root)
        root.unpack(archive_of(lambda archive: self._after(archive, resolved, lines, keyring), epoch=root.epoch))
        if self._boots:
            _bootable.enable(root, resolved=resolved)

    def _after(self, archive: Archive, resolved: bool, lines: tuple[str, ...], keyring: Path) -> None:
        _bootable.names(archive, self.hostname or self.distribution)
        own = _HOST_KEYRING.format(distribution=self.distribution)
        if self.keyring is not None:
            own = _OWN_KEYRING
            archive.data(own, keyring.read_bytes())
        archive.data("etc/apt/sources.list", "".join(f"{x.replace(str(keyring), own)}\n" for x in lines).encode())
        if self._boots:
            _bootable.after(archive, resolved=resolved)


def _seen_inside(mirror: str) -> str:
    """The same address; of a folder, as packages that apt copies, for dpkg looks for them inside the new system."""
    return re.sub("^file:", "copy:", mirror).rstrip("/")


def _releases(lines: Sequence[str], copies: Path) -> Seen:
    """What was seen of each line ``deb [options] URI SUITE COMPONENTS`` (sources.list(5))."""
    found = {}
    for line in lines:
        words = re.sub(r"\[[^]]*\]", "", line).split()
        there = release(words[1], words[2])
        if (copies / there.file).is_file():
            found[there.url] = hashlib.sha256((copies / there.file).read_bytes()).hexdigest()
    return dict(sorted(found.items()))
