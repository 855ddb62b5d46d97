// What the end-to-end tests run of Kubernetes: the real etcd, kube-apiserver, kube-controller-manager
// and kube-proxy in one program, because linking once is much faster than four times.
//
// In: the name it is called by (a symbolic link) or its first argument. Out: exactly what that
// program does. It never changes a default of theirs; flags are the harness's business.
package main

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"
	"go.etcd.io/etcd/server/v3/etcdmain"
	"k8s.io/component-base/cli"
	_ "k8s.io/component-base/logs/json/register"
	apiserver "k8s.io/kubernetes/cmd/kube-apiserver/app"
	controllers "k8s.io/kubernetes/cmd/kube-controller-manager/app"
	proxy "k8s.io/kubernetes/cmd/kube-proxy/app"
)

func main() {
	if !run(filepath.Base(os.Args[0])) {
		if len(os.Args) > 1 {
			os.Args = os.Args[1:]
			if run(os.Args[0]) {
				return
			}
		}
		fmt.Fprintln(os.Stderr, "usage: kubernetes etcd|kube-apiserver|kube-controller-manager|kube-proxy [flags]")
		os.Exit(2)
	}
}

// run becomes the program called name; it reports false if there is none of that name.
func run(name string) bool {
	var command *cobra.Command
	switch name {
	case "etcd":
		etcdmain.Main(os.Args)
		return true
	case "kube-apiserver":
		command = apiserver.NewAPIServerCommand()
	case "kube-controller-manager":
		command = controllers.NewControllerManagerCommand()
	case "kube-proxy":
		command = proxy.NewProxyCommand()
	default:
		return false
	}
	os.Exit(cli.Run(command))
	return true
}
