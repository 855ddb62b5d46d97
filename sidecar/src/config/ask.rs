//! What `remora endpoints` and `remora explain` shall do, and whom they ask.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use selection::story::Connection;
use selection::{Here, Protocol, ServiceName};
use watcher::Source;

use super::{ADMIN_IN_POD, Error, address, here, listen, source};
use crate::arguments::{self, AskArguments, EndpointsArguments, ExplainArguments, OutputFormat};

/// Whom `remora endpoints` and `remora explain` shall ask.
#[derive(Debug)]
pub enum Ask {
    /// The sidecar whose admin address this is.
    Sidecar(SocketAddr),
    /// Nobody: they look for themselves, from this place.
    Source(Source, Here),
}

/// What `remora endpoints` shall do.
#[derive(Debug)]
pub struct Endpoints {
    /// Which Service; all if `None`.
    pub service: Option<ServiceName>,
    /// Whom to ask.
    pub ask: Ask,
    /// How to print it.
    pub output: OutputFormat,
}

/// What `remora explain` shall do.
#[derive(Debug)]
pub struct Explain {
    /// The connection.
    pub question: Connection,
    /// Whom to ask.
    pub ask: Ask,
    /// How to print it.
    pub output: OutputFormat,
}

impl Endpoints {
    /// Judges the command line of `remora endpoints`.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn new(typed: EndpointsArguments) -> Result<Self, Error> {
        let service = typed.service.as_deref().map(service).transpose()?;
        let output = typed.ask.output;
        Ok(Self { service, ask: ask(typed.ask)?, output })
    }
}

impl Explain {
    /// Judges the command line of `remora explain`.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn new(typed: ExplainArguments) -> Result<Self, Error> {
        let protocol = match typed.protocol {
            arguments::ProtocolName::Tcp => Protocol::Tcp,
            arguments::ProtocolName::Udp => Protocol::Udp,
            arguments::ProtocolName::Sctp => Protocol::Sctp,
        };
        let question = Connection {
            address: typed.address.parse().map_err(|_| Error::Explained(typed.address.clone()))?,
            protocol,
            client: typed.client.as_deref().map(client).transpose()?,
            inside: !typed.outside,
        };
        let output = typed.ask.output;
        Ok(Self { question, ask: ask(typed.ask)?, output })
    }
}

/// Reads `[NAMESPACE/]NAME`.
///
/// # Errors
/// If it is not the name of a Service.
pub fn service(text: &str) -> Result<ServiceName, Error> {
    listen::service_name(text).map_err(Error::Service)
}

/// Reads `ADDRESS[:PORT]`.
///
/// # Errors
/// If it is no IP address.
pub fn client(text: &str) -> Result<SocketAddr, Error> {
    let bare = || {
        let unbracketed = text.strip_prefix('[').and_then(|t| t.strip_suffix(']')).unwrap_or(text);
        unbracketed.parse::<IpAddr>().map(|ip| SocketAddr::new(ip, 0))
    };
    text.parse().or_else(|_| bare()).map_err(|_| Error::Client(text.to_owned()))
}

fn ask(typed: AskArguments) -> Result<Ask, Error> {
    match &typed.source {
        Some(text) => match source("source", text)? {
            Source::Feed(watcher::feed::Address::Tls { .. }) => {
                let why = format!("{text} is for sidecars, of which one can be asked; leave --source away");
                Err(Error::Source("source", why))
            }
            source => Ok(Ask::Source(source, here(typed.place))),
        },
        None => {
            let mut admin = address("admin", Some(&typed.admin), ADMIN_IN_POD, ADMIN_IN_POD)?
                .unwrap_or(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 64103));
            if admin.ip().is_unspecified() {
                admin.set_ip(IpAddr::V4(Ipv4Addr::LOCALHOST));
            }
            Ok(Ask::Sidecar(admin))
        }
    }
}
