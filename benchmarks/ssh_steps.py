"""What a step over SSH adds to the time of its command: opening and closing its layer, the store, the request.

The command's own time is what it takes over the same connection, without imagesmith, in the same guest and build.
"""

from __future__ import annotations

import uuid
from pathlib import Path
from statistics import median

from benchmarks._site import Build, Site
from benchmarks._table import Row, seconds

TARGET = 0.5
STEPS = 6
COMMAND = "sleep 1"
_RECIPE = f"""variables: {{word: first}}
steps:
  - {{shell: "true # {{{{ word }}}}", via: ssh}}
  - bare: {COMMAND}
""" + "".join(f'  - {{name: step {number}, shell: "{COMMAND}  # {number}", via: ssh}}\n' for number in range(STEPS))
_HERE = str(Path(__file__).parent.parent)
_COMMAND = (f"import sys; sys.path.insert(0, {_HERE!r}); import benchmarks._bare; "
            "from imagesmith.cli import main; main()")  # fmt: skip


def run(site: Site) -> list[Row]:
    """Build once; the first step boots the guest and is not counted."""
    recipe = site.recipe("ssh-steps", _RECIPE)
    rows = []
    for words, options in (("", ["--no-checkpoints"]), (", with a checkpoint of the guest", [])):
        site.say(f"steps over SSH{words}")
        build = _build(site, recipe, *options)
        bare = [float(str(event["line"]).split()[1]) for event in build.events
                if event["event"] == "node-log" and str(event["line"]).startswith("bare ")]  # fmt: skip
        over = [taken - median(bare) for name, taken in build.nodes.items() if " step " in f" {name}"]
        site.say(f"steps over SSH{words}: bare {bare}; over {[round(one, 3) for one in over]}")
        target = not words
        rows.append(Row(f"a step over SSH, over its command's own time{words} ({len(over)} steps)", seconds(over),
                        target=f"<= {TARGET:g} s" if target else "-",
                        reached=median(over) <= TARGET if target else None))  # fmt: skip
    return rows


def _build(site: Site, recipe: Path, *options: str) -> Build:
    """As Site.build, with a step kind of our own."""
    return site.build(recipe, "--no-checks", "--var", f"word={uuid.uuid4()}", *options, command=_COMMAND)
