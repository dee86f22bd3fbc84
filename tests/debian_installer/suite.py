"""Packages of a suite that the host does not follow, fetched and verified by the host's own apt."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from imagesmith.bases._mirrors import host_mirrors
from imagesmith.host import Host

SUITE = "trixie"
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")


class Suite:
    """The suite's packages, kept below ``folder``. apt's own lists and cache are not touched."""

    def __init__(self, folder: Path, host: Host) -> None:
        self.mirror = host_mirrors(host, "debian").archive
        self._host, self._apt, self._packages = host, folder / "apt", folder / "packages"

    def download(self, names: Sequence[str]) -> dict[str, Path]:
        """Fetch packages that are not here yet. Raises ToolFailed where apt cannot verify them."""
        found = self._found(names)
        if missing := [name for name in names if name not in found]:
            self._packages.mkdir(parents=True, exist_ok=True)
            self._run("update")
            self._run("download", *missing)
            found = self._found(names)
        return found

    def _found(self, names: Sequence[str]) -> dict[str, Path]:
        found = {name: sorted(self._packages.glob(f"{name}_*.deb")) for name in names}
        return {name: files[-1] for name, files in found.items() if files}

    def _run(self, *command: str) -> None:
        for folder in ("lists/partial", "archives/partial"):
            (self._apt / folder).mkdir(parents=True, exist_ok=True)
        (self._apt / "status").touch()
        (self._apt / "sources.list").write_text(f"deb [signed-by={KEYRING}] {self.mirror} {SUITE} main\n")
        options = {
            "Dir::Etc::sourcelist": self._apt / "sources.list", "Dir::Etc::sourceparts": "/dev/null",
            "Dir::Etc::preferencesparts": "/dev/null", "Dir::State::lists": self._apt / "lists",
            "Dir::State::status": self._apt / "status", "Dir::Cache::archives": self._apt / "archives",
            "Dir::Cache::pkgcache": "", "Dir::Cache::srcpkgcache": "", "APT::Architecture": "amd64",
            "APT::Architectures::": "amd64", "APT::Sandbox::User": "", "Acquire::Languages": "none",
            "APT::Update::Post-Invoke": "", "APT::Update::Post-Invoke-Success": "", "DPkg::Post-Invoke": "",
        }  # fmt: skip
        argv = ["apt-get", "-qq", *(f"-o{name}={value}" for name, value in options.items()), *command]
        self._host.run(argv, purpose="fetch packages of Debian's installer", cwd=self._packages, timeout=600)


def unpack(package: Path, into: Path, host: Host) -> Path:
    """Unpack a package's files (once) and return their folder."""
    if not into.exists():
        part = into.with_name(into.name + ".part")
        host.run(["dpkg-deb", "-x", package, part], purpose="unpack a package")
        part.rename(into)
    return into
