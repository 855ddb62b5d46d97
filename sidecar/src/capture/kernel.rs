//! What is installed in this network namespace, and how it is changed. In: a plan. Out: the kernel's state. Never
//! touches what is not ours: the table, the routing rule, the routes.

use std::collections::BTreeMap;
use std::io;

use ipnet::IpNet;
use rustix::io::Errno;

use super::agreement::{CLOSING_SET, PASSED_SET, SERVICES_SET};
use super::family::Family;
use super::flows::{self, Flow, Line};
use super::message::Message;
use super::plan::{Bound, Plan};
use super::routing::{self, Route, Way};
use super::rules;
use super::sets::{self, ARRIVING_SET, Contents, PROBED_SET, SKIP_PORTS_SET, SKIP_SUBNETS_SET, Set, named};
use super::socket::{Refusal, Socket};
use super::table::{self, InstalledChain, Step};

/// Why the kernel did not do it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No capability.
    #[error(
        "may not look at or change the network of this namespace: it takes NET_ADMIN; give the container \
         capabilities.add: [NET_ADMIN], or run as root"
    )]
    Permission,
    /// A module is missing, or not loaded.
    #[error(
        "the kernel does not know {about} ({errno}): load the module {module} on the node (modprobe), or use a kernel \
         that has it"
    )]
    Module {
        /// What was refused.
        about: &'static str,
        /// What to load.
        module: &'static str,
        /// How it was refused.
        errno: Errno,
    },
    /// There is no way to loopback.
    #[error(
        "cannot route captured packets to lo: it is down; run `ip link set lo up` in this network namespace"
    )]
    LoopbackDown,
    /// Whatever else.
    #[error(
        "the kernel refused {about}: {errno}; `nft list ruleset`, `ip rule` and `ip route` show what it has"
    )]
    Refused {
        /// What was refused.
        about: &'static str,
        /// How.
        errno: Errno,
    },
    /// No list of connections.
    #[error("cannot read {0}: {1}; mount /proc, so that connections that run are left alone")]
    Connections(&'static str, io::Error),
}

/// What every machine must take.
const LEAST_SEGMENT: u32 = 536;

/// Where connections to the ranges of a plan go, and how large what leaves may be.
#[derive(Debug, Default)]
pub(super) struct Routes {
    pub(super) local: Vec<Route>,
    segments: Segments,
}

/// The largest TCP segments of what leaves, by family.
pub(super) type Segments = BTreeMap<Family, u16>;

/// What is refused, for an error.
const ROUTE: &str = "a local route of table 64102";
const RULE: &str = "the routing rule of preference 64";

/// Owning one means being able to ask about this network namespace and to change it.
#[derive(Debug)]
pub(super) struct Kernel {
    netfilter: Socket,
    route: Socket,
}

/// What is installed.
#[derive(Debug, Default)]
pub(super) struct Installed {
    /// The table's chains in the kernel's order, each with the notes of its rules.
    chains: Vec<InstalledChain>,
    /// The table's sets: what their keys are.
    sets: BTreeMap<String, (u32, u32)>,
    /// What is in them.
    elements: BTreeMap<String, Vec<Bound>>,
    /// Families whose routing rule is there.
    ruled: Vec<Family>,
    /// The routes of the routing table.
    routes: Vec<Route>,
}

impl Kernel {
    /// # Errors
    /// If the kernel has no netfilter.
    pub(super) fn open() -> Result<Self, Error> {
        let failed = |about, module| {
            move |error: io::Error| match Errno::from_io_error(&error) {
                Some(errno @ (Errno::PROTONOSUPPORT | Errno::AFNOSUPPORT)) => {
                    Error::Module { about, module, errno }
                }
                errno => Error::Refused { about, errno: errno.unwrap_or(Errno::IO) },
            }
        };
        Ok(Self {
            netfilter: Socket::netfilter().map_err(failed("netfilter's netlink", "nfnetlink"))?,
            route: Socket::route().map_err(failed("routing's netlink", "af_netlink"))?,
        })
    }

    /// Whether this namespace has an address of the family with which somebody else can be reached.
    pub(super) fn has_address(&self, family: Family) -> bool {
        let mut found = false;
        // A kernel without the family has no addresses of it.
        let asked = self.route.dump(&routing::ask_addresses(family), |_, item| {
            found |= routing::is_address(family, item);
        });
        found && asked.is_ok()
    }

    /// Whether somebody has a routing rule with which the node's answers would not pass.
    pub(super) fn looks_into_arrivals(&self, family: Family) -> bool {
        let mut looks = false;
        let asked = self.route.dump(&routing::ask_rules(family), |_, item| {
            looks |= routing::looks_into_arrivals(item);
        });
        // IPv6 does not check who sent what arrives.
        looks && asked.is_ok() && family == Family::IPv4
    }

    /// Routes for those of the plan's ranges to which connections can leave without capture, and the largest segments
    /// with which they can, by family.
    pub(super) fn routes(&self, plan: &Plan) -> Routes {
        let mut routes = Routes::default();
        for &range in &plan.services {
            let Some((way, mtu)) = self.way(range) else { continue };
            let family = Family::of(range.addr());
            let segment = mtu.saturating_sub(family.headers()).clamp(LEAST_SEGMENT, u16::MAX.into()) as u16;
            routes.local.push(Route { range, source: way.source });
            routes.segments.entry(family).and_modify(|least| *least = segment.min(*least)).or_insert(segment);
        }
        routes
    }

    /// How packets to a range leave, and how large they may be.
    fn way(&self, range: IpNet) -> Option<(Way, u32)> {
        let mut way = None;
        // A refusal says that nothing leads there.
        let _ = self.route.dump(&routing::ask_way(range.network()), |_, item| way = Way::read(item));
        let way = way?;
        let mut mtu = way.mtu;
        let _ = self.route.dump(&routing::ask_link(way.device), |_, item| {
            mtu = mtu.or(routing::read_mtu(item));
        });
        Some((way, mtu?))
    }

    /// Looks at what is installed.
    ///
    /// # Errors
    /// If the kernel does not tell.
    pub(super) fn installed(&self) -> Result<Installed, Error> {
        let mut installed = Installed::default();
        self.look("the chains of nftables", &table::ask_chains(), |item| {
            installed.chains.extend(table::read_chain(item).map(|name| (name, Vec::new())));
        })?;
        if !installed.chains.is_empty() {
            self.look("the rules of nftables", &table::ask_rules(), |item| {
                if let Some((chain, notes)) = table::read_rule(item)
                    && let Some((_, rules)) = installed.chains.iter_mut().find(|(name, _)| *name == chain)
                {
                    rules.push(notes);
                }
            })?;
        }
        self.look("the sets of nftables", &table::ask_sets(), |item| {
            installed.sets.extend(table::read_set(item));
        })?;
        for set in installed.sets.keys() {
            let elements = installed.elements.entry(set.clone()).or_default();
            self.look("the elements of a set", &table::ask_elements(set), |item| {
                elements.extend(table::read_elements(item));
            })?;
        }
        for family in Family::ALL {
            let mut is_ruled = false;
            // A kernel without the family or without routing rules has none.
            let _ =
                self.route.dump(&routing::ask_rules(family), |_, item| is_ruled |= routing::is_rule(item));
            installed.ruled.extend(is_ruled.then_some(family));
            let _ = self.route.dump(&routing::ask_routes(family), |_, item| {
                installed.routes.extend(Route::read(item));
            });
        }
        Ok(installed)
    }

    fn look(&self, about: &'static str, ask: &Message, mut each: impl FnMut(&[u8])) -> Result<(), Error> {
        match self.netfilter.dump(ask, |_, item| each(item)) {
            // No such table, which is an answer.
            Err(Refusal { errno: Errno::NOENT, .. }) => Ok(()),
            Err(Refusal { errno, .. }) => Err(Error::of(about, Some("nf_tables"), errno)),
            Ok(()) => Ok(()),
        }
    }

    /// Makes the kernel's state that of `plan`, with `routes` for its ranges; nothing happens if it is.
    ///
    /// # Errors
    /// If the kernel refuses. What this call has made is gone then, unless something was installed before.
    pub(super) fn install(&self, plan: &Plan, routes: &Routes) -> Result<(), Error> {
        let installed = self.installed()?;
        let result = self.install_over(plan, routes, &installed);
        if result.is_err() && installed.is_empty() {
            let _ = self.remove();
        }
        result
    }

    /// The rules come first: what they do not know yet goes to the node, also when routes lead to lo.
    fn install_over(&self, plan: &Plan, routes: &Routes, installed: &Installed) -> Result<(), Error> {
        if !installed.is(plan, &routes.segments) {
            self.replace(plan, &routes.segments, installed)?;
        }
        for route in routes.local.iter().filter(|route| !installed.routes.contains(route)) {
            self.route(ROUTE, &route.make(), Errno::EXIST)?;
        }
        let families = plan.families();
        for &family in families.iter().filter(|family| !installed.ruled.contains(family)) {
            self.route(RULE, &routing::make_rule(family), Errno::EXIST)?;
        }
        let is_planned = |route: &&Route| routes.local.iter().any(|planned| planned.range == route.range);
        self.unroute(
            installed.ruled.iter().filter(|family| !families.contains(family)),
            installed.routes.iter().filter(|route| !is_planned(route)),
        )
    }

    fn unroute<'a>(
        &self,
        ruled: impl Iterator<Item = &'a Family>,
        routes: impl Iterator<Item = &'a Route>,
    ) -> Result<(), Error> {
        for family in ruled {
            self.route(RULE, &routing::delete_rule(*family), Errno::NOENT)?;
        }
        for route in routes {
            self.route(ROUTE, &route.delete(), Errno::SRCH)?;
        }
        Ok(())
    }

    /// Two batches. Flows that begin between the first and the second are remembered by a chain that is there only
    /// then; those that began before are listed in /proc after the first, so none is missed.
    fn replace(&self, plan: &Plan, segments: &Segments, installed: &Installed) -> Result<(), Error> {
        let (all, arriving) = (sets::sets(plan), sets::arriving_sets(plan));
        let mut steps = Vec::new();
        // A table of this name with other sets is of another version, or somebody else's.
        let foreign = !installed.fits(&all);
        if foreign {
            steps.push(table::delete_table());
        }
        let earlier = if foreign { &Installed::default() } else { installed };
        steps.push(table::make_table());
        steps.extend(earlier.removal_of(&[ARRIVING_SET.to_owned()]));
        let left_over = earlier.sets.keys().filter(|set| set.starts_with(ARRIVING_SET));
        steps.extend(left_over.map(|set| table::delete_set(set)));
        steps.extend(all.iter().chain(&arriving).map(table::make_set));
        steps.extend(arriving.iter().flat_map(table::fill));
        steps.extend(table::make_chain(&rules::arriving_chain(plan)));
        self.commit(steps)?;

        let before = earlier.plan();
        let lines: Vec<Line> =
            connections()?.into_iter().filter(|line| plan.is_service(line.to.ip())).collect();
        // What was captured is to stay so.
        let running = lines.iter().filter(|line| !before.takes(line.to));
        for family in plan.families() {
            for (set, all) in [(PASSED_SET, true), (CLOSING_SET, false)] {
                let some = running.clone().filter(|line| all || line.is_closing());
                let flows: Vec<Flow> = some.map(Line::flow).filter(|flow| flow.family() == family).collect();
                for step in table::remember(&named(set, family), flows.iter()) {
                    self.commit(vec![step])?;
                }
            }
        }

        let chains: Vec<String> = earlier.chains.iter().map(|(name, _)| name.clone()).collect();
        let mut steps = earlier.removal_of(&chains);
        if !chains.iter().any(|chain| chain == ARRIVING_SET) {
            steps.extend([table::empty_chain(ARRIVING_SET), table::delete_chain(ARRIVING_SET)]);
        }
        steps.extend(arriving.iter().map(|set| table::delete_set(&set.name)));
        steps.extend(all.iter().filter(|set| earlier.holds(set) != Some(true)).flat_map(table::fill));
        steps.extend(rules::chains(plan, segments).iter().flat_map(table::make_chain));
        self.commit(steps)
    }

    /// Removes everything that is ours; nothing happens if nothing is.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub(super) fn remove(&self) -> Result<bool, Error> {
        let installed = self.installed()?;
        self.unroute(installed.ruled.iter(), installed.routes.iter())?;
        if !installed.chains.is_empty() || !installed.sets.is_empty() {
            self.commit(vec![table::delete_table()])?;
        }
        Ok(!installed.is_empty())
    }

    /// Has the flow of a probe captured, until [`Self::forget_probe`].
    ///
    /// # Errors
    /// If the kernel refuses.
    pub(super) fn expect_probe(&self, flow: &Flow) -> Result<(), Error> {
        self.commit(table::remember(&named(PROBED_SET, flow.family()), std::iter::once(flow)))
    }

    /// Undoes [`Self::expect_probe`].
    pub(super) fn forget_probe(&self, flow: &Flow) {
        // It may have faded by itself.
        let _ = self.commit(vec![table::forget(&named(PROBED_SET, flow.family()), flow)]);
    }

    fn commit(&self, steps: Vec<Step>) -> Result<(), Error> {
        let batch = table::batch(steps);
        let messages: Vec<Message> = batch.iter().map(|step| step.message.clone()).collect();
        self.netfilter.send(&messages).map_err(|refusal| {
            let step = refusal.message.and_then(|number| batch.get(number));
            let (about, module) = step.map_or(("the batch", None), |step| (step.about, step.module));
            Error::of(about, module, refusal.errno)
        })
    }

    fn route(&self, about: &'static str, message: &Message, already: Errno) -> Result<(), Error> {
        match self.route.send(std::slice::from_ref(message)) {
            Err(Refusal { errno, .. }) if errno == already => Ok(()),
            Err(Refusal { errno: Errno::NETDOWN, .. }) => Err(Error::LoopbackDown),
            Err(Refusal { errno, .. }) => {
                Err(Error::of(about, Some("CONFIG_IP_MULTIPLE_TABLES (built in)"), errno))
            }
            Ok(()) => Ok(()),
        }
    }
}

impl Installed {
    /// Nothing is.
    pub(super) fn is_empty(&self) -> bool {
        self.chains.is_empty() && self.sets.is_empty() && self.ruled.is_empty() && self.routes.is_empty()
    }

    /// What the rules say, chain by chain.
    pub(super) fn rules(&self) -> impl Iterator<Item = (&str, Vec<String>)> {
        let words =
            |notes: &Vec<u8>| table::words(notes).unwrap_or_else(|| "a rule that is not ours".to_owned());
        self.chains.iter().map(move |(name, rules)| (name.as_str(), rules.iter().map(words).collect()))
    }

    /// The plan that was installed; its user is not known, and does not matter to what is taken.
    pub(super) fn plan(&self) -> Plan {
        let ranges = |name: &str| -> Vec<IpNet> {
            let sets = Family::ALL.map(|family| self.elements.get(&named(name, family)));
            let bounds = sets.into_iter().flatten();
            bounds.flat_map(|bounds| super::plan::ranges(bounds)).collect()
        };
        Plan {
            services: ranges(SERVICES_SET),
            skip_ports: self.elements.get(SKIP_PORTS_SET).map(|b| super::plan::ports(b)).unwrap_or_default(),
            skip_subnets: ranges(SKIP_SUBNETS_SET),
            user: 0,
        }
    }

    /// Whether a family is in a set of families.
    pub(super) fn has(&self, set: &str, family: Family) -> bool {
        let families = self.elements.get(set);
        families.is_some_and(|keys| keys.iter().any(|(key, _)| *key == [family.number()]))
    }

    /// How many elements a set of a family has.
    pub(super) fn count(&self, set: &str, family: Family) -> usize {
        self.elements.get(&named(set, family)).map_or(0, Vec::len)
    }

    /// Whether connections of a family to what is captured are routed to lo.
    pub(super) fn is_routed(&self, family: Family) -> bool {
        let has_route = |range: IpNet| self.routes.iter().any(|route| route.range == range);
        self.ruled.contains(&family) && family.among(&self.plan().services).all(has_route)
    }

    fn is(&self, plan: &Plan, segments: &Segments) -> bool {
        let mut wanted: Vec<InstalledChain> = rules::chains(plan, segments)
            .into_iter()
            .map(|chain| (chain.name, chain.rules.iter().map(table::notes).collect()))
            .collect();
        let mut chains = self.chains.clone();
        wanted.sort();
        chains.sort();
        let sets = sets::sets(plan);
        chains == wanted
            && self.sets.len() == sets.len()
            && self.fits(&sets)
            && sets.iter().all(|set| self.holds(set) != Some(false))
    }

    /// Whether the sets that are there are as they should be; some may be missing.
    fn fits(&self, sets: &[Set]) -> bool {
        let fits = |set: &Set| self.sets.get(&set.name).is_none_or(|nature| *nature == table::nature(set));
        sets.iter().all(fits)
    }

    /// Whether a set holds what it should; `None` for one whose contents are not fixed.
    fn holds(&self, set: &Set) -> Option<bool> {
        let Contents::Fixed(bounds) = &set.contents else { return None };
        let mut bounds = bounds.clone();
        let mut held = self.elements.get(&set.name).cloned().unwrap_or_default();
        bounds.sort();
        held.sort();
        Some(held == bounds)
    }

    /// Removes those of `chains` that are there.
    fn removal_of(&self, chains: &[String]) -> Vec<Step> {
        let there = || self.chains.iter().map(|(name, _)| name).filter(|name| chains.contains(name));
        there()
            .map(|name| table::empty_chain(name))
            .chain(there().map(|name| table::delete_chain(name)))
            .collect()
    }
}

impl Error {
    fn of(about: &'static str, module: Option<&'static str>, errno: Errno) -> Self {
        match errno {
            Errno::PERM | Errno::ACCESS => Self::Permission,
            Errno::NOENT | Errno::OPNOTSUPP | Errno::AFNOSUPPORT | Errno::PROTONOSUPPORT | Errno::INVAL => {
                Self::Module { about, module: module.unwrap_or("nf_tables"), errno }
            }
            errno => Self::Refused { about, errno },
        }
    }
}

/// The connections of this network namespace.
pub(super) fn connections() -> Result<Vec<Line>, Error> {
    let mut lines = Vec::new();
    for path in ["/proc/self/net/tcp", "/proc/self/net/tcp6"] {
        match std::fs::read_to_string(path) {
            Ok(list) => lines.extend(flows::read(&list)),
            // A kernel without IPv6 has no such list.
            Err(error) if error.kind() == io::ErrorKind::NotFound && path.ends_with('6') => {}
            Err(error) => return Err(Error::Connections(path, error)),
        }
    }
    Ok(lines)
}

#[cfg(test)]
mod tests {
    use super::super::expression::Expression;
    use super::*;

    #[test]
    fn a_missing_module_is_told_by_name_with_the_next_step() {
        let rule = rules::Rule {
            words: String::new(),
            expressions: vec![Expression::SetMark, Expression::Tproxy(Family::IPv6, 8, 12)],
        };
        let chain = rules::Chain { name: "c".to_owned(), hook: None, rules: vec![rule] };
        let step = table::make_chain(&chain).pop().unwrap();
        let told = Error::of(step.about, step.module, Errno::NOENT).to_string();
        assert!(told.contains("a rule") && told.contains("nft_tproxy (and nf_tproxy_ipv6)"), "{told}");
        assert!(told.contains("modprobe"), "{told}");
        let told = Error::of("the table", None, Errno::OPNOTSUPP).to_string();
        assert!(told.contains("module nf_tables"), "{told}");
    }

    #[test]
    fn a_missing_capability_is_told_with_the_next_step() {
        let told = Error::of("the table", None, Errno::PERM).to_string();
        assert!(told.contains("NET_ADMIN") && told.contains("capabilities.add"), "{told}");
    }
}
