#!/bin/sh
set -eu
test "$1" = --strict
echo "PermitRootLogin no" > /etc/ssh/sshd_config.d/hardened.conf
echo "$WHO" > /etc/hardened-for
