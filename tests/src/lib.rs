//! The harness of the end-to-end tests: worlds of network namespaces in which the real programs run.
//!
//! A test binary is one [`world`]: namespaces of its own, made before its first thread, gone with
//! its last process. In it, one [`cluster`] (etcd, kube-apiserver, kube-controller-manager) serves
//! all tests of the binary, and each test has a [`World`] with hosts on a bridge ([`network`]), nodes with
//! kube-proxies ([`node`]), child programs with logs ([`program`]), and a Kubernetes namespace in which [`pods`] are API objects
//! whose status the test writes and whose servers are real processes at real addresses.
//!
//! Nothing here stands in for anything: what is not started is not there.

pub mod ask;
pub mod balancer;
pub mod captor;
pub mod cases;
pub mod chromium;
pub mod client;
pub mod cluster;
pub mod container;
pub mod discovery;
pub mod envoy;
pub mod envoy_gateway;
pub mod feeder;
pub mod gateway;
pub mod greeter;
pub mod http;
pub mod image;
pub mod injected;
pub mod inside;
pub mod istio;
pub mod kubelet;
pub mod load;
pub mod network;
pub mod node;
pub mod node_ports;
pub mod pods;
pub mod program;
pub mod remora;
pub mod sameness;
pub mod scale;
pub mod shop;
pub mod site;
pub mod tls_hub;
pub mod tools;
pub mod wait;
pub mod world;

pub use captor::Stand;
pub use chromium::Chromium;
pub use client::{Client, Outcome, Way};
pub use cluster::{Cluster, Namespace};
pub use container::Container;
pub use envoy::Envoy;
pub use image::Image;
pub use injected::{Hub, Injected};
pub use load::Load;
pub use network::Host;
pub use node::Node;
pub use pods::{Counts, Pod};
pub use program::Program;
pub use remora::Sidecar;
pub use shop::{SOON, Shop};
pub use site::Site;
pub use wait::wait_until;
pub use world::World;
