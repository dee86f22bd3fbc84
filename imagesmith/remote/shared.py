"""The shared caches of a build: where results are taken from and put to, whom they are taken of, who signs."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from imagesmith.errors import RecipeError
from imagesmith.host import Host
from imagesmith.plan import Plan
from imagesmith.remote.pull import Came, pull
from imagesmith.remote.push import Went, push
from imagesmith.remote.trust import Signer, Trust, signer, trusted
from imagesmith.remote.where import where
from imagesmith.store import Use


@dataclass(frozen=True)
class Shared:
    """Addresses and keys; an empty address means that nothing is taken, or put anywhere."""

    source: str = ""
    target: str = ""
    trust: Trust = field(default_factory=Trust)
    signer: Signer | None = None

    def pull(self, plan: Plan, use: Use, host: Host, again: Collection[str]) -> Came:
        """See remote.pull."""
        return pull(plan, use, where(self.source, lambda: host.cancelled), self.trust, host, again=again)

    def push(self, plan: Plan, use: Use, host: Host, but: Collection[str]) -> Went:
        """See remote.push."""
        assert self.signer is not None
        place = where(self.target, lambda: host.cancelled)
        return push(plan, use, place, self.signer, self.trust, host, but=but)

    def taking(self, plan: Plan, use: Use, host: Host, again: Collection[str]) -> Iterator[str]:
        """Take what there is, where a cache is named; what is to be told."""
        if self.source:
            yield from self.pull(plan, use, host, again).lines(where(self.source).shown)

    def giving(self, plan: Plan, use: Use, host: Host, but: Collection[str]) -> Iterator[str]:
        """Put there what there is, where a cache is named; what is to be told."""
        if self.target:
            yield from self.push(plan, use, host, but).lines(where(self.target).shown)


def shared(source: str, target: str, key: Path | None, trust: Path | None) -> Shared | None:
    """The shared caches that a user names; None without one. Raises RecipeError for what cannot be meant."""
    if not source and not target:
        return None
    for url in filter(None, (source, target)):
        where(url)
    if source and trust is None:
        raise RecipeError((), f"nothing would be taken from {where(source).shown}: no file lists the trusted keys",
                          hint="name it with --cache-trust or IMAGESMITH_CACHE_TRUST")  # fmt: skip
    if target and key is None:
        raise RecipeError((), f"nothing can be put into {where(target).shown}: there is no key to sign it with",
                          hint="name its file with --cache-key or IMAGESMITH_CACHE_KEY")  # fmt: skip
    if target.startswith(("http://", "https://")):
        raise RecipeError((), f"nothing can be put into {where(target).shown}: a web server can only be read",
                          hint="write to the folder or bucket that it shows")  # fmt: skip
    listed = trusted(trust) if trust is not None else Trust()
    return Shared(source, target, listed, signer(key) if key is not None and target else None)
