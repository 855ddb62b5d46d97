//! The decision: which endpoint takes this flow. A function of values: no clock, no chance, no allocation.
//! In: a Service port and a [`Question`]. Out: a [`Verdict`]. [`explain`] is the same function with a listener.
//!
//! Rules, in order: the policy of the dialled address gives the pool; source ranges bind load balancers; a
//! client's pin holds while its endpoint is usable; else [`Balance`] chooses among the candidates.
//!
//! **Candidates** are the pool's members that were not tried, less those put aside. If more than half of the
//! pool (rounded down) is aside, or nobody else is left, being aside counts for nothing, but that
//! least-connections takes the other of its two: who refuses at once looks idle.

use std::net::SocketAddr;

use crate::draw::{below, client_hash, mix};
use crate::{Balance, Draw, Endpoint, Flow, Health, Millis, Path, Pool, ServicePort};

/// What a pick is asked, all of it.
#[derive(Clone, Copy, Debug)]
pub struct Question<'a> {
    /// As what the address was dialled.
    pub path: Path,
    /// Who connects.
    pub flow: Flow,
    /// What chance says.
    pub draw: Draw,
    /// The time, in milliseconds from an origin that the host chooses.
    pub now: Millis,
    /// The client's pin from an earlier pick of this port.
    pub pin: Option<Pin>,
    /// Endpoints that this connection tried already.
    pub tried: &'a Tried,
}

/// The answer.
#[derive(Clone, Copy, Debug)]
pub enum Verdict<'t> {
    /// This one, and with session affinity the client's pin from now on.
    Endpoint(&'t Endpoint, Option<Pin>),
    /// Nobody can serve: the connection is refused.
    Refuse,
    /// Nobody may serve: the connection is dropped without a word.
    Drop,
}

/// Session affinity of one client on one Service port: which endpoint it stays with. Kept by the host under
/// the client's address and the [`crate::PortId`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pin {
    /// The endpoint's address.
    pub address: SocketAddr,
    /// Its Pod's identity.
    pub pod: u64,
    /// When the client last connected.
    pub used: Millis,
    /// The timeout that it was made under; another one ends it.
    pub seconds: u32,
}

/// The endpoints that one connection tried, by address: they outlive a table.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tried {
    addresses: [Option<SocketAddr>; Tried::MOST],
}

impl Tried {
    /// More tries than this are not remembered.
    pub const MOST: usize = 8;

    /// Adds one.
    pub fn add(&mut self, address: SocketAddr) {
        if let Some(free) = self.addresses.iter_mut().find(|slot| slot.is_none()) {
            *free = Some(address);
        }
    }

    /// How many were tried.
    pub fn count(&self) -> usize {
        self.addresses.iter().flatten().count()
    }

    fn contains(&self, address: &SocketAddr) -> bool {
        self.addresses.iter().map_while(Option::as_ref).any(|tried| tried == address)
    }
}

/// What a pick did, step by step.
#[derive(Clone, Copy, Debug)]
pub enum Step<'t> {
    /// The pool that the dialled address and its policy give.
    Policy {
        /// As what the address was dialled.
        path: Path,
        /// Its policy is Local.
        local: bool,
        /// It would be Local, were the client not inside the cluster.
        short_circuit: bool,
        /// The endpoints allowed.
        members: usize,
    },
    /// The client is outside of the source ranges.
    OutOfRange,
    /// The pool is empty; whether endpoints exist elsewhere decides between drop and refuse.
    Empty {
        /// Some exist elsewhere.
        elsewhere: bool,
    },
    /// The client's pin holds.
    Pinned(&'t Endpoint),
    /// The client's pin is void, for this reason.
    Unpinned(Unpinned),
    /// Some members are tried or aside.
    Candidates {
        /// How many are left to choose among.
        candidates: usize,
        /// How many were tried.
        tried: usize,
        /// How many are put aside.
        aside: usize,
        /// Too many are aside, or nobody else is left, so that it does not count.
        ignored: bool,
    },
    /// One of those that were compared, and its active connections.
    Drawn(&'t Endpoint, u32),
    /// The choice.
    Chosen(&'t Endpoint),
    /// All were tried.
    Exhausted,
}

/// Why a pin is void.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unpinned {
    /// The Service has no affinity, or another timeout than when the pin was made.
    Changed,
    /// The client stayed away for too long.
    Expired,
    /// Its endpoint does not serve.
    Gone,
    /// Its endpoint is put aside or was tried.
    Failing,
}

/// Which endpoint of `port` takes the flow of `question`. Does not allocate.
pub fn pick<'t>(port: &'t ServicePort, question: &Question<'_>, health: &impl Health) -> Verdict<'t> {
    explain(port, question, health, &mut |_| ())
}

/// [`pick`], telling `listen` each step.
#[inline]
pub fn explain<'t>(
    port: &'t ServicePort,
    question: &Question<'_>,
    health: &impl Health,
    listen: &mut impl FnMut(Step<'t>),
) -> Verdict<'t> {
    let path = question.path;
    let declared_local = if path == Path::ClusterIp { port.internal_local } else { port.external_local };
    let short_circuit = declared_local && path != Path::ClusterIp && question.flow.inside;
    let local = declared_local && !short_circuit;
    let pool = if local { &port.local } else { &port.cluster };
    let is_whole = !local && port.is_cluster_whole;
    let size = if is_whole { port.endpoints.len() } else { pool.members.len() };
    listen(Step::Policy { path, local, short_circuit, members: size });

    if path == Path::LoadBalancer && !in_ranges(port, &question.flow) {
        listen(Step::OutOfRange);
        return Verdict::Drop;
    }
    if size == 0 {
        listen(Step::Empty { elsewhere: port.has_any });
        return if port.has_any { Verdict::Drop } else { Verdict::Refuse };
    }
    let choice = Choice { port, pool, size: size as u32, is_whole, question, health };
    let pinned = match choice.pinned(local) {
        None => None,
        Some(Ok(endpoint)) => {
            listen(Step::Pinned(endpoint));
            Some(endpoint)
        }
        Some(Err(why)) => {
            listen(Step::Unpinned(why));
            None
        }
    };
    match pinned.or_else(|| choice.choose(listen)) {
        Some(endpoint) => {
            let pin = port.affinity_seconds.map(|seconds| Pin {
                address: endpoint.address,
                pod: endpoint.pod,
                used: question.now,
                seconds,
            });
            Verdict::Endpoint(endpoint, pin)
        }
        None => {
            listen(Step::Exhausted);
            Verdict::Refuse
        }
    }
}

/// How many of `pool` are put aside now: those that failed, unless they are more than half.
pub fn put_aside(port: &ServicePort, pool: &Pool, health: &impl Health, now: Millis) -> usize {
    let aside =
        pool.members.iter().filter(|&&i| health.aside(i as usize, &port.endpoints[i as usize], now)).count();
    if aside > pool.members.len() / 2 { 0 } else { aside }
}

fn in_ranges(port: &ServicePort, flow: &Flow) -> bool {
    let client = flow.client.ip().to_canonical();
    port.source_ranges.is_empty() || port.source_ranges.iter().any(|range| range.contains(&client))
}

/// A pick that has come down to its pool, which is not empty.
struct Choice<'t, 'q, H> {
    port: &'t ServicePort,
    pool: &'t Pool,
    /// How many members the pool has.
    size: u32,
    /// Every endpoint is one, and the list of members need not be looked at.
    is_whole: bool,
    question: &'q Question<'q>,
    health: &'q H,
}

impl<'t, H: Health> Choice<'t, '_, H> {
    /// The endpoint of the client's pin, or why it does not hold; `None` without a pin.
    fn pinned(&self, local: bool) -> Option<Result<&'t Endpoint, Unpinned>> {
        let pin = self.question.pin?;
        if self.port.affinity_seconds != Some(pin.seconds) {
            return Some(Err(Unpinned::Changed));
        }
        if self.question.now.saturating_sub(pin.used) > Millis::from(pin.seconds) * 1000 {
            return Some(Err(Unpinned::Expired));
        }
        let endpoints = &self.port.endpoints;
        let at = endpoints.binary_search_by(|endpoint| endpoint.address.cmp(&pin.address)).ok();
        let serves = |e: &Endpoint| e.pod == pin.pod && if local { e.in_local } else { e.in_cluster };
        let Some((at, endpoint)) = at.map(|at| (at, &endpoints[at])).filter(|(_, e)| serves(e)) else {
            return Some(Err(Unpinned::Gone));
        };
        let tried = self.question.tried.contains(&endpoint.address);
        let aside = self.health.aside(at, endpoint, self.question.now)
            && put_aside(self.port, self.pool, self.health, self.question.now) > 0;
        Some(if tried || aside { Err(Unpinned::Failing) } else { Ok(endpoint) })
    }

    /// The endpoint that the Service's balance gives; `None` if all were tried.
    #[inline]
    fn choose(&self, listen: &mut impl FnMut(Step<'t>)) -> Option<&'t Endpoint> {
        // First as if everybody were well, which is nearly always so. A draw that meets one who may not be
        // chosen is void, and made again among those who may: uniform either way.
        let (a, b) = self.draw();
        if self.is_well(a) && (a == b || self.is_well(b)) {
            return Some(self.settle(a, b, |_| false, listen));
        }
        self.among_the_well(a, b, listen)
    }

    /// The two endpoints to compare, or twice the one.
    #[inline]
    fn draw(&self) -> (u32, u32) {
        let Question { flow, draw, .. } = self.question;
        let n = self.size;
        let maglev = || self.pool.maglev.as_ref();
        let one = match self.port.balance {
            Balance::LeastConnections if n > 1 => {
                let (a, b) = two_below(draw.hash, n);
                return (self.member(a), self.member(b));
            }
            Balance::Maglev if let Some(maglev) = maglev() => {
                maglev.member(client_hash(flow.client.ip())) as u32
            }
            Balance::RoundRobin => (draw.turn % u64::from(n)) as u32,
            _ => below((draw.hash >> 32) as u32, n),
        };
        (self.member(one), self.member(one))
    }

    /// The member at a position of the pool.
    #[inline]
    fn member(&self, at: u32) -> u32 {
        if self.is_whole { at } else { self.pool.members[at as usize] }
    }

    /// Of two endpoints the one with fewer active connections, a failing one only if both fail.
    #[inline]
    fn settle(
        &self,
        a: u32,
        b: u32,
        fails: impl Fn(u32) -> bool,
        listen: &mut impl FnMut(Step<'t>),
    ) -> &'t Endpoint {
        let mut chosen = self.endpoint(a);
        if a != b {
            let load = |i: u32| self.health.load(i as usize, self.endpoint(i));
            let (load_a, load_b) = (load(a), load(b));
            listen(Step::Drawn(self.endpoint(a), load_a));
            listen(Step::Drawn(self.endpoint(b), load_b));
            if (fails(b), load_b) < (fails(a), load_a) {
                chosen = self.endpoint(b);
            }
        }
        listen(Step::Chosen(chosen));
        chosen
    }

    /// The choice when the draw `a`, `b` met one who is aside or was tried: counts who is left, and draws again
    /// among those.
    #[cold]
    fn among_the_well(&self, a: u32, b: u32, listen: &mut impl FnMut(Step<'t>)) -> Option<&'t Endpoint> {
        // Maglev's next one needs no count if it is well: it is the same whoever else is left.
        if let Some(next) = self.next_of_series(&|i| !self.is_tried(i))
            && !self.is_aside(next)
        {
            return Some(self.settle(next, next, |_| false, listen));
        }
        let members = &self.pool.members;
        let (mut tried, mut aside, mut both) = (0, 0, 0);
        for &i in members {
            let (t, a) = (self.is_tried(i), self.is_aside(i));
            tried += usize::from(t);
            aside += usize::from(a);
            both += usize::from(t && a);
        }
        let well = members.len() + both - tried - aside;
        let ignored = aside > members.len() / 2 || well == 0;
        let candidates = if ignored { members.len() - tried } else { well };
        listen(Step::Candidates { candidates, tried, aside, ignored });
        if candidates == 0 {
            return None;
        }
        let may = |i: u32| !self.is_tried(i) && (ignored || !self.is_aside(i));
        let (a, b) = if may(a) && may(b) { (a, b) } else { self.redraw(candidates as u32, may)? };
        Some(self.settle(a, b, |i| self.is_aside(i), listen))
    }

    /// [`Self::draw`] among the `n` members that `may` be chosen, at least one.
    fn redraw(&self, n: u32, may: impl Fn(u32) -> bool) -> Option<(u32, u32)> {
        let Question { flow, draw, .. } = self.question;
        let members = &self.pool.members;
        let nth = |at: u32| members.iter().copied().filter(|&i| may(i)).nth(at as usize);
        let again = mix(draw.hash);
        let one = match (self.port.balance, &self.pool.maglev) {
            (Balance::LeastConnections, _) if n > 1 => {
                let (a, b) = two_below(again, n);
                return Some((nth(a)?, nth(b)?));
            }
            (Balance::Maglev, Some(_)) => {
                let last = series(flow).nth(LOOKUPS)?;
                self.next_of_series(&may).or_else(|| nth(below((last >> 32) as u32, n)))?
            }
            // A turn of one who is left out goes to each of the others in its turn.
            (Balance::RoundRobin, _) => {
                let all = members.len() as u64;
                let turn = (draw.turn / all).wrapping_add(draw.turn % all);
                nth((turn % u64::from(n)) as u32)?
            }
            _ => nth(below((again >> 32) as u32, n))?,
        };
        Some((one, one))
    }

    /// The first member that `may` be chosen in the order that the client has of its own with Maglev: whoever is left
    /// keeps its clients, and those of the others spread. `None` also if too many of the first may not.
    fn next_of_series(&self, may: &dyn Fn(u32) -> bool) -> Option<u32> {
        let (Balance::Maglev, Some(maglev)) = (self.port.balance, &self.pool.maglev) else { return None };
        let members = series(&self.question.flow).map(|hash| self.member(maglev.member(hash) as u32));
        members.take(LOOKUPS).find(|&i| may(i))
    }

    fn endpoint(&self, i: u32) -> &'t Endpoint {
        &self.port.endpoints[i as usize]
    }

    fn is_well(&self, i: u32) -> bool {
        !self.is_tried(i) && !self.is_aside(i)
    }

    fn is_tried(&self, i: u32) -> bool {
        self.question.tried.contains(&self.endpoint(i).address)
    }

    fn is_aside(&self, i: u32) -> bool {
        self.health.aside(i as usize, self.endpoint(i), self.question.now)
    }
}

/// How far a client's order of Maglev's members is followed.
const LOOKUPS: usize = 16;

/// The hashes by which the client of `flow` looks members up, one after the other.
fn series(flow: &Flow) -> impl Iterator<Item = u64> + use<> {
    std::iter::successors(Some(client_hash(flow.client.ip())), |hash| Some(mix(*hash)))
}

/// Two different numbers below `n`, which is at least 2.
fn two_below(hash: u64, n: u32) -> (u32, u32) {
    let a = below((hash >> 32) as u32, n);
    let b = below(hash as u32, n - 1);
    (a, b + u32::from(b >= a))
}
