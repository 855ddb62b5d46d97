//! What is asked for in the query of `GET /v1/feed`. In: its bytes. Out: a subscription, or what is wrong with it. Never
//! guesses.

use selection::ServiceName;
use watcher::feed::Subscription;

/// What is understood.
pub(super) const INDEX: &str =
    "GET /v1/feed[?namespace=NAMESPACE][&service=NAMESPACE/NAME], or call remora.Feed/Watch by gRPC";

/// What `query` asks for.
///
/// # Errors
/// If there is a word that is not understood, with what is.
pub(super) fn subscription(query: &str) -> Result<Subscription, String> {
    let (mut namespaces, mut services) = (Vec::new(), Vec::new());
    for (word, value) in form_urlencoded::parse(query.as_bytes()) {
        match (&*word, value.split_once('/')) {
            ("namespace", None) if !value.is_empty() => namespaces.push(value.into()),
            ("service", Some((namespace, name))) if !namespace.is_empty() && !name.is_empty() => {
                services.push(ServiceName::new(namespace, name));
            }
            _ => return Err(format!("{word}={value} is not understood; {INDEX}")),
        }
    }
    Ok(if namespaces.is_empty() && services.is_empty() {
        Subscription::All
    } else {
        Subscription::Some {
            namespaces: namespaces.into_iter().collect(),
            services: services.into_iter().collect(),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_names_namespaces_and_services_or_everything() {
        assert_eq!(subscription(""), Ok(Subscription::All));
        let both = Subscription::Some {
            namespaces: ["shop".into()].into(),
            services: [ServiceName::new("bank", "web")].into(),
        };
        assert_eq!(subscription("namespace=shop&service=bank%2Fweb"), Ok(both));
        for wrong in ["namespace=", "namespace=a/b", "service=web", "service=/web", "other=1"] {
            assert!(subscription(wrong).is_err(), "{wrong}");
        }
    }
}
