#!/bin/sh
# Builds the programs of Calico that are pinned in go.mod, once for a user and version, and prints the folder that has
# them. Takes about three minutes on two processors the first time. Exit status 2: there is no Go here.
set -eu
cd "$(dirname "$0")"

module=github.com/projectcalico/calico
pinned=$(sed -n "s|^require $module \(v[^ ]*\).*|\1|p" go.mod)
release=$(sed -n 's|^// Calico \(v[0-9.]*\),.*|\1|p' go.mod)
[ -n "$pinned" ] && [ -n "$release" ] || { echo "build.sh: go.mod names no version of $module" >&2; exit 1; }
folder=${XDG_CACHE_HOME:-$HOME/.cache}/calidris/calico/$pinned
mkdir -p "$folder"

# build PROGRAM PACKAGE VARIABLE: the variable of the package that has the version.
build() {
    [ -x "$folder/$1" ] && return
    if ! command -v go >/dev/null; then
        echo "build.sh: Calico $release must be built once, which needs Go 1.23 or later: https://go.dev/dl/" >&2
        echo "build.sh: (it would be kept in $folder)" >&2
        exit 2
    fi
    echo "build.sh: building $1 of Calico $release ($pinned)" >&2
    # Whole or not there, also when this is interrupted.
    CGO_ENABLED=0 go build -mod=readonly -ldflags "-s -w -X $3=$release" -o "$folder/$1.new" "$module/$2" >&2
    mv "$folder/$1.new" "$folder/$1"
}

build calicoctl calicoctl/calicoctl "$module/calicoctl/calicoctl/commands.VERSION"
build calico cni-plugin/cmd/calico main.VERSION
# One program is both plugins; its name decides.
ln -sf calico "$folder/calico-ipam"
echo "$folder"
