//! A certificate authority of one's own, for who has no other: it signs one certificate and lives in one Secret. In: what
//! the Secret holds, the names to certify, the time. Out: what it should hold in place of that. Values only; never a new
//! key for an authority that works, since Pods trust it for as long as they run.
//!
//! | file | what |
//! |---|---|
//! | `ca.crt`, `ca.key` | the authority; the same key and name when its certificate is renewed, so that who trusts the old one trusts the new one |
//! | `tls.crt`, `tls.key` | the certificate; a new key each time |

use std::collections::BTreeMap;
use std::net::IpAddr;

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use time::{Duration, OffsetDateTime};
use x509_parser::extensions::GeneralName;
use x509_parser::pem::Pem;
use x509_parser::prelude::X509Certificate;

/// Files by their names, as a Secret holds them.
pub type Files = BTreeMap<String, Vec<u8>>;

/// How long the authority is valid; who has been told of it by its Pod cannot be told of another.
const AUTHORITY: Duration = Duration::days(3650);
/// How long a certificate is valid.
const CERTIFICATE: Duration = Duration::days(90);
/// A clock may be late by so much.
const LATE: Duration = Duration::hours(1);

/// What a Secret that holds `held` should hold for `names`, DNS names and addresses: nothing else while two thirds of
/// each certificate's time have not passed.
///
/// # Errors
/// If a name cannot be certified.
pub fn renewed(held: &Files, names: &[String], now: OffsetDateTime) -> Result<Option<Files>, rcgen::Error> {
    let text = |name: &str| held.get(name).and_then(|bytes| std::str::from_utf8(bytes).ok());
    let key = text("ca.key").and_then(|key| KeyPair::from_pem(key).ok());
    let old = text("ca.crt").and_then(pem);
    let old = old.as_ref().and_then(|pem| pem.parse_x509().ok());
    // Where they do not fit, neither is the authority's.
    let fits = |certificate: &X509Certificate<'_>, key: &KeyPair| {
        certificate.is_ca() && certificate.public_key().subject_public_key.data == key.public_key_raw()
    };
    let (old, key) = match (old, key) {
        (Some(old), Some(key)) if fits(&old, &key) => (Some(old), key),
        _ => (None, KeyPair::generate()?),
    };
    let mut new = held.clone();
    let parameters = authority(now)?;
    let is_signed = |certificate: &X509Certificate<'_>| {
        old.as_ref().is_some_and(|old| certificate.verify_signature(Some(old.public_key())).is_ok())
    };
    let current = text("tls.crt").and_then(pem);
    let current = current.as_ref().and_then(|pem| pem.parse_x509().ok());
    let has_key = text("tls.key").and_then(|key| KeyPair::from_pem(key).ok()).is_some_and(|key| {
        current
            .as_ref()
            .is_some_and(|current| current.public_key().subject_public_key.data == key.public_key_raw())
    });
    let is_kept = has_key
        && current.is_some_and(|current| {
            lasts(&current, now) && is_signed(&current) && certified(&current) == wanted(names)
        });
    if !old.as_ref().is_some_and(|old| lasts(old, now)) {
        new.insert("ca.crt".to_owned(), parameters.self_signed(&key)?.pem().into_bytes());
        new.insert("ca.key".to_owned(), key.serialize_pem().into_bytes());
    }
    if !is_kept {
        let secret = KeyPair::generate()?;
        let mut certificate = CertificateParams::new(names)?;
        (certificate.not_before, certificate.not_after) = (now - LATE, now + CERTIFICATE);
        certificate.distinguished_name.push(DnType::CommonName, "remora");
        certificate.use_authority_key_identifier_extension = true;
        certificate.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        certificate.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let signed = certificate.signed_by(&secret, &Issuer::from_params(&parameters, &key))?;
        new.insert("tls.crt".to_owned(), signed.pem().into_bytes());
        new.insert("tls.key".to_owned(), secret.serialize_pem().into_bytes());
    }
    Ok((new != *held).then_some(new))
}

fn authority(now: OffsetDateTime) -> Result<CertificateParams, rcgen::Error> {
    let mut parameters = CertificateParams::new([])?;
    (parameters.not_before, parameters.not_after) = (now - LATE, now + AUTHORITY);
    parameters.distinguished_name.push(DnType::CommonName, "remora authority");
    parameters.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    parameters.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    Ok(parameters)
}

fn pem(text: &str) -> Option<Pem> {
    Pem::iter_from_buffer(text.as_bytes()).next()?.ok()
}

/// Whether a third of its time is left, and it has begun.
fn lasts(certificate: &X509Certificate<'_>, now: OffsetDateTime) -> bool {
    let validity = certificate.validity();
    let (begins, ends) = (validity.not_before.to_datetime(), validity.not_after.to_datetime());
    begins <= now && ends - now > (ends - begins) / 3
}

fn wanted(names: &[String]) -> Vec<String> {
    let mut wanted = names.to_vec();
    wanted.sort();
    wanted.dedup();
    wanted
}

fn certified(certificate: &X509Certificate<'_>) -> Vec<String> {
    let names = certificate.subject_alternative_name().ok().flatten();
    let names = names.iter().flat_map(|names| &names.value.general_names);
    let names: Vec<String> = names
        .filter_map(|name| match name {
            GeneralName::DNSName(name) => Some((*name).to_owned()),
            GeneralName::IPAddress(bytes) => {
                let four = <[u8; 4]>::try_from(*bytes).map(IpAddr::from);
                let address = four.or_else(|_| <[u8; 16]>::try_from(*bytes).map(IpAddr::from));
                address.ok().map(|address| address.to_string())
            }
            _ => None,
        })
        .collect();
    wanted(&names)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAMES: [&str; 2] = ["remora.remora.svc", "10.96.0.7"];

    fn names() -> Vec<String> {
        NAMES.map(str::to_owned).to_vec()
    }

    fn made(at: OffsetDateTime) -> Files {
        renewed(&Files::new(), &names(), at).unwrap().unwrap()
    }

    fn with<T>(files: &Files, name: &str, look: impl FnOnce(&X509Certificate<'_>) -> T) -> T {
        let pem = pem(std::str::from_utf8(&files[name]).unwrap()).unwrap();
        look(&pem.parse_x509().unwrap())
    }

    #[test]
    fn what_is_made_is_signed_for_the_names_and_stays() {
        let now = OffsetDateTime::now_utc();
        let files = made(now);
        assert_eq!(files.keys().collect::<Vec<_>>(), ["ca.crt", "ca.key", "tls.crt", "tls.key"]);
        with(&files, "ca.crt", |authority| {
            with(&files, "tls.crt", |certificate| {
                certificate.verify_signature(Some(authority.public_key())).unwrap();
                assert_eq!(certificate.issuer(), authority.subject());
                assert_eq!(certified(certificate), wanted(&names()));
            });
        });
        assert_eq!(renewed(&files, &names(), now + Duration::days(59)), Ok(None));
    }

    #[test]
    fn a_certificate_is_renewed_in_its_last_third_and_for_other_names_by_the_same_authority() {
        let now = OffsetDateTime::now_utc();
        let files = made(now);
        for (names, then) in [(names(), now + Duration::days(61)), (vec!["other".to_owned()], now)] {
            let new = renewed(&files, &names, then).unwrap().unwrap();
            assert_eq!((&new["ca.crt"], &new["ca.key"]), (&files["ca.crt"], &files["ca.key"]));
            assert_ne!(new["tls.key"], files["tls.key"]);
            assert_eq!(renewed(&new, &names, then), Ok(None));
        }
    }

    #[test]
    fn who_trusts_an_authority_trusts_what_it_signs_once_it_is_renewed() {
        let now = OffsetDateTime::now_utc();
        let files = made(now);
        let then = now + Duration::days(3000);
        let new = renewed(&files, &names(), then).unwrap().unwrap();
        assert_ne!(new["ca.crt"], files["ca.crt"]);
        assert_eq!(new["ca.key"], files["ca.key"]);
        with(&files, "ca.crt", |old| {
            with(&new, "tls.crt", |certificate| {
                certificate.verify_signature(Some(old.public_key())).unwrap();
                assert_eq!(certificate.issuer(), old.subject());
            });
        });
    }

    #[test]
    fn what_is_missing_broken_or_mixed_is_made_anew_and_other_files_stay() {
        let now = OffsetDateTime::now_utc();
        let (files, other) = (made(now), made(now));
        for name in ["ca.crt", "ca.key", "tls.crt", "tls.key"] {
            for wrong in [None, Some(b"nonsense".to_vec()), Some(other[name].clone())] {
                let mut held = files.clone();
                held.remove(name);
                held.extend(wrong.map(|wrong| (name.to_owned(), wrong)));
                held.insert("note".to_owned(), b"mine".to_vec());
                let new = renewed(&held, &names(), now).unwrap().unwrap_or_else(|| panic!("{name} is kept"));
                assert_eq!(new["note"], b"mine");
                assert_eq!(renewed(&new, &names(), now), Ok(None), "{name}");
                let is_new = new["ca.key"] != files["ca.key"];
                assert_eq!(is_new, name.starts_with("ca."), "{name}");
            }
        }
    }

    #[test]
    fn a_name_that_cannot_be_certified_is_an_error() {
        assert!(renewed(&Files::new(), &["ü".to_owned()], OffsetDateTime::now_utc()).is_err());
    }
}
