"""Results -> output/<name>/, with manifest and checksums: put there whole, or not at all."""

from __future__ import annotations

import ctypes
import json
import os
import platform
import shutil
import zlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

from imagesmith import __version__, compare, evidence, inventory, report
from imagesmith.engine_node import Outcome, maker_of, slug
from imagesmith.errors import BuildError
from imagesmith.host import Host
from imagesmith.interfaces import Artifact
from imagesmith.inventory import Inventory
from imagesmith.kinds import Options, Output, digest, file_digest
from imagesmith.plan import Plan
from imagesmith.store import Layer
from imagesmith.store_files import lock
from imagesmith.timeline import Timeline

VERSIONS = {  # program: the argument that makes it tell its version
    "qemu-img": "--version", "qemu-system-x86_64": "--version", "mmdebstrap": "--version", "mke2fs": "-V",
    "grub-mkimage": "--version", "sfdisk": "--version",
}  # fmt: skip
_RENAME_EXCHANGE, _AT_FDCWD = 2, -100  # <linux/fs.h>, <fcntl.h>


def check_target(target: Path) -> None:
    """Refuse a folder that holds what is not ours: it would be gone when the new result takes its place.

    Raises BuildError, before anything is built.
    """
    if target.parent.exists() and not target.parent.is_dir():
        raise BuildError(f"{target.parent} is no folder", hint="name another one with --output")
    if not target.exists():
        return
    if not target.is_dir():
        raise BuildError(f"{target} is there and is no folder", hint="name another folder with --output")
    foreign = sorted({path.name for path in target.iterdir()} - _ours(target))
    if foreign:
        raise BuildError(f"{target} holds what no build put there: {', '.join(foreign[:5])}",
                         hint="move it away, or name another folder with --output")  # fmt: skip


def _ours(target: Path) -> set[str]:
    own = {"failed"}
    try:
        old = json.loads((target / "manifest.json").read_text())
        own |= {file["name"] for artifact in old["artifacts"] for file in artifact["files"]}
        own |= {"manifest.json", "SHA256SUMS", "logs", inventory.FILE, report.FILE}
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return own


def publish(plan: Plan, outcome: Outcome, target: Path, host: Host, locks: Path, timeline: Timeline) -> bool:
    """Put a build's results into ``target``; return whether anything had to be done.

    ``locks`` is the folder of the store's locks: builds that publish into the same folder take turns. ``timeline`` is
    for the report.

    What is there already and belongs to the same layers stays. Otherwise a new folder is filled beside the old one
    and changes places with it (renameat2(2), RENAME_EXCHANGE): whoever looks sees the old result or the new one.
    """
    turn = lock(locks / digest(["publish", str(target.absolute())]))
    assert turn is not None
    try:
        check_target(target)
        manifest = _manifest(plan, outcome)
        if _is_there(target, manifest):
            shutil.rmtree(target / "failed", ignore_errors=True)
            return False
        _put(plan, outcome, manifest, target, host, locks.parent / "versions.json", timeline)
        return True
    finally:
        turn.release(remove=True)


def follow_up(plan: Plan, outcome: Outcome, target: Path, host: Host) -> list[str]:
    """Do what outputs have to do with artifacts that are in the output folder; return what is to be told of it."""
    told: list[str] = []
    for node in plan.outputs:
        files = [Artifact(target / str(f["name"]), str(f["sha256"])) for f in _files(outcome.layers[node.name])]
        told += cast(Output, node.kind).published(files, maker_of(node, plan.facts.epoch), host)
    return told


def _put(
    plan: Plan, outcome: Outcome, manifest: dict[str, Any], target: Path, host: Host, versions: Path,
    timeline: Timeline,
) -> None:  # fmt: skip
    for stale in target.parent.glob(f".{target.name}.new-*"):
        shutil.rmtree(stale, ignore_errors=True)
    staging = target.parent / f".{target.name}.new-{os.getpid()}"
    try:
        staging.mkdir(parents=True)
        sums = []
        for layer in _artifacts(plan, outcome):
            for file in _files(layer):
                source = layer.folder / "files" / str(file["name"])
                host.run(["cp", "--reflink=auto", "--sparse=auto", "--no-preserve=all", source, staging],
                         purpose="put the artifacts into the output folder")  # fmt: skip
                sums.append(f"{file['sha256']}  {file['name']}\n")
        (staging / "SHA256SUMS").write_text("".join(sorted(set(sums), key=lambda line: line.split("  ")[1])))
        _logs(plan, outcome, staging / "logs")
        libraries = {"zlib": zlib.ZLIB_RUNTIME_VERSION, "zstandard": version("zstandard")}
        manifest["host"] = {"imagesmith": __version__, "system": platform.platform(), "libraries": libraries,
                            "tools": _versions(host, versions)}  # fmt: skip
        _report(plan, outcome, manifest, target, staging, timeline)
        (staging / "manifest.json").write_text(json.dumps(manifest, indent=2, sort_keys=True) + "\n")
        _exchange(staging, target)
    except OSError as error:
        raise BuildError(f"cannot write {target}: {error.strerror}") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _report(
    plan: Plan, outcome: Outcome, manifest: Mapping[str, Any], target: Path, staging: Path, timeline: Timeline
) -> None:  # fmt: skip
    found = Inventory()
    if plan.inventory is not None:
        shutil.copyfile(outcome.layers[plan.inventory.name].folder / inventory.FILE, staging / inventory.FILE)
        found = inventory.read(staging / inventory.FILE)
    before = None
    with suppress(OSError, ValueError, BuildError):  # there is none, or none that can be compared
        old = json.loads((target / "manifest.json").read_text())
        known = inventory.read(target / inventory.FILE)
        when = (target / "manifest.json").stat().st_mtime
        before = report.Before(old, compare.difference(known, found), when)
    logs = [(node.name, (layer.folder / "log").read_text("utf-8", "replace")) for node in plan.nodes
            if (layer := outcome.layers.get(node.name)) is not None and (layer.folder / "log").is_file()]  # fmt: skip
    guests = [guest for node in plan.checks for guest in evidence.guests(outcome.layers[node.name].folder / "guest")]
    page = report.built(manifest, timeline, inventory=found, before=before, logs=logs, guests=guests)
    (staging / report.FILE).write_text(page, encoding="utf-8")


def _exchange(new: Path, old: Path) -> None:
    if not old.exists():
        new.rename(old)
        return
    libc = ctypes.CDLL(None, use_errno=True)
    done = libc.renameat2(_AT_FDCWD, os.fsencode(new), _AT_FDCWD, os.fsencode(old), _RENAME_EXCHANGE)
    if done != 0:  # a file system that cannot exchange: two renames, with a moment between them
        aside = new.with_suffix(".old")
        old.rename(aside)
        new.rename(old)
        shutil.rmtree(aside, ignore_errors=True)


def _artifacts(plan: Plan, outcome: Outcome) -> list[Layer]:
    return [outcome.layers[node.name] for node in plan.outputs]


def _files(layer: Layer) -> list[Mapping[str, Any]]:
    return cast(list[Mapping[str, Any]], layer.facts["files"])


def _is_there(target: Path, manifest: Mapping[str, Any]) -> bool:
    try:
        old = json.loads((target / "manifest.json").read_text())
        written = (target / "manifest.json").stat().st_mtime_ns
        for artifact in old["artifacts"]:
            for file in artifact["files"]:
                status = (target / file["name"]).stat()
                if status.st_size != file["size"] or status.st_mtime_ns > written:
                    return False
        own = ("SHA256SUMS", inventory.FILE, report.FILE)
        whole = all((target / name).is_file() for name in own) and (target / "logs").is_dir()
        asked = [[check["check"], check["firmware"]] for check in old["checks"]]
    except (OSError, ValueError, KeyError, TypeError):
        return False
    same = all(old.get(key) == manifest[key] for key in ("recipe", "version", "variables", "artifacts"))
    return whole and same and asked == [[check["check"], check["firmware"]] for check in manifest["checks"]]


def _manifest(plan: Plan, outcome: Outcome) -> dict[str, Any]:
    recipe = plan.recipe
    nodes = [
        {
            "name": node.name, "key": node.key, "verb": node.verb, "driver": node.driver or None,
            "seconds": outcome.layers[node.name].facts.get("seconds"), "cached": node.name not in outcome.ran,
        }
        for node in plan.nodes if node.name in outcome.layers
    ]  # fmt: skip
    artifacts = [
        {
            "format": layer.facts["format"], "main": layer.facts["main"], "key": layer.key,
            "virtual_size": layer.facts.get("virtual_size"), "files": _files(layer),
        }
        for layer in _artifacts(plan, outcome)
    ]  # fmt: skip
    checks = [
        {name: value for name, value in result.items() if name != "seconds"}
        for node in plan.checks
        for result in cast(list[dict[str, Any]], outcome.layers[node.name].facts["checks"])
    ]
    inputs = {node.name: sorted(_inputs(plan, node.kind)) for node in plan.nodes if node.kind is not None}
    folder = recipe.path.parent
    extends = [{"name": os.path.relpath(file, folder), "digest": file_digest(file)} for file in recipe.extends]
    return {
        "recipe": recipe.name, "version": recipe.version, "description": recipe.description, "arch": recipe.arch,
        "variables": recipe.variables, "epoch": plan.facts.epoch, "machine": recipe.machine.identity(),
        "inputs": {
            "recipe": {"name": recipe.path.name, "digest": file_digest(recipe.path)},
            **({"extends": extends} if extends else {}),
            "files": {name: files for name, files in inputs.items() if files},
            "downloads": {
                node.name: outcome.layers[node.name].facts["downloads"]
                for node in plan.spine
                if node.name in outcome.layers and outcome.layers[node.name].facts.get("downloads")
            },
        },
        "nodes": nodes, "artifacts": artifacts, "checks": checks,
    }  # fmt: skip


def _inputs(plan: Plan, value: object) -> Iterator[tuple[str, str]]:
    """The files that a kind's options name, relative to the recipe, with the digests that are in its key."""
    if isinstance(value, Path):
        yield os.path.relpath(value, plan.recipe.path.parent), file_digest(value)
    elif isinstance(value, Options):
        for _, inner in value.keyed():
            yield from _inputs(plan, inner)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _inputs(plan, item)


def _logs(plan: Plan, outcome: Outcome, folder: Path) -> None:
    folder.mkdir()
    for number, node in enumerate(plan.nodes):
        layer = outcome.layers.get(node.name)
        if layer is not None and (layer.folder / "log").exists():
            shutil.copyfile(layer.folder / "log", folder / f"{number:02}-{slug(node.name)}.log")


def _versions(host: Host, kept: Path) -> dict[str, str]:
    """What tools say of their versions; ``kept`` remembers it of programs that are still the same files."""
    found = {tool: Path(place).resolve() for tool in VERSIONS if (place := host.find(tool))}
    keys = {tool: f"{place} {(seen := place.stat()).st_size} {seen.st_mtime_ns}" for tool, place in found.items()}
    known: dict[str, str] = {}
    with suppress(OSError, ValueError, TypeError, AttributeError):
        known = {str(key): str(value) for key, value in json.loads(kept.read_bytes()).items()}
    asked = [tool for tool, key in keys.items() if key not in known]
    if asked:
        with ThreadPoolExecutor() as pool:
            known |= dict(zip([keys[tool] for tool in asked], pool.map(partial(_version, host), asked), strict=True))
        new = kept.with_suffix(f".{os.getpid()}")
        with suppress(OSError):  # it is asked again, then
            new.write_text(json.dumps({key: known[key] for key in keys.values()}, indent=0))
            new.replace(kept)
    return {tool: known[key] for tool, key in keys.items()}


def _version(host: Host, tool: str) -> str:
    done = host.run([tool, VERSIONS[tool]], purpose="tell its version", ok=range(256))
    lines = (done.stdout or done.stderr).decode("utf-8", "replace").splitlines()
    return lines[0].strip() if lines else ""


def table(plan: Plan, outcome: Outcome, target: Path) -> Sequence[tuple[Path, str, int, str, str, float]]:
    """For each artifact: file, format, size, sha256, how it was proven, and the seconds it took to make."""
    proof = ", ".join(
        f"{len(cast(list[object], outcome.layers[node.name].facts['checks']))} checks under {node.firmware}"
        for node in plan.checks
    )
    rows = []
    for node in plan.outputs:
        layer = outcome.layers[node.name]
        proven = proof or "not booted"
        if proof and node.below is not plan.sealed:  # made of the files, before a disk was made of them
            proven = "files of the checked disk"
        for file in _files(layer):
            seconds = cast(float, layer.facts["seconds"])
            path, format = target / file["name"], str(layer.facts["format"])
            rows.append((path, format, int(file["size"]), str(file["sha256"]), proven, seconds))
    return rows
