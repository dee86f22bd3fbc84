"""Answer files for YaST, Agama, Windows Setup, setup-alpine, bsdinstall and archinstall: texts, ways, checks."""

from __future__ import annotations

import gzip
import io
import json
import os
import re
import subprocess
import tarfile
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from imagesmith.answers import _json, autoyast
from imagesmith.answers._words import distance, misspelt, words
from imagesmith.answers._xml import Malformed, escaped, parse, reveal
from imagesmith.errors import BuildError
from imagesmith.host import Host
from imagesmith.interfaces import Delivery, Medium
from imagesmith.kinds import Answer, Remark, known, placeholder
from imagesmith.render import Renderer, Secret

GOLDEN = Path(__file__).parent / "golden" / "answers"
KINDS = ["agama", "alpine", "archinstall", "autoyast", "installerconfig", "unattend"]
NASTY = "a\"b'c&d<e>]]>$(x)`y`\\ {z}%\u00fc\u2019"
KEY = "ssh-ed25519 AAAA it's \"me\" & <you> $(x) \u2019"
PLAIN: dict[str, dict[str, Any]] = {
    **{kind: {"hostname": "web", "ssh_keys": ["ssh-ed25519 AAAA docs"]} for kind in KINDS},
    "unattend": {"password": "Correct-horse-1"},
}
FULL: dict[str, dict[str, Any]] = {
    **{kind: {
        "hostname": "web", "user": "ops", "password": NASTY, "ssh_keys": [KEY, "ssh-rsa BBBB two"],
        "packages": ["nginx", "rsync"], "timezone": "Europe/Vienna", "locale": "de_AT.UTF-8", "keyboard": "de",
        "mirror": "https://mirror.example/a?b=1&c='d'",
    } for kind in KINDS},
    "unattend": {
        "hostname": "web", "user": "ops", "password": NASTY, "ssh_keys": [KEY], "image": "Windows <&> \"Server\"",
        "product_key": "AAAAA-BBBBB", "firmware": "uefi", "virtio": "2k22", "openssh": True, "locale": "de-AT",
        "keyboard": "0c07:00000407", "timezone": "W. Europe Standard Time",
    },
}  # fmt: skip


def make(kind: str, folder: Path = Path(), variables: dict[str, Any] | None = None, **options: Any) -> Answer:
    renderer = Renderer(variables or {})
    context = {"folder": folder, "own_template": renderer.own, "mapped": renderer.mapped}
    return cast(Answer, known("answers")[kind].model_validate(options, context=context))


def of_file(kind: str, folder: Path, text: str, name: str = "answers.j2", **more: Any) -> Answer:
    (folder / name).write_text(text, encoding="utf-8")
    return make(kind, folder, file=name, **more)


def lint(answer: Answer) -> list[tuple[int, str]]:
    found: list[Remark] = list(answer.lint(Host()))
    return [(remark.line, remark.message) for remark in found]


def deliveries(answer: Answer) -> list[Delivery]:
    return list(answer.deliveries(Medium(Path("x.iso"))))


def files(answer: Answer) -> dict[str, bytes]:
    found = dict(deliveries(answer)[0].files)
    for name, content in list(found.items()):
        if name.endswith(".tar.gz"):
            del found[name]
            with tarfile.open(fileobj=io.BytesIO(gzip.decompress(content))) as tar:
                for member in tar:
                    stream = tar.extractfile(member) if member.isfile() else None
                    found[member.name] = stream.read() if stream else f"-> {member.linkname}".encode()
    return found


# -- texts -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [PLAIN, FULL], ids=["plain", "full"])
@pytest.mark.parametrize("kind", KINDS)
def test_our_templates_make_what_they_made(kind: str, options: dict[str, dict[str, Any]]) -> None:
    answer = make(kind, **options[kind])
    golden = GOLDEN / f"{kind}-{'plain' if options is PLAIN else 'full'}.txt"
    parts = [f"==> {name}\n{content.decode()}" for name, content in sorted(files(answer).items())]
    text = "\n".join(parts).replace("\r\n", "\n")
    if "IMAGESMITH_WRITE_GOLDEN" in os.environ:
        golden.parent.mkdir(exist_ok=True)
        golden.write_text(text, encoding="utf-8")
    assert text == golden.read_text(encoding="utf-8")
    assert lint(answer) == []


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_options_are_the_same_bytes(kind: str) -> None:
    assert deliveries(make(kind, **FULL[kind])) == deliveries(make(kind, **FULL[kind]))


@pytest.mark.parametrize("kind", KINDS)
def test_what_the_scripts_hold_counts_in_the_key(kind: str) -> None:
    plain = make(kind, **PLAIN[kind])
    other = make(kind, **{**PLAIN[kind], "ssh_keys": ["ssh-ed25519 CCCC other"]})
    assert plain.identity() == make(kind, **PLAIN[kind]).identity()
    assert plain.identity() != other.identity()


def shells(kind: str, options: dict[str, Any]) -> list[str]:
    found = {name: content.decode() for name, content in files(make(kind, **options)).items()}
    match kind:
        case "agama":
            return [script["content"] for script in json.loads(found["profile.json"])["scripts"]["post"]]
        case "autoyast":
            source = [e for e in parse(found["autoinst.xml"]).walk() if e.name == "source"]
            return [element.text for element in source]
        case "alpine":
            return [found["etc/local.d/imagesmith.start"], found["etc/imagesmith/answers"]]
        case "installerconfig":
            return [found["etc/installerconfig"]]
        case "archinstall":
            return [found["install.sh"]]
    return []


@pytest.mark.parametrize("options", [PLAIN, FULL], ids=["plain", "full"])
@pytest.mark.parametrize("kind", KINDS[:-1])
def test_scripts_are_scripts_and_nasty_keys_are_words_in_them(kind: str, options: dict[str, dict[str, Any]]) -> None:
    for script in shells(kind, options[kind]):
        subprocess.run(["bash", "-n"], input=script.encode(), check=True)
        if kind != "archinstall":  # that one is for bash: >(…)
            subprocess.run(["sh", "-n"], input=script.encode(), check=True)
        if kind == "alpine":
            subprocess.run(["busybox", "sh", "-n"], input=script.encode(), check=True)
        for line in script.splitlines():
            if "authorized_keys" in line and line.startswith("printf "):
                ran = subprocess.run(["sh", "-c", line.split(" >")[0]], stdout=subprocess.PIPE, check=True)
                assert ran.stdout.decode().splitlines() == options[kind]["ssh_keys"]


def test_nasty_values_are_text_in_xml() -> None:
    root = parse(files(make("unattend", **FULL["unattend"]))["Autounattend.xml"].decode())
    values = [element.text for element in root.walk() if element.name == "Value"]
    assert values == [FULL["unattend"]["image"], NASTY, NASTY, NASTY]
    root = parse(files(make("autoyast", **FULL["autoyast"]))["autoinst.xml"].decode())
    assert [e.text for e in root.walk() if e.name == "media_url"] == [FULL["autoyast"]["mirror"]]
    keys = next(e for e in root.walk() if e.name == "authorized_keys")
    assert [entry.text for entry in keys.children] == FULL["autoyast"]["ssh_keys"]


@pytest.mark.parametrize("kind", sorted(set(KINDS) - {"unattend"}))
def test_a_password_is_hashed_and_stands_nowhere(kind: str) -> None:
    for name, content in files(make(kind, **FULL[kind])).items():
        assert NASTY.encode() not in content, name
    assert any(b"$6$" in content for content in files(make(kind, **FULL[kind])).values())


@pytest.mark.parametrize("kind", KINDS)
def test_secrets_are_escaped_when_they_come(kind: str) -> None:
    answer = make(kind, **{**FULL[kind], "password": placeholder("pw"), "ssh_keys": [placeholder("key")]})
    assert lint(answer) == []
    assert answer.secret_names() == {"pw", "key"}
    told = answer.revealed({"pw": NASTY, "key": KEY})
    assert deliveries(told) == deliveries(make(kind, **{**FULL[kind], "ssh_keys": [KEY]}))


def test_secrets_in_files_of_ones_own_are_escaped_where_they_stand(tmp_path: Path) -> None:
    variables = {"pw": Secret("pw")}
    text = '<a b="{{ pw }}"><c>{{ pw }}</c><d><![CDATA[{{ pw }}]]></d></a>'
    (tmp_path / "u.xml").write_text(text)
    told = make("unattend", tmp_path, variables, file="u.xml").revealed({"pw": NASTY})
    root = parse(told.rendered.text)
    assert root.attributes["b"] == NASTY
    assert [child.text for child in root.children] == [NASTY, NASTY]
    (tmp_path / "a.json").write_text('{"a": "x{{ pw }}y"}')
    told = make("agama", tmp_path, variables, file="a.json").revealed({"pw": NASTY + "\n"})
    assert json.loads(told.rendered.text) == {"a": f"x{NASTY}\ny"}


def test_a_secret_that_xml_cannot_hold_is_told_before_the_installer_is_started(tmp_path: Path) -> None:
    (tmp_path / "u.xml").write_text("<a>{{ pw }}</a>")
    answer = make("unattend", tmp_path, {"pw": Secret("pw")}, file="u.xml").revealed({"pw": "a\x01b"})
    with pytest.raises(BuildError, match="no XML any more"):
        deliveries(answer)


def test_windows_wants_a_password_and_a_short_name() -> None:
    long, dotted = {"password": "x", "hostname": "a" * 16}, {"password": "x", "hostname": "a.b"}
    for options in ({}, {"password": ""}, long, dotted):
        with pytest.raises(ValidationError):
            make("unattend", **options)


# -- ways ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "ways"), [
    ("agama", [("http", "inst.auto={url}profile.json", "profile.json"), ("volume", "", "")]),
    ("alpine", [("volume", "", ""), ("initrd", "apkovl=/localhost.apkovl.tar.gz", ""),
                ("http", "apkovl={url}localhost.apkovl.tar.gz", "localhost.apkovl.tar.gz")]),
    ("archinstall", [("http", "script={url}install.sh", "user_configuration.json")]),
    ("autoyast", [("initrd", "autoyast=file:///autoinst.xml", ""),
                  ("http", "autoyast={url}autoinst.xml", "autoinst.xml"),
                  ("volume", "autoyast=label://OEMDRV/autoinst.xml", "")]),
    ("installerconfig", [("medium", "", "")]),
    ("unattend", [("volume", "", ""), ("floppy", "", "")]),
])  # fmt: skip
def test_ways_to_installers(kind: str, ways: list[tuple[str, str, str]]) -> None:
    found = deliveries(make(kind, **PLAIN[kind]))
    assert [(one.way, one.fetched) for one in found] == [(way, fetched) for way, _, fetched in ways]
    for one, (_, argument, fetched) in zip(found, ways, strict=True):
        assert not argument or argument in one.arguments
        assert not fetched or fetched in one.files
        assert (one.way in ("volume", "floppy")) == bool(one.label)


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_for_another_installer_is_told(kind: str) -> None:
    with pytest.raises(BuildError, match="does not read"):
        make(kind, **PLAIN[kind]).deliveries(Medium(Path("x.iso"), family="debian-installer"))


def test_jsonnet_goes_as_jsonnet_and_is_not_checked(tmp_path: Path) -> None:
    answer = of_file("agama", tmp_path, "{ product: { id: 'x' } }", "profile.jsonnet")
    assert lint(answer) == []
    assert [sorted(one.files) for one in deliveries(answer)] == [["profile.jsonnet"], ["autoinst.jsonnet"]]


def test_the_overlay_of_alpine_is_one_that_its_init_takes() -> None:
    (content,) = deliveries(make("alpine", **PLAIN["alpine"]))[0].files.values()
    with tarfile.open(fileobj=io.BytesIO(gzip.decompress(content))) as tar:
        modes = {member.name: (member.mode, member.uid) for member in tar}
        assert tar.getmember("etc/runlevels/default/local").linkname == "/etc/init.d/local"
    assert modes["etc/local.d/imagesmith.start"] == (0o700, 0)
    assert modes["etc/imagesmith/answers"] == (0o600, 0)
    assert "etc/.default_boot_services" in modes


def test_own_files_go_alone_to_windows_and_with_our_script_to_arch(tmp_path: Path) -> None:
    text = '<unattend xmlns="urn:schemas-microsoft-com:unattend"/>'
    assert set(files(of_file("unattend", tmp_path, text))) == {"Autounattend.xml"}
    own = files(of_file("archinstall", tmp_path, '{"hostname": "x"}', user="ops"))
    assert own["user_configuration.json"] == b'{"hostname": "x"}'
    assert b"sfdisk" not in own["install.sh"]
    assert b"sfdisk" in files(make("archinstall"))["install.sh"]


SAID = {
    "agama": [("agama-autoinstall[1]: Configuration loaded from http://10.0.2.2/x", "the answer file was read"),
              ("Skipping the auto-installation: no way", "!Agama does not install: no way")],
    "alpine": [("Installing system on /dev/vda2:", "installing to /dev/vda2"), ("No disks found.", "!finds no disk"),
               ("imagesmith: failed: there is no Alpine on /dev/vda", "!there is no Alpine on /dev/vda")],
    "archinstall": [("imagesmith: partitioning", "partitioning"), ("imagesmith: failed: x", "!x")],
    "autoyast": [(">>> openSUSE Leap 15.6 installation program v7.0.36 (c) 1996-2024 SUSE LLC <<<",
                  "starting openSUSE Leap 15.6"),
                 ("Loading Installation System (2/6) - 43%", "loading the installer (2/6)")],
    "installerconfig": [("imagesmith: installing packages", "installing packages"),
                        ("Installation Error!", "!bsdinstall says"), ("imagesmith: failed: x", "!x")],
}  # fmt: skip


@pytest.mark.parametrize("kind", SAID)
def test_signs(kind: str) -> None:
    from imagesmith.installer.signs import Reader

    reader = Reader(known("answers")[kind].signs)  # type: ignore[attr-defined]
    for line, meaning in SAID[kind]:
        trouble = reader.trouble(line)
        if meaning.startswith("!"):
            assert trouble is not None
            assert meaning[1:] in trouble.meaning
        else:
            assert trouble is None
            assert reader.phase(line) == meaning


@pytest.mark.parametrize("kind", ["alpine", "archinstall"])
def test_our_scripts_say_what_is_looked_for(kind: str) -> None:
    signs = known("answers")[kind].signs  # type: ignore[attr-defined]
    script = shells(kind, FULL[kind])[0]
    said = [f"imagesmith: {text}" for text in re.findall(r"say '([^']*)'", script)]
    assert any(re.search(signs.read, line) for line in said)
    assert any(re.search(signs.done, line) for line in said)


# -- checks ----------------------------------------------------------------------------------------------------------

UNATTEND = """\
<?xml version="1.0" encoding="utf-8"?>
<unattend xmlns="urn:schemas-microsoft-com:unattend" xmlns:wcm="http://schemas.microsoft.com/WMIConfig/2002/State">
  <settings pass="oobeSystem">
    <component name="Microsoft-Windows-Shell-Setup" processorArchitecture="amd64" publicKeyToken="31bf3856ad364e35"
        language="neutral" versionScope="nonSxS">
      <ComputerName>x</ComputerName>
      <RunSynchronousCommand wcm:action="add"><Path>x</Path></RunSynchronousCommand>
    </component>
  </settings>
  <cpi:offlineImage cpi:source="x" xmlns:cpi="urn:schemas-microsoft-com:cpi"/>
</unattend>
"""


@pytest.mark.parametrize(("old", "new", "line", "says"), [
    ("", "", 0, ""),
    ("</settings>", "", 11, "mismatched tag"),
    ("oobeSystem", "oobesystem", 3, "did you mean 'oobeSystem'?"),
    (' pass="oobeSystem"', "", 3, "must tell its pass"),
    ("Windows-Shell-Setup", "Windows-Shell-Setpu", 4, "did you mean 'Microsoft-Windows-Shell-Setup'?"),
    ("amd64", "x64", 4, "no processorArchitecture 'x64'"),
    ("31bf3856ad364e35", "31bf3856ad364e36", 4, "publicKeyToken is 31bf3856ad364e35"),
    ("<ComputerName>x</ComputerName>", "<ComputerNmae>x</ComputerNmae>", 6, "did you mean 'ComputerName'?"),
    ("versionScope", "versoinScope", 4, "did you mean 'versionScope'?"),
    ('wcm:action="add"', 'wcm:action="ad"', 7, "wcm:action is add, modify, remove"),
    ("unattend xmlns=", "unattend xmlns:x=", 2, "the outermost element"),
    ("<?xml version", "<!DOCTYPE a [<!ENTITY b 'c'>]><?xml version", 1, "declares an entity"),
    ("utf-8", "utf-16", 1, "encoding"),
    ("utf-8", "klingon", 1, "is no XML"),
])  # fmt: skip
def test_complaints_about_windows_answers(tmp_path: Path, old: str, new: str, line: int, says: str) -> None:
    found = lint(of_file("unattend", tmp_path, UNATTEND.replace(old, new)))
    if says:
        assert len(found) == 1
        assert found[0][0] == line
        assert says in found[0][1]
    else:
        assert found == []


AUTOYAST = """\
<?xml version="1.0"?>
<!DOCTYPE profile>
<profile xmlns="http://www.suse.com/1.0/yast2ns" xmlns:config="http://www.suse.com/1.0/configns">
  <software t="map">
    <packages config:type="list">
      <package>a</package>
    </packages>
    <retries config:type="integer">3</retries>
    <empty><![CDATA[]]></empty>
  </software>
  <general><mode><confirm config:type="boolean">false</confirm></mode></general>
</profile>
"""


@pytest.mark.parametrize(("old", "new", "line", "says"), [
    ("", "", 0, ""),
    ("software", "sofware", 4, "did you mean 'software'?"),
    ('"list"', '"lisst"', 5, "there is no type 'lisst'"),
    ("<package>a", "<package>a<b/>", 6, "holds both text and elements"),
    (">3<", ">three<", 8, "is an integer"),
    (">false<", ">no<", 11, "true or false, not 'no'"),
    ('<software t="map">', '<software t="map" config:type="map">', 4, "both 't' and 'config:type'"),
    ("yast2ns", "yast3ns", 3, "belongs to the namespace"),
    ("profile xmlns", "profil xmlns", 12, "mismatched tag"),
])  # fmt: skip
def test_complaints_about_autoyast(tmp_path: Path, old: str, new: str, line: int, says: str) -> None:
    found = lint(of_file("autoyast", tmp_path, AUTOYAST.replace(old, new)))
    if says:
        assert [found[0][0]] == [line]
        assert says in found[0][1]
    else:
        assert found == []


SCHEMA = """\
<grammar xmlns="http://relaxng.org/ns/structure/1.0"><start>
  <element name="profile" ns="http://www.suse.com/1.0/yast2ns"><element name="general"><text/></element></element>
</start></grammar>
"""


def test_yasts_schema_is_asked_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "profile.rng").write_text(SCHEMA)
    monkeypatch.setattr(autoyast, "_SCHEMA", tmp_path / "profile.rng")
    head = '<profile xmlns="http://www.suse.com/1.0/yast2ns">\n'
    assert lint(of_file("autoyast", tmp_path, head + "<general>x</general></profile>")) == []
    found = lint(of_file("autoyast", tmp_path, head + "<general>x</general>\n<keyboard/></profile>"))
    assert found
    assert all("profile" in message or "keyboard" in message for _, message in found)


@pytest.mark.parametrize(("kind", "text", "line", "says"), [
    ("agama", '{"product": {"id": "x"}}', 0, ""),
    ("agama", '{\n"product": {"id": "x"},\n}', 3, "is no JSON"),
    ("agama", '{\n"produkt": {"id": "x"}}', 2, "did you mean 'product'?"),
    ("agama", '{\n"user": {\n"fullName": "y", "userName": "x",\n"password": 3}}', 4, "user.password"),
    ("agama", '{"scripts": {\n"post": [\n{"name": "a"}]}}', 3, "scripts.post[0]"),
    ("agama", "[" * 100_000, 0, "is no JSON that a program would read"),
    ("archinstall", '{"disk_config": {}, "harddrives": []}', 0, ""),
    ("archinstall", '{\n"disk_config": {\n"config_type": "default"}}', 3, "disk_config.config_type"),
    ("archinstall", '{"disk_config": {\n"config_type": "pre_mounted_config"}}', 1, "needs 'mountpoint'"),
    ("archinstall", '{\n"hostnmae": "x"}', 2, "did you mean 'hostname'?"),
    ("archinstall", "[]", 1, "must be a mapping"),
    ("alpine", "KEYMAPOPTS=us\nHOSTNAMEOPS=x\n", 2, "did you mean 'HOSTNAMEOPTS'?"),
    ("alpine", "A=1\nfunction f() { :; }\nif [[ a == a ]]; then :; fi\n", 0, ""),
    ("alpine", 'A="1\n', 2, "is no shell script"),
    ("installerconfig", "PARTITIONS=a\n#!/bin/sh\nif x\n", 4, "is no shell script"),
    ("installerconfig", "if x\n#!/bin/sh\n", 2, "is no shell script"),
    ("installerconfig", "PARTITIONS=a\n#!/usr/bin/perl\nif (x) { y; }\n", 0, ""),
    ("installerconfig", "PARTITION=a\n#!/bin/sh\n", 1, "did you mean 'PARTITIONS'?"),
    ("installerconfig", "#!/bin/sh\nPARTITIONS=a\n#!/bin/sh\n", 2, "must stand before the first line with #!"),
])  # fmt: skip
def test_complaints_about_the_others(tmp_path: Path, kind: str, text: str, line: int, says: str) -> None:
    found = lint(of_file(kind, tmp_path, text))
    if says:
        assert found
        assert found[0][0] == line
        assert says in found[0][1]
    else:
        assert found == []


def test_lines_are_those_of_the_template(tmp_path: Path) -> None:
    text = "{% for n in range(3) %}\nA{{ n }}=1\n{% endfor %}\nHOSTNAMEOPS=x\n"
    assert [line for line, _ in lint(of_file("alpine", tmp_path, text))] == [4]


MORSELS = st.sampled_from([
    "<", ">", "/", "&", "]]>", "<![CDATA[", "<!ENTITY a 'b'>", "<!DOCTYPE a [", 'a="', "'", '"', "{", "}", "[", "]",
    ",", ":", "\\", "\n", "#!/bin/sh\n", "if", "fi", "$(", "`", "<<X\n", "\ue000pw\ue001", "\x00", "\ufeff", "null",
    "xmlns:c='http://www.suse.com/1.0/configns'", "\U0001f600",
])  # fmt: skip


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), kind=st.sampled_from(KINDS), pieces=st.lists(MORSELS | st.text(max_size=10), max_size=30))
def test_checking_never_crashes(tmp_path: Path, data: st.DataObject, kind: str, pieces: list[str]) -> None:
    text = "".join(pieces)
    if data.draw(st.booleans()):
        good = make(kind, **PLAIN[kind]).rendered.text
        at = data.draw(st.integers(0, len(good)))
        text = good[:at] + text + good[data.draw(st.integers(at, len(good))):]
    (tmp_path / "answers").write_text(text.replace("{{", "").replace("{%", "").replace("{#", ""), errors="ignore")
    try:
        answer = make(kind, tmp_path, file="answers")
    except ValidationError:  # what Jinja2 does not take
        return
    for remark in answer.lint(Host()):
        assert remark.message
        assert remark.line >= 0


@given(st.text(st.characters(blacklist_categories=["Cs", "Cc"])))
def test_whatever_is_escaped_is_the_same_in_xml(value: str) -> None:
    safe = "".join(c for c in value if c not in "\ufffe\uffff")
    assert parse(f'<a b="{escaped(safe)}">{escaped(safe)}</a>').text == safe
    assert parse(reveal(f"<a>{placeholder('x')}</a>", {"x": safe})).text == safe
    assert parse(reveal(f"<a><![CDATA[{placeholder('x')}]]></a>", {"x": safe})).text == safe


def test_a_document_is_refused_before_it_grows() -> None:
    for text in ('<!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/passwd">]><a>&b;</a>', "<a>" * 10_000):
        with pytest.raises(Malformed):
            parse(text)


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=5),
                    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
                    max_leaves=20), st.sampled_from([None, 2, "\t"]))  # fmt: skip
def test_every_value_of_json_has_its_line(value: Any, indent: Any) -> None:
    text = json.dumps(value, indent=indent)
    found = _json.lines(text)
    every = dict[tuple[str | int, ...], Any]()

    def collect(item: Any, place: tuple[str | int, ...]) -> None:
        every[place] = item
        pairs = item.items() if isinstance(item, dict) else enumerate(item) if isinstance(item, list) else ()
        for key, inner in pairs:
            collect(inner, (*place, key))

    collect(value, ())
    assert set(found) == set(every)
    numbered = text.split("\n")
    for place in every:
        if place and isinstance(place[-1], str):
            assert json.dumps(place[-1]) in numbered[found[place] - 1]


def test_slips_of_the_pen() -> None:
    some = words("hostname packages FirstLogonCommands")
    assert misspelt("hostnmae", some) == "hostname"
    assert misspelt("FirstLogonComands", some) == "FirstLogonCommands"
    assert [misspelt(word, some) for word in ("hostname", "host", "HOSTNAME", "something", "x" * 1000)] == [""] * 5
    assert distance("abc", "acb") == 1
    assert distance("", "abc") == 3


# -- our scripts, with programs that only pretend --------------------------------------------------------------------

PRETEND = """\
#!/bin/sh
name=${0##*/}
echo "$name $*" >>"$LOG"
case $name in
chpasswd|sfdisk) cat >>"$LOG";;
chroot) shift; case $1 in chpasswd) cat >>"$LOG";; esac;;
lsblk) printf '/dev/vda\\n/dev/vda1\\n/dev/vda2\\n/dev/vda3\\n';;
curl) while [ "$1" != -o ]; do shift; done; echo '{}' >"$2";;
arch-chroot) [ "$2" != getent ] || echo 'ops:x:1000:1000::/home/ops:/bin/bash';;
esac
case " $FAILS " in *" $name "*) exit 1;; esac
exit 0
"""
PROGRAMS = words(
    """setup-alpine mount umount chroot poweroff sync sleep blkid wipefs sfdisk udevadm mkfs.fat mkfs.ext4 curl lsblk
    systemctl archinstall arch-chroot chown"""
)


def pretended(script: str, folder: Path, shell: str, fails: str = "") -> tuple[str, list[str]]:
    """Run a script of ours with its folders moved; return what it said, and the programs that it called.

    BusyBox's shell is no shell for this: it has mount and poweroff built in.
    """
    for name in ("bin", "new/etc/sudoers.d", "new/etc/ssh", "new/var/log", "new/home", "old/etc/imagesmith", "root"):
        (folder / name).mkdir(parents=True)
    for name in PROGRAMS:
        (folder / "bin" / name).write_text(PRETEND)
        (folder / "bin" / name).chmod(0o755)
    for name, text in {
        "new/etc/alpine-release": "3.22", "new/etc/os-release": "", "new/etc/passwd": "root:x:0:0::/root:/bin/sh\n"
        "ops:x:1000:1000::/home/ops:/bin/sh\n", "new/etc/inittab": "#ttyS0::respawn:getty\n", "new/etc/fstab": "",
        "old/etc/imagesmith/answers": "A=1\n", "old/etc/resolv.conf": "nameserver 10.0.2.3\n", "console": "",
        "cmdline": "archisobasedir=arch script=http://10.0.2.2:80/xyz/install.sh console=ttyS0\n",
    }.items():  # fmt: skip
        (folder / name).write_text(text)
    for old, new in {"/mnt": "new", "/dev/console": "console", "/dev/ttyS0": "console", "/proc/cmdline": "cmdline",
                     "/tmp/imagesmith": "tmp", "/root/imagesmith": "root/here"}.items():  # fmt: skip
        script = script.replace(old, f"{folder}/{new}")
    script = re.sub(r"(?<=[ \t])/etc/(?=imagesmith|local\.d|runlevels|resolv)", f"{folder}/old/etc/", script)
    script = script.replace('[ -b "$disk" ]', "true")
    log = folder / "log"
    env = {"PATH": f"{folder}/bin:/usr/bin:/bin:/usr/sbin", "LOG": str(log), "FAILS": fails}
    ran = subprocess.run([shell, "-c", script], cwd=folder, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                         timeout=60, check=False)  # fmt: skip
    return ran.stdout.decode() + (folder / "console").read_text(), log.read_text().splitlines()


def test_the_script_for_alpine(tmp_path: Path) -> None:
    script = shells("alpine", FULL["alpine"])[0]
    said, called = pretended(script, tmp_path, "sh")
    assert re.findall(r"imagesmith: (.*)", said) == [
        "the answers are there", "setting up the new system", "the installation is complete"
    ]  # fmt: skip
    assert called[-1] == "poweroff "
    assert f"setup-alpine -e -f {tmp_path}/tmp/answers" in called
    assert any(re.match(r"ops:\$6\$", line) for line in called)
    assert "root:*" in called
    assert (tmp_path / "new/home/ops/.ssh/authorized_keys").read_text().splitlines() == FULL["alpine"]["ssh_keys"]
    assert (tmp_path / "new/etc/inittab").read_text() == "ttyS0::respawn:getty\n"
    assert not (tmp_path / "old/etc/imagesmith").exists()


@pytest.mark.parametrize(("fails", "says"), [
    ("setup-alpine", "setup-alpine did not end well"), ("chroot", "the new system could not be set up")
])  # fmt: skip
def test_the_script_for_alpine_tells_and_ends_when_it_cannot(tmp_path: Path, fails: str, says: str) -> None:
    said, called = pretended(shells("alpine", FULL["alpine"])[0], tmp_path, "sh", fails)
    assert f"imagesmith: failed: {says}" in said
    assert "complete" not in said
    assert called[-1] == "poweroff "


def test_the_script_for_arch(tmp_path: Path) -> None:
    said, called = pretended(shells("archinstall", FULL["archinstall"])[0], tmp_path, "bash")
    told = re.findall(r"imagesmith: (.*)", said)
    assert told[-1] == "the installation is complete"
    assert "partitioning" in told
    assert called[-1] == "poweroff "
    fetched = [line.split()[-1] for line in called if line.startswith("curl ")]
    assert fetched == [f"http://10.0.2.2:80/xyz/user_{name}.json" for name in ("configuration", "credentials")]
    assert "mkfs.ext4 -qF /dev/vda3" in called
    keys = (tmp_path / "new/home/ops/.ssh/authorized_keys").read_text()
    assert keys.splitlines() == FULL["archinstall"]["ssh_keys"]


@pytest.mark.parametrize(("fails", "says"), [
    ("curl", "user_configuration.json cannot be fetched"), ("sfdisk", "partitioning"),
    ("mkfs.ext4", "making file systems"), ("archinstall", "archinstall did not end well"),
    ("arch-chroot", "the new system could not be set up"),
])  # fmt: skip
def test_the_script_for_arch_tells_and_ends_when_it_cannot(tmp_path: Path, fails: str, says: str) -> None:
    said, called = pretended(shells("archinstall", FULL["archinstall"])[0], tmp_path, "bash", fails)
    assert f"imagesmith: failed: {says}" in said
    assert "complete" not in said
    assert "poweroff " in called
