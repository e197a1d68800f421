#!/bin/sh
# Installs from Debian what building, the lab and the tests need, and says what. Does nothing when all is there.
# Daemons that come with the packages are for the lab's namespaces only: those newly installed are neither started
# now nor at boot. Nothing that is installed is ever removed to make room.
#
#   setup-debian.sh               for the build, the demo, the tests and the benchmarks
#   setup-debian.sh containers    also what the tests with real container runtimes need
set -eu

PACKAGES="
binutils
bird2
busybox-static
conntrack
containernetworking-plugins
etcd-client
etcd-server
exabgp
frr
gobgpd
iproute2
iptables
iputils-ping
libprotobuf-dev
nftables
openbgpd
openssl
protobuf-compiler
qemu-system-x86
tcpdump
xz-utils
"
if [ "${1:-}" = containers ]; then
    PACKAGES="$PACKAGES conmon containerd podman runc"
fi
# The services that packages start, on a machine with systemd: PACKAGE:SERVICE.
SERVICES="bird2:bird containerd:containerd etcd-server:etcd exabgp:exabgp frr:frr gobgpd:gobgpd openbgpd:openbgpd podman:podman.socket"

installed() {
    dpkg-query -W -f '${db:Status-Status}\n' "$1" 2>/dev/null | grep -qx installed
}

# The kernel of the tests' virtual machine: its package is unpacked into target/vm/root and not installed, so that the
# machine's own boot is not touched.
kernel() {
    vm=$(dirname "$0")/../target/vm
    ls "$vm"/root/boot/vmlinuz-* >/dev/null 2>&1 && return
    command -v apt-get >/dev/null || return 0
    mkdir -p "$vm"
    (
        cd "$vm"
        package=$(apt-cache depends linux-image-cloud-amd64 2>/dev/null | sed -n 's/.*Depends: \(linux-image-[^ ]*\)/\1/p' | head -n 1)
        [ -n "$package" ] || { echo "setup: no linux-image-cloud-amd64 here; the tests in a virtual machine will not run" >&2; exit 0; }
        echo "setup: unpacking $package into target/vm"
        apt-get download -q "$package" >apt.log 2>&1 || { cat apt.log >&2; exit 1; }
        rm -rf root.new root
        dpkg-deb -x "$package"_*.deb root.new
        rm -f "$package"_*.deb
        mv root.new root
    )
}

missing=""
for package in $PACKAGES; do
    installed "$package" || missing="$missing $package"
done
if [ -z "$missing" ]; then
    kernel
    exit 0
fi

if ! command -v apt-get >/dev/null; then
    echo "setup: needs these Debian packages and there is no apt-get here:$missing" >&2
    exit 1
fi
if [ "$(id -u)" -ne 0 ]; then
    echo "setup: must be root to install:$missing" >&2
    exit 1
fi

echo "setup: installing from Debian:$missing"

# A policy-rc.d that answers 101 keeps package scripts from starting daemons; one that is already there is respected.
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod 755 "$policy"
    trap 'rm -f "$policy"' EXIT
fi

log=$(mktemp)
install() {
    # shellcheck disable=SC2086 # the list is meant to be split
    DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends --no-remove $missing >"$log" 2>&1
}
if ! install; then
    # Package lists may be old or absent on a new machine.
    if ! { apt-get update -q >"$log" 2>&1 && install; }; then
        cat "$log" >&2
        exit 1
    fi
fi
rm -f "$log"
kernel

if [ -d /run/systemd/system ]; then
    for pair in $SERVICES; do
        case " $missing " in
        *" ${pair%%:*} "*) systemctl disable --quiet "${pair##*:}" 2>/dev/null || true ;;
        esac
    done
fi
echo "setup: done"
