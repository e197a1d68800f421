// Package kubernetes names the programs that `make test-kubernetes` builds from source: it pins their versions in
// go.mod and go.sum, and is never linked itself. In go.mod each staging module of Kubernetes is replaced by its
// published version.
package kubernetes

import (
	_ "k8s.io/kubectl/pkg/cmd"
	_ "k8s.io/kubernetes/cmd/kube-apiserver/app"
	_ "k8s.io/kubernetes/cmd/kube-controller-manager/app"
	_ "k8s.io/kubernetes/cmd/kube-scheduler/app"
	_ "k8s.io/kubernetes/cmd/kubelet/app"
)
