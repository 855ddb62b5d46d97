//! What a Service is to Remora, told by a real API server: kube-proxy's rules, live.

use k8s_openapi::api::core::v1::Endpoints;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::Api;
use kube::api::{DeleteParams, Patch, PatchParams};
use serde_json::json;
use tests::cluster::create;
use tests::remora::{run, usable};
use tests::{Cluster, Host, Namespace, Pod, SOON, Shop, Sidecar, World, load, wait_until};

tests::tests! {
    the_endpoints_command_agrees_with_what_the_controller_made,
    the_endpoints_command_looks_for_itself_with_a_source,
    explain_names_an_endpoint_of_the_service,
    an_unknown_service_is_said_to_be_unknown,
    a_service_made_after_the_sidecar_is_served,
    a_service_left_to_another_proxy_is_not_served,
    slices_labelled_headless_are_not_used,
    a_port_name_means_another_number_in_each_mirrored_slice,
    a_service_changes_its_type_and_back,
    an_endpoint_that_is_not_ready_is_not_used,
    terminating_endpoints_serve_when_there_are_no_others,
    a_service_without_endpoints_resets_at_once,
    local_traffic_stays_on_the_node,
}

/// Waits until connections through the shop's sidecar are ended unanswered, at once.
async fn wait_refused(sidecar: &Sidecar, why: &str) {
    wait_until(SOON, &format!("connections are reset: {why}"), async || {
        let started = std::time::Instant::now();
        match load::connect(sidecar.address(8080)).await {
            Ok(name) => Err(format!("{name} answered")),
            Err(error) if started.elapsed().as_secs() >= 3 => {
                Err(format!("{error}, but after {:?}", started.elapsed()))
            }
            Err(_) => Ok(()),
        }
    })
    .await;
}

/// Waits until a connection is answered, by this Pod.
async fn wait_answered(sidecar: &Sidecar, by: &str) {
    wait_until(SOON, &format!("{by} answers"), async || match load::connect(sidecar.address(8080)).await {
        Ok(name) if name == by => Ok(()),
        other => Err(format!("{other:?}; {}", sidecar.program.state())),
    })
    .await;
}

async fn the_endpoints_command_agrees_with_what_the_controller_made(world: World) {
    let mut shop = Shop::open(&world, Cluster::shared().await, 3).await;
    assert_eq!(shop.sidecar.endpoints(&shop.service).await, shop.namespace.ready("web").await);
    shop.add(&world, 3).await;
    shop.wait_settled().await;
    assert_eq!(shop.sidecar.endpoints(&shop.service).await, shop.namespace.ready("web").await);
    shop.assert_served_by(&["web-0", "web-1", "web-2", "web-3"]).await;
}

async fn the_endpoints_command_looks_for_itself_with_a_source(world: World) {
    let shop = Shop::open(&world, Cluster::shared().await, 2).await;
    let laptop = Host::new(&world, "laptop");
    let arguments = [
        "endpoints",
        &shop.service,
        "--source",
        "kube",
        "--node",
        "node-a",
        "--zone",
        "zone-a",
        "-o",
        "json",
    ];
    let printed =
        run(&laptop, &arguments, Some(&shop.namespace.cluster.kubeconfig())).await.expect("it looks");
    let rows = serde_json::from_str(&printed).expect("standard output is JSON only");
    assert_eq!(usable(&rows), Ok(shop.addresses()), "{rows:#}");
    let row = &rows[0];
    assert_eq!(row["service"], json!(shop.service));
    assert_eq!((&row["port"], &row["servicePort"]), (&json!("web"), &json!(80)));
    let service = shop.namespace.services().get("web").await.expect("the Service");
    assert_eq!(row["clusterIP"], json!(service.spec.and_then(|spec| spec.cluster_ip)));
    shop.namespace.patch_service("web", json!({"spec": {"internalTrafficPolicy": "Local"}})).await;
    wait_until(SOON, "it sees the new policy; web-0 is on node-a", async || {
        let printed = run(&laptop, &arguments, Some(&shop.namespace.cluster.kubeconfig())).await?;
        let rows: serde_json::Value = serde_json::from_str(&printed).expect("standard output is JSON only");
        match &rows[0]["local"] {
            local if *local == json!([shop.pods[0].address()]) => Ok(()),
            _ => Err(format!("{rows:#}")),
        }
    })
    .await;
}

async fn explain_names_an_endpoint_of_the_service(world: World) {
    let shop = Shop::open(&world, Cluster::shared().await, 2).await;
    let service = shop.namespace.services().get("web").await.expect("the Service");
    let ip = service.spec.and_then(|spec| spec.cluster_ip).expect("a cluster IP");
    let printed =
        run(&shop.sidecar.host, &["explain", &format!("{ip}:80"), "--admin", "127.0.0.1:64103"], None).await;
    let printed = printed.expect("it explains");
    assert!(printed.contains(&shop.service), "{printed}");
    assert!(shop.addresses().iter().any(|address| printed.contains(address)), "{printed}");
}

async fn an_unknown_service_is_said_to_be_unknown(world: World) {
    let shop = Shop::open(&world, Cluster::shared().await, 1).await;
    let unknown = format!("{}/nothing", shop.namespace.name);
    let error = shop.sidecar.endpoints(&unknown).await.expect_err("there is no such Service");
    assert!(error.contains("exit status: 1") && error.contains(&unknown), "{error}");
}

async fn a_service_made_after_the_sidecar_is_served(world: World) {
    let namespace = Namespace::new(Cluster::shared().await).await;
    let listen = format!("8080={}/web:web", namespace.name);
    let sidecar = Sidecar::ready(&world, &namespace.cluster.kubeconfig(), &[&listen]).await;
    wait_refused(&sidecar, "there is no Service").await;
    namespace.service("web", json!({})).await;
    let _pod = Pod::ready(&world, &namespace, "web", "late", "node-a").await;
    wait_answered(&sidecar, "late").await;
}

async fn a_service_left_to_another_proxy_is_not_served(world: World) {
    let shop = Shop::open(&world, Cluster::shared().await, 1).await;
    let label = |value| json!({"metadata": {"labels": {"service.kubernetes.io/service-proxy-name": value}}});
    shop.namespace.patch_service("web", label(json!(""))).await;
    wait_refused(&shop.sidecar, "the label exists, though empty").await;
    shop.namespace.patch_service("web", label(json!(null))).await;
    wait_answered(&shop.sidecar, "web-0").await;
}

async fn slices_labelled_headless_are_not_used(world: World) {
    let shop = Shop::open(&world, Cluster::shared().await, 1).await;
    // The controller keeps the labels of its own slices, so this one is the test's.
    let legacy = Host::new(&world, "legacy");
    let _server = tests::pods::serve(&world, &legacy, "legacy", 9000).await;
    let slice = json!({
        "metadata": {"name": "legacy", "labels": {"kubernetes.io/service-name": "web"}},
        "addressType": "IPv4",
        "endpoints": [{"addresses": [legacy.ip4()]}],
        "ports": [{"name": "web", "port": 9000}],
    });
    create::<EndpointSlice>(&shop.namespace.slices(), slice).await;
    let mut both = shop.addresses();
    both.push(format!("{}:9000", legacy.ip4()));
    both.sort();
    shop.sidecar.wait_endpoints(SOON, &shop.service, &both).await;
    shop.assert_served_by(&["legacy", "web-0"]).await;
    let label = json!({"metadata": {"labels": {"service.kubernetes.io/headless": ""}}});
    let patched =
        shop.namespace.slices().patch("legacy", &PatchParams::default(), &Patch::Merge(label)).await;
    patched.expect("the slice is labelled");
    shop.wait_settled().await;
    shop.assert_served_by(&["web-0"]).await;
}

async fn a_port_name_means_another_number_in_each_mirrored_slice(world: World) {
    let namespace = Namespace::new(Cluster::shared().await).await;
    let ports = json!({"selector": null, "ports": [{"name": "web", "port": 80}]});
    namespace.service("web", ports).await;
    let (old, new) = (Host::new(&world, "old"), Host::new(&world, "new"));
    let _servers = (
        tests::pods::serve(&world, &old, "old", 9000).await,
        tests::pods::serve(&world, &new, "new", 9001).await,
    );
    let subset = |host: &Host, port: u16| json!({"addresses": [{"ip": host.ip4()}], "ports": [{"name": "web", "port": port}]});
    let subsets = json!({"metadata": {"name": "web"}, "subsets": [subset(&old, 9000), subset(&new, 9001)]});
    create::<Endpoints>(&Api::namespaced(namespace.client.clone(), &namespace.name), subsets).await;
    let listen = format!("8080={}/web:web", namespace.name);
    let sidecar = Sidecar::ready(&world, &namespace.cluster.kubeconfig(), &[&listen]).await;
    let service = format!("{}/web", namespace.name);
    let mut both = [format!("{}:9000", old.ip4()), format!("{}:9001", new.ip4())];
    both.sort();
    sidecar.wait_endpoints(SOON, &service, &both).await;
    let mut answers = std::collections::BTreeSet::new();
    for _ in 0..40 {
        answers.insert(load::connect(sidecar.address(8080)).await.expect("an answer"));
    }
    assert_eq!(answers.into_iter().collect::<Vec<_>>(), ["new", "old"]);
}

async fn a_service_changes_its_type_and_back(world: World) {
    let shop = Shop::open(&world, Cluster::shared().await, 1).await;
    let kind = |kind: &str| json!({"spec": {"type": kind}});
    shop.namespace.patch_service("web", kind("NodePort")).await;
    shop.namespace.patch_service("web", kind("LoadBalancer")).await;
    shop.assert_served_by(&["web-0"]).await;
    let external = json!({"spec": {"type": "ExternalName", "externalName": "shop.example"}});
    shop.namespace.patch_service("web", external).await;
    wait_refused(&shop.sidecar, "an external name has no endpoints, though its old slices stay").await;
    shop.namespace.patch_service("web", json!({"spec": {"type": "ClusterIP", "externalName": null}})).await;
    wait_answered(&shop.sidecar, "web-0").await;
    let deleted = shop.namespace.services().delete("web", &DeleteParams::default()).await;
    deleted.expect("the Service is deleted");
    wait_refused(&shop.sidecar, "the Service is deleted").await;
    shop.namespace.service("web", json!({})).await;
    wait_answered(&shop.sidecar, "web-0").await;
}

async fn an_endpoint_that_is_not_ready_is_not_used(world: World) {
    let shop = Shop::open(&world, Cluster::shared().await, 2).await;
    shop.pods[0].set_ready(false).await;
    shop.sidecar.wait_endpoints(SOON, &shop.service, &[shop.pods[1].address()]).await;
    shop.assert_served_by(&["web-1"]).await;
    shop.pods[0].set_ready(true).await;
    shop.wait_settled().await;
    shop.assert_served_by(&["web-0", "web-1"]).await;
}

async fn terminating_endpoints_serve_when_there_are_no_others(world: World) {
    let mut shop = Shop::open(&world, Cluster::shared().await, 2).await;
    for pod in &shop.pods {
        pod.delete().await;
    }
    wait_until(SOON, "no endpoint is ready", async || match shop.namespace.ready("web").await {
        Ok(ready) if ready.is_empty() => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await;
    shop.wait_settled().await;
    shop.assert_served_by(&["web-0", "web-1"]).await;
    shop.add(&world, 2).await;
    shop.sidecar.wait_endpoints(SOON, &shop.service, &[shop.pods[2].address()]).await;
    shop.assert_served_by(&["web-2"]).await;
}

async fn a_service_without_endpoints_resets_at_once(world: World) {
    let mut shop = Shop::open(&world, Cluster::shared().await, 1).await;
    let last = shop.pods.remove(0);
    last.delete().await;
    last.end().await;
    shop.wait_settled().await;
    wait_refused(&shop.sidecar, "no endpoint is left").await;
    shop.add(&world, 1).await;
    wait_answered(&shop.sidecar, "web-1").await;
}

async fn local_traffic_stays_on_the_node(world: World) {
    let shop = Shop::open(&world, Cluster::shared().await, 2).await;
    shop.namespace.patch_service("web", json!({"spec": {"internalTrafficPolicy": "Local"}})).await;
    let listen = format!("8080={}:80", shop.service);
    let kubeconfig = shop.namespace.cluster.kubeconfig();
    let here = Sidecar::start(&world, &kubeconfig, &[&listen], &["--node", "node-b"]);
    here.wait_ready(SOON).await;
    // Its first table may be of before the change.
    wait_until(SOON, "only web-1 answers", async || {
        for _ in 0..40 {
            match load::connect(here.address(8080)).await {
                Ok(name) if name == "web-1" => (),
                other => return Err(format!("{other:?}")),
            }
        }
        Ok(())
    })
    .await;
    wait_refused(&shop.sidecar, "a sidecar that is on no node has no local endpoints").await;
}
