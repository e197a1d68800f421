#!/bin/sh
# Puts another Debian with newer routing daemons into a folder, to run our speaker against them: newer-debian.sh FOLDER [SUITE]
# Does nothing when it is there. Nothing of it is ever started as a service.
set -eu

folder=${1:?usage: newer-debian.sh FOLDER [SUITE]}
suite=${2:-sid}
# The mirror that this machine uses itself.
mirror=${DEBIAN_MIRROR:-$(apt-get indextargets --format '$(REPO_URI)' 2>/dev/null | grep -v security | head -n 1)}
DAEMONS="bird3 frr gobgpd openbgpd exabgp iproute2 nftables"

fail() {
    echo "newer-debian: $1" >&2
    exit 1
}

[ -e "$folder/.ready-$suite" ] && exit 0
[ "$(id -u)" -eq 0 ] || fail "must be root to make another Debian in $folder"
command -v apt-get >/dev/null || fail "needs debootstrap, and there is no apt-get here to install it"
[ -n "$mirror" ] || fail "apt names no mirror; name one by DEBIAN_MIRROR"
command -v debootstrap >/dev/null || DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends debootstrap >/dev/null ||
    fail "debootstrap cannot be installed"

mkdir -p "$folder"
[ -x "$folder/usr/bin/apt-get" ] || debootstrap --variant=minbase "$suite" "$folder" "$mirror" ||
    fail "Debian $suite cannot be put into $folder from $mirror; see $folder/debootstrap/debootstrap.log"
printf '#!/bin/sh\nexit 101\n' >"$folder/usr/sbin/policy-rc.d"
chmod 755 "$folder/usr/sbin/policy-rc.d"
# The lists of a mirror that is a few weeks behind count as expired; for tests they will do.
echo 'Acquire::Check-Valid-Until "false";' >"$folder/etc/apt/apt.conf.d/90mirror"
# shellcheck disable=SC2086 # the list is meant to be split
chroot "$folder" sh -c "export DEBIAN_FRONTEND=noninteractive; apt-get update -q && apt-get install -y -q --no-install-recommends $DAEMONS" ||
    fail "the daemons cannot be installed in $folder"
touch "$folder/.ready-$suite"
echo "newer-debian: $suite is in $folder"
