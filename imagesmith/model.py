"""What a recipe is once it is read: plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Generic, Literal, Self, TypeVar, cast

from pydantic import BeforeValidator, Field, field_validator, model_validator

from imagesmith.errors import Complaint
from imagesmith.kinds import Base, Check, Duration, Kind, Options, Output, RecipeFile, Size, Step

K = TypeVar("K", bound=Kind)


def _listed(value: object) -> object:
    if isinstance(value, list) and len({str(item) for item in value}) < len(value):
        raise ValueError("names one of them twice")
    return [value] if isinstance(value, str) else value


class Machine(Options):
    """The guest's virtual hardware, while it is built and checked."""

    cpus: Annotated[int, Field(ge=1, le=64, description="Number of virtual processors.")] = 2
    memory: Annotated[Size, Field(ge=64 << 20, description="Memory, such as 1G.")] = 1 << 30
    disk: Annotated[Size | None, Field(description="Size of the disk; 4G where the base has none.")] = None
    cpu: Annotated[
        str,
        Field(pattern=r"^[A-Za-z0-9_.,+=-]*$", description="QEMU's CPU model, such as `Nehalem,-cx16`; by default the "
              "host's own, or `max` where it is emulated."),
    ] = ""  # fmt: skip
    firmware: Annotated[
        tuple[Literal["bios", "uefi", "uefi-secure"], ...],
        BeforeValidator(_listed),
        Field(min_length=1, description="One or several of bios, uefi, uefi-secure; the checks run once with each."),
    ] = ("bios",)
    tpm: Annotated[bool, Field(description="Whether it has a TPM 2.0 (swtpm).")] = False


class Login(Options):
    """How steps enter the running guest. Without it: as root over SSH, with a key that is made for the build.

    It is in no node's key: who does a step does not change what the step does.
    """

    type: Annotated[Literal["ssh", "winrm"], Field(description="SSH, or WinRM for a Windows guest.")] = "ssh"
    user: Annotated[
        str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.@\\-]*\$?$", description="Who logs in; he becomes root by sudo.")
    ] = "root"
    password: Annotated[
        str, Field(description="His password, for the log-in and for sudo; it may be a secret.")
    ] = ""
    key: Annotated[
        RecipeFile | None, Field(description="His private SSH key, without a passphrase, relative to the recipe.")
    ] = None
    become: Annotated[
        Literal["auto", "sudo", "none"],
        Field(description="How to become root: `sudo` for all but root, unless `none` says that he may do all."),
    ] = "auto"
    port: Annotated[int | None, Field(ge=1, le=65535, description="The guest's port; 22, or WinRM's 5986.")] = None

    @field_validator("key")
    @classmethod
    def _is_private(cls, value: Path | None) -> Path | None:
        if value is not None and not (value.is_file() and b"PRIVATE KEY" in value.read_bytes()):
            raise ValueError(f"{value} is no private SSH key")
        return value

    @model_validator(mode="after")
    def _opens(self) -> Self:
        if not (self.password or self.key):
            raise ValueError("needs a password or a key")
        if self.type == "winrm" and (self.key is not None or self.become == "sudo"):
            raise ValueError("WinRM knows neither keys nor sudo: give a password")
        return self


class Common(Options):
    """The options that stand beside the name of every output."""

    name: Annotated[str, Field(description="What to call it in the plan and in logs.")] = ""
    when: Annotated[bool, Field(description="Leave it out when false.")] = True


class CheckOptions(Common):
    """The options that stand beside the name of every check."""

    retries: Annotated[int, Field(ge=0, le=20, description="How often to try again when it fails.")] = 0


class StepOptions(CheckOptions):
    """The options that stand beside the name of every step."""

    timeout: Annotated[Duration | None, Field(description="How long it may take, such as 2m; an hour.")] = None
    via: Annotated[Literal["auto", "native", "guestfs", "ssh"], Field(description="How to reach the guest.")] = "auto"
    cache: Annotated[bool, Field(description="Run it in every build when false.")] = True
    expect_disconnect: Annotated[
        bool, Field(description="The connection to the running guest may end while it runs, and is made again.")
    ] = False


@dataclass(frozen=True)
class Entry(Generic[K]):
    """A step, check or output as it stands in the recipe."""

    kind: K
    options: Common
    place: Complaint
    """Where it stands: a complaint without a message."""

    @property
    def title(self) -> str:
        """Its name, or a few words that describe it."""
        return self.options.name or " ".join(filter(None, [type(self.kind).name, self.kind.describe()]))

    @property
    def step(self) -> StepOptions:
        """The options of a step."""
        return cast(StepOptions, self.options)

    @property
    def retries(self) -> int:
        """How often a step or check is tried again."""
        return cast(CheckOptions, self.options).retries


@dataclass(frozen=True)
class Recipe:
    """A recipe, rendered and checked."""

    path: Path
    name: str
    version: str
    description: str
    arch: str
    variables: Mapping[str, object]
    """Those that are no secrets."""
    secrets: Mapping[str, Mapping[str, str]]
    """Name -> where it comes from: ``{env: …}``, ``{file: …}``, ``{command: …}`` or ``{value: …}`` (given by --var)."""
    machine: Machine
    base: Base
    base_place: Complaint
    steps: tuple[Entry[Step], ...]
    checks: tuple[Entry[Check], ...]
    outputs: tuple[Entry[Output], ...]
    login: Login | None = None
    checkpoints: bool | Literal["with-secrets"] = True
    """Whether running guests' states are kept between steps; those that hold secrets only where it says so."""
    extends: tuple[Path, ...] = ()
    """The files that it extends, the nearest first."""
    axes: Mapping[str, object] = field(default_factory=dict)
    """What its matrix gives to variables, where it is a variant; its name is the variant's, then."""
