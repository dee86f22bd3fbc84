"""The shell functions with which the libguestfs appliance serves the steps of a session.

On an emulated processor, a step's cost is programs that are started in the appliance, and requests to it. So these
functions are put there once and each step calls three of them: ``begin``, ``start``, ``end``. What is mounted in the
guest stays mounted from step to step. The guest's own file systems rest read-only between two steps, which leaves on
the disk what unmounting them would: all that was written, and nothing in a journal.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence

from imagesmith.drivers.appliance import Appliance, decode

CHUNK = 1 << 20
"""Bytes of output fetched at once; one answer of the appliance holds 4 MiB at most (libguestfs, "PROTOCOL LIMITS")."""
ASIDE = "/run/.imagesmith"
"""In the guest: where a program's input and the script that starts it wait for it."""
_HERE = "/imagesmith"

_INSTALL = f"""
mkdir -p {_HERE}; mount -t tmpfs -o mode=0700 tmpfs {_HERE} && cd {_HERE} || exit
mkfifo bell; : >made; : >resting; printf '#!/bin/sh\\nexit 101\\n' >policy
if [ -s /etc/resolv.conf ]; then cat /etc/resolv.conf; else echo; fi >resolver
cat >tools <<'END OF TOOLS'
"""

# For any POSIX shell.
_TOOLS = f"""
cd {_HERE}

# What is mounted in the guest, a line each, as in /proc/mounts.
points() {{
  while read -r device point rest; do
    case $point in /sysroot/*) echo "$point";; esac
  done </proc/mounts
}}

is_there() {{ while read -r point; do [ "$point" != "$1" ] || return 0; done <there; return 1; }}

# begin RESOLVER POLICY: let the guest be written to, and lend it what programs expect of a running system.
# Both are paths below /sysroot; empty: the guest gets none.
begin() {{
  while read -r point; do mount -o remount,rw "$point" || return; done <resting
  : >resting
  points >there
  for name in proc sys dev run; do
    place=/sysroot/$name
    if [ -L $place ] || is_there $place; then continue; fi
    if [ ! -d $place ]; then mkdir $place && echo $place >>made || continue; fi
    case $name in
      proc) mount -t proc proc $place;;
      sys) mount -t sysfs -o ro sysfs $place;;
      dev) mount --bind /dev $place; [ ! -d $place/pts ] || mount --bind /dev/pts $place/pts;;
      run) mount -t tmpfs -o mode=0755,nosuid,nodev tmpfs $place;;
    esac
  done
  points >there
  if is_there /sysroot/run; then
    [ -d /sysroot/run/lock ] || mkdir -m 1777 /sysroot/run/lock
    case $1 in /sysroot/run/*) mkdir -p "${{1%/*}}";; esac
  fi
  lend resolver "$1"
  lend policy "$2" && chmod 0755 "$2"
  :
}}

# lend NAME PATH: a root that is full, or has no such folder, does without.
lend() {{
  : >$1.path
  : >$1.before
  had=yes
  [ "$2" ] && [ -d "${{2%/*}}" ] && [ ! -L "$2" ] || return
  if [ ! -e "$2" ]; then had=no
  elif [ ! -f "$2" ]; then return 1
  elif [ -s "$2" ]; then cat "$2" >$1.before || return
  fi
  if ! cat $1 >"$2"; then give_back $1 "$2"; return 1; fi
  case $2 in /sysroot/run/*) if is_there /sysroot/run; then return; fi;; esac  # it goes by itself
  printf '%s\\n' "$2" $had >$1.path
}}

# give_back NAME PATH: what was there before.
give_back() {{ if [ $had = yes ]; then cat $1.before >"$2"; else rm -f "$2"; fi; }}

# take_back NAME: what was lent; what the step made of it stays.
take_back() {{
  [ -s $1.path ] || return 0
  {{ IFS= read -r path; read -r had; }} <$1.path
  if [ -L "$path" ] || [ ! -f "$path" ]; then return 0; fi
  if cmp -s $1 "$path"; then
    give_back $1 "$path"
  elif size=$(wc -c <$1) && head -c $size "$path" | cmp -s $1 -; then  # the step added to it
    tail -c +$((size + 1)) "$path" >>$1.before
    cat $1.before >"$path"
  fi
}}

# kill_all: of the programs whose root is the guest's, or a folder of it.
kill_all() {{
  for turn in 1 2 3 4 5; do
    left=
    for root in $(find /proc/[0-9]*/root -maxdepth 0 -lname '/sysroot*'); do
      root=${{root#/proc/}}
      left="$left ${{root%/root}}"
    done
    [ "$left" ] || return 0
    kill -9 $left 2>/dev/null
    sleep 0.1
  done
}}

# end POINT...: end what the step left running, take back what was lent, and let the guest's own file systems rest,
# which are mounted there. Says so; says nothing where they must be unmounted: because the step mounted something, or
# writes somewhere still, or the guest was without a folder that was mounted upon.
end() {{
  kill_all
  take_back resolver
  take_back policy
  points >now
  if cmp -s there now && [ ! -s made ]; then
    if is_there /sysroot/run; then find /sysroot/run -xdev -mindepth 1 ! -path /sysroot/run/lock -delete; fi
    all=yes
    for point; do if mount -o remount,ro "$point"; then echo "$point" >>resting; else all=no; fi; done
    sync
    if [ $all = yes ]; then echo rests; return; fi
  fi
  : >resting
  tac now | while read -r point; do umount "$(printf %b "$point")"; done
  while read -r place; do rmdir $place; done <made
  : >made
}}

# Start the program whose script waits in the guest.
start() {{
  : >output
  : >status
  setsid env -i /bin/sh /sysroot{ASIDE}/script </dev/null >/dev/null 2>&1 &
  follow 0 1
}}

# follow BYTES SECONDS: wait so long at most for the program's end. Tell its exit status, or nothing, and then what it
# wrote after the first BYTES.
follow() {{
  exec 3<>bell
  if [ $2 != 0 ] && [ ! -s status ]; then
    {{ sleep $2; echo >&3; }} >/dev/null 2>&1 &
    read -r news <&3
    kill $! 2>/dev/null
  fi
  status=
  read -r status <status
  echo "$status"
  if [ -s output ]; then tail -c +$(($1 + 1)) output | head -c {CHUNK} | base64; fi
}}
"""


class Tools:
    """The functions, in one appliance."""

    def __init__(self, appliance: Appliance) -> None:
        self._appliance = appliance
        appliance.shell(f"{_INSTALL}{_TOOLS}\nEND OF TOOLS\n")

    def begin(self, *, resolver: str, policy: str) -> None:
        """Let a step begin. The files to be lent are at these paths of the guest, or nowhere (empty)."""
        self._run("begin", *(f"/sysroot{path}" if path else "" for path in (resolver, policy)))

    def start(self) -> tuple[int | None, bytes]:
        """Start the program that waits in ``ASIDE``; as ``follow``."""
        return _told(self._run("start"))

    def follow(self, known: int, *, wait: bool) -> tuple[int | None, bytes]:
        """The exit status of the program, if it has ended, and the next bytes of its output after ``known``.

        Fewer than ``CHUNK``: that was all. With ``wait`` it takes up to a second where the program goes on.
        """
        return _told(self._run("follow", str(known), "1" if wait else "0"))

    def kill_all(self) -> None:
        """End all programs that run in the guest."""
        self._run("kill_all")

    def end(self, points: Sequence[str]) -> bool:
        """Let a step's layer be closed: nothing that was lent is in it, and it is whole.

        ``points``: where the guest's own file systems are mounted, outer ones first. False: they must be unmounted.
        """
        return self._run("end", *(f"/sysroot{point}".rstrip("/") for point in reversed(points))).strip() == "rests"

    def _run(self, *words: str) -> str:
        return self._appliance.shell(f". {_HERE}/tools; {shlex.join(words)}")


def script_of(argv: Sequence[str], env: Mapping[str, str]) -> bytes:
    """What runs a program in the guest: its environment is nowhere on a command line."""
    return "\n".join([
        f"exec </sysroot{ASIDE}/input", f"rm -rf /sysroot{ASIDE}", "umask 022", f"set -- {shlex.join(argv)}",
        "(", *(f"export {name}={shlex.quote(value)}" for name, value in sorted(env.items())),
        'exec /usr/sbin/chroot /sysroot "$@"', f") >{_HERE}/output 2>&1",
        f"echo $? >{_HERE}/status", f"exec 3<>{_HERE}/bell; echo >&3", "",
    ]).encode("utf-8", "surrogateescape")  # fmt: skip


def _told(answer: str) -> tuple[int | None, bytes]:
    status, _, output = answer.partition("\n")
    return int(status) if status else None, decode(output)
