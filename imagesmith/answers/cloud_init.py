"""What cloud-init reads at a cloud image's first boot."""

from __future__ import annotations

import hashlib
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, PrivateAttr

from imagesmith.answers._schema import held, line_of, read, rules
from imagesmith.answers._server import Account, Word
from imagesmith.archive import guest_file
from imagesmith.document import Document
from imagesmith.host import Host
from imagesmith.interfaces import Delivery, Medium, Signs
from imagesmith.kinds import Remark, Rendered, RenderedFile

_KINDS = (
    "#cloud-config", "#!", "#include", "#cloud-boothook", "#part-handler", "#upstart-job", "## template: jinja",
)  # fmt: skip
"""How user data may begin, in any case and after any space (cloud-init: "User-data formats")."""
_MIME = re.compile(r"(?im)^(mime-version|content-type):")
_ERRORS = re.compile(r"schema errors:\s*(.*)", re.S)
_NEXT = re.compile(r",\s+(?=[A-Za-z][\w.-]*: )|\n")
_FORMAT = re.compile(r"format-l(\d+)\.c\d+")


class CloudInit(Account, name="cloud-init", version=1):
    """User data for cloud-init, to seed a cloud image with; for ISOs whose system reads it, too (Arch).

    It reaches cloud-init on a small volume named `cidata` (its NoCloud data source), together with vendor data that
    make it switch the machine off when it is done. Your own file may be of any kind that cloud-init knows
    (`#cloud-config`, `#!`, MIME, …) and stays as it is; a `power_state` of yours counts more than ours. Whatever
    cloud-init could not do ends the build.

    Without `user`, the keys and the password are root's, and the image's own default user is not made. `hostname`
    is set only where it is given. `validate` asks cloud-init itself where it is installed.
    """

    template = "cloud-init.yaml.j2"
    signs = Signs(
        phases=(
            (r"Cloud-init v\. (\S+) running 'init-local'", r"cloud-init \1 looks for its seed"),
            (r"Cloud-init v\. \S+ running 'init'", "cloud-init: files, users, keys"),
            (r"Cloud-init v\. \S+ running 'modules:config'", "cloud-init: configuration"),
            (r"Cloud-init v\. \S+ running 'modules:final'", "cloud-init: packages and scripts"),
        ),
        fatal=(
            (r"imagesmith: cloud-init failed: (.*)", r"cloud-init could not do all of it: \1"),
            (r"\[WARNING\]: (Failed loading yaml blob.*|Failed at merging in cloud config part.*)",
             r"cloud-init cannot read the user data: \1"),
            (r"\[WARNING\]: (Unhandled non-multipart .*)", r"cloud-init does not know what the user data are: \1"),
            (r"\[WARNING\]: (Failed to run module .*|Running module \S+ .*failed)",
             r"cloud-init could not do all of it: \1"),
            (r"No instance datasource found|finished at .*Datasource DataSourceNone", "cloud-init found no seed"),
        ),
        read=r"imagesmith: the seed was read|DataSourceNoCloud",
        done=r"imagesmith: cloud-init is done|Cloud-init v\. \S+ finished at",
    )  # fmt: skip

    packages: list[Word] = Field([], description="Packages to install.")
    timezone: Word = Field("UTC", description="The time zone, such as Europe/Vienna.")
    network: Annotated[RenderedFile | None, Field(
        description="Your own `network-config` (a template); by default cloud-init asks DHCP."
    )] = None  # fmt: skip

    _named: bool = PrivateAttr(False)
    """Whether the recipe names the host."""

    def model_post_init(self, context: Any, /) -> None:
        """See Answer."""
        super().model_post_init(context)
        self._named = "hostname" in self.model_fields_set

    def deliveries(self, medium: Medium) -> Sequence[Delivery]:
        """A volume that it finds by its name; where a kernel can be told, by HTTP as well."""
        files = self._files()
        found = [Delivery("volume", files, label="cidata")]
        if medium.kernel:
            # "nocloud-net" is the word that versions before 23.3 want for a URL, and later ones take
            found.append(Delivery("http", files, arguments=("ds=nocloud-net;s={url}",), fetched="user-data"))
        return found

    def _files(self) -> dict[str, bytes]:
        data = self.rendered.text.encode()
        # another seed is another instance: what an image remembers of an earlier one is not in the way
        meta = f"instance-id: imagesmith-{hashlib.sha256(data).hexdigest()[:16]}\n"
        if self._named:
            meta += f"local-hostname: {self.hostname}\n"
        files = {"user-data": data, "meta-data": meta.encode(), "vendor-data": guest_file("vendor-data.yaml")}
        return files if self.network is None else {**files, "network-config": self.network.encode()}

    def identity(self) -> dict[str, object]:
        """See Kind: a name that is given is set, the same one by default is not."""
        return {**super().identity(), "named": self._named}

    def lint(self, host: Host) -> Sequence[Remark]:
        """What it is, and for cloud-config what cloud-init itself says, or our own schema."""
        rendered = self.rendered
        text = rendered.text.lstrip()
        first = text.lower()
        if not text or _MIME.search(text[:4096]):
            return ()
        if not first.startswith(_KINDS):
            return [rendered.remark("cloud-init tells by the first line what this is: #cloud-config, #!/bin/sh …", 1)]
        if not first.startswith("#cloud-config") or first.startswith(("#cloud-config-archive", "#cloud-config-jsonp")):
            return ()
        document = read(rendered)
        if isinstance(document, Remark):
            return [document]
        if document.value is None:
            return ()
        if not isinstance(document.value, dict):
            return [rendered.remark("must be a mapping of cloud-init's keys to values", line_of(document, ()))]
        said = _asked(rendered, document, host)
        remarks = held(rendered, document, rules("cloud-config")) if said is None else said
        return [*remarks, *self._never_ends(document)]

    def _never_ends(self, document: Document) -> list[Remark]:
        value = document.value
        vendor = value.get("vendor_data") if isinstance(value, dict) else None
        if not isinstance(vendor, dict) or vendor.get("enabled") is not False or "power_state" in value:  # type: ignore[operator]
            return []
        where = ("vendor_data", "enabled")
        message = "without vendor data nothing switches the machine off when cloud-init is done: add power_state"
        return [self.rendered.remark(f"vendor_data.enabled: {message}", line_of(document, where))]


def _asked(rendered: Rendered, document: Document, host: Host) -> list[Remark] | None:
    """What `cloud-init schema` complains about; None where it is not here or does not work."""
    program = host.find("cloud-init")
    if program is None:
        return None
    with tempfile.TemporaryDirectory(prefix="imagesmith-") as folder:
        file = Path(folder, "user-data")
        file.write_text(rendered.text, encoding="utf-8")
        done = host.run([program, "schema", "--config-file", file], purpose="check user data", ok=range(256))
    if done.status == 0:
        return []
    # its --annotate, which would tell lines, fails at flow mappings in some versions
    found = _ERRORS.search(f"{done.text}\n{done.stderr.decode('utf-8', 'replace')}")
    if found is None:
        return None
    remarks = []
    for entry in filter(None, map(str.strip, _NEXT.split(found[1]))):
        path, colon, message = entry.partition(": ")
        at = _FORMAT.fullmatch(path)
        where = tuple(int(part) if part.isdigit() else part for part in path.split("."))
        line = int(at[1]) if at else line_of(document, where)
        if colon and (at or re.fullmatch(r"[\w.-]+", path)):
            remarks.append(rendered.remark(message if at else entry, line))
    return remarks or [rendered.remark(found[1].strip()[:300])]
