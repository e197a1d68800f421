#!/bin/sh
# Builds the programs of Kubernetes that are pinned in go.mod, once for a user and version, and prints the folder that
# has them. Takes about ten minutes on two processors the first time. Exit status 2: there is no Go here.
set -eu
cd "$(dirname "$0")"

version=$(sed -n 's/^[[:space:]]*k8s.io\/kubernetes \(v[0-9.]*\)$/\1/p' go.mod)
[ -n "$version" ] || { echo "build.sh: go.mod names no version of k8s.io/kubernetes" >&2; exit 1; }
folder=${XDG_CACHE_HOME:-$HOME/.cache}/calidris/kubernetes/$version
mkdir -p "$folder"

minor=${version#v*.}
minor=${minor%%.*}
stamp="-X k8s.io/component-base/version.gitVersion=$version"
stamp="$stamp -X k8s.io/component-base/version.gitMajor=1 -X k8s.io/component-base/version.gitMinor=$minor"
stamp="$stamp -X k8s.io/client-go/pkg/version.gitVersion=$version"

for program in kube-apiserver kube-controller-manager kube-scheduler kubectl kubelet; do
    [ -x "$folder/$program" ] && continue
    if ! command -v go >/dev/null; then
        echo "build.sh: Kubernetes $version must be built once, which needs Go 1.24 or later: https://go.dev/dl/" >&2
        echo "build.sh: (it would be kept in $folder)" >&2
        exit 2
    fi
    echo "build.sh: building $program $version" >&2
    # Whole or not there, also when this is interrupted.
    CGO_ENABLED=0 go build -mod=readonly -trimpath -ldflags "-s -w $stamp" \
        -o "$folder/$program.new" "k8s.io/kubernetes/cmd/$program" >&2
    mv "$folder/$program.new" "$folder/$program"
done
echo "$folder"
