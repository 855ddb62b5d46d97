//! The way from a Service that a listener names to the ports that serve it, one Service at a time. In: a table and the
//! names that go with it. Out: where it leads. Pure.

use std::sync::Arc;

use hickory_proto::rr::Name;
use selection::{Balance, Family, Here, Kind, Protocol, Service, ServiceName, ServicePort, Skip, Table};
use watcher::Names;

use crate::dns::external_name;

/// Where a listener's way leads.
#[derive(Clone, Debug)]
pub(super) enum Way {
    /// To the table, which has the port.
    Table,
    /// It is not known yet.
    Pending,
    /// To these.
    Ports(Arc<[Arc<ServicePort>]>),
    /// Out of the cluster.
    Outside(Outside),
    /// Nowhere; why, and what to do about it.
    Nowhere(String),
}

/// A name that is not of this cluster, and the port that is dialled there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Outside {
    /// The Service whose external name it is.
    pub(super) service: ServiceName,
    /// The name.
    pub(super) name: Name,
    /// The port.
    pub(super) port: u16,
    /// How that Service wants to be balanced.
    pub(super) balance: Balance,
}

/// What one Service says.
pub(super) enum Step {
    /// The way ends.
    End(Way),
    /// It goes on at this name.
    Alias(Outside),
    /// There is no such Service.
    Unknown,
}

/// What a listener in `family` that wants port `wanted` of `service` finds. `old`: what it found before, whose accounts
/// go on.
pub(super) fn step(
    (table, names): (&Table, &Names),
    service: &ServiceName,
    wanted: &str,
    family: Family,
    here: &Here,
    old: &[Arc<ServicePort>],
) -> Step {
    let nowhere = |why: String| Step::End(Way::Nowhere(why));
    if table.version() == 0 || names.version() == 0 {
        return Step::End(Way::Pending);
    }
    if let Some(port) = table.port(service, wanted, family) {
        return Step::End(Way::Ports([Arc::clone(port)].into()));
    }
    let Some(named) = names.service(&service.namespace, &service.name) else { return Step::Unknown };
    let declared = named.service();
    match (selection::skip(declared), &declared.kind) {
        (_, Kind::ExternalName(_)) if declared.balance == Balance::Off => {
            nowhere(unserved(service, Skip::Off))
        }
        (_, Kind::ExternalName(text)) => match (external_name(text), number(declared, wanted)) {
            (Err(why), _) => {
                nowhere(format!("the external name {text:?} of Service {service} {}", why.advice()))
            }
            (_, None) => nowhere(no_port(declared, wanted)),
            (Ok(name), Some(port)) => {
                Step::Alias(Outside { service: service.clone(), name, port, balance: declared.balance })
            }
        },
        (Some(Skip::Headless), _) => {
            let built = selection::build(declared, &named.slices(), here, old);
            match chosen(&built, wanted, family) {
                Some(port) => Step::End(Way::Ports([Arc::clone(port)].into())),
                // Without slices there is no port of any family, and no endpoint either.
                None if number(declared, wanted).is_some() && built.is_empty() => {
                    Step::End(Way::Ports(Arc::default()))
                }
                None => nowhere(no_port(declared, wanted)),
            }
        }
        (Some(skip), _) => nowhere(unserved(service, skip)),
        // A table that has it comes with these names: in a moment.
        (None, _) if is_declared(declared, wanted) => Step::End(Way::Pending),
        (None, _) => nowhere(no_port(declared, wanted)),
    }
}

/// As [`Table::port`] chooses.
fn chosen<'a>(ports: &'a [Arc<ServicePort>], wanted: &str, family: Family) -> Option<&'a Arc<ServicePort>> {
    let is_it = |port: &&Arc<ServicePort>| {
        *port.id.port == *wanted || wanted.parse().is_ok_and(|number: u16| number == port.port)
    };
    ports.iter().filter(is_it).min_by_key(|port| (port.id.family != family, port.id.protocol))
}

/// The number of the port that `wanted` names; of an external name every number is one.
fn number(service: &Service, wanted: &str) -> Option<u16> {
    let named = service.ports.iter().find(|port| *port.name == *wanted && port.protocol == Protocol::Tcp);
    let is_any = matches!(service.kind, Kind::ExternalName(_)) || is_declared(service, wanted);
    named.map(|port| port.port).or_else(|| wanted.parse().ok().filter(|_| is_any))
}

fn is_declared(service: &Service, wanted: &str) -> bool {
    let is_it = |port: &selection::Port| {
        *port.name == *wanted || wanted.parse().is_ok_and(|number: u16| number == port.port)
    };
    service.ports.iter().any(is_it)
}

fn no_port(service: &Service, wanted: &str) -> String {
    let name = &service.name;
    if matches!(service.kind, Kind::ExternalName(_)) {
        return format!(
            "Service {name} is an external name and has no port {wanted}: say the number in --listen, or give it a \
             port of this name"
        );
    }
    if service.ports.is_empty() {
        return format!(
            "Service {name} has no ports: give it spec.ports with those that its endpoints listen on"
        );
    }
    let ports: Vec<String> =
        service.ports.iter().map(|port| format!("{} {}", port.name, port.port).trim().to_owned()).collect();
    format!("Service {name} has no port {wanted}, only {}: correct --listen", ports.join(", "))
}

fn unserved(service: &ServiceName, skip: Skip) -> String {
    format!("Service {service} is not served ({skip}): change it, or remove the --listen")
}
