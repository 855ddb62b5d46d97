//! Which ranges a cluster's Service addresses come from. In: the configuration of the Kubernetes API. Out: ranges, or
//! why they are not known. Never follows anything, and never creates anything: what it posts is a dry run.
//!
//! ServiceCIDR objects name them (networking.k8s.io/v1, Kubernetes 1.33). An older API server names its range to whoever
//! wants a Service with an address that is not in it.

use std::time::Duration;

use ::kube::core::Status;
use ::kube::{Client, Config};
use ipnet::IpNet;
use serde_json::{Value, json};

use super::failure::chain;

/// Addresses that no cluster gives to a Service: those of documentation (RFC 5737, RFC 3849).
const INVALID: [(&str, &str); 2] = [("IPv4", "192.0.2.1"), ("IPv6", "2001:db8::1")];
/// What an API server writes before its range.
const HINT: &str = "The range of valid IPs is ";
/// Between two attempts to reach an API server.
const PAUSE: Duration = Duration::from_millis(500);

/// Why the ranges are not known.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no API server to ask.
    #[error("there is no Kubernetes API to ask: {0}")]
    NoConfig(String),
    /// It cannot be asked.
    #[error("cannot ask the Kubernetes API at {0}: {1}")]
    Unreachable(String, String),
    /// It does not say.
    #[error(
        "the Kubernetes API at {url} does not say: to list ServiceCIDRs: {list}; to try an invalid Service address: \
         {trial}; a ClusterRole may allow apiGroups [\"networking.k8s.io\"], resources [\"servicecidrs\"], verbs [\"list\"]"
    )]
    Untold {
        /// The server.
        url: String,
        /// What it says to the first question.
        list: String,
        /// What it says to the second.
        trial: String,
    },
}

/// Asks the API server which ranges Service addresses come from, for `within` at most.
///
/// # Errors
/// If none is known.
pub async fn service_ranges(within: Duration) -> Result<Vec<IpNet>, Error> {
    let mut config = Config::infer().await.map_err(|error| Error::NoConfig(chain(&error)))?;
    config.connect_timeout = Some(within / 2);
    config.read_timeout = Some(within / 2);
    let (url, namespace) = (config.cluster_url.to_string(), config.default_namespace.clone());
    let client = Client::try_from(config).map_err(|error| Error::Unreachable(url.clone(), chain(&error)))?;
    let mut last = format!("no answer within {} s", within.as_secs());
    let asked = tokio::time::timeout(within, async {
        loop {
            match ask(&client, &url, &namespace).await {
                Err(Error::Unreachable(_, why)) => last = why,
                known => return known,
            }
            tokio::time::sleep(PAUSE).await;
        }
    });
    asked.await.unwrap_or_else(|_| Err(Error::Unreachable(url.clone(), last)))
}

async fn ask(client: &Client, url: &str, namespace: &str) -> Result<Vec<IpNet>, Error> {
    let list = http::Request::get("/apis/networking.k8s.io/v1/servicecidrs");
    let list = match send(client, url, list, Vec::new()).await? {
        Ok(list) => match listed(&list) {
            ranges if !ranges.is_empty() => return Ok(ranges),
            _ => "it has none".to_owned(),
        },
        Err(status) => said(&status),
    };
    let mut ranges = Vec::new();
    let mut trials = Vec::new();
    for (family, address) in INVALID {
        let path = format!("/api/v1/namespaces/{namespace}/services?dryRun=All");
        let request = http::Request::post(path).header(http::header::CONTENT_TYPE, "application/json");
        let service = json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": {"generateName": "remora-capture-"},
            "spec": {
                "clusterIP": address, "ipFamilies": [family],
                "ports": [{"port": 443}],
            },
        });
        let trial = match send(client, url, request, service.to_string().into_bytes()).await? {
            Ok(_) => format!("{address} is accepted"),
            Err(status) => said(&status),
        };
        match hinted(&trial) {
            Some(range) => ranges.push(range),
            None => trials.push(trial),
        }
    }
    if ranges.is_empty() {
        return Err(Error::Untold { url: url.to_owned(), list, trial: trials.join(", ") });
    }
    Ok(ranges)
}

/// The answer, or what the API server says in place of one.
async fn send(
    client: &Client,
    url: &str,
    request: http::request::Builder,
    body: Vec<u8>,
) -> Result<Result<Value, Box<Status>>, Error> {
    let failed = |error: &dyn std::error::Error| Error::Unreachable(url.to_owned(), chain(error));
    let request = request.body(body).map_err(|error| failed(&error))?;
    match client.request(request).await {
        Ok(answer) => Ok(Ok(answer)),
        // It answers, but not now.
        Err(::kube::Error::Api(status)) if !matches!(status.code, 429 | 500..) => Ok(Err(status)),
        Err(error) => Err(failed(&error)),
    }
}

fn said(status: &Status) -> String {
    format!("{} ({})", status.message, status.code)
}

/// The ranges in a ServiceCIDRList; one that cannot be read is none.
fn listed(list: &Value) -> Vec<IpNet> {
    let items = list["items"].as_array().into_iter().flatten();
    let cidrs = items.filter_map(|item| item["spec"]["cidrs"].as_array()).flatten();
    cidrs.filter_map(|cidr| cidr.as_str()?.parse().ok()).collect()
}

/// The range that an API server names when it refuses an address.
fn hinted(message: &str) -> Option<IpNet> {
    let (_, behind) = message.split_once(HINT)?;
    let end = behind.find(|c: char| !c.is_ascii_hexdigit() && !".:/".contains(c)).unwrap_or(behind.len());
    behind[..end].trim_end_matches(['.', ':']).parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_ranges_of_all_objects_are_listed() {
        let list = json!({"items": [
            {"metadata": {"name": "kubernetes"}, "spec": {"cidrs": ["10.96.0.0/16", "fd00:96::/112"]}},
            {"metadata": {"name": "more"}, "spec": {"cidrs": ["10.200.0.0/24", "nonsense"]}},
            {"metadata": {"name": "empty"}},
        ]});
        let expected = ["10.96.0.0/16", "fd00:96::/112", "10.200.0.0/24"].map(|range| range.parse().unwrap());
        assert_eq!(listed(&list), expected);
        assert_eq!(listed(&json!({})), []);
    }

    #[test]
    fn a_refusal_names_the_range() {
        let refusal = "Service \"x\" is invalid: spec.clusterIPs: Invalid value: []string{\"192.0.2.1\"}: failed to \
                       allocate IP 192.0.2.1: provided IP is not in the valid range. The range of valid IPs is \
                       10.96.0.0/12 (422)";
        assert_eq!(hinted(refusal), Some("10.96.0.0/12".parse().unwrap()));
        assert_eq!(hinted("The range of valid IPs is fd00::/112."), Some("fd00::/112".parse().unwrap()));
        assert_eq!(hinted("The range of valid IPs is unknown"), None);
        assert_eq!(hinted("services is forbidden"), None);
    }
}
