# The first process of a machine, process 1 of its process namespace: makes the mount namespace look like the disk of
# a freshly installed host, then reaps whatever is left to it. Arguments: a folder for the machine's files, its name.
set -euo pipefail
folder=$1
hostname "$2"

# What is written to /etc stays in the machine; what the real host has there (certificates, users) is seen.
mkdir -p "$folder/disk"
mount -t tmpfs machine "$folder/disk"
mkdir "$folder"/disk/{etc,etc.work,opt,lib,run,tunables}
mount -t overlay machine -o "lowerdir=/etc,upperdir=$folder/disk/etc,workdir=$folder/disk/etc.work" /etc
# Network configurations that packages of the real host put there (podman's) are not seen.
rm -rf /etc/cni

# A kubelet sets these, and the kernel has them once for all machines: here it sets files.
for tunable in vm/overcommit_memory vm/panic_on_oom kernel/panic kernel/panic_on_oops \
    kernel/keys/root_maxkeys kernel/keys/root_maxbytes; do
    if [ -e "/proc/sys/$tunable" ]; then
        file="$folder/disk/tunables/${tunable##*/}"
        cat "/proc/sys/$tunable" >"$file"
        mount --bind "$file" "/proc/sys/$tunable"
    fi
done

# These are empty. The labs' own folder is carried over, so that paths in it mean the same everywhere.
mkdir -p "$folder/disk/run/calidris-lab" "$folder/disk/run/lock"
mount --bind "${folder%/*/*}" "$folder/disk/run/calidris-lab"
mount --bind "$folder/disk/opt" /opt
mount --bind "$folder/disk/lib" /var/lib
# From here on $folder/disk is out of sight, below the new /run.
mount --rbind "$folder/disk/run" /run

mkdir -p /run/netns /run/calidris /etc/calidris /etc/cni/net.d /opt/cni/bin
touch /run/machine-is-up

# Orphans of container runtimes come here; bash reaps them while it waits.
while true; do
    sleep infinity &
    wait $! || true
done
