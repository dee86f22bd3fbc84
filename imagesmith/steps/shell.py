"""Shell commands."""

from __future__ import annotations

from pydantic import Field

from imagesmith.errors import StepFailed
from imagesmith.interfaces import Root
from imagesmith.kinds import Step

_READ_ALL_THEN_RUN = 'imagesmith_script=$(cat); exec </dev/null; eval "$imagesmith_script"'
"""The script comes over stdin, so that it is in no argument list and no file; none of its commands may eat it."""


class Shell(Step, name="shell", version=1, shorthand="run"):
    """Run shell commands in the guest, as root, from `/`.

    They are run by `sh -eu`: the first command that fails ends the step (but as ever in a shell, not in an `if`, not
    before `||`, and of a pipe only the last counts), and so does a variable that is not set. Stdin is empty. For
    another interpreter use a `script` step.
    """

    run: str = Field(description="The commands.", min_length=1)
    env: dict[str, str] = Field({}, description="Environment variables; they may hold secrets.")

    @property
    def worldly(self) -> bool:
        """It may download things."""
        return True

    def describe(self) -> str:
        """Show the first line that does something."""
        lines = (line.strip() for line in self.run.splitlines())
        first = next((line for line in lines if line and not line.startswith("#")), "")
        return first if len(first) <= 50 else first[:47] + "..."

    def apply(self, root: Root) -> None:
        """Do it."""
        done = root.run(["sh", "-euc", _READ_ALL_THEN_RUN], env=self.env, input=self.run.encode(), check=False)
        if done.status != 0:
            tail = "\n".join(done.output.splitlines()[-20:])
            raise StepFailed(f"the commands failed (exit status {done.status})" + (f":\n{tail}" if tail else ""),
                             status=done.status, tail=tail)  # fmt: skip
