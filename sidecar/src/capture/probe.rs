//! The probe at the end of `remora capture up`: a real connection to an address in the ranges, over the very rules that
//! an application's connection takes. In: the plan. Out: whether it arrived, and if not what is likely in the way.
//! Never makes anybody else's connection be captured: the rules know the probe's own flow, and that alone.
//!
//! Whether it arrived is read from the kernel's list of connections: the end that accepted it has the Service's address
//! as its own. So it does not matter whether the sidecar listens, or, if it does not yet, a listener of the probe's own.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};

use serde::Serialize;
use socket2::{Domain, Socket, Type};

use super::agreement::PORT;
use super::family::Family;
use super::flows::{Flow, Line};
use super::kernel::{self, Kernel};
use super::plan::Plan;
use super::rules::listener;

/// How long a probe may take; the path is within this machine.
const PATIENCE: Duration = Duration::from_secs(1);
/// Between two looks.
const PAUSE: Duration = Duration::from_millis(10);

/// What became of a probe.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Probe {
    /// Of which family.
    pub family: Family,
    /// Where to.
    pub to: Option<SocketAddr>,
    /// What became of it.
    pub outcome: Outcome,
}

/// What became of a probe.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// It arrived.
    Works,
    /// It was answered by somebody else: it was translated before it was a packet.
    Translated,
    /// Nobody answered, and it did not arrive.
    Lost(String),
    /// It could not be sent at all.
    Unsent(String),
    /// There is no address to try: everything is skipped.
    Nothing,
}

impl Probe {
    /// Whether capture works, as far as it could be tried.
    pub fn is_good(&self) -> bool {
        matches!(self.outcome, Outcome::Works | Outcome::Nothing)
    }
}

impl fmt::Display for Probe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { family, .. } = self;
        let to = self.to.map(|to| to.to_string()).unwrap_or_default();
        match &self.outcome {
            Outcome::Works => write!(f, "{family}: capture works: a connection to {to} arrived"),
            Outcome::Translated => write!(
                f,
                "{family}: capture does not work here: a connection to {to} was answered, but not through these \
                 rules, so something translates Service addresses before there is a packet, as eBPF does at \
                 connect(); set socketLB.hostNamespaceOnly=true in Cilium, or bpfConnectTimeLoadBalancing: Disabled \
                 in Calico; until then connections to Services go as without Remora"
            ),
            Outcome::Lost(how) => write!(
                f,
                "{family}: capture does not work here: a connection to {to} did not arrive ({how}); something may \
                 translate Service addresses at connect(), as eBPF does (set socketLB.hostNamespaceOnly=true in Cilium, \
                 bpfConnectTimeLoadBalancing: Disabled in Calico), or another table has rules for marked packets or \
                 for lo: see `nft list ruleset` and `iptables-save`"
            ),
            Outcome::Unsent(why) => {
                write!(
                    f,
                    "{family}: cannot tell whether capture works: a connection to {to} could not be begun: {why}"
                )
            }
            Outcome::Nothing => {
                write!(f, "{family}: not tried: every address and port that could be tried is skipped")
            }
        }
    }
}

/// Tries whether connections of a family are captured. `known` is an address of a Service that is there for sure.
pub(super) fn run(kernel: &Kernel, plan: &Plan, family: Family, known: Option<SocketAddr>) -> Probe {
    let Some(to) = destination(plan, family, known) else {
        return Probe { family, to: None, outcome: Outcome::Nothing };
    };
    let outcome = attempt(kernel, to).unwrap_or_else(|error| Outcome::Unsent(error.to_string()));
    Probe { family, to: Some(to), outcome }
}

/// `KUBERNETES_SERVICE_HOST` and its port.
pub(super) fn kubernetes() -> Option<SocketAddr> {
    let host: IpAddr = std::env::var("KUBERNETES_SERVICE_HOST").ok()?.parse().ok()?;
    let port = std::env::var("KUBERNETES_SERVICE_PORT").ok().and_then(|port| port.parse().ok());
    Some(SocketAddr::new(host, port.unwrap_or(443)))
}

/// Where a probe of `family` goes: to a Service that something else would translate, or to where hardly any is.
fn destination(plan: &Plan, family: Family, known: Option<SocketAddr>) -> Option<SocketAddr> {
    let known = known.filter(|known| Family::of(known.ip()) == family && plan.takes(*known));
    known.or_else(|| {
        let port =
            (PORT..=u16::MAX).find(|port| !plan.skip_ports.iter().any(|ports| ports.contains(port)))?;
        let ends =
            family.among(&plan.services).flat_map(|range| [before(range.broadcast()), range.network()]);
        ends.map(|address| SocketAddr::new(address, port)).find(|place| plan.takes(*place))
    })
}

/// The address before the last of a range, which is no broadcast address to anybody.
fn before(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(v4) => Ipv4Addr::from_bits(v4.to_bits().saturating_sub(1)).into(),
        IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits().saturating_sub(1)).into(),
    }
}

fn attempt(kernel: &Kernel, to: SocketAddr) -> Result<Outcome, Error> {
    let family = Family::of(to.ip());
    // Kept until the end; nobody accepts from it.
    let _listener = listen(SocketAddr::new(listener(family), PORT))?;
    let client = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
    let any: IpAddr = match family {
        Family::IPv4 => Ipv4Addr::UNSPECIFIED.into(),
        Family::IPv6 => Ipv6Addr::UNSPECIFIED.into(),
    };
    client.bind(&SocketAddr::new(any, 0).into())?;
    let port = client.local_addr()?.as_socket().map(|local| local.port()).unwrap_or_default();
    let flow = Flow { port, to };
    kernel.expect_probe(&flow)?;
    let connected = client.connect_timeout(&to.into(), PATIENCE);
    let arrived = wait_for(|line| line.from == to && line.to.port() == port, connected.is_ok());
    kernel.forget_probe(&flow);
    Ok(match (connected, arrived?) {
        (_, true) => Outcome::Works,
        (Ok(()), false) => Outcome::Translated,
        (Err(error), false) if never_left(&error) => {
            Outcome::Unsent(format!("{error}; this network namespace needs a route to the ranges"))
        }
        (Err(error), false) => Outcome::Lost(error.to_string()),
    })
}

/// Whether there is such a connection, or will be soon if one is expected.
fn wait_for(is_it: impl Fn(&Line) -> bool, expected: bool) -> Result<bool, kernel::Error> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if kernel::connections()?.iter().any(&is_it) {
            return Ok(true);
        }
        if !expected || Instant::now() >= deadline {
            return Ok(false);
        }
        std::thread::sleep(PAUSE);
    }
}

fn never_left(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NetworkUnreachable | io::ErrorKind::AddrNotAvailable)
}

/// Listens where captured connections arrive; not if the sidecar does.
fn listen(address: SocketAddr) -> io::Result<Option<Socket>> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    // Whatever is left of earlier connections is no listener.
    socket.set_reuse_address(true)?;
    if address.is_ipv4() {
        socket.set_ip_transparent_v4(true)?;
    } else {
        socket.set_only_v6(true)?;
        socket.set_ip_transparent_v6(true)?;
    }
    match socket.bind(&address.into()).and_then(|()| socket.listen(1)) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => Ok(None),
        result => result.map(|()| Some(socket)),
    }
}

/// Why a probe could not be made.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error(transparent)]
    Kernel(#[from] kernel::Error),
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan() -> Plan {
        let services = vec!["10.96.0.0/16".parse().unwrap(), "fd00:96::/112".parse().unwrap()];
        Plan { services, ..Plan::default() }
    }

    #[test]
    fn a_service_that_is_there_for_sure_is_tried_if_it_is_captured() {
        let known = "10.96.0.1:443".parse().unwrap();
        assert_eq!(destination(&plan(), Family::IPv4, Some(known)), Some(known));
        let v6 = destination(&plan(), Family::IPv6, Some(known)).unwrap();
        assert_eq!(v6, "[fd00:96::fffe]:64101".parse().unwrap());
        let elsewhere = Some("192.0.2.1:443".parse().unwrap());
        let v4 = destination(&plan(), Family::IPv4, elsewhere).unwrap();
        assert_eq!(v4, "10.96.255.254:64101".parse().unwrap());
    }

    #[test]
    fn what_is_skipped_is_not_tried() {
        let mut plan = plan();
        plan.skip_ports = vec![443..=443, 64101..=64200];
        plan.skip_subnets = vec!["10.96.128.0/17".parse().unwrap()];
        let known = "10.96.0.1:443".parse().unwrap();
        let tried = destination(&plan, Family::IPv4, Some(known)).unwrap();
        assert_eq!(tried, "10.96.0.0:64201".parse().unwrap());
        plan.skip_ports = vec![0..=65535];
        assert_eq!(destination(&plan, Family::IPv4, Some(known)), None);
    }
}
