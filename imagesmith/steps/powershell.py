"""PowerShell, in a Windows guest."""

from __future__ import annotations

import base64
from typing import Self

from pydantic import Field, model_validator

from imagesmith.errors import StepFailed
from imagesmith.interfaces import Root
from imagesmith.kinds import RecipeFile, Step
from imagesmith.steps._running import running

# The script comes over stdin, so that it is in no command line. What it writes as an error does not end it, but an
# exception does, and so does the exit code of the last program, where that is not 0.
_LOADER = """\
[Console]::InputEncoding = [Console]::OutputEncoding = $OutputEncoding = New-Object Text.UTF8Encoding $false
$ProgressPreference = 'SilentlyContinue'
$ErrorActionPreference = 'Stop'
$global:LASTEXITCODE = 0
try { & ([ScriptBlock]::Create([Console]::In.ReadToEnd())) | Out-Default } catch {
    [Console]::Error.WriteLine(($_ | Out-String))
    exit 1
}
exit $LASTEXITCODE
"""
_COMMAND = ("powershell", "-NoProfile", "-NonInteractive", "-ExecutionPolicy", "Bypass", "-EncodedCommand",
            base64.b64encode(_LOADER.encode("utf-16-le")).decode())  # fmt: skip


class PowerShell(Step, name="powershell", version=1, shorthand="run"):
    """Run PowerShell commands in a running Windows guest.

    It needs a `login` of the type `winrm`. The first exception ends the commands, as `$ErrorActionPreference` is
    `Stop`; an exit code of the last program that is not 0 fails the step, too.
    """

    run: str | None = Field(None, description="The commands.", min_length=1)
    path: RecipeFile | None = Field(None, description="A file with the commands, instead of `run`.")
    env: dict[str, str] = Field({}, description="Environment variables; they may hold secrets.")

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.run is None) == (self.path is None):
            raise ValueError("give either `run` or `path`")
        if self.path is not None and not self.path.is_file():
            raise ValueError(f"{self.path} is not a file")
        return self

    @property
    def needs_running(self) -> str:
        """Windows' programs run in Windows alone."""
        return "PowerShell runs in it"

    @property
    def worldly(self) -> bool:
        """It may download things."""
        return True

    def describe(self) -> str:
        """Name the file, or show the first line that does something."""
        if self.path is not None:
            return self.path.name
        lines = (line.strip() for line in (self.run or "").splitlines())
        first = next((line for line in lines if line and not line.startswith("#")), "")
        return first if len(first) <= 50 else first[:47] + "..."

    def apply(self, root: Root) -> None:
        """Do it."""
        script = self.path.read_bytes() if self.path is not None else (self.run or "").encode()
        done = running(root).run(_COMMAND, env=self.env, input=script.removeprefix(b"\xef\xbb\xbf"), check=False)
        if done.status != 0:
            tail = "\n".join(done.output.splitlines()[-20:])
            raise StepFailed(f"the commands failed (exit code {done.status})" + (f":\n{tail}" if tail else ""),
                             status=done.status, tail=tail)  # fmt: skip
