//! Whom the API server trusts when it asks a webhook. In: a MutatingWebhookConfiguration and an authority. Out: the same
//! with that authority among the trusted, if it is not. Values only; never takes away one that others may still show.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use pem::Pem;
use serde_json::Value;
use time::OffsetDateTime;
use x509_parser::parse_x509_certificate;

/// Authorities that are kept beside the newest.
const OTHERS: usize = 3;

/// `configuration` with the certificates in `authority`, PEM, in each webhook's `caBundle`, without those that have
/// expired; nothing if that is how it is.
pub(super) fn trusting(configuration: &Value, authority: &str, now: OffsetDateTime) -> Option<Value> {
    let own = pem::parse_many(authority).unwrap_or_default();
    let mut changed = configuration.clone();
    for webhook in changed["webhooks"].as_array_mut().into_iter().flatten() {
        let bundle = &mut webhook["clientConfig"]["caBundle"];
        let old = bundle.as_str().and_then(|text| BASE64_STANDARD.decode(text).ok()).unwrap_or_default();
        let old = pem::parse_many(old).unwrap_or_default();
        let (others, known): (Vec<Pem>, Vec<Pem>) = old.into_iter().partition(|one| !own.contains(one));
        let is_known = own.iter().all(|one| known.contains(one));
        let lasting = others.iter().filter(|one| is_lasting(one, now));
        if is_known && lasting.clone().count() == others.len() {
            continue;
        }
        let all: Vec<Pem> = own.iter().chain(lasting.take(OTHERS)).cloned().collect();
        *bundle = BASE64_STANDARD.encode(pem::encode_many(&all)).into();
    }
    (changed != *configuration).then_some(changed)
}

fn is_lasting(pem: &Pem, now: OffsetDateTime) -> bool {
    let parsed = parse_x509_certificate(pem.contents());
    parsed.is_ok_and(|(_, certificate)| certificate.validity().not_after.to_datetime() > now)
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair};
    use serde_json::json;
    use time::Duration;

    use super::*;

    fn authority(ends: OffsetDateTime) -> String {
        let mut parameters = CertificateParams::new([]).unwrap();
        parameters.not_after = ends;
        parameters.self_signed(&KeyPair::generate().unwrap()).unwrap().pem()
    }

    fn bundle(configuration: &Value, webhook: usize) -> Vec<Pem> {
        let text = configuration["webhooks"][webhook]["clientConfig"]["caBundle"].as_str().unwrap();
        pem::parse_many(BASE64_STANDARD.decode(text).unwrap()).unwrap()
    }

    fn pems(texts: &[&String]) -> Vec<Pem> {
        texts.iter().map(|text| pem::parse(text.as_str()).unwrap()).collect()
    }

    #[test]
    fn an_authority_joins_those_that_last_and_stays() {
        let now = OffsetDateTime::now_utc();
        let [one, two] = [(); 2].map(|()| authority(now + Duration::days(1)));
        let old = authority(now - Duration::days(1));
        let held = BASE64_STANDARD.encode([&*old, &*one].concat());
        let configuration = json!({"metadata": {"resourceVersion": "7"}, "webhooks": [
            {"name": "a", "clientConfig": {"caBundle": held, "service": {"name": "remora"}}},
            {"name": "b", "clientConfig": {"caBundle": "nonsense"}},
            {"name": "c", "clientConfig": {}, "unheard": 1},
        ]});
        let new = trusting(&configuration, &two, now).unwrap();
        assert_eq!(bundle(&new, 0), pems(&[&two, &one]));
        assert_eq!(bundle(&new, 1), pems(&[&two]));
        assert_eq!(bundle(&new, 2), pems(&[&two]));
        assert_eq!(new["webhooks"][2]["unheard"], 1);
        assert_eq!(trusting(&new, &two, now), None);
        // Another process, with the other one, leaves it alone.
        let both = trusting(&new, &one, now).unwrap();
        assert_eq!(trusting(&both, &two, now), None);
        assert_eq!(trusting(&both, &one, now), None);
    }

    #[test]
    fn a_bundle_does_not_grow_for_ever() {
        let now = OffsetDateTime::now_utc();
        let mut configuration = json!({"webhooks": [{"clientConfig": {}}]});
        for _ in 0..8 {
            configuration = trusting(&configuration, &authority(now + Duration::days(1)), now).unwrap();
        }
        assert_eq!(bundle(&configuration, 0).len(), 1 + OTHERS);
    }
}
