"""An installer's ISO and the answers to its questions as the base."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, field_validator

from imagesmith.bases._source import Sourced
from imagesmith.errors import BuildError
from imagesmith.host import Host
from imagesmith.interfaces import Installation, Workshop
from imagesmith.keys import parse
from imagesmith.kinds import UNKEYED, AnswerFile, Duration, RecipeFile, Remark, file_digest, secrets_in


def _words(value: object) -> object:
    return value.split() if isinstance(value, str) else value


def _lines(value: object) -> object:
    return [value] if isinstance(value, str) else value


class Iso(Sourced, name="iso", version=1):
    """Install from an ISO, unattended: `answers` is what its installer asks for.

    The installer's own kernel is read out of the ISO and booted, with the answer file in its hands: nothing is typed.
    Which installer it is, where its kernel is and how it takes its answers is found by looking into the ISO. Where it
    cannot be booted so (Windows, FreeBSD, an ISO that is not known), a copy of the ISO with the answer file in it is,
    or the ISO itself, with `boot_command` typed.

    The installation is watched on its console and in its log: it ends when the machine is switched off or restarts,
    and at once when the installer shows that it cannot succeed, when it asks a question, or when nothing moves any
    more for as long as `stall`.
    """

    answers: AnswerFile = Field(description="The answer file: its kind, with your own file or with options.")
    boot: Annotated[list[str], BeforeValidator(_words)] = Field(
        [], description="Arguments for the installer's kernel, after those of the ISO's own boot menu; `-x` takes one "
        "of those away."
    )
    deliver: Literal["auto", "initrd", "volume", "floppy", "http", "fw_cfg", "medium"] = Field(
        "auto", description="How the answer file reaches the installer; `auto` is what this installer likes best."
    )
    boot_command: Annotated[list[str], BeforeValidator(_lines)] = Field(
        [], description="Keys to type at the ISO's boot menu, in Packer's notation, with `<waitFor \"text\" 60s>`; "
        "`{url}` stands for where the answer file is served."
    )
    media: list[RecipeFile] = Field([], description="More ISOs for the installer to see, such as drivers.")
    within: Annotated[Duration, UNKEYED] = Field(7200.0, description="How long the installation may take.")
    read_within: Annotated[Duration, UNKEYED] = Field(
        600.0, description="How long until the installer must have read the answer file, where that can be seen."
    )
    stall: Annotated[Duration, UNKEYED] = Field(
        900.0, description="How long nothing may move (console, log, disk, network)."
    )

    @field_validator("boot", "boot_command")
    @classmethod
    def _no_secrets(cls, value: list[str]) -> list[str]:
        if secrets_in(value):
            raise ValueError("must hold no secrets, for every user can see them; put them into the answer file")
        return value

    @field_validator("boot_command")
    @classmethod
    def _typed(cls, value: list[str]) -> list[str]:
        try:
            parse(value)
        except BuildError as error:
            raise ValueError(error.message + (f"; {error.hint}" if error.hint else "")) from None
        return value

    @property
    def boots(self) -> bool:
        """The installer runs in it."""
        return True

    @property
    def worldly(self) -> bool:
        """Installers take packages from mirrors."""
        return True

    def identity(self) -> dict[str, object]:
        """The ISO's contents, the answers, and how it is booted."""
        answers = [type(self.answers).name, type(self.answers).version, self.answers.identity()]
        media = [file_digest(path) for path in self.media]
        return {**self.source_identity(), "answers": answers, "boot": self.boot, "deliver": self.deliver,
                "boot_command": self.boot_command, "media": media}  # fmt: skip

    def lint(self, host: Host) -> Sequence[Remark]:
        """See Kind."""
        return self.answers.lint(host)

    def make(self, into: Path, shop: Workshop) -> None:
        """Fetch the ISO where it is not here, and install from it."""
        answers = self.answers
        shop.install(
            Installation(
                iso=self.source(shop), deliver=answers.deliveries, way=None if self.deliver == "auto" else self.deliver,
                signs=answers.signs, arguments=tuple(self.boot), log_arguments=answers.log_arguments,
                log_ports=answers.log_ports, boot_command=tuple(self.boot_command), media=tuple(self.media),
                within=self.within, read_within=self.read_within, stall=self.stall, ends=answers.ends,
            ),
            into,
        )  # fmt: skip

    def describe(self) -> str:
        """The ISO's name and the kind of the answers."""
        return f"{super().describe()} ({type(self.answers).name})"
