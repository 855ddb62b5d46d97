//! Who reads the feed, by the token of a ServiceAccount. In: the header of a request. Out: until when it may be read, and
//! on which node that is, or why not. Never asks the API server about a token that it can judge by itself, and tells nobody
//! what is in one.
//!
//! A token is judged by the keys that the cluster signs with (`/openid/v1/jwks`, KEP-1393), which are asked for again when
//! a token names one that is not known. Where they are not to be had, or of no use here, the API server judges it
//! (TokenReview).

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use hyper::header::HeaderValue;
use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::jwk::Jwk;
use jsonwebtoken::{Algorithm, DecodingKey, Validation, decode};
use ring::digest::{SHA256, digest};
use selection::Symbol;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout};
use watcher::kubernetes::{Cluster, Refusal as Unanswered};

/// Longer ones are none.
const LONGEST: usize = 16 << 10;
/// Keys are asked for no more often than this.
const ASK_EVERY: Duration = Duration::from_secs(10);
/// A reader waits no longer for keys; it gives up a little later.
const ASKED_WITHIN: Duration = Duration::from_secs(3);
/// Keys are asked for again after this time, for those that were taken away.
const KEYS_LAST: Duration = Duration::from_secs(3600);
/// What the API server said of a token is taken for so long.
const REVIEW_LASTS: Duration = Duration::from_secs(30);
/// Tokens of which is remembered what the API server said.
const REVIEWS: usize = 4096;
/// Questions about tokens at once.
const REVIEWS_AT_ONCE: usize = 16;
/// Clocks differ by no more.
const LEEWAY: u64 = 30;

/// Why a request is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// It has no token.
    #[error(
        "no token: send a token of a ServiceAccount as Authorization: Bearer; remora takes one with --feed-token"
    )]
    Missing,
    /// What it has is no token of a ServiceAccount.
    #[error("the token is none of a ServiceAccount: project one (serviceAccountToken) and name its file")]
    Malformed,
    /// It is no longer, or not yet, valid.
    #[error("the token has expired, or is not valid yet: read its file again, which the kubelet renews")]
    Expired,
    /// It is for somebody else.
    #[error("the token is for another audience: project one with the audience of this hub (--feed-audience)")]
    Audience,
    /// This cluster has not issued it.
    #[error("the token was not issued by this cluster: ask the hub of the cluster that the Pod is in")]
    Issuer,
    /// Nobody can say at the moment.
    #[error("the token cannot be judged, as the hub does not reach its API server: try again")]
    Unknown,
}

impl Refused {
    /// Every reason.
    pub const ALL: [Self; 6] =
        [Self::Missing, Self::Malformed, Self::Expired, Self::Audience, Self::Issuer, Self::Unknown];

    /// A stable word, also the metric label.
    pub fn label(self) -> &'static str {
        match self {
            Self::Missing => "missing",
            Self::Malformed => "malformed",
            Self::Expired => "expired",
            Self::Audience => "audience",
            Self::Issuer => "issuer",
            Self::Unknown => "unknown",
        }
    }
}

/// Who judges tokens. Owning one means that there is an API server to ask, not that it answers.
#[derive(Debug)]
pub struct Tokens {
    cluster: Cluster,
    audience: String,
    known: Mutex<Known>,
    /// Held by who asks for keys.
    asking: tokio::sync::Mutex<()>,
    /// What the API server said, by the hash of the token, and when.
    reviews: Mutex<HashMap<Vec<u8>, Review>>,
    reviewing: Semaphore,
}

/// Who shows a token that is good here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bearer {
    /// Until when it is.
    pub until: SystemTime,
    /// The node of the Pod that it was made for, if it was made for one (KEP-4193).
    pub node: Option<Symbol>,
}

/// What the API server said of a token, and when.
type Review = (Result<Bearer, Refused>, Instant);

/// The keys, and when they were asked for.
#[derive(Clone, Default)]
struct Known {
    keys: Option<Arc<Keys>>,
    asked: Option<Instant>,
}

/// What the cluster signs with.
struct Keys {
    issuer: String,
    by_name: HashMap<String, (Algorithm, DecodingKey)>,
    /// Those by which nobody can judge here, such as of ES512.
    foreign: HashSet<String>,
}

/// How a token was signed.
#[derive(Deserialize)]
struct Header {
    /// The name of the key.
    kid: String,
}

/// What a token says, as far as it counts here.
#[derive(Deserialize)]
struct Claims {
    /// Seconds since 1970.
    exp: u64,
    /// What it was made for.
    #[serde(default, rename = "kubernetes.io")]
    bound: Bound,
}

/// To what the API server has bound a token.
#[derive(Default, Deserialize)]
struct Bound {
    node: Option<Named>,
}

#[derive(Deserialize)]
struct Named {
    name: String,
}

impl std::fmt::Debug for Known {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Known").field(&self.keys.as_ref().map(|keys| keys.by_name.len())).finish()
    }
}

impl Tokens {
    /// Takes tokens for `audience` that the cluster of `cluster` has issued.
    pub fn new(cluster: Cluster, audience: String) -> Self {
        Self {
            cluster,
            audience,
            known: Mutex::default(),
            asking: tokio::sync::Mutex::default(),
            reviews: Mutex::default(),
            reviewing: Semaphore::new(REVIEWS_AT_ONCE),
        }
    }

    /// Who shows `header`, the value of `Authorization`.
    ///
    /// # Errors
    /// Why it may not read.
    pub async fn judge(&self, header: Option<&HeaderValue>) -> Result<Bearer, Refused> {
        let token = bearer(header)?;
        let Header { kid } = part(token, 0).ok_or(Refused::Malformed)?;
        match self.keys(&kid).await? {
            Some(keys) if !keys.foreign.contains(&kid) => keys.judge(token, &kid, &self.audience),
            _ => self.review(token).await,
        }
    }

    /// The cluster's keys, asked for if `named` is not among those that are known; none if they are not to be had. Whoever
    /// shows a key that is known waits for nobody who does not.
    async fn keys(&self, named: &str) -> Result<Option<Arc<Keys>>, Refused> {
        let known = self.known();
        if known.has(named) {
            // One reader asks, and the others go on with what is known.
            if known.is_due(KEYS_LAST)
                && let Ok(_one) = self.asking.try_lock()
            {
                // Late or not, they are known.
                let _ = timeout(ASKED_WITHIN, self.learn()).await;
            }
            return Ok(self.known().keys);
        }
        let learnt = async {
            let _one = self.asking.lock().await;
            if self.known().is_due(ASK_EVERY) {
                self.learn().await;
            }
        };
        timeout(ASKED_WITHIN, learnt).await.map_err(|_| Refused::Unknown)?;
        Ok(self.known().keys)
    }

    fn known(&self) -> Known {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    async fn learn(&self) {
        // Whatever comes of it, and be it that nobody waits any more.
        self.known.lock().unwrap_or_else(PoisonError::into_inner).asked = Some(Instant::now());
        match self.ask().await {
            Ok(keys) => self.known.lock().unwrap_or_else(PoisonError::into_inner).keys = Some(Arc::new(keys)),
            // Those that are known serve on.
            Err(error) => tracing::warn!(
                %error,
                "cannot ask for the keys of tokens, and goes on with those that are known, or asks about each; allow \
                 get on /openid/v1/jwks and /.well-known/openid-configuration (ClusterRole \
                 system:service-account-issuer-discovery)"
            ),
        }
    }

    async fn ask(&self) -> Result<Keys, Unanswered> {
        let configuration = self.cluster.get("/.well-known/openid-configuration").await?;
        let keys = self.cluster.get("/openid/v1/jwks").await?;
        Keys::new(&configuration, &keys)
            .ok_or_else(|| Unanswered::Failed("it names no issuer, or no keys".to_owned()))
    }

    /// What the API server says of the token.
    async fn review(&self, token: &str) -> Result<Bearer, Refused> {
        let hash = digest(&SHA256, token.as_bytes()).as_ref().to_vec();
        let reviews = || self.reviews.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((said, _)) = reviews().get(&hash).filter(|(_, at)| at.elapsed() < REVIEW_LASTS) {
            return said.clone();
        }
        let Ok(_place) = self.reviewing.acquire().await else { return Err(Refused::Unknown) };
        let review = json!({
            "apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview",
            "spec": {"token": token, "audiences": [self.audience]},
        });
        let answer = self.cluster.post("/apis/authentication.k8s.io/v1/tokenreviews", &review).await;
        let said = match answer {
            Ok(answer) => reviewed(&answer["status"], token, &self.audience),
            Err(error) => {
                tracing::warn!(%error, "cannot ask about a token; allow create on tokenreviews (ClusterRole system:auth-delegator)");
                return Err(Refused::Unknown);
            }
        };
        let mut reviews = reviews();
        if reviews.len() >= REVIEWS {
            reviews.retain(|_, (_, at)| at.elapsed() < REVIEW_LASTS);
        }
        if reviews.len() < REVIEWS {
            reviews.insert(hash, (said.clone(), Instant::now()));
        }
        said
    }
}

impl Known {
    fn has(&self, named: &str) -> bool {
        let has = |keys: &Arc<Keys>| keys.by_name.contains_key(named) || keys.foreign.contains(named);
        self.keys.as_ref().is_some_and(has)
    }

    fn is_due(&self, after: Duration) -> bool {
        self.asked.is_none_or(|asked| asked.elapsed() >= after)
    }
}

impl Keys {
    /// What the cluster says of them at its two addresses.
    fn new(configuration: &Value, keys: &Value) -> Option<Self> {
        let issuer = configuration["issuer"].as_str()?.to_owned();
        let (mut by_name, mut foreign) = (HashMap::new(), HashSet::new());
        for key in keys["keys"].as_array()? {
            let Some(name) = key["kid"].as_str().map(str::to_owned) else { continue };
            match understood(key) {
                Some(key) => drop(by_name.insert(name, key)),
                None => drop(foreign.insert(name)),
            }
        }
        (!by_name.is_empty() || !foreign.is_empty()).then_some(Self { issuer, by_name, foreign })
    }

    fn judge(&self, token: &str, named: &str, audience: &str) -> Result<Bearer, Refused> {
        let (algorithm, key) = self.by_name.get(named).ok_or(Refused::Issuer)?;
        let mut validation = Validation::new(*algorithm);
        validation.set_audience(&[audience]);
        validation.set_issuer(&[&self.issuer]);
        validation.set_required_spec_claims(&["exp", "aud", "iss"]);
        validation.validate_nbf = true;
        validation.leeway = LEEWAY;
        let decoded = decode::<Claims>(token, key, &validation).map_err(|error| match error.kind() {
            ErrorKind::ExpiredSignature | ErrorKind::ImmatureSignature => Refused::Expired,
            ErrorKind::InvalidAudience => Refused::Audience,
            ErrorKind::InvalidSignature | ErrorKind::InvalidIssuer => Refused::Issuer,
            _ => Refused::Malformed,
        })?;
        Ok(decoded.claims.into())
    }
}

fn understood(key: &Value) -> Option<(Algorithm, DecodingKey)> {
    let key = Jwk::deserialize(key).ok()?;
    let algorithm = key.common.key_algorithm?.to_string().parse().ok()?;
    Some((algorithm, DecodingKey::from_jwk(&key).ok()?))
}

/// What a part of a token says (RFC 7515), which nobody has judged by that.
fn part<T: DeserializeOwned>(token: &str, number: usize) -> Option<T> {
    let bytes = BASE64_URL_SAFE_NO_PAD.decode(token.split('.').nth(number)?).ok()?;
    serde_json::from_slice(&bytes).ok()
}

fn bearer(header: Option<&HeaderValue>) -> Result<&str, Refused> {
    let header = header.ok_or(Refused::Missing)?.to_str().map_err(|_| Refused::Malformed)?;
    let (scheme, token) = header.split_once(' ').ok_or(Refused::Malformed)?;
    let token =
        Some(token.trim()).filter(|token| scheme.eq_ignore_ascii_case("bearer") && token.len() <= LONGEST);
    token.ok_or(Refused::Malformed)
}

/// What the status of a TokenReview says of a token. A server that knows no audiences says none, and would have taken
/// one for any.
fn reviewed(status: &Value, token: &str, audience: &str) -> Result<Bearer, Refused> {
    if status["authenticated"] != true {
        return Err(Refused::Issuer);
    }
    let audiences = status["audiences"].as_array();
    if !audiences.is_some_and(|audiences| audiences.iter().any(|one| one == audience)) {
        return Err(Refused::Audience);
    }
    // The API server has judged it; what it says is good.
    part::<Claims>(token, 1).map(Bearer::from).ok_or(Refused::Malformed)
}

impl From<Claims> for Bearer {
    fn from(claims: Claims) -> Self {
        let node = claims.bound.node.map(|node| Symbol::from(node.name));
        Self { until: expiry(claims.exp), node: node.filter(|name| is_node(name)) }
    }
}

/// Whether `name` may be a part of a path.
fn is_node(name: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.');
    name.len() <= 253 && name.starts_with(|c: char| c.is_ascii_alphanumeric()) && name.bytes().all(is_plain)
}

fn expiry(exp: u64) -> SystemTime {
    UNIX_EPOCH.checked_add(Duration::from_secs(exp.saturating_add(LEEWAY))).unwrap_or(UNIX_EPOCH)
}

#[cfg(test)]
mod tests {
    use ring::rand::SystemRandom;
    use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};

    use super::*;

    const ISSUER: &str = "https://kubernetes.default.svc";

    /// Signs tokens as the cluster does.
    struct Signer(EcdsaKeyPair);

    impl Signer {
        fn new() -> Self {
            let random = SystemRandom::new();
            let document = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random).unwrap();
            Self(
                EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, document.as_ref(), &random)
                    .unwrap(),
            )
        }

        fn keys(&self) -> Keys {
            // An uncompressed point: 4, x, y.
            let point = self.0.public_key().as_ref();
            let encoded = |bytes| BASE64_URL_SAFE_NO_PAD.encode(bytes);
            let key = json!({
                "kty": "EC", "use": "sig", "alg": "ES256", "kid": "one", "crv": "P-256",
                "x": encoded(&point[1..33]), "y": encoded(&point[33..]),
            });
            Keys::new(&json!({"issuer": ISSUER}), &json!({"keys": [{"kty": "unheard"}, key]})).unwrap()
        }

        fn token(&self, claims: &Value) -> String {
            let encoded = |value: &Value| BASE64_URL_SAFE_NO_PAD.encode(value.to_string());
            let said = format!("{}.{}", encoded(&json!({"alg": "ES256", "kid": "one"})), encoded(claims));
            let signature = self.0.sign(&SystemRandom::new(), said.as_bytes()).unwrap();
            format!("{said}.{}", BASE64_URL_SAFE_NO_PAD.encode(signature))
        }
    }

    fn seconds(offset: i64) -> i64 {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        i64::try_from(now).unwrap() + offset
    }

    fn claims() -> Value {
        json!({"iss": ISSUER, "aud": ["remora"], "exp": seconds(600), "nbf": seconds(-10), "sub": "system:serviceaccount:a:b"})
    }

    #[test]
    fn a_token_of_the_cluster_for_this_audience_is_good_until_it_expires() {
        let signer = Signer::new();
        let mut claims = claims();
        let until = expiry(claims["exp"].as_u64().unwrap());
        let judged = |claims: &Value| signer.keys().judge(&signer.token(claims), "one", "remora");
        assert_eq!(judged(&claims), Ok(Bearer { until, node: None }));
        // As the API server binds it to a Pod; and what nobody could ask for.
        for (name, node) in
            [("n1.example", Some("n1.example".into())), ("../services", None), ("..", None), ("", None)]
        {
            claims["kubernetes.io"] =
                json!({"namespace": "shop", "node": {"name": name, "uid": "1"}, "pod": {"name": "a"}});
            assert_eq!(judged(&claims), Ok(Bearer { until, node }));
        }
    }

    #[test]
    fn every_other_token_is_refused_for_what_is_wrong_with_it() {
        let (signer, other) = (Signer::new(), Signer::new());
        let with = |key: &str, value: Value| {
            let mut claims = claims();
            claims[key] = value;
            signer.token(&claims)
        };
        let without = |key: &str| {
            let mut claims = claims();
            claims.as_object_mut().unwrap().remove(key);
            signer.token(&claims)
        };
        let mut cut = signer.token(&claims());
        cut.truncate(cut.rfind('.').unwrap() + 1);
        let keys = signer.keys();
        for (token, named, why) in [
            (with("exp", json!(seconds(-60))), "one", Refused::Expired),
            (with("nbf", json!(seconds(60))), "one", Refused::Expired),
            (with("aud", json!(["https://kubernetes.default.svc"])), "one", Refused::Audience),
            (with("iss", json!("https://elsewhere")), "one", Refused::Issuer),
            (other.token(&claims()), "one", Refused::Issuer),
            (signer.token(&claims()), "two", Refused::Issuer),
            (without("exp"), "one", Refused::Malformed),
            (without("aud"), "one", Refused::Malformed),
            (cut, "one", Refused::Issuer),
            ("a.b.c".to_owned(), "one", Refused::Malformed),
        ] {
            assert_eq!(keys.judge(&token, named, "remora"), Err(why), "{token}");
        }
        // Nobody chooses how it is judged.
        let unsigned = |alg: &str| {
            let encoded = |value: &Value| BASE64_URL_SAFE_NO_PAD.encode(value.to_string());
            format!("{}.{}.", encoded(&json!({"alg": alg, "kid": "one"})), encoded(&claims()))
        };
        for alg in ["none", "HS256", "RS256"] {
            assert!(keys.judge(&unsigned(alg), "one", "remora").is_err(), "{alg}");
        }
    }

    #[test]
    fn a_key_of_an_algorithm_that_nobody_knows_here_is_the_api_servers_matter() {
        let other = json!({"kty": "EC", "use": "sig", "alg": "ES512", "kid": "two", "crv": "P-521", "x": "AA", "y": "AA"});
        let keys = Keys::new(&json!({"issuer": ISSUER}), &json!({"keys": [other]})).unwrap();
        assert!(keys.foreign.contains("two") && keys.by_name.is_empty());
        let claims = claims();
        let token = |part: &Value| BASE64_URL_SAFE_NO_PAD.encode(part.to_string());
        let token = format!("{}.{}.AA", token(&json!({"alg": "ES512", "kid": "two"})), token(&claims));
        assert_eq!(part::<Header>(&token, 0).map(|header| header.kid).as_deref(), Some("two"));
        let status = json!({"authenticated": true, "audiences": ["remora"]});
        let until = expiry(claims["exp"].as_u64().unwrap());
        assert_eq!(reviewed(&status, &token, "remora"), Ok(Bearer { until, node: None }));
    }

    #[test]
    fn only_a_bearer_is_read() {
        let header = |text: &str| HeaderValue::from_str(text).unwrap();
        assert_eq!(bearer(None), Err(Refused::Missing));
        assert_eq!(bearer(Some(&header("bearer a.b.c"))), Ok("a.b.c"));
        for wrong in ["Basic a", "a.b.c", &format!("Bearer {}", "a".repeat(LONGEST + 1))] {
            assert_eq!(bearer(Some(&header(wrong))), Err(Refused::Malformed));
        }
    }

    #[test]
    fn what_the_api_server_says_counts_only_for_this_audience() {
        let signer = Signer::new();
        let token = signer.token(&claims());
        let status = |authenticated: bool, audiences: Value| json!({"authenticated": authenticated, "audiences": audiences});
        assert!(reviewed(&status(true, json!(["remora"])), &token, "remora").is_ok());
        for (status, why) in [
            (status(false, json!(["remora"])), Refused::Issuer),
            (status(true, json!(["other"])), Refused::Audience),
            (status(true, Value::Null), Refused::Audience),
        ] {
            assert_eq!(reviewed(&status, &token, "remora"), Err(why));
        }
    }
}
