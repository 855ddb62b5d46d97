//! How names are answered, and whom to ask for those of others: `--dns`, `--dns-forward`, `--dns-zone`.

use std::net::SocketAddr;

use watcher::Source;

use super::{Error, given};
use crate::dns;

/// What names end with, and who knows the others.
#[derive(Clone, Debug)]
pub struct Names {
    /// Whom to ask for what the table does not know; as `/etc/resolv.conf` says if empty.
    pub forward: Vec<SocketAddr>,
    /// The cluster's zone.
    pub zone: dns::Zone,
}

impl Names {
    pub(super) fn new(forward: &[String], zone: &str) -> Result<Self, Error> {
        let server = |text: &String| {
            let text = text.trim();
            let alone = || Some(SocketAddr::new(text.parse().ok()?, dns::PORT));
            text.parse().ok().or_else(alone).ok_or_else(|| Error::DnsForward(text.to_owned()))
        };
        let forward = given(forward).map(server).collect::<Result<_, _>>()?;
        let zone = dns::Zone::parse(zone).ok_or_else(|| Error::DnsZone(zone.to_owned()))?;
        Ok(Self { forward, zone })
    }

    /// What `--dns` says, if it says that names are answered at all.
    pub(super) fn answered(
        &self,
        typed: Option<&str>,
        source: &Source,
    ) -> Result<Option<dns::Settings>, Error> {
        let Some(text) = typed.map(str::trim).filter(|text| !matches!(*text, "" | "off")) else {
            return Ok(None);
        };
        let address: SocketAddr =
            text.parse().map_err(|_| Error::Address("dns", text.to_owned(), "127.0.0.1:53"))?;
        if address.ip().is_unspecified() {
            return Err(Error::DnsEverywhere(address));
        }
        if matches!(source, Source::Feed(_)) {
            return Err(Error::DnsByFeed);
        }
        let Self { forward, zone } = self.clone();
        Ok(Some(dns::Settings { address, forward, zone }))
    }
}
