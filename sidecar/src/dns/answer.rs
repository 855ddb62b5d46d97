//! What the table says to a question of DNS. In: a name, a type, the view of names, the cluster's zone. Out: records,
//! or that there are none, or that somebody else has to be asked. Never sends anything.
//!
//! The names are those of the specification "Kubernetes DNS-Based Service Discovery" 1.1.0; what it leaves open
//! (no data or no such name, names of endpoints without a host name) is as CoreDNS has it, since search paths and
//! people depend on that.
//!
//! ```text
//! dns-version.ZONE                           TXT
//! SERVICE.NAMESPACE.svc.ZONE                 A AAAA of the Service, or of each ready endpoint if it is headless;
//!                                            SRV of every port; CNAME of an external name
//! HOST.SERVICE.NAMESPACE.svc.ZONE            A AAAA of the ready endpoints of this name
//! _PORT._PROTOCOL.SERVICE.NAMESPACE.svc.ZONE SRV
//! 1.0.96.10.in-addr.arpa, ….ip6.arpa         PTR
//! ```

use std::collections::BTreeSet;
use std::net::IpAddr;

use hickory_proto::rr::rdata::{A, AAAA, CNAME, PTR, SOA, SRV, TXT};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use selection::{Kind, Protocol, ServiceName};
use watcher::{Named, NamedEndpoint, Names};

/// How long readers may keep an answer, in seconds: CoreDNS's own default.
const TTL: u32 = 5;
/// The version of the specification.
const VERSION: &str = "1.1.0";
/// External names that lead to each other, followed in one answer.
pub const ALIASES_MOST: usize = 8;

/// The zone of the cluster: `cluster.local.` nearly everywhere.
#[derive(Clone, Debug)]
pub struct Zone {
    name: Name,
    /// Its labels in small letters, the first one first.
    labels: Vec<String>,
}

/// What the table says.
#[derive(Debug)]
pub struct Answer {
    /// Records of the answer: first the aliases that were followed.
    pub records: Vec<Record>,
    /// Records that spare a further question.
    pub additionals: Vec<Record>,
    /// How it ends.
    pub end: End,
}

/// How an answer ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// With what was asked for.
    Found,
    /// The name exists, and has nothing of this type.
    NoData,
    /// There is no such name.
    NoName,
    /// The table cannot tell: the cluster's DNS has to be asked for this name.
    Elsewhere(Name),
    /// An external name leads nowhere.
    Wrong(ServiceName, Wrong),
}

/// Why an external name leads nowhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Wrong {
    /// It is an IP address.
    Address,
    /// It leads to itself, perhaps through others.
    Circle,
    /// It is no name.
    Malformed,
}

impl Wrong {
    /// Every reason.
    pub const ALL: [Self; 3] = [Self::Address, Self::Circle, Self::Malformed];

    /// A stable word, also the metric label.
    pub fn label(self) -> &'static str {
        match self {
            Self::Address => "address",
            Self::Circle => "circle",
            Self::Malformed => "malformed",
        }
    }

    /// What to do about it.
    pub fn advice(self) -> &'static str {
        match self {
            Self::Address => {
                "is an IP address; make the Service a headless one and write an EndpointSlice for it"
            }
            Self::Circle => {
                "leads back to itself; point it to a name outside, or to a Service that has endpoints"
            }
            Self::Malformed => "is no name; write a DNS name such as db.example.com",
        }
    }
}

impl Zone {
    /// The zone that `text` names; `None` if it names none.
    pub fn parse(text: &str) -> Option<Self> {
        let text = text.trim().trim_end_matches('.').to_ascii_lowercase();
        let allowed = |b: u8| b.is_ascii_alphanumeric() || b == b'-';
        let labels: Vec<String> = text.split('.').map(str::to_owned).collect();
        let is_name = |label: &String| !label.is_empty() && label.bytes().all(allowed);
        let mut name = Name::from_labels(labels.iter().map(String::as_bytes)).ok()?;
        name.set_fqdn(true);
        labels.iter().all(is_name).then_some(Self { name, labels })
    }

    /// What goes with an answer that has no data: how long that may be kept. The names in it are CoreDNS's.
    pub fn authority(&self, serial: u64) -> Option<Record> {
        let in_zone = |labels: &[&str]| self.below(labels);
        let serial = u32::try_from(serial & u64::from(u32::MAX)).unwrap_or_default();
        let soa =
            SOA::new(in_zone(&["ns", "dns"])?, in_zone(&["hostmaster"])?, serial, 7200, 1800, 86_400, TTL);
        Some(Record::from_rdata(self.name.clone(), TTL, RData::SOA(soa)))
    }

    /// The labels of `name` before this zone, or `None` if it is in another.
    fn inside<'a, 'b>(&self, labels: &'a [&'b str]) -> Option<&'a [&'b str]> {
        let (inside, zone) = labels.split_at_checked(labels.len().checked_sub(self.labels.len())?)?;
        zone.iter().eq(self.labels.iter()).then_some(inside)
    }

    /// The Service that `name` is the name of, whether there is one or not.
    pub fn names(&self, name: &Name) -> Option<ServiceName> {
        let small = name.to_lowercase();
        let labels: Vec<&str> = small.iter().map(std::str::from_utf8).collect::<Result<_, _>>().ok()?;
        match *self.inside(&labels)? {
            [service, namespace, "svc"] => Some(ServiceName::new(namespace, service)),
            _ => None,
        }
    }

    fn below(&self, labels: &[&str]) -> Option<Name> {
        let labels = labels.iter().copied().chain(self.labels.iter().map(String::as_str));
        let mut name = Name::from_labels(labels.map(str::as_bytes)).ok()?;
        name.set_fqdn(true);
        Some(name)
    }

    fn service(&self, service: &ServiceName) -> Option<Name> {
        self.below(&[&service.name, &service.namespace, "svc"])
    }
}

/// What `names` say about `name` and `kind`. `may_deny`: they are all that there is, so that what is not among them
/// does not exist. `turn` chooses which of equal records comes first.
pub fn answer(
    names: &Names,
    zone: &Zone,
    name: &Name,
    kind: RecordType,
    may_deny: bool,
    turn: usize,
) -> Answer {
    let asked = Asked { names, zone, kind, may_deny: may_deny && names.is_whole() };
    let mut answer = Answer { records: Vec::new(), additionals: Vec::new(), end: End::NoData };
    // Before the first table nothing is known, not even that.
    answer.end = if names.version() == 0 {
        End::Elsewhere(name.clone())
    } else {
        asked.follow(name.clone(), &mut answer)
    };
    let fresh = answer.records.iter().take_while(|record| record.record_type() == RecordType::CNAME).count();
    let equal = &mut answer.records[fresh..];
    if !equal.is_empty() {
        equal.rotate_left(turn % equal.len());
    }
    answer
}

/// The name that `spec.externalName` means.
///
/// # Errors
/// If it means none.
pub fn external_name(text: &str) -> Result<Name, Wrong> {
    if text.parse::<IpAddr>().is_ok() {
        return Err(Wrong::Address);
    }
    let mut name = Name::from_ascii(text.strip_suffix('.').unwrap_or(text)).map_err(|_| Wrong::Malformed)?;
    name.set_fqdn(true);
    Ok(name)
}

struct Asked<'a> {
    names: &'a Names,
    zone: &'a Zone,
    kind: RecordType,
    may_deny: bool,
}

/// What one name has, aliases not followed.
enum Found<'a> {
    Records(Vec<RData>),
    /// As records, with the names that they lead to.
    Targets(Vec<(SRV, IpAddr)>),
    Alias(&'a Named, &'a str),
    NoData,
    /// There is no such name among those known.
    NoName,
    /// Others may know.
    Unknown,
}

impl<'a> Asked<'a> {
    /// Appends what `name` has, and what its alias has.
    fn follow(&self, mut name: Name, answer: &mut Answer) -> End {
        let mut seen = BTreeSet::new();
        loop {
            match self.one(&name) {
                Found::Records(data) => {
                    answer.records.extend(data.into_iter().map(|data| record(&name, data)));
                    return End::Found;
                }
                Found::Targets(targets) => {
                    for (srv, ip) in targets {
                        answer.additionals.push(record(&srv.target, address(ip)));
                        answer.records.push(record(&name, RData::SRV(srv)));
                    }
                    // A port of an endpoint that has both families is there twice.
                    answer.records.dedup();
                    answer.additionals.sort_unstable_by(|a, b| a.name.cmp(&b.name));
                    answer.additionals.dedup();
                    return End::Found;
                }
                Found::NoData => return End::NoData,
                Found::NoName if self.may_deny => return End::NoName,
                Found::NoName | Found::Unknown => return End::Elsewhere(name),
                Found::Alias(named, external) => {
                    let wrong = |why| End::Wrong(named.service().name.clone(), why);
                    let to = match external_name(external) {
                        Ok(to) => to,
                        Err(why) => return wrong(why),
                    };
                    answer.records.push(record(&name, RData::CNAME(CNAME(to.clone()))));
                    if self.kind == RecordType::CNAME {
                        return End::Found;
                    }
                    if !seen.insert(name.to_lowercase())
                        || seen.contains(&to.to_lowercase())
                        || seen.len() > ALIASES_MOST
                    {
                        return wrong(Wrong::Circle);
                    }
                    name = to;
                }
            }
        }
    }

    fn one(&self, name: &Name) -> Found<'a> {
        let small = name.to_lowercase();
        // Kubernetes allows no name that is no text.
        let labels: Result<Vec<&str>, _> = small.iter().map(std::str::from_utf8).collect();
        let labels = labels.unwrap_or_default();
        let Some(inside) = self.zone.inside(&labels) else {
            return self.reverse(name);
        };
        match *inside {
            ["dns-version"] if self.kind == RecordType::TXT => {
                Found::Records(vec![RData::TXT(TXT::new(vec![VERSION.to_owned()]))])
            }
            ["dns-version"] | ["svc"] => Found::NoData,
            // A namespace without Services is not known here.
            [namespace, "svc"] if self.names.has_namespace(namespace) => Found::NoData,
            [_, "svc"] => Found::Unknown,
            [ref below @ .., service, namespace, "svc"] => match self.names.service(namespace, service) {
                Some(named) => self.service(named, below),
                None => Found::NoName,
            },
            // The zone itself, Pods, and what the cluster's DNS has beside Services.
            _ => Found::Unknown,
        }
    }

    /// What is `below` the name of a Service.
    fn service(&self, named: &'a Named, below: &[&str]) -> Found<'a> {
        if let Kind::ExternalName(external) = &named.service().kind {
            return if below.is_empty() { Found::Alias(named, external) } else { Found::NoName };
        }
        match *below {
            [] if self.kind == RecordType::SRV => self.targets(named, |_, _| true),
            [] if named.service().kind != Kind::Headless => {
                self.addresses(named.service().cluster_ips.iter().copied(), false)
            }
            [] => self.addresses(named.endpoints().map(|endpoint| endpoint.ip), true),
            [protocol] if protocol.starts_with('_') => {
                if self.has_port(named, |_, p| is_label(protocol, &p.to_string())) {
                    Found::NoData
                } else {
                    Found::NoName
                }
            }
            [host] => {
                let undashed = undashed(host);
                let is_it =
                    |e: &NamedEndpoint<'_>| e.host.map_or(Some(e.ip) == undashed, |name| name == host);
                self.addresses(named.endpoints().filter(is_it).map(|endpoint| endpoint.ip), true)
            }
            [port, protocol] => {
                let is_it = |name: &str, p: Protocol| {
                    !name.is_empty() && is_label(port, name) && is_label(protocol, &p.to_string())
                };
                if !self.has_port(named, is_it) {
                    Found::NoName
                } else if self.kind == RecordType::SRV {
                    self.targets(named, is_it)
                } else {
                    Found::NoData
                }
            }
            _ => Found::NoName,
        }
    }

    /// Addresses of the family that is asked for. A name whose addresses are endpoints' exists while there are any.
    fn addresses(&self, ips: impl Iterator<Item = IpAddr>, are_endpoints: bool) -> Found<'a> {
        let ips: BTreeSet<IpAddr> = ips.collect();
        if are_endpoints && ips.is_empty() {
            return Found::NoName;
        }
        let wanted = |ip: &IpAddr| match self.kind {
            RecordType::A => ip.is_ipv4(),
            RecordType::AAAA => ip.is_ipv6(),
            _ => false,
        };
        records(ips.into_iter().filter(wanted).map(address).collect())
    }

    fn has_port(&self, named: &Named, is_it: impl Fn(&str, Protocol) -> bool) -> bool {
        if named.service().kind == Kind::Headless {
            let mut ports = named.endpoints().flat_map(|endpoint| endpoint.ports);
            return ports.any(|port| is_it(port.name.as_deref().unwrap_or_default(), port.protocol));
        }
        named.service().ports.iter().any(|port| is_it(&port.name, port.protocol))
    }

    /// Where the ports of a Service are of which `is_it` holds.
    fn targets(&self, named: &Named, is_it: impl Fn(&str, Protocol) -> bool) -> Found<'a> {
        let service = named.service();
        let Some(base) = self.zone.service(&service.name) else { return Found::NoData };
        let mut targets: Vec<(u16, Name, IpAddr)> = Vec::new();
        if service.kind == Kind::Headless {
            if named.endpoints().next().is_none() {
                return Found::NoName;
            }
            for endpoint in named.endpoints() {
                let Some(target) = host_name(&endpoint, &base) else { continue };
                let ports = endpoint.ports.iter().filter(|port| port.port != 0);
                let ports = ports.filter(|p| is_it(p.name.as_deref().unwrap_or_default(), p.protocol));
                targets.extend(ports.map(|port| (port.port, target.clone(), endpoint.ip)));
            }
        } else {
            let ports: Vec<_> = service.ports.iter().filter(|p| is_it(&p.name, p.protocol)).collect();
            for ip in &service.cluster_ips {
                targets.extend(ports.iter().map(|port| (port.port, base.clone(), *ip)));
            }
        }
        targets.sort_unstable();
        targets.dedup();
        if targets.is_empty() {
            return Found::NoData;
        }
        let records: BTreeSet<(u16, &Name)> = targets.iter().map(|(port, name, _)| (*port, name)).collect();
        let weight = u16::try_from(100 / records.len()).unwrap_or(1).max(1);
        let srv = |(port, name, ip)| (SRV::new(0, weight, port, name), ip);
        Found::Targets(targets.into_iter().map(srv).collect())
    }

    /// The names of an address.
    fn reverse(&self, name: &Name) -> Found<'a> {
        let is_full = |net: &ipnet::IpNet| net.prefix_len() == net.max_prefix_len();
        let Some(net) = name.parse_arpa_name().ok().filter(is_full) else { return Found::Unknown };
        let ip = net.addr();
        let holders = self.names.at(&ip);
        if holders.is_empty() {
            return Found::Unknown;
        }
        if self.kind != RecordType::PTR {
            return Found::NoData;
        }
        let (mut own, mut hosts) = (Vec::new(), Vec::new());
        for holder in holders {
            let Some(named) = self.names.service(&holder.namespace, &holder.name) else { continue };
            let Some(base) = self.zone.service(holder) else { continue };
            if named.service().kind == Kind::Headless {
                let endpoints = named.endpoints().filter(|endpoint| endpoint.ip == ip);
                hosts.extend(endpoints.filter_map(|endpoint| host_name(&endpoint, &base)));
            } else {
                own.push(base);
            }
        }
        let mut names = if own.is_empty() { hosts } else { own };
        names.sort_unstable();
        names.dedup();
        records(names.into_iter().map(|name| RData::PTR(PTR(name))).collect())
    }
}

fn records<'a>(data: Vec<RData>) -> Found<'a> {
    if data.is_empty() { Found::NoData } else { Found::Records(data) }
}

fn record(name: &Name, data: RData) -> Record {
    Record::from_rdata(name.clone(), TTL, data)
}

fn address(ip: IpAddr) -> RData {
    match ip {
        IpAddr::V4(ip) => RData::A(A(ip)),
        IpAddr::V6(ip) => RData::AAAA(AAAA(ip)),
    }
}

/// `label` is `name` with an underscore before it.
fn is_label(label: &str, name: &str) -> bool {
    label.strip_prefix('_').is_some_and(|label| label.eq_ignore_ascii_case(name))
}

/// The name of one endpoint of the Service that is called `base`.
fn host_name(endpoint: &NamedEndpoint<'_>, base: &Name) -> Option<Name> {
    let dashed;
    let host = match endpoint.host {
        Some(host) => host,
        None => {
            dashed = self::dashed(endpoint.ip);
            &dashed
        }
    };
    base.prepend_label(host.as_bytes()).ok()
}

/// The label of an endpoint that has no host name: its address with dashes.
fn dashed(ip: IpAddr) -> String {
    let mut label = ip.to_string().replace(['.', ':'], "-");
    if label.ends_with('-') {
        label.push('0');
    }
    label
}

/// The address that [`dashed`] makes `label` of.
fn undashed(label: &str) -> Option<IpAddr> {
    let v4 = || label.replace('-', ".").parse().ok().map(IpAddr::V4);
    v4().or_else(|| label.replace('-', ":").parse().ok().map(IpAddr::V6))
}

#[cfg(test)]
mod tests;
