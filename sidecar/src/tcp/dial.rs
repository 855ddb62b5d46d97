//! Finds an endpoint for a connection and connects to it, trying another one while not one byte has been
//! relayed. In: a client. Out: both sides, connected, or why not. Never relays.
//!
//! Nothing is waited for that need not be: the connect is started, what the client has sent by then is read and
//! sent after it. On a fast network the connection stands by then, and the reactor has not been asked yet.

use std::net::SocketAddr;

use rustix::io::Errno;
use selection::{Destination, Draw, Flow, Path, Protocol, Question, ServicePort, Tallies, Tried, Verdict};
use tokio::time::timeout;

use super::account::{Account, End, Place};
use super::announcement;
use super::door::Found;
use super::socket::{Socket, Spare};
use super::stand_in::{StandIn, in_turn};
use crate::traffic::Failure;

/// Bytes that were read from a client and have not been sent; they survive a failed connect.
pub(super) type Pending = Vec<u8>;

/// A connection to an endpoint that stands, and what is still to be sent over it.
pub(super) struct Dialled {
    pub(super) endpoint: Socket,
    pub(super) pending: Pending,
}

/// Connects `client` to an endpoint, with `spare` first, and enters each one tried in `account`.
///
/// # Errors
/// How the connection ends.
pub(super) async fn dial(client: &Socket, spare: Spare, account: &mut Account) -> Result<Dialled, End> {
    let mut spare = Some(spare);
    let most = account.worker.settings.attempts.clamp(1, Tried::MOST);
    let mut tried = Tried::default();
    let mut pending = Pending::new();
    // What an earlier attempt did not send begins with it.
    let mut was_announced = false;
    let mut last = None;
    loop {
        let choice = match choose(account, &tried) {
            Err(End::Refused) if tried.count() == 0 && settles(account).await => choose(account, &tried),
            Ok(Choice { passes: true, address, .. }) if asks(account, address).await => {
                choose(account, &tried)
            }
            choice => choice,
        };
        let Choice { address, is_only, is_announced, .. } = match choice {
            Ok(choice) => choice,
            Err(end) => return Err(last.map_or(end, End::Failed)),
        };
        if is_announced && !was_announced {
            let dialled = client.own_address().map_err(|_| End::ClientGone)?;
            pending.splice(0..0, announcement::header(account.client, dialled));
            was_announced = true;
        }
        if last.is_some() {
            account.ledger.counters.retried();
        }
        account.attempts += 1;
        match attempt(client, address, spare.take(), &mut pending, account).await {
            Ok(endpoint) => return Ok(Dialled { endpoint, pending }),
            Err(Missed::ClientGone) => return Err(End::ClientGone),
            Err(Missed::Failed(failure)) => {
                tried.add(address);
                if is_only || failure == Failure::Descriptors || tried.count() >= most {
                    return Err(End::Failed(failure));
                }
                last = Some(failure);
            }
        }
    }
}

/// Whom to connect to.
struct Choice {
    address: SocketAddr,
    /// There is nobody to try in its place.
    is_only: bool,
    /// It is told first who the client is.
    is_announced: bool,
    /// It is no Service's endpoint, but what the client dialled.
    passes: bool,
}

/// Waits until it is known what stands in for the Service port that the table does not have; `false` if nothing can.
async fn settles(account: &Account) -> bool {
    let Some(stand_in) = account.door.stand_in() else { return false };
    let version = {
        let mut reader = account.worker.reader.borrow_mut();
        let table = reader.table();
        if !matches!(account.door.find(account.wanted, table), Found::Nothing) {
            return false;
        }
        table.version()
    };
    timeout(account.worker.settings.connect_timeout, stand_in.settles(version)).await.is_ok()
}

/// Waits until it is known whether a Service has `address`, which the table does not know; `false` if nobody is to say.
async fn asks(account: &Account, address: SocketAddr) -> bool {
    let Some(asking) = &account.worker.settings.asking else { return false };
    asking.ask(Destination::new(address, Protocol::Tcp), account.worker.tables()).await;
    true
}

/// Asks the table of this moment, and takes a place at the endpoint that it gives.
fn choose(account: &mut Account, tried: &Tried) -> Result<Choice, End> {
    // The place at an endpoint that failed must not weigh in this pick.
    account.endpoint = None;
    let worker = &account.worker;
    let mut reader = worker.reader.borrow_mut();
    match account.door.find(account.wanted, reader.table()) {
        Found::Port(path, port) => {
            let (choice, place) = ask(account, path, port, tried)?;
            account.endpoint = Some(place);
            return Ok(choice);
        }
        Found::Pass(address) => {
            return Ok(Choice { address, is_only: true, is_announced: false, passes: true });
        }
        Found::Nothing => {}
    }
    let ports = account.door.stand_in().map(StandIn::found).unwrap_or_default();
    let mut end = End::Refused;
    for port in in_turn(&ports, tried.count(), worker.now()) {
        match ask(account, Path::ClusterIp, port, tried) {
            Ok((choice, place)) => {
                account.endpoint = Some(place);
                return Ok(choice);
            }
            Err(why) => end = why,
        }
    }
    Err(end)
}

/// Asks which endpoint of `port` takes the connection of `account`, and takes a place there.
fn ask(
    account: &Account,
    path: Path,
    port: &ServicePort,
    tried: &Tried,
) -> Result<(Choice, (SocketAddr, Place)), End> {
    let worker = &account.worker;
    let ip = account.client.ip().to_canonical();
    let inside = account.door.is_inside(ip);
    let flow = Flow { client: SocketAddr::new(ip, account.client.port()), inside };
    let question = Question {
        path,
        flow,
        draw: Draw::new(&worker.settings.seed, &flow, port.next_turn()),
        now: worker.now(),
        pin: port.affinity_seconds.and_then(|_| worker.pins.get(ip, &port.id)),
        tried,
    };
    match selection::pick(port, &question, &Tallies) {
        Verdict::Endpoint(endpoint, pin) => {
            if let Some(pin) = pin {
                worker.pins.put(ip, &port.id, pin);
            }
            let is_announced = port.proxy_protocol && path == Path::NodePort;
            let choice = Choice { address: endpoint.address, is_only: false, is_announced, passes: false };
            Ok((choice, (endpoint.address, Place::take(&endpoint.tally))))
        }
        Verdict::Refuse => Err(End::Refused),
        Verdict::Drop => Err(End::Dropped),
    }
}

/// Why there is no connection to an endpoint.
enum Missed {
    ClientGone,
    Failed(Failure),
}

/// Connects to `address` and tells its tally how that went.
async fn attempt(
    client: &Socket,
    address: SocketAddr,
    spare: Option<Spare>,
    pending: &mut Pending,
    account: &Account,
) -> Result<Socket, Missed> {
    let worker = &account.worker;
    let limit = worker.settings.connect_timeout;
    let began = worker.now();
    let tally = account.endpoint.as_ref().map(|(_, place)| &place.0);
    if let Some(tally) = tally {
        tally.attempt(began, began + limit.as_millis() as u64);
    }
    let failure = match connect(client, address, spare, pending, account).await {
        Ok(socket) => {
            if let Some(tally) = tally {
                tally.succeeded();
            }
            return Ok(socket);
        }
        Err(Missed::ClientGone) => return Err(Missed::ClientGone),
        Err(Missed::Failed(failure)) => failure,
    };
    account.ledger.counters.failed(failure);
    tracing::debug!(service = account.ledger.label.service(), endpoint = %address, reason = failure.label(), "connect failed");
    if let Some(tally) = tally.filter(|_| failure.blames_endpoint())
        && tally.failed(began, worker.now())
    {
        tracing::info!(
            service = account.ledger.label.service(),
            endpoint = %address,
            reason = failure.label(),
            failures = tally.failures(),
            "endpoint put aside",
        );
    }
    Err(Missed::Failed(failure))
}

async fn connect(
    client: &Socket,
    address: SocketAddr,
    spare: Option<Spare>,
    pending: &mut Pending,
    account: &Account,
) -> Result<Socket, Missed> {
    let failed = |errno: Errno| Missed::Failed(judge(errno));
    let mut socket =
        Socket::connecting(address, spare, account.worker.settings.descriptors_end).map_err(failed)?;
    let stands = match first_bytes(client, pending, account, |bytes| socket.send(bytes)) {
        Ok(stands) => stands,
        Err(First::Client) => return Err(Missed::ClientGone),
        Err(First::Endpoint(errno)) => return Err(failed(errno)),
    };
    socket.watch().map_err(|_| Missed::Failed(Failure::Descriptors))?;
    if !stands {
        if timeout(account.worker.settings.connect_timeout, socket.decided()).await.is_err() {
            return Err(Missed::Failed(Failure::Timeout));
        }
        if let Some(errno) = socket.error() {
            return Err(failed(errno));
        }
    }
    Ok(socket)
}

/// Who failed at the first bytes.
enum First {
    Client,
    Endpoint(Errno),
}

/// Reads what the client has sent so far and tries to `send` it. Tells whether some was sent, which means that
/// the connection stands; what was not is `pending`.
fn first_bytes(
    client: &Socket,
    pending: &mut Pending,
    account: &Account,
    send: impl Fn(&[u8]) -> Result<usize, Errno>,
) -> Result<bool, First> {
    let mut tools = account.worker.tools.borrow_mut();
    let room = &mut tools.buffer;
    let kept = pending.len();
    let bytes: &[u8] = if kept > 0 {
        pending
    } else {
        match client.receive(room) {
            // Nothing yet, or its end: the relay will meet that again.
            Ok(0) | Err(Errno::WOULDBLOCK) => return Ok(false),
            Ok(n) => &room[..n],
            Err(_) => return Err(First::Client),
        }
    };
    let sent = match send(bytes) {
        Ok(sent) => sent,
        Err(Errno::WOULDBLOCK) => 0,
        Err(errno) => {
            let bytes = bytes.to_vec();
            *pending = bytes;
            return Err(First::Endpoint(errno));
        }
    };
    account.ledger.counters.received(sent as u64);
    let left = bytes[sent..].to_vec();
    *pending = left;
    Ok(sent > 0)
}

/// Whose fault a failed connect is.
fn judge(errno: Errno) -> Failure {
    match errno {
        Errno::CONNREFUSED => Failure::Refused,
        Errno::TIMEDOUT => Failure::Timeout,
        Errno::HOSTUNREACH | Errno::NETUNREACH | Errno::HOSTDOWN | Errno::NETDOWN => Failure::Unreachable,
        Errno::CONNRESET | Errno::PIPE => Failure::Reset,
        Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM => Failure::Descriptors,
        Errno::ADDRNOTAVAIL => Failure::Ports,
        _ => Failure::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_this_machine_lacks_is_not_held_against_an_endpoint() {
        for errno in
            [Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::ADDRNOTAVAIL, Errno::PERM, Errno::CONNRESET]
        {
            assert!(!judge(errno).blames_endpoint(), "{errno}");
        }
        for errno in [Errno::CONNREFUSED, Errno::TIMEDOUT, Errno::HOSTUNREACH, Errno::NETUNREACH] {
            assert!(judge(errno).blames_endpoint(), "{errno}");
        }
    }
}
