# Define a domain in a libvirt of the caller's own, start it, and print its console until it says something.
#
# Usage: unshare --mount --net --pid --fork --kill-child --mount-proc sh libvirt_start.sh FOLDER DOMAIN.XML WORDS SECONDS
#
# As in vagrant_up.sh: everything lives in the caller's namespaces, and FOLDER must be a short path. The image lies in
# FOLDER/images. Without WORDS the domain is defined and not started.
set -eu
folder=$1 domain=$2 words=$3 seconds=$4

mount --make-rprivate /
ip link set lo up
for place in /run /etc/libvirt /var/lib/libvirt /var/log/libvirt /var/cache/libvirt; do
    mount -t tmpfs -o mode=755 none "$place"
done
mkdir -p /run/libvirt /var/lib/libvirt/images "$folder/images"
mount --bind "$folder/images" /var/lib/libvirt/images
cat > /etc/libvirt/qemu.conf <<END
user = "root"
group = "root"
security_driver = "none"
cgroup_controllers = [ ]
END

virtlogd > "$folder/virtlogd.log" 2>&1 &
libvirtd -t 0 > "$folder/libvirtd.log" 2>&1 &
waited=0
until virsh -c qemu:///system version > "$folder/virsh.log" 2>&1; do
    waited=$((waited + 1))
    if [ "$waited" -gt 120 ]; then cat "$folder/virsh.log" "$folder/libvirtd.log" >&2; exit 1; fi
    sleep 0.5
done
export LIBVIRT_DEFAULT_URI=qemu:///system

virsh define --validate "$domain"
name=$(virsh list --all --name | head -n 1)
virsh dumpxml "$name" > "$folder/defined.xml"
[ -n "$words" ] || exit 0

virsh net-define /usr/share/libvirt/networks/default.xml
virsh net-start default
virsh start "$name"
timeout "$seconds" sed -u "/$words/q" < "$(virsh ttyconsole "$name")"
virsh destroy "$name"
