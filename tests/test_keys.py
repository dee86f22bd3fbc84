"""Typing: Packer's notation, QEMU's names of keys, and a real guest that is typed into."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagesmith.errors import BuildError, TimedOut
from imagesmith.host import Host
from imagesmith.installer import screen
from imagesmith.installer.typist import type_keys
from imagesmith.keys import KEYS, SPECIAL, Action, Hold, Press, Wait, WaitFor, parse
from imagesmith.machine.arguments import MachineSpec
from imagesmith.machine.qemu import Machine
from tests import isos

HOST = Host()


@pytest.mark.parametrize(("text", "actions"), [
    ("<esc><wait>", [Press(("esc",)), Wait(1)]),
    ("<wait5><wait10s><wait1m10s><wait500ms><wait1.5s>", [Wait(5), Wait(10), Wait(70), Wait(0.5), Wait(1.5)]),
    ("aA<f12><LEFTCTRLON>c<leftCtrlOff>", [Press(("a",)), Press(("shift", "a")), Press(("f12",)),
                                           Hold(("ctrl",), True), Press(("c",)), Hold(("ctrl",), False)]),
    ("<aOn><aOff><Aon>", [Hold(("a",), True), Hold(("a",), False), Hold(("shift", "a"), True)]),
    ("<return><pageUp><bs><spacebar>", [Press(("ret",)), Press(("pgup",)), Press(("backspace",)), Press(("spc",))]),
    ("a < b", [Press(("a",)), Press(("spc",)), Press(("shift", "comma")), Press(("spc",)), Press(("b",))]),
    ('<waitFor "boot:" 60s><waitFor "say \\"hi\\" > x" 1m30s><WAITFOR "x">',
     [WaitFor("boot:", 60), WaitFor('say "hi" > x', 90), WaitFor("x", 60)]),
])  # fmt: skip
def test_packers_notation_means_what_it_means_there(text: str, actions: list[Action]) -> None:
    assert parse([text]) == actions


@pytest.mark.parametrize(("parts", "message"), [
    (["<esc>", "ab<entr>"], "boot_command, part 2, character 3: there is no key <entr>; did you mean 'enter'?"),
    (["<leftControlOn>"], "character 1: there is no key <leftControlOn>"),
    (["<waitt>"], "did you mean 'wait'?"), (["<wait5x>"], "there is no key <wait5x>"),
    (["grüße"], "character 3: 'ü' is on no key of a US keyboard"),
    (["<waitFor boot: 60s>"], "is not <waitFor"), (["<waitFor>"], "is not <waitFor"),
    (['<waitFor " ">'], "waits for nothing"),
])  # fmt: skip
def test_a_mistake_is_told_with_its_place(parts: list[str], message: str) -> None:
    with pytest.raises(BuildError) as caught:
        parse(parts)
    assert message in caught.value.message


TYPED = st.text(st.sampled_from(sorted(set(KEYS) - set("<>"))))


@given(TYPED)
def test_every_character_is_one_key_and_its_shift(text: str) -> None:
    actions = parse([text])
    assert [action.keys for action in actions if isinstance(action, Press)] == [KEYS[one] for one in text]
    assert len(actions) == len(text)


@given(st.lists(st.one_of(TYPED, st.sampled_from([f"<{name}>" for name in SPECIAL]), st.integers(0, 999).map(
    lambda seconds: f"<wait{seconds}>"))))  # fmt: skip
def test_parts_are_typed_one_after_the_other(parts: list[str]) -> None:
    assert parse(parts) == parse(["".join(parts)]) == [action for part in parts for action in parse([part])]


@given(st.text())
def test_anything_is_typed_or_refused(text: str) -> None:
    try:
        parse([text])
    except BuildError as error:
        assert "boot_command, part 1, character " in error.message  # noqa: PT017 (most texts are no mistake)


def test_qemu_knows_all_the_names(typed: Callable[[], Machine]) -> None:
    names = {key for keys in KEYS.values() for key in keys} | set(SPECIAL.values())
    machine = typed()
    known = {value for entry in machine.qmp.execute("query-qmp-schema") for value in entry.get("values", ())}
    assert names <= known


# -- the screen ------------------------------------------------------------------------------------------------------


def picture(text: str, cell: int, border: int = 0) -> bytes:
    """A PPM of a screen in the video BIOS' font."""
    glyphs = {character: glyph for glyph, character in screen.font(ROM.read_bytes()).items()}
    lines = text.split("\n")
    width = 720 if cell == 9 else 640
    height = 16 * len(lines) + 2 * border
    pixels = bytearray(b"\x10\x20\x30" * width * height)
    for row, line in enumerate(lines):
        for column, character in enumerate(line):
            for y, bits in enumerate(glyphs[character]):
                for x in range(8):
                    if bits & (128 >> x):
                        at = ((border + row * 16 + y) * width + border + column * cell + x) * 3
                        pixels[at : at + 3] = b"\xff\xff\xff"
    return b"P6\n%d %d\n255\n" % (width, height) + pixels


ROM = next(folder / "vgabios-stdvga.bin" for folder in map(Path, (
    "/usr/share/seabios", "/usr/share/qemu", "/usr/share/seavgabios")) if (folder / "vgabios-stdvga.bin").exists()
)  # fmt: skip


@pytest.mark.parametrize(("cell", "border"), [(9, 0), (8, 0), (8, 8)])
def test_the_screen_is_read(cell: int, border: int) -> None:
    text = "Welcome to the installer! <F1>\n0123456789 {[(~)]} \"quoted\" `a` \\|/ ^_=+-*&%$#@;:'?\nABCxyz"
    assert screen.read(picture(text, cell, border), screen.font(ROM.read_bytes())) == text


@given(st.binary(max_size=200))
def test_what_is_no_picture_has_no_text(content: bytes) -> None:
    assert screen.read(content, {}) == ""
    assert screen.read(b"P6\n99 99\n255\n" + content, {}) == ""
    assert screen.font(content) == {}


# -- a real guest ----------------------------------------------------------------------------------------------------

MENU = b"""default vesamenu.c32
timeout 0
menu title A menu for the eyes
label other
  menu label ^Something else
  kernel none
label live
  menu label ^Live
  kernel /live/vmlinuz
  append initrd=/live/initrd.img
"""
SYMBOLS = "!@#$%^&*()_+{}|:<>?~-=[];',./`" + "\\aZ09"


@pytest.fixture(scope="module")
def typed(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Machine]:
    """One guest for all of these tests: it shows a menu in graphics, which no serial console sees."""
    folder = tmp_path_factory.mktemp("typed")
    kernel, initrd = isos.real(folder)
    tree = {"isolinux/isolinux.cfg": MENU, "live/vmlinuz": kernel, "live/initrd.img": initrd}
    iso = isos.isolinux_hybrid(folder / "menu.iso", tree, "MENU")
    spec = MachineSpec(cpu="Nehalem,-cx16", network=False, cdroms=(iso,))
    with Machine(HOST, spec, folder / "console.log") as machine:
        yield lambda: machine


def test_keys_reach_a_boot_loader(typed: Callable[[], Machine]) -> None:
    machine, said = typed(), []
    commands = ['<waitFor "A menu for the eyes" 120s>', "<down><wait500ms>", "<esc>", '<waitFor "boot:" 60s>']
    type_keys(machine, parse(commands), said.append)
    with pytest.raises(TimedOut, match=r"did not show 'no such thing' within 2 s; its screen shows:\n(.|\n)*boot:"):
        type_keys(machine, parse(['<waitFor "no such thing" 2s>']), said.append)
    secret = f"t={SYMBOLS.replace('<', '<leftShiftOn>,<leftShiftOff>')}"
    type_keys(machine, parse([f"live console=ttyS0 no_timer_check {secret}<enter>"]), said.append)
    found = machine.watch(lambda: isos.STARTED.search(machine.console.text), within=120, doing="start")
    assert f"t={SYMBOLS}" in found[1].split()
    assert "is on the screen after" in said[0]
    assert SYMBOLS[:5] not in "".join(said)
