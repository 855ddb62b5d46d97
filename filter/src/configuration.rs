//! What a plugin is told in Envoy's configuration. In: JSON. Out: a [`Configuration`], or one sentence that names the
//! field which is wrong. Never a default that would hide a mistake.

use selection::{Millis, ServiceName};
use watcher::feed::{Names, Subscription};

use crate::authority::Wanted;
use crate::json::{self, Value};

/// Which of the two plugins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plugin {
    /// Before `tcp_proxy`.
    Network,
    /// Before the router.
    Http,
}

/// The configuration of one plugin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Configuration {
    /// Envoy's cluster in which the feed is served. The only field that must be there.
    pub feed: String,
    /// The Service that everything here is for: `NAMESPACE/NAME:PORT`. Without it the address that a client dialled, or
    /// the authority of its request, says which.
    pub service: Option<(ServiceName, String)>,
    /// The namespaces whose Services are known here; all if there is none. Says nothing beside a `service`.
    pub namespaces: Vec<String>,
    /// Where what is not in the table goes. Without it: it is refused.
    pub fallback: Fallback,
    /// `overrideHost`: the clusters are a mesh's, whose policy `override_host` is given the endpoints in one header.
    /// Default false: the clusters are Remora's, and each attempt has a header of its own.
    pub override_host: bool,
    /// The node on which this Envoy runs; by default the `sub_zone` of its locality.
    pub node: Option<String>,
    /// The zone in which this Envoy runs; by default the `zone` of its locality.
    pub zone: Option<String>,
    /// The namespace of a name without one: of whom the clients of this Envoy are. By default such a name is no Service's.
    pub namespace: Option<String>,
    /// The cluster's domain, in which authorities name Services. Default `cluster.local`.
    pub cluster_domain: String,
    /// `connectTimeout`, in seconds: that of Envoy's clusters; for so long a connect may be under way. Default 5.
    pub connect_timeout: Millis,
}

/// The fields, for messages.
const FIELDS: &str =
    "feed, service, namespaces, namespace, fallback, overrideHost, node, zone, clusterDomain, connectTimeout";

/// Where what is not in the table goes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Fallback {
    /// Nowhere.
    #[default]
    None,
    /// The connection goes to this cluster of Envoy.
    Cluster(String),
    /// The request goes on without our headers, to whichever route takes it then.
    Route,
}

impl Configuration {
    /// Reads the configuration of `plugin`.
    ///
    /// # Errors
    /// One sentence: what is wrong, in which field, and what would be right.
    pub fn read(text: &[u8], plugin: Plugin) -> Result<Self, String> {
        let is_no = |why: &str| format!("the configuration is no JSON: {why}");
        let text = std::str::from_utf8(text).map_err(|_| is_no("it is not UTF-8"))?;
        let fields = match json::read(text).map_err(|why| is_no(&why))? {
            Value::Object(fields) => fields,
            other => return Err(format!("the configuration is {}, expected an object", other.what())),
        };
        let mut configuration = Self {
            feed: String::new(),
            service: None,
            namespaces: Vec::new(),
            fallback: Fallback::None,
            override_host: false,
            namespace: None,
            node: None,
            zone: None,
            cluster_domain: "cluster.local".to_owned(),
            connect_timeout: 5_000,
        };
        for (name, value) in fields {
            configuration.set(&name, value, plugin)?;
        }
        if configuration.feed.is_empty() {
            return Err(
                "the configuration has no field feed, which names Envoy's cluster of the feed".to_owned()
            );
        }
        Ok(configuration)
    }

    fn set(&mut self, name: &str, value: Value, plugin: Plugin) -> Result<(), String> {
        let wrong = |value: &Value, expected: &str| {
            let is = match value {
                Value::Text(text) => format!("\"{text}\""),
                Value::Number(number) => number.clone(),
                other => other.what().to_owned(),
            };
            format!("the field {name} of the configuration is wrong: it is {is}, expected {expected}")
        };
        let text = |value: Value, expected: &str| match value {
            Value::Text(text) if !text.is_empty() => Ok(text),
            other => Err(wrong(&other, expected)),
        };
        match name {
            "feed" => self.feed = text(value, "the name of a cluster")?,
            "service" => {
                const EXPECTED: &str = "a Service and its port, such as shop/web:80";
                let written = text(value, EXPECTED)?;
                self.service = match service(&written) {
                    None => return Err(wrong(&Value::Text(written), EXPECTED)),
                    read => read,
                };
            }
            "namespaces" => {
                const EXPECTED: &str = "a list of the names of namespaces";
                let Value::List(values) = value else { return Err(wrong(&value, EXPECTED)) };
                for value in values {
                    self.namespaces.push(text(value, EXPECTED)?);
                }
            }
            "fallback" => {
                self.fallback = match (plugin, value) {
                    (Plugin::Network, Value::Text(cluster)) if !cluster.is_empty() => {
                        Fallback::Cluster(cluster)
                    }
                    (Plugin::Network, other) => return Err(wrong(&other, "the name of a cluster")),
                    (Plugin::Http, Value::Bool(true)) => Fallback::Route,
                    (Plugin::Http, Value::Bool(false)) => Fallback::None,
                    (Plugin::Http, other) => {
                        return Err(wrong(
                            &other,
                            "true, which means a route that does not ask for our headers",
                        ));
                    }
                };
            }
            "overrideHost" => {
                self.override_host = match (plugin, value) {
                    (Plugin::Http, Value::Bool(whether)) => whether,
                    (_, other) => return Err(wrong(&other, "true or false, in the plugin http alone")),
                };
            }
            "namespace" => self.namespace = Some(text(value, "the name of a namespace")?),
            "node" => self.node = Some(text(value, "the name of a node")?),
            "zone" => self.zone = Some(text(value, "the name of a zone")?),
            "clusterDomain" => self.cluster_domain = text(value, "a domain, such as cluster.local")?,
            "connectTimeout" => {
                let seconds = match &value {
                    Value::Number(number) => millis(number),
                    _ => None,
                };
                let Some(millis) = seconds else { return Err(wrong(&value, "seconds, from 0.001 to 3600")) };
                self.connect_timeout = millis;
            }
            _ => {
                return Err(format!("the configuration has the unknown field {name}, expected are {FIELDS}"));
            }
        }
        Ok(())
    }

    /// What the feed is asked for.
    pub fn subscription(&self) -> Subscription {
        let (mut namespaces, mut services) = (Names::default(), Names::default());
        match &self.service {
            Some((service, _)) => services.insert(service.clone()),
            None if self.namespaces.is_empty() => return Subscription::All,
            None => self.namespaces.iter().for_each(|name| namespaces.insert(name.as_str().into())),
        }
        Subscription::Some { namespaces, services }
    }

    /// Whom everything here is for.
    pub fn wanted(&self) -> Option<Wanted> {
        let (service, port) = self.service.as_ref()?;
        Some(Wanted::Service(service.clone(), port.clone()))
    }
}

/// Reads `NAMESPACE/NAME:PORT`.
fn service(text: &str) -> Option<(ServiceName, String)> {
    let (name, port) = text.rsplit_once(':')?;
    let is_port =
        !port.is_empty() && port != "0" && port.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    is_port.then(|| Some((ServiceName::written(name)?, port.to_owned()))).flatten()
}

/// Reads seconds, up to an hour, with up to three digits after the point.
fn millis(number: &str) -> Option<Millis> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let fraction = if fraction.len() <= 3 { format!("{fraction:0<3}") } else { return None };
    let millis = whole.parse::<Millis>().ok()?.checked_mul(1000)?.checked_add(fraction.parse().ok()?)?;
    (1..=3_600_000).contains(&millis).then_some(millis)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: &str, plugin: Plugin) -> Result<Configuration, String> {
        Configuration::read(json.as_bytes(), plugin)
    }

    #[test]
    fn the_feed_alone_is_enough() {
        let configuration = read(r#"{"feed": "remora-feed"}"#, Plugin::Http).unwrap();
        assert_eq!(configuration.subscription(), Subscription::All);
        assert_eq!((configuration.wanted(), configuration.fallback.clone()), (None, Fallback::None));
        assert_eq!((&*configuration.cluster_domain, configuration.connect_timeout), ("cluster.local", 5_000));
    }

    #[test]
    fn every_field_is_read() {
        let json = r#"{"feed": "f", "service": "shop/web:http", "namespaces": ["a"], "fallback": "dns", "node": "n",
            "zone": "z", "clusterDomain": "my.zone", "connectTimeout": 0.5}"#;
        let configuration = read(json, Plugin::Network).unwrap();
        let service = ServiceName::new("shop", "web");
        assert_eq!(configuration.subscription(), Subscription::services([service.clone()]));
        assert_eq!(configuration.wanted(), Some(Wanted::Service(service, "http".into())));
        assert_eq!(configuration.fallback, Fallback::Cluster("dns".into()));
        assert_eq!((configuration.node.as_deref(), configuration.zone.as_deref()), (Some("n"), Some("z")));
        assert_eq!((&*configuration.cluster_domain, configuration.connect_timeout), ("my.zone", 500));
        let some =
            read(r#"{"feed": "f", "namespaces": ["a", "b"], "fallback": true}"#, Plugin::Http).unwrap();
        assert_eq!(some.subscription(), Subscription::namespaces(["a".into(), "b".into()]));
        assert_eq!((some.fallback, some.override_host), (Fallback::Route, false));
        assert!(read(r#"{"feed": "f", "overrideHost": true}"#, Plugin::Http).unwrap().override_host);
        let short = read(r#"{"feed": "f", "namespace": "shop"}"#, Plugin::Http).unwrap();
        assert_eq!(short.namespace.as_deref(), Some("shop"));
    }

    #[test]
    fn a_wrong_configuration_is_told_in_one_sentence_that_names_the_field() {
        for (json, plugin, words) in [
            ("", Plugin::Http, "the configuration is no JSON: in line 1 a value is expected"),
            ("[]", Plugin::Http, "the configuration is a list, expected an object"),
            ("{} {}", Plugin::Http, "the configuration is no JSON: in line 1 the end is expected"),
            ("{}", Plugin::Http, "the configuration has no field feed"),
            (
                r#"{"feed": ""}"#,
                Plugin::Http,
                r#"the field feed of the configuration is wrong: it is "", expected"#,
            ),
            (
                r#"{"feed": 5}"#,
                Plugin::Http,
                "the field feed of the configuration is wrong: it is 5, expected",
            ),
            (
                r#"{"feed": null}"#,
                Plugin::Http,
                "the field feed of the configuration is wrong: it is null, expected",
            ),
            (
                r#"{"feed": "f", "servce": 1}"#,
                Plugin::Http,
                "the unknown field servce, expected are feed, service,",
            ),
            (
                r#"{"feed": "f", "service": "web"}"#,
                Plugin::Http,
                r#"it is "web", expected a Service and its port"#,
            ),
            (r#"{"feed": "f", "service": "a/b/c:80"}"#, Plugin::Http, "such as shop/web:80"),
            (r#"{"feed": "f", "service": "a/b:0"}"#, Plugin::Http, "such as shop/web:80"),
            (r#"{"feed": "f", "namespaces": "shop"}"#, Plugin::Http, "the field namespaces"),
            (r#"{"feed": "f", "namespaces": [7]}"#, Plugin::Http, "the field namespaces"),
            (r#"{"feed": "f", "fallback": 7}"#, Plugin::Http, "the field fallback"),
            (r#"{"feed": "f", "fallback": "dns"}"#, Plugin::Http, r#"it is "dns", expected true"#),
            (
                r#"{"feed": "f", "fallback": true}"#,
                Plugin::Network,
                "it is true or false, expected the name of a cluster",
            ),
            (
                r#"{"feed": "f", "overrideHost": "x"}"#,
                Plugin::Http,
                r#"the field overrideHost of the configuration is wrong: it is "x", expected true or false, in"#,
            ),
            (
                r#"{"feed": "f", "overrideHost": true}"#,
                Plugin::Network,
                "expected true or false, in the plugin http alone",
            ),
            (r#"{"feed": "f", "connectTimeout": 0}"#, Plugin::Http, "it is 0, expected seconds"),
            (r#"{"feed": "f", "connectTimeout": 1e3}"#, Plugin::Http, "the field connectTimeout"),
            (r#"{"feed": "f", "connectTimeout": 3600.001}"#, Plugin::Http, "the field connectTimeout"),
            (r#"{"feed": "f", "connectTimeout": "5s"}"#, Plugin::Http, "the field connectTimeout"),
        ] {
            let error = read(json, plugin).unwrap_err();
            assert!(error.contains(words), "{json}: {error}");
            assert!(!error.contains('\n'), "{error}");
        }
    }
}
