"""Secrets written in clear: in a recipe, its scripts, templates, answer files, and in what it copies."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from imagesmith.errors import Complaint
from imagesmith.kinds import Answer, Kind, Options, Rendered, secrets_in
from imagesmith.lint_places import Places, node_place
from imagesmith.plan import Plan

_TOKENS = (
    (r"-----BEGIN (?:(?!ENCRYPTED )[A-Z0-9]+ )*PRIVATE KEY(?: BLOCK)?-----", "a private key"),
    (r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b", "an access key of AWS"),
    (r"\bgh[pousr]_[A-Za-z0-9]{36,}\b|\bgithub_pat_[A-Za-z0-9_]{60,}\b", "a token of GitHub"),
    (r"\bglpat-[A-Za-z0-9_-]{20,}", "a token of GitLab"),
    (r"\bxox[abeoprs]-[A-Za-z0-9-]{20,}", "a token of Slack"),
    (r"\bAIza[A-Za-z0-9_-]{35}\b", "an API key of Google"),
    (r"\b[rs]k_live_[A-Za-z0-9]{24,}\b", "a key of Stripe"),
    (r"\bnpm_[A-Za-z0-9]{36}\b", "a token of npm"),
    (r"\bpypi-AgEI[A-Za-z0-9_-]{50,}", "a token of a Python package index"),
    (r"\bhv[sbr]\.[A-Za-z0-9_-]{24,}", "a token of Vault"),
    (r"\bdop_v1_[a-f0-9]{64}\b", "a token of DigitalOcean"),
)
"""Shapes that nothing else has, as their makers document them."""
_TOKEN = re.compile("|".join(f"({shape})" for shape, _ in _TOKENS))
_NAMES = re.compile(r"(?:^|[_-])(?:password|passwd|passphrase|secret|token|api_?key|private_?key|access_?key)$", re.I)
"""What options and environment variables that hold a secret are called."""
_HASH = re.compile(r"\$[0-9a-z]+\$\S+$|[!*]+$|$")  # crypt(5), passwd(5): no password that somebody could type
_ANSWERS = {
    "preseed": r"^\s*\S+\s+passwd/(?:root|user)-password(?:-again)?\s+password\s+(\S.*)$|"
               r"^\s*\S+\s+(?:partman-crypto/passphrase(?:-again)?|grub-installer/password)\s+password\s+(\S.*)$",
    "kickstart": r"^\s*rootpw\s+(?:--plaintext\s+)?([^-\s].*)$|"
                 r"^\s*(?:user|bootloader|autopart|part|raid|logvol)\b(?!.*--iscrypted).*--(?:password|passphrase)=(\S+)",
    **dict.fromkeys(("autoinstall", "cloud-init"), r"^[\s-]*(?:password|passwd|plain_text_passwd)\s*:\s*([^\s#].*)$"),
    "unattend": r"<(?:Password|AdministratorPassword)>\s*<Value>([^<]+)</Value>",
}  # fmt: skip
"""Answers that are passwords themselves: Debian's installation guide, appendix B; Anaconda's kickstart documentation;
cloud-init's module Users and Groups; the Unattended Windows Setup Reference."""
_WAY_OUT = "name it as a variable, {secret: {env: NAME}}, and write {{ variable }} here"
_LARGEST, _MOST = 1 << 20, 5000


def remarks(plan: Plan, places: Places) -> tuple[list[Complaint], list[Complaint]]:
    """Complaints: private keys and tokens. Warnings: passwords that are no hash, which a test image may have."""
    files = dict.fromkeys(file for file in _files(plan, places) if file.is_file() and not file.is_symlink())
    return [found for file in list(files)[:_MOST] for found in _tokens(file)], list(_passwords(plan, places))


def _files(plan: Plan, places: Places) -> Iterator[Path]:
    """The texts that a plan is made of: recipes, and the files that their bases, steps and checks name."""
    recipes = {path: None for node in plan.spine for path in (node.recipe.path, *node.recipe.extends)}
    yield from (path for path in recipes if path.suffix in (".yaml", ".yml"))
    for node in plan.spine:
        if node.kind is not None and node_place(node) is not None:
            for path in _named(node.kind):
                yield from sorted(path.rglob("*")) if path.is_dir() else [path]
    for path in recipes:  # a template's file is known to the text of the recipe alone
        document = places.document(path)
        steps = document.at(("steps",)) if document is not None else None
        for number in range(len(steps) if isinstance(steps, list) else 0):
            source = document.at(("steps", number, "template", "from")) if document is not None else None
            if isinstance(source, str) and "{{" not in source:
                yield path.parent / source


def _named(options: Options) -> Iterator[Path]:
    """The files that options name, also within a group of them."""
    for name in type(options).model_fields:
        value = getattr(options, name)
        if isinstance(value, Path):
            yield value
        elif isinstance(value, Options):
            yield from _named(value)


def _tokens(file: Path) -> Iterator[Complaint]:
    try:
        data = file.read_bytes() if file.stat().st_size <= _LARGEST else b"\0"
    except OSError:
        return
    if b"\0" in data[:8192]:
        return
    for number, line in enumerate(data.decode("utf-8", "replace").splitlines(), 1):
        for found in _TOKEN.finditer(line):
            what = _TOKENS[(found.lastindex or 1) - 1][1]
            if "EXAMPLE" not in found[0]:
                yield Complaint(file, number, found.start() + 1, "", f"{what} in clear: {_way_out(file)}")


def _way_out(file: Path) -> str:
    if file.suffix in (".yaml", ".yml", ".j2"):
        return f"take it out, and {_WAY_OUT}"
    return "take it out, and give it as a secret: in the env of a step, or in a template ('imagesmith kinds template')"


def _passwords(plan: Plan, places: Places) -> Iterator[Complaint]:
    for node in plan.spine:
        place, kind = node_place(node), node.kind
        if place is None or kind is None:
            continue
        for option in _literals(kind):
            message = f"'{option[-1]}' is in clear; give a hash, or {_WAY_OUT}"
            yield replace(places.option(place, kind, *option), message=message)
        answers = getattr(kind, "answers", None) or getattr(kind, "seed", None)
        if isinstance(answers, Answer) and answers.file is not None:
            yield from _answered(answers, answers.rendered)
    login = plan.recipe.login
    if login is not None and _clear(login.password):
        where = Complaint(plan.recipe.path, 1, 1, "login", "")
        for document in map(places.document, (plan.recipe.path, *plan.recipe.extends)):
            if document is not None and document.at(("login", "password")) is not None:
                where = document.complaint(("login", "password"), "")
                break
        yield replace(where, message=f"'password' is in clear; {_WAY_OUT}")


def _literals(options: Options, above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Options, and variables of an ``env``, that are called like a secret and hold what is neither one nor a hash."""
    for name, field in type(options).model_fields.items():
        value, option = getattr(options, name), (*above, field.alias or name)
        if isinstance(value, Kind):
            yield from _literals(value, (*option, type(value).name))
        elif isinstance(value, Options):
            yield from _literals(value, option)
        elif isinstance(value, dict):
            yield from ((*option, key) for key, text in value.items() if _NAMES.search(key) and _clear(text))
        elif isinstance(value, str) and _NAMES.search(name) and _clear(value):
            yield option


def _answered(answers: Answer, rendered: Rendered) -> Iterator[Complaint]:
    shape = _ANSWERS.get(type(answers).name)
    for found in re.finditer(shape, rendered.text, re.M) if shape else ():
        if _clear(next(filter(None, found.groups()), "").strip(" \t\r'\"")):
            line = rendered.text.count("\n", 0, found.start(found.lastindex or 0)) + 1
            said = rendered.remark(f"a password is in clear; give a hash, or {_WAY_OUT}", line)
            yield Complaint(said.file or rendered.path, max(said.line, 1), 1, "", said.message)


def _clear(value: object) -> bool:
    return isinstance(value, str) and not secrets_in(value) and not _HASH.match(value)
