# Define a domain in a libvirt of the caller's own, start it, and print its console until it says something.
#
# Usage: unshare --mount --net --pid --fork --kill-child --mount-proc sh libvirt_start.sh FOLDER DOMAIN.XML WORDS SECONDS
#
# As in vagrant_up.sh: everything lives in the caller's namespaces, and FOLDER must be a short path. The image lies in
# FOLDER/images. Without WORDS the domain is defined and not started.
set -eu
folder=$1 domain=$2 words=$3 seconds=$4

. "${0%/*}/libvirtd.sh"
mkdir -p /var/lib/libvirt/images "$folder/images"
mount --bind "$folder/images" /var/lib/libvirt/images
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
