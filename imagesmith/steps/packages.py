"""Packages of the guest's distribution."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Self

from pydantic import Field, model_validator

from imagesmith.errors import BuildError
from imagesmith.interfaces import Root
from imagesmith.kinds import Seen, Step
from imagesmith.steps import _indexes
from imagesmith.steps._files import first_found

Package = Annotated[str, Field(pattern=r"^[A-Za-z0-9@][A-Za-z0-9@+._:=~/*<>^-]*$")]

_APT = (
    "apt-get", "--yes", "--quiet", "-o", "Dpkg::Use-Pty=0", "-o", "Acquire::Retries=3", "-o", "Acquire::Languages=none",
    "-o", "Dpkg::Options::=--force-confdef", "-o", "Dpkg::Options::=--force-confold",
    "-o", "Dpkg::Options::=--force-unsafe-io",
)  # fmt: skip
"""Without questions; a changed configuration file stays as it is; no fsync a file (the layer is flushed as a whole)."""


class Packages(Step, name="packages", version=1, shorthand="install"):
    """Install, remove or upgrade packages, with the guest's own package manager: apt, dnf, zypper, apk or pacman.

    A list is short for `install`. The package lists are fetched anew whenever something is installed or upgraded, for
    no layer keeps them, nor the downloaded packages. No service is started. What is only recommended stays out unless
    `recommends` is set. What is removed goes with its configuration (apt).
    """

    install: list[Package] = Field([], description="Packages to install.")
    remove: list[Package] = Field([], description="Packages to remove.")
    upgrade: bool = Field(False, description="Whether to upgrade all packages, first.")
    recommends: bool = Field(False, description="Whether to install what the packages only recommend.")

    @model_validator(mode="after")
    def _something(self) -> Self:
        if not (self.install or self.remove or self.upgrade):
            raise ValueError("name packages to install or remove, or set upgrade")
        return self

    def describe(self) -> str:
        """Name the packages."""
        words = [*self.install, *(f"-{name}" for name in self.remove), *(["upgrade"] if self.upgrade else [])]
        return ", ".join(words if len(words) <= 4 else [*words[:3], f"{len(words) - 3} more"])

    @property
    def worldly(self) -> bool:
        """Unless it only removes."""
        return bool(self.install or self.upgrade)

    def apply(self, root: Root) -> Seen | None:
        """Do it; return what the repositories' own lists of what they hold were."""
        for path, manage in (
            ("/usr/bin/apt-get", self._apt), ("/usr/bin/dnf", self._dnf), ("/usr/bin/dnf5", self._dnf),
            ("/usr/bin/microdnf", self._dnf), ("/usr/bin/yum", self._dnf), ("/usr/bin/zypper", self._zypper),
            ("/sbin/apk", self._apk), ("/usr/bin/apk", self._apk), ("/usr/bin/pacman", self._pacman),
        ):  # fmt: skip
            if first_found(root, path):
                return manage(root, path)
        raise BuildError("the guest has none of apt-get, dnf, yum, zypper, apk and pacman",
                         hint="install by a shell or copy step")  # fmt: skip

    def _apt(self, root: Root, program: str) -> Seen:
        more = f"--{'' if self.recommends else 'no-'}install-recommends"
        seen: Seen = {}
        if self.upgrade or self.install:
            root.run([*_APT, "-o", "APT::Update::Error-Mode=any", "update"])
            seen = _indexes.apt(root)
        if self.upgrade:
            root.run([*_APT, "upgrade", "--with-new-pkgs", more])
        if self.install:
            root.run([*_APT, "install", more, "--", *self.install])
        if self.remove:
            root.run([*_APT, "purge", "--", *self.remove])
        root.run([*_APT, "clean"])
        root.remove(["/var/lib/apt/lists/*"])
        return seen

    def _dnf(self, root: Root, program: str) -> Seen:
        command = [program, "-y", *([] if self.recommends else ["--setopt=install_weak_deps=False"])]
        _each(root, command, ["upgrade"] if self.upgrade else [], "install", self.install, "remove", self.remove)
        seen = _indexes.dnf(root, program) if self.worldly else {}
        root.run([program, "clean", "all"])
        return seen

    def _zypper(self, root: Root, program: str) -> Seen:
        command = [program, "--non-interactive"]
        seen: Seen = {}
        more = "--recommends" if self.recommends else "--no-recommends"
        if self.upgrade or self.install:
            root.run([*command, "refresh"])
            seen = _indexes.zypper(root)
        if self.upgrade:
            root.run([*command, "update", more])
        if self.install:
            root.run([*command, "install", more, "--", *self.install])
        if self.remove:
            root.run([*command, "remove", "--", *self.remove])
        root.run([*command, "clean", "--all"])
        return seen

    def _apk(self, root: Root, program: str) -> Seen:
        seen: Seen = {}
        if self.upgrade or self.install:
            root.run([program, "update"], check=False)  # where a package is missing then, adding it says so
            seen = _indexes.apk(root)
        _each(root, [program], ["upgrade"] if self.upgrade else [], "add", self.install, "del", self.remove)
        root.remove(["/var/cache/apk/*"])
        return seen

    def _pacman(self, root: Root, program: str) -> Seen:
        seen: Seen = {}
        if self.install or self.upgrade:  # a partial upgrade is not supported by Arch: both are one
            root.run([program, "-Syu", "--noconfirm", "--needed", "--", *self.install])
            seen = _indexes.pacman(root)
        if self.remove:
            root.run([program, "-Rns", "--noconfirm", "--", *self.remove])
        root.remove(["/var/cache/pacman/pkg/*", "/var/lib/pacman/sync/*"])
        return seen


def _each(
    root: Root, command: Sequence[str], upgrade: Sequence[str], install: str, new: Sequence[str], remove: str,
    old: Sequence[str],
) -> None:  # fmt: skip
    if upgrade:
        root.run([*command, *upgrade])
    if new:
        root.run([*command, install, "--", *new])
    if old:
        root.run([*command, remove, "--", *old])
