"""How much room the outputs of a build need, known before the first of them is begun."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from imagesmith.errors import StoreError

_LITTLE = 16 << 20
"""Bytes that an artifact has besides its data: tables, descriptors, an archive's padding."""
_GROWTH = 1.25
"""How much larger than the last one of its kind an artifact is believed to become at most."""


def needed(artifacts: Sequence[str], data: int, last: Mapping[str, int], jobs: int) -> tuple[int, int]:
    """Return the bytes that artifacts take in the end, at most, and what is needed besides while they are made.

    ``data`` is what the sealed image holds; no format makes that more. ``last``: how large the last artifact of the
    same name was, where there was one. While an artifact is written, a part of it may be there twice.
    """
    sizes = sorted(
        (min(data, int(last[name] * _GROWTH)) if name in last else data) + _LITTLE for name in artifacts
    )  # fmt: skip
    return sum(sizes), sum(sizes[::-1][: max(1, jobs)])


def check(
    artifacts: Sequence[str], data: int, last: Mapping[str, int], jobs: int, store: Path, target: Path | None,
    *, packed: int = 0,
) -> None:  # fmt: skip
    """Hold what is needed against what is free. ``target`` is the folder that artifacts are copied to in the end.

    ``packed``: bytes of temporary files, which several artifacts are made of. Raises StoreError where it is not enough.
    """
    made, besides = needed(artifacts, data, last, jobs)
    while target is not None and not target.exists():
        target = target.parent
    places = {store: made + besides}
    if target is not None:
        same = target.stat().st_dev == store.stat().st_dev
        places = {store: max(made + besides, 2 * made)} if same else {**places, target: made}
    if packed:
        aside = Path(tempfile.gettempdir())
        beside = [place for place in places if aside.stat().st_dev == place.stat().st_dev] or [aside]
        places[beside[0]] = places.get(beside[0], 0) + packed
    for place, bytes_ in places.items():
        free = os.statvfs(place).f_bavail * os.statvfs(place).f_frsize
        if free < bytes_:
            raise StoreError(
                f"{' and '.join(artifacts)} may need {_mib(bytes_)} in {place}, and {_mib(free)} are free there",
                hint="make room (imagesmith cache gc), make fewer formats at once (--only), or name another place "
                     "(--output, IMAGESMITH_CACHE)",
            )  # fmt: skip


def _mib(bytes_: int) -> str:
    return f"{bytes_ / (1 << 20):,.0f} MiB"
