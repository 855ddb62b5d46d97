//! What `remora loadbalancer` shall do. In: what was typed. Out: values. Of the machine it asks only the name.

use ipnet::IpNet;
use watcher::Source;
use watcher::balancer::Options;
use watcher::kubernetes::balancer as kubernetes;

use super::{Error, Sidecar, given, range};
use crate::arguments::LoadbalancerArguments;

/// How the load balancer works, and at which interface.
#[derive(Debug)]
pub struct Balancing {
    /// For whom, and who else.
    pub options: kubernetes::Options,
    /// Where its addresses are.
    pub interface: String,
}

impl Sidecar {
    /// Judges the command line of `remora loadbalancer`; `in_pod` decides defaults.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn loadbalancer(typed: LoadbalancerArguments, in_pod: bool) -> Result<Self, Error> {
        let serving = Self::serving(typed.serving, in_pod)?;
        if !matches!(serving.source, Source::Kube(_)) {
            return Err(Error::BalancerSource);
        }
        for (flag, is_given) in [
            ("handover", serving.handover.is_some()),
            ("feed", serving.feed.is_some()),
            ("dns", serving.dns.is_some()),
        ] {
            if is_given {
                return Err(Error::NotForBalancer(flag));
            }
        }
        let pool = given(&typed.pool).map(|text| pool(text)).collect::<Result<Vec<_>, _>>()?;
        if pool.is_empty() {
            return Err(Error::NoPool);
        }
        let text = typed.node_health_port.trim();
        let node_health = match text {
            "off" => None,
            _ => {
                let port = text.parse().ok().filter(|port| *port != 0);
                Some(port.ok_or_else(|| Error::NodeHealthPort(text.to_owned()))?)
            }
        };
        let class = typed.class.trim().to_owned();
        let balancer = Options { pool, class, is_default: typed.default_class, node_health };
        let options =
            kubernetes::Options { balancer, lease: lease(&typed.lease)?, identity: identity(&serving) };
        let interface = typed.interface.trim().to_owned();
        Ok(Self { balancing: Some(Balancing { options, interface }), ..serving })
    }
}

fn pool(text: &str) -> Result<IpNet, Error> {
    let range = range::net(text).ok_or_else(|| Error::Range("pool", text.to_owned()))?;
    if range::can_be_services(&range) { Ok(range.trunc()) } else { Err(Error::WrongPool(range)) }
}

fn lease(text: &str) -> Result<(Option<String>, String), Error> {
    let (namespace, name) = match text.trim().split_once('/') {
        Some((namespace, name)) => (Some(namespace.to_owned()), name),
        None => (None, text.trim()),
    };
    let is_name = |text: &str| {
        !text.is_empty()
            && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-.".contains(&b))
    };
    let is_right = is_name(name) && namespace.as_deref().is_none_or(is_name);
    if is_right { Ok((namespace, name.to_owned())) } else { Err(Error::Lease(text.to_owned())) }
}

/// Two processes of one machine, or one and its successor, are two candidates: hence the number.
fn identity(serving: &Sidecar) -> String {
    let machine =
        || std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default().trim().to_owned();
    let name = serving.here.node.as_ref().map_or_else(machine, ToString::to_string);
    let random = std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), std::process::id());
    format!("{name}_{random:016x}")
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::arguments::{Arguments, Verb};

    fn parse(more: &[&str]) -> Result<Balancing, Error> {
        let all = [&["remora", "loadbalancer", "--interface=eth0"], more].concat();
        let Verb::Loadbalancer(typed) = Arguments::parse_from(all).verb else { panic!("another verb") };
        Sidecar::loadbalancer(*typed, false).map(|config| config.balancing.unwrap())
    }

    #[test]
    fn a_load_balancer_has_a_pool_a_class_and_a_lease() {
        let typed = ["--pool=192.0.2.7/28,fd00:5::7", "--pool", "198.51.100.0/24", "--lease=shop/lb"];
        let balancing = parse(&typed).unwrap();
        let options = &balancing.options;
        let pool: Vec<String> = options.balancer.pool.iter().map(ToString::to_string).collect();
        assert_eq!(pool, ["192.0.2.0/28", "fd00:5::7/128", "198.51.100.0/24"]);
        assert_eq!(
            (&*options.balancer.class, options.balancer.is_default),
            ("remora.dev/loadbalancer", false)
        );
        assert_eq!(options.balancer.node_health, Some(10256));
        assert_eq!(options.lease, (Some("shop".to_owned()), "lb".to_owned()));
        let off = parse(&["--pool=192.0.2.0/28", "--node-health-port=off"]).unwrap();
        assert_eq!(off.options.balancer.node_health, None);
    }

    #[test]
    fn what_a_load_balancer_cannot_do_is_said() {
        let pool = "--pool=192.0.2.0/28";
        for (typed, says) in [
            (&[][..], "--pool"),
            (&["--pool=web"], "--pool"),
            (&["--pool=127.0.0.0/8"], "127.0.0.0/8"),
            (&[pool, "--node-health-port=0"], "--node-health-port"),
            (&[pool, "--lease=a/b/c"], "--lease"),
            (&[pool, "--source=manifests:x"], "--source"),
            (&[pool, "--handover=x"], "--handover"),
            (&[pool, "--feed=unix:x"], "--feed"),
        ] {
            let error = parse(typed).unwrap_err().to_string();
            assert!(error.contains(says), "{typed:?}: {error}");
        }
    }
}
