"""Recipe -> Plan: the nodes, what they depend on, and the keys that name their results. Pure: touches nothing.

A node's key is the SHA-256 of its verb, its kind and the kind's version, every keyed option (files by their
contents), and the key of the node below. So a change anywhere gives new keys to all that follows it, and only to that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from imagesmith.errors import BuildError, Complaint, RecipeError, nearest
from imagesmith.kinds import Booting, Check, DiskOutput, Kind, Output, Step, digest, secrets_in
from imagesmith.recipe import Entry, Recipe, StepOptions

DEFAULT_DISK = 4 << 30
DEFAULT_EPOCH = 1704067200
"""2024-01-01T00:00:00Z: the time that what a build makes is given, where SOURCE_DATE_EPOCH says nothing else."""
ONLINE = ("ssh", "winrm")
"""The drivers whose guest is running."""
ASSEMBLE_VERSION = 2
INVENTORY_VERSION = 2
VERSION, EPOCH = "kind's version", "SOURCE_DATE_EPOCH"
"""Names in a node's ``world``."""


@dataclass(frozen=True)
class Facts:
    """What planning must know of the world."""

    root: bool
    """Whether we are the superuser, who may mount disks."""
    epoch: int = DEFAULT_EPOCH


@dataclass(frozen=True, eq=False)
class Node:
    """A unit of work."""

    name: str
    verb: str
    """``base``, ``step``, ``assemble``, ``output``, ``check`` or ``inventory``."""
    gives: str
    """``tree``, ``disk``, ``files`` (an artifact) or ``record`` (results of checks, an inventory)."""
    key: str
    recipe: Recipe
    below: Node | None = None
    kind: Kind | None = None
    entry: Entry[Step] | None = None
    driver: str = ""
    why_driver: str = ""
    options: Mapping[str, object] = field(default_factory=dict)
    """What went into the key, for telling what changed."""
    world: Mapping[str, object] = field(default_factory=dict)
    """What went into the key beside options and the node below, by a name for each, for the same purpose."""
    trusted: bool = False
    """Whether the host's kernel may mount the result's file systems."""
    firmware: str = ""
    disk_size: int = 0
    number: int = 0
    """A step's place in its recipe, from 1."""

    @property
    def full_name(self) -> str:
        """Its name with the recipe's before it: what its layer is called in the store."""
        return self.name if self.name.startswith(f"{self.recipe.name}: ") else f"{self.recipe.name}: {self.name}"

    @property
    def place_in_recipe(self) -> Complaint | None:
        """Where a base, step or output stands in its recipe; None for what is made of several things."""
        if self.entry is not None:
            return self.entry.place
        if self.verb == "output":
            return next((entry.place for entry in self.recipe.outputs if entry.kind is self.kind), None)
        return self.recipe.base_place if self.verb == "base" else None

    @property
    def place(self) -> str:
        """What stays the same when its options change: the recipe, the verb, a step's number, the kind."""
        kind = type(self.kind).name if self.kind is not None else self.firmware
        return f"{self.recipe.name} {self.verb} {self.number} {kind}"

    @property
    def resumable(self) -> bool:
        """Whether the running guest's state may be kept after this node: it holds no secret, or the recipes say so."""
        online = [below for below in self.chain if below.driver in ONLINE]
        wanted = {below.recipe.checkpoints for below in online}
        if self.driver not in ONLINE or False in wanted:
            return False
        if isinstance(self.kind, Step) and self.kind.automatic:  # cleaned up: it has no host keys to be entered with
            return False
        return wanted == {"with-secrets"} or not secrets_in([[below.kind, below.recipe.login] for below in online])

    @property
    def chain(self) -> list[Node]:
        """This node and all below it, the lowest first."""
        found: list[Node] = []
        node: Node | None = self
        while node is not None:
            found.append(node)
            node = node.below
        return found[::-1]


@dataclass(frozen=True, eq=False)
class Plan:
    """Everything that has to be there in the end. The spine is a chain; the leaves hang on it."""

    recipe: Recipe
    facts: Facts
    spine: tuple[Node, ...]
    outputs: tuple[Node, ...]
    checks: tuple[Node, ...]
    inventory: Node | None = None
    """Where outputs are wanted: what the system is made of, for the report and for comparing."""

    @property
    def nodes(self) -> Iterator[Node]:
        """All nodes, each after those that it depends on."""
        yield from self.spine
        yield from self.outputs
        yield from self.checks
        if self.inventory is not None:
            yield self.inventory

    @property
    def sealed(self) -> Node:
        """The last node of the spine."""
        return self.spine[-1]


def make_plan(
    recipe: Recipe,
    facts: Facts,
    load: Callable[[Path], Recipe],
    *,
    only: Sequence[str] = (),
    checks: bool = True,
    outputs: bool = True,
) -> Plan:
    """Plan a recipe. ``load`` reads another recipe, for bases that are one. ``only`` names outputs.

    Raises RecipeError.
    """
    chosen = _chosen(recipe, only) if outputs else []
    _check_fit(recipe, chosen)
    wanted_checks = recipe.checks if checks else ()
    spine = _spine(recipe, facts, load, ())
    names = [node.name for node in spine]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        message = f"two of the recipes below are called the same, so that '{twice[0]}' is there twice; rename one"
        raise RecipeError([replace(recipe.base_place, message=message)])
    tree = next((n for n in reversed(spine) if n.gives == "tree"), None) if _ends_as_tree(spine) else None
    needs_disk = bool(wanted_checks) or any(isinstance(e.kind, DiskOutput) for e in chosen) or not chosen
    if tree is not None and needs_disk:
        spine = [*spine, _assemble(recipe, facts, spine[-1])]
    sealed = spine[-1]
    return Plan(
        recipe, facts, tuple(spine),
        tuple(_output(recipe, facts, e, sealed if isinstance(e.kind, DiskOutput) else tree or sealed) for e in chosen),
        tuple(_check(recipe, sealed, wanted_checks, fw) for fw in recipe.machine.firmware) if wanted_checks else (),
        _inventory(recipe, sealed) if outputs else None,
    )  # fmt: skip


def _ends_as_tree(spine: Sequence[Node]) -> bool:
    return spine[-1].gives == "tree"


def _chosen(recipe: Recipe, only: Sequence[str]) -> list[Entry[Output]]:
    labels = {entry.kind.label: entry for entry in recipe.outputs}
    names = {type(entry.kind).name for entry in recipe.outputs}
    for word in only:
        if word not in labels and word not in names:
            message = f"--only {word}: the recipe has no such output{nearest(word, [*labels, *names])}"
            raise RecipeError([Complaint(recipe.path, 1, 1, "outputs", message)])
    return [
        entry for label, entry in labels.items() if not only or label in only or type(entry.kind).name in only
    ]  # fmt: skip


def _check_fit(recipe: Recipe, chosen: Sequence[Entry[Output]]) -> None:
    """Refuse outputs that the guest cannot run on, as far as that is known before there is a disk."""
    complaints = []
    for entry in chosen:
        try:
            entry.kind.fit(recipe.arch, ("uefi",) if recipe.arch == "aarch64" else ())
        except BuildError as error:
            message = error.message + (f"; {error.hint}" if error.hint else "")
            complaints.append(replace(entry.place, message=message))
    if complaints:
        raise RecipeError(complaints)


# -- the spine ---------------------------------------------------------------------------------------------------


def _spine(recipe: Recipe, facts: Facts, load: Callable[[Path], Recipe], above: tuple[Path, ...]) -> list[Node]:
    """The chain from the base to the last step."""
    here = recipe.path.resolve()
    nodes = _base(recipe, facts, load, (*above, here))
    prefix = f"{recipe.name}: " if above else ""
    complaints: list[Complaint] = []
    for number, entry in enumerate(recipe.steps, 1):
        driver, why, wrong = _driver(entry, nodes[-1], facts, recipe)
        if wrong:
            place = entry.place
            complaints.append(Complaint(place.file, place.line, place.column, place.path, wrong))
            continue
        if nodes[-1].gives == "tree" and driver != "native":
            nodes.append(_assemble(recipe, facts, nodes[-1], prefix))
            driver, why, _ = _driver(entry, nodes[-1], facts, recipe)
        if driver == "ssh" and not _runs(nodes[-1], recipe):
            nodes.append(_boot(recipe, facts, nodes[-1], entry, prefix))
        below, kind = nodes[-1], entry.kind
        options = _identity(kind, entry.place)
        mode = "online" if driver in ONLINE else "offline"
        nodes.append(Node(
            name=f"{prefix}{number} {entry.title}", verb="step", number=number, gives=below.gives, recipe=recipe,
            below=below, kind=kind, entry=entry, driver=driver, why_driver=why, options=options, trusted=below.trusted,
            world={VERSION: type(kind).version, "mode": mode, EPOCH: facts.epoch},
            key=digest(["step", type(kind).name, type(kind).version, options, mode, facts.epoch, below.key]),
        ))  # fmt: skip
    if complaints:
        raise RecipeError(complaints)
    return nodes


def _base(recipe: Recipe, facts: Facts, load: Callable[[Path], Recipe], above: tuple[Path, ...]) -> list[Node]:
    base = recipe.base
    if base.recipe is not None:
        if base.recipe.resolve() in above:
            place = recipe.base_place
            raise RecipeError([Complaint(place.file, place.line, place.column, place.path,
                                         "the recipe is its own base, by way of " + str(base.recipe))])  # fmt: skip
        other = load(base.recipe)
        for what, own, below in (("machine.disk", recipe.machine.disk, other.machine.disk or DEFAULT_DISK),
                                 ("arch", recipe.arch, other.arch)):  # fmt: skip
            if own not in (None, below):
                message = f"{what} is that of the recipe below ({below}); set it there, or leave it out here"
                raise RecipeError([replace(recipe.base_place, message=message)])
        nodes = _spine(other, facts, load, above)
        if nodes[-1].gives == "tree":
            nodes.append(_assemble(other, facts, nodes[-1], f"{other.name}: "))
        return nodes
    options = _identity(base, recipe.base_place)
    size = recipe.machine.disk or 0
    kind = type(base)
    world: dict[str, object] = {"arch": recipe.arch}
    world |= {EPOCH: facts.epoch} if base.gives == "tree" else {"machine.disk": size}
    if base.boots:
        world |= {"machine.firmware": recipe.machine.firmware[0], **_tpm(recipe)}
    return [Node(
        name=(f"{recipe.name}: " if len(above) > 1 else "") + f"base {kind.name} {base.describe()}".rstrip(),
        verb="base", gives=base.gives, recipe=recipe, kind=base, options=options, disk_size=size,
        trusted=base.trusted_origin or base.gives == "tree", world={VERSION: kind.version, **world},
        key=digest(["base", kind.name, kind.version, options, *world.values()]),
    )]  # fmt: skip


def _identity(kind: Kind, place: Complaint) -> dict[str, object]:
    """What goes into the key; a file that cannot be read is a complaint."""
    try:
        return kind.identity()
    except OSError as error:
        said = f"{error.filename}: {error.strerror}" if error.filename else str(error)
        raise RecipeError([replace(place, message=f"a file cannot be read: {said}")]) from error
    except ValueError as error:  # a template of ours that does not go with the options
        raise RecipeError([replace(place, message=str(error))]) from error


def _assemble(recipe: Recipe, facts: Facts, below: Node, prefix: str = "") -> Node:
    size = recipe.machine.disk or DEFAULT_DISK
    options: dict[str, object] = {"size": size, "arch": recipe.arch, "epoch": facts.epoch}
    if "uefi-secure" in recipe.machine.firmware:
        options["secure"] = True
    return Node(
        name=f"{prefix}assemble the disk", verb="assemble", gives="disk", recipe=recipe, below=below, options=options,
        trusted=True, disk_size=size, world={VERSION: ASSEMBLE_VERSION},
        key=digest(["assemble", ASSEMBLE_VERSION, options, below.key]),
    )  # fmt: skip


def _boot(recipe: Recipe, facts: Facts, below: Node, entry: Entry[Step], prefix: str) -> Node:
    world = {EPOCH: facts.epoch, "machine.firmware": recipe.machine.firmware[0], **_tpm(recipe)}
    again = sum(node.verb == "step" and isinstance(node.kind, Booting) for node in below.chain)
    return Node(
        name=f"{prefix}boot the guest" + (f" ({again + 1})" if again else ""), verb="step", gives=below.gives,
        recipe=recipe, below=below, kind=Booting(), entry=Entry(Booting(), StepOptions(via="ssh"), entry.place),
        driver="ssh", why_driver="steps in the running guest follow", trusted=below.trusted,
        world={VERSION: Booting.version, **world}, key=digest(["boot", Booting.version, *world.values(), below.key]),
    )  # fmt: skip


def _runs(below: Node, recipe: Recipe) -> bool:
    """Whether the guest still runs that the node below left: not that of another recipe, which has its own machine."""
    return below.driver == "ssh" and below.recipe is recipe


def _driver(entry: Entry[Step], below: Node, facts: Facts, recipe: Recipe) -> tuple[str, str, str]:
    """Choose how a step reaches the guest: the driver, why, and what is wrong."""
    driver, why, wrong = _choose(entry, below, facts, recipe)
    if not wrong and entry.step.expect_disconnect and driver != "ssh":
        return "", "", "expect_disconnect: there is no connection that could end; say `via: ssh` beside it"
    if driver == "ssh" and recipe.login is not None:
        return recipe.login.type, why, wrong
    return driver, why, wrong


def _choose(entry: Entry[Step], below: Node, facts: Facts, recipe: Recipe) -> tuple[str, str, str]:
    via, running = entry.step.via, entry.kind.needs_running
    if running and via not in {"auto", "ssh"}:
        return "", "", f"needs a running guest ({running}), which via: {via} does not give; leave `via` out"
    if running or via == "ssh":
        return "ssh", running or "the recipe says so", ""
    if below.gives == "tree":
        if via == "guestfs":
            return "guestfs", "the recipe says so", ""
        return "native", "the base is a tree" if via == "auto" else "the recipe says so", ""
    if via == "guestfs":
        return "guestfs", "the recipe says so", ""
    if via == "native":
        if not below.trusted:
            return "", "", "via: native mounts the disk with this host's kernel; say `trusted: true` at the base"
        if not facts.root:
            return "", "", "via: native on a disk needs root; leave `via` out, or run as root"
        return "native", "the recipe says so", ""
    if not below.trusted or not facts.root:
        if _runs(below, recipe):
            return "ssh", "the guest is running, and that is quicker than an appliance", ""
        why = "mounting a disk needs root" if below.trusted else "the disk is of foreign origin"
        return "guestfs", why, ""
    return "native", "the disk's origin is trusted and we are root", ""


def _tpm(recipe: Recipe) -> dict[str, object]:
    """What a TPM adds to the key of what it may change: nothing where there is none, so that older keys hold."""
    return {"machine.tpm": "tpm"} if recipe.machine.tpm else {}


# -- the leaves --------------------------------------------------------------------------------------------------


def _output(recipe: Recipe, facts: Facts, entry: Entry[Output], below: Node) -> Node:
    kind, options = entry.kind, entry.kind.identity()
    machine = recipe.machine
    maker: dict[str, object] = {
        "name": recipe.name, "version": recipe.version, "description": recipe.description, "arch": recipe.arch,
        EPOCH: facts.epoch, "machine.cpus": machine.cpus, "machine.memory": machine.memory,
        "machine.firmware": list(machine.firmware),
    }  # fmt: skip
    return Node(
        name=f"output {kind.label}", verb="output", gives="files", recipe=recipe, below=below, kind=kind,
        options=options, trusted=below.trusted, world={VERSION: type(kind).version, **maker},
        key=digest(["output", type(kind).name, type(kind).version, options, list(maker.values()), below.key]),
    )  # fmt: skip


def _check(recipe: Recipe, below: Node, checks: Sequence[Entry[Check]], firmware: str) -> Node:
    what = [[type(e.kind).name, type(e.kind).version, e.kind.identity()] for e in checks]
    machine = recipe.machine
    world = {"machine.cpus": machine.cpus, "machine.memory": machine.memory, **_tpm(recipe)}
    return Node(
        name=f"check {firmware}", verb="check", gives="record", recipe=recipe, below=below, firmware=firmware,
        options={"checks": what}, world=world, key=digest(["check", what, firmware, *world.values(), below.key]),
    )  # fmt: skip


def _inventory(recipe: Recipe, below: Node) -> Node:
    return Node(
        name="take the inventory", verb="inventory", gives="record", recipe=recipe, below=below,
        world={VERSION: INVENTORY_VERSION}, key=digest(["inventory", INVENTORY_VERSION, below.key]),
    )  # fmt: skip
