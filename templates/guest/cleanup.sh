# Leave nothing in the system that tells how, when or where it was built, or that two machines must not share.
# Run by `sh -eu`. What is not there is no error.

# Who the machine is. An empty machine-id is filled at boot (machine-id(5)).
if [ -e /etc/machine-id ] || [ -d /etc/systemd ]; then : > /etc/machine-id; fi
rm -f /var/lib/dbus/machine-id
rm -f /etc/ssh/ssh_host_*_key /etc/ssh/ssh_host_*_key.pub
rm -f /etc/iscsi/initiatorname.iscsi /etc/hostid
rm -f /etc/udev/rules.d/70-persistent-*.rules
rm -f /var/lib/NetworkManager/*.lease /var/lib/NetworkManager/secret_key /var/lib/NetworkManager/seen-bssids \
    /var/lib/NetworkManager/timestamps
rm -rf /var/lib/dhcp/* /var/lib/dhclient/* /var/lib/dhcpcd/* /var/lib/misc/*.leases /var/lib/systemd/network/*
# cloud-init's state, so that it runs again, and the network configuration that it made, which knows this machine's card
# (cloud-init's own `clean --configs network` removes the same files).
rm -rf /var/lib/cloud/data /var/lib/cloud/instance /var/lib/cloud/instances /var/lib/cloud/sem
rm -f /etc/netplan/50-cloud-init.yaml /etc/network/interfaces.d/50-cloud-init* \
    /etc/systemd/network/10-cloud-init-*.network /etc/systemd/network/10-cloud-init-*.link \
    /etc/NetworkManager/system-connections/cloud-init-*.nmconnection /etc/NetworkManager/conf.d/99-cloud-init.conf \
    /etc/NetworkManager/conf.d/30-cloud-init-ip6-addr-gen-mode.conf

# Random seeds.
rm -f /var/lib/systemd/random-seed /var/lib/systemd/credential.secret /var/lib/urandom/random-seed \
    /var/lib/misc/random-seed /boot/efi/loader/random-seed /efi/loader/random-seed

# Logs: old ones go, those in use are emptied and keep their owners.
rm -rf /var/log/journal/* /var/log/apt/*.xz /var/log/installer
if [ -d /var/log ]; then
    find /var/log -xdev -type f \( -name '*.gz' -o -name '*.xz' -o -name '*.zst' -o -name '*.[0-9]' -o -name '*.old' \
        -o -name '*-20[0-9][0-9][0-9][0-9][0-9][0-9]' -o -name bootstrap.log \) -exec rm -f {} +
    find /var/log -xdev -type f -size +0c -exec sh -c 'for file; do : > "$file"; done' sh {} +
fi
rm -rf /var/crash/* /var/lib/systemd/coredump/* /var/lib/systemd/timers/* /var/lib/systemd/timesync/*
rm -f /var/lib/logrotate/status /var/lib/logrotate.status

# Temporary files and caches.
rm -rf /tmp/* /tmp/.[!.]* /var/tmp/* /var/tmp/.[!.]*
rm -rf /var/lib/apt/lists/* /var/lib/apt/periodic/* /var/cache/apt/*.bin /var/cache/apt/archives/*.deb \
    /var/cache/apt/archives/partial/*
rm -rf /var/cache/dnf/* /var/cache/libdnf5/* /var/cache/yum/* /var/cache/zypp/* /var/cache/apk/* \
    /var/cache/pacman/pkg/* /var/lib/pacman/sync/* /var/cache/PackageKit/*
rm -rf /var/cache/ldconfig/* /var/cache/man/* /var/cache/fontconfig/* /var/cache/private/* /root/.cache

# Back-ups that tools made while they changed things.
rm -f /var/lib/dpkg/*-old /var/cache/debconf/*-old /var/lib/ucf/*.[0-9] /var/lib/rpm/__db.* \
    /etc/passwd- /etc/group- /etc/shadow- /etc/gshadow- /etc/subuid- /etc/subgid- /etc/.pwd.lock \
    /etc/.resolv.conf.systemd-resolved.bak /etc/apt/sources.list~
rm -rf /etc/lvm/archive/* /etc/lvm/backup/*

# What people at the keyboard left.
for home in /root /home/*; do
    rm -f "$home"/.bash_history "$home"/.ash_history "$home"/.sh_history "$home"/.zsh_history "$home"/.lesshst \
        "$home"/.viminfo "$home"/.python_history "$home"/.wget-hsts "$home"/.mysql_history "$home"/.psql_history \
        "$home"/.sudo_as_admin_successful
done
rm -f /var/lib/sudo/lectured/* /var/db/sudo/lectured/*
