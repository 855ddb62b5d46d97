// Prints what istiod tells the sidecar of a Pod: its listeners, clusters, routes, endpoints and extensions, as JSON.
//
//	istio KUBERNETES.yaml ISTIO.yaml >SNAPSHOT.json
//
// In: objects of Kubernetes (Services, EndpointSlices, Pods), and objects of Istio (EnvoyFilter, WasmPlugin and the like).
// What makes the answers is istiod's own code, as in its own tests: its discovery server with a store in memory in
// the place of an API server. Nothing of the answers is changed here. Both inputs are in the output, so that a test can
// tell whether it is of today.
package main

import (
	"encoding/json"
	"fmt"
	"os"
	"regexp"
	"slices"
	"time"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"istio.io/istio/pilot/pkg/model"
	"istio.io/istio/pilot/test/xds"
	"istio.io/istio/pkg/log"
	"istio.io/istio/pkg/test"
)

// The Pod whose sidecar asks.
const (
	namespace = "shop"
	pod       = "client." + namespace
	address   = "10.1.0.9"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run() error {
	if len(os.Args) != 3 {
		return fmt.Errorf("usage: istio KUBERNETES.yaml ISTIO.yaml")
	}
	objects, err := os.ReadFile(os.Args[1])
	if err != nil {
		return err
	}
	configs, err := os.ReadFile(os.Args[2])
	if err != nil {
		return err
	}
	options := log.DefaultOptions()
	options.OutputPaths = []string{"stderr"}
	if err := log.Configure(options); err != nil {
		return err
	}
	return test.Wrap(func(t test.Failer) { tell(t, string(objects), string(configs)) })
}

func tell(t test.Failer, objects, configs string) {
	server := xds.NewFakeDiscoveryServer(t, xds.FakeOptions{
		KubernetesObjectString: objects,
		ConfigString:           configs,
		DebounceTime:           100 * time.Millisecond,
	})
	sidecar := server.SetupProxy(&model.Proxy{
		Type:            model.SidecarProxy,
		ID:              pod,
		ConfigNamespace: namespace,
		IPAddresses:     []string{address},
		Locality:        &core.Locality{Zone: "a"},
		Metadata: &model.NodeMetadata{
			Namespace:    namespace,
			IstioVersion: "1.31.0",
			Labels:       map[string]string{"app": "client"},
		},
	})
	listeners := server.Listeners(sidecar)
	out := map[string][]json.RawMessage{}
	add := func(kind string, message proto.Message) {
		text, err := protojson.MarshalOptions{UseProtoNames: true}.Marshal(message)
		if err != nil {
			t.Fatal(kind, err)
		}
		out[kind] = append(out[kind], text)
	}
	for _, listener := range listeners {
		add("listeners", listener)
	}
	for _, cluster := range server.Clusters(sidecar) {
		add("clusters", cluster)
	}
	for _, routes := range server.Routes(sidecar) {
		add("routes", routes)
	}
	for _, endpoints := range server.Endpoints(sidecar) {
		add("endpoints", endpoints)
	}
	// Plugins come by a discovery service of their own, which is asked for the names in the listeners.
	var names []string
	for _, listener := range out["listeners"] {
		for _, found := range regexp.MustCompile(`"(extensions\.istio\.io/[^"]+)"`).FindAllSubmatch(listener, -1) {
			if name := string(found[1]); !slices.Contains(names, name) {
				names = append(names, name)
			}
		}
	}
	for _, extension := range server.ConfigGen.BuildExtensionConfiguration(sidecar, server.PushContext(), names, nil) {
		add("extensions", extension)
	}
	encoder := json.NewEncoder(os.Stdout)
	encoder.SetEscapeHTML(false)
	encoder.SetIndent("", " ")
	snapshot := map[string]any{"made_from": map[string]string{"kubernetes": objects, "istio": configs}}
	for kind, resources := range out {
		snapshot[kind] = resources
	}
	if err := encoder.Encode(snapshot); err != nil {
		t.Fatal(err)
	}
}
