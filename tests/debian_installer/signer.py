"""A key of the test's own: the installer is given its public half and takes our list of components for verified."""

from __future__ import annotations

from pathlib import Path

from imagesmith.host import Host


class Signer:
    """Signs with a key that is made once for each folder."""

    def __init__(self, folder: Path, host: Host) -> None:
        self._host, self._home = host, (folder / "gnupg").absolute()
        if not self._home.exists():
            self._home.mkdir(mode=0o700, parents=True)
            self._gpg("--quick-gen-key", "installer-test@localhost", "ed25519", "sign", "0")

    @property
    def public(self) -> bytes:
        """The public key, in the form that gpgv takes as a keyring."""
        return self._gpg("--export")

    def sign(self, data: bytes) -> bytes:
        """A detached signature."""
        return self._gpg("--armor", "--digest-algo", "SHA512", "--detach-sign", input=data)

    def _gpg(self, *args: str, input: bytes | None = None) -> bytes:
        home = ["--homedir", str(self._home)]
        quiet = ["--batch", "--quiet", "--pinentry-mode", "loopback", "--passphrase", ""]
        try:
            return self._host.run(["gpg", *home, *quiet, *args], purpose="sign for a test", input=input).stdout
        finally:  # it starts an agent, which would outlive us
            self._host.run(["gpgconf", *home, "--kill", "all"], purpose="end gpg's agent")
