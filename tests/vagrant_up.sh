# Start a Vagrant box under a libvirt of the caller's own and say something in the guest.
#
# Usage: unshare --mount --net --pid --fork --kill-child --mount-proc sh vagrant_up.sh FOLDER BOX COMMAND
# BOX is a box, or the metadata.json of a catalog of acme/golden.
#
# Everything lives in the caller's namespaces: libvirt's folders are on file systems in memory, its bridge and firewall
# rules in a network of their own; all of it is gone when this script is. KVM is not used (hosts whose /dev/kvm opens
# and does not work are the nastiest), and FOLDER must be a short path (sockets).
set -eu
folder=$1 box=$2 command=$3

. "${0%/*}/libvirtd.sh"
mkdir -p "$folder/pool" "$folder/home" "$folder/project"

export VAGRANT_HOME="$folder/home" HOME="$folder/home" VAGRANT_CHECKPOINT_DISABLE=1 VAGRANT_DEFAULT_PROVIDER=libvirt
cat > "$folder/project/Vagrantfile" <<END
Vagrant.configure("2") do |config|
  config.vm.box = "acme/golden"
  config.vm.boot_timeout = 900
  config.ssh.insert_key = false
  config.vm.provider :libvirt do |libvirt|
    libvirt.uri = "qemu:///system"
    libvirt.qemu_use_session = false
    libvirt.driver = "qemu"
    libvirt.cpu_mode = "maximum"
    libvirt.graphics_type = "none"
    libvirt.video_type = "none"
    libvirt.storage_pool_path = "$folder/pool"
  end
end
END
cd "$folder/project"
vagrant box add --name acme/golden "$box" > "$folder/vagrant.log" 2>&1
vagrant up --provider=libvirt >> "$folder/vagrant.log" 2>&1 || { cat "$folder/vagrant.log" >&2; exit 1; }
vagrant ssh -c "$command" 2>> "$folder/vagrant.log"
vagrant destroy -f >> "$folder/vagrant.log" 2>&1
