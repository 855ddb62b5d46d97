//! What is asked of the API server for a stream. Pure: streams in, HTTP requests out.

use ::kube::api::{ListParams, WatchParams};
use ::kube::core::{Request, request};

use crate::store::{Kind, Part, Stream};

/// The server ends a watch after this many seconds: a connection that is silent for longer is dead.
pub(super) const WATCH_SECONDS: u32 = 60;

type Built = Result<http::Request<Vec<u8>>, request::Error>;

/// A page of the list of `stream`; without a limit, all of it.
pub(super) fn page(stream: &Stream, limit: Option<u32>, continues: Option<String>) -> Built {
    let (path, label_selector, field_selector) = target(stream);
    let params = ListParams {
        label_selector,
        field_selector,
        limit,
        continue_token: continues,
        ..ListParams::default()
    };
    Request::new(path).list(&params)
}

/// The changes of `stream` after `version`; without one, its list and then its changes.
pub(super) fn watch(stream: &Stream, version: Option<&str>) -> Built {
    let (path, label_selector, field_selector) = target(stream);
    let params = WatchParams {
        label_selector,
        field_selector,
        timeout: Some(WATCH_SECONDS),
        bookmarks: true,
        send_initial_events: version.is_none(),
    };
    // An empty version asks for what is there at this moment, not for what a cache happens to have.
    Request::new(path).watch(&params, version.unwrap_or_default())
}

/// The permission that `stream` needs, as a sentence about a Role.
pub(super) fn permission(stream: &Stream) -> String {
    let group = if stream.kind == Kind::Slices { "discovery.k8s.io" } else { "" };
    let rule =
        format!("apiGroups [{group:?}], resources [{:?}], verbs [\"list\", \"watch\"]", stream.kind.label());
    match (&stream.part, stream.kind) {
        (Part::All, _) | (_, Kind::Node) => format!("a ClusterRole needs {rule}"),
        (Part::Namespace(namespace), _) => format!("a Role in namespace {namespace} needs {rule}"),
        (Part::Service(service), _) => format!("a Role in namespace {} needs {rule}", service.namespace),
    }
}

/// Path, label selector and field selector.
fn target(stream: &Stream) -> (String, Option<String>, Option<String>) {
    let group = if stream.kind == Kind::Slices { "/apis/discovery.k8s.io/v1" } else { "/api/v1" };
    let resource = stream.kind.label();
    let within = |namespace: &str| format!("{group}/namespaces/{namespace}/{resource}");
    match (&stream.part, stream.kind) {
        (Part::All, _) => (format!("{group}/{resource}"), None, None),
        (Part::Namespace(namespace), _) => (within(namespace), None, None),
        (Part::Service(node), Kind::Node) => {
            (format!("{group}/{resource}"), None, Some(format!("metadata.name={}", node.name)))
        }
        (Part::Service(service), Kind::Services) => {
            (within(&service.namespace), None, Some(format!("metadata.name={}", service.name)))
        }
        (Part::Service(service), Kind::Slices) => {
            (within(&service.namespace), Some(format!("kubernetes.io/service-name={}", service.name)), None)
        }
    }
}

#[cfg(test)]
mod tests {
    use selection::ServiceName;

    use super::*;

    fn stream(kind: Kind, part: Part) -> Stream {
        Stream { kind, part }
    }

    #[test]
    fn each_stream_has_its_request() {
        let web = || Part::Service(ServiceName::new("shop", "web"));
        let uri = |stream| page(&stream, Some(7), None).unwrap().uri().to_string();
        assert_eq!(uri(Stream::all(Kind::Services)), "/api/v1/services?&limit=7");
        assert_eq!(
            uri(stream(Kind::Services, Part::Namespace("shop".into()))),
            "/api/v1/namespaces/shop/services?&limit=7"
        );
        assert_eq!(
            uri(stream(Kind::Services, web())),
            "/api/v1/namespaces/shop/services?&fieldSelector=metadata.name%3Dweb&limit=7"
        );
        assert_eq!(
            uri(stream(Kind::Slices, web())),
            "/apis/discovery.k8s.io/v1/namespaces/shop/endpointslices\
             ?&labelSelector=kubernetes.io%2Fservice-name%3Dweb&limit=7"
        );
        assert_eq!(
            uri(stream(Kind::Node, Part::Service(ServiceName::new("", "n1")))),
            "/api/v1/nodes?&fieldSelector=metadata.name%3Dn1&limit=7"
        );
    }

    #[test]
    fn a_watch_without_a_version_streams_the_list_first() {
        let uri = |version| watch(&Stream::all(Kind::Services), version).unwrap().uri().to_string();
        assert_eq!(
            uri(None),
            "/api/v1/services?&watch=true&timeoutSeconds=60&allowWatchBookmarks=true&sendInitialEvents=true\
             &resourceVersionMatch=NotOlderThan&resourceVersion="
        );
        assert_eq!(
            uri(Some("12")),
            "/api/v1/services?&watch=true&timeoutSeconds=60&allowWatchBookmarks=true&resourceVersion=12"
        );
    }

    #[test]
    fn a_missing_permission_is_told_as_the_rule_that_gives_it() {
        assert_eq!(
            permission(&stream(Kind::Slices, Part::Namespace("shop".into()))),
            "a Role in namespace shop needs apiGroups [\"discovery.k8s.io\"], resources [\"endpointslices\"], verbs \
             [\"list\", \"watch\"]"
        );
    }
}
