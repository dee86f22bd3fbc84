# Sourced with FOLDER in $folder: a libvirt in the caller's own namespaces, whose folders are file systems in memory.
# It is left running; all of it is gone when the caller's process namespace is.
mount --make-rprivate /
ip link set lo up
for place in /run /etc/libvirt /var/lib/libvirt /var/log/libvirt /var/cache/libvirt; do
    mount -t tmpfs -o mode=755 none "$place"
done
mkdir -p /run/libvirt
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
