//! What a reader asks for on a stream, as a value and as bytes: what it wants to know of, by name or by a place that it
//! knows no name of. The reader sends it when it opens a stream, and again whenever it wants something else.
//!
//! | field | |
//! |--|--|
//! | 1 to 3 | [`Subscription`] |
//! | 4, any number of times | a place: 1 an address, 4 or 16 bytes, 2 a port, 3 a protocol as in a frame |
//! | 5 | a number, which the answer tells |
//!
//! A Service that has a place at the moment when the request is read is as if it had been asked for by name. Who does
//! not know of places tells no number, and may be asked for everything.

use std::net::SocketAddr;

use selection::{Destination, Protocol, Table};

use super::object::{ip, protocol, protocol_number, put_ip};
use super::wire::{Fields, put_message, put_nonzero, put_number};
use super::{Error, LARGEST, Names, Subscription};

/// What a reader asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// What it wants to know of.
    pub subscription: Subscription,
    /// And whatever Service is there.
    pub places: Names<Destination>,
    /// By which it knows the answer; 0: it need not know.
    pub number: u64,
}

impl From<Subscription> for Request {
    fn from(subscription: Subscription) -> Self {
        Self { subscription, places: Names::default(), number: 0 }
    }
}

impl Request {
    /// Its bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = self.subscription.encode();
        for place in self.places.iter() {
            put_message(&mut out, 4, |out| {
                put_ip(out, 1, place.ip);
                put_number(out, 2, place.port.into());
                put_nonzero(out, 3, protocol_number(place.protocol));
            });
        }
        put_nonzero(&mut out, 5, self.number);
        out
    }

    /// The request that these bytes are; a subscription is one, too.
    ///
    /// # Errors
    /// If they are none, or more than [`super::LARGEST`].
    pub fn decode(bytes: &[u8]) -> Result<Self, Error> {
        if bytes.len() > LARGEST {
            return Err(Error::TooLarge);
        }
        let subscription = Subscription::decode(bytes)?;
        let (mut places, mut number) = (Vec::new(), 0);
        for field in Fields(bytes) {
            match field? {
                (4, value) => places.extend(place(value.message()?)?),
                (5, value) => number = value.number()?,
                _ => {}
            }
        }
        Ok(Self { subscription, places: places.into_iter().collect(), number })
    }

    /// What is wanted, by name, as `table` has the places.
    pub fn resolve(&self, table: &Table) -> Subscription {
        let mut subscription = self.subscription.clone();
        if let Subscription::Some { services, .. } = &mut subscription
            && !self.places.is_empty()
        {
            let at = self.places.iter().filter_map(|place| table.at(place));
            let found = at.map(|(_, port)| port.id.service.clone());
            *services = services.iter().cloned().chain(found).collect();
        }
        subscription
    }
}

/// `None` for a protocol that a newer reader knows.
fn place(fields: Fields<'_>) -> Result<Option<Destination>, Error> {
    let (mut address, mut port, mut known) = (None, 0, Some(Protocol::Tcp));
    for field in fields {
        match field? {
            (1, value) => address = Some(ip(value.bytes()?)?),
            (2, value) => port = value.port()?,
            (3, value) => known = protocol(value.number()?),
            _ => {}
        }
    }
    let address = SocketAddr::new(address.ok_or(Error::Malformed)?, port);
    Ok(known.map(|protocol| Destination::new(address, protocol)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use selection::ServiceName;

    fn request() -> Request {
        let place = |address: &str, protocol| Destination::new(address.parse().unwrap(), protocol);
        Request {
            subscription: Subscription::services([ServiceName::new("shop", "web")]),
            places: [place("10.96.0.1:80", Protocol::Tcp), place("[fd00::1]:53", Protocol::Udp)].into(),
            number: 7,
        }
    }

    #[test]
    fn what_is_asked_is_what_is_read() {
        assert_eq!(Request::decode(&request().encode()), Ok(request()));
        let plain = Request::from(Subscription::All);
        assert_eq!(Request::decode(&Subscription::All.encode()), Ok(plain));
        for wrong in
            [&b"\x22\x00"[..], b"\x22\x03\x0a\x01\x01", b"\x22\x09\x0a\x04\x01\x01\x01\x01\x10\xff\x7f\x80"]
        {
            assert_eq!(Request::decode(wrong), Err(Error::Malformed), "{wrong:?}");
        }
    }

    #[test]
    fn an_older_server_reads_the_names_and_passes_over_the_rest() {
        assert_eq!(Subscription::decode(&request().encode()), Ok(request().subscription));
    }

    #[test]
    fn every_truncation_is_read_or_refused() {
        let bytes = request().encode();
        for length in 0..bytes.len() {
            let _ = Request::decode(&bytes[..length]);
        }
    }
}
