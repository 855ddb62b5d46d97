//! A strict reader of the OpenMetrics text format: what a scrape must be, or it fails.

use std::collections::{BTreeMap, BTreeSet};

/// Every sample of a page by its name and labels as written.
pub(crate) type Samples = BTreeMap<String, f64>;

/// Reads `page`.
///
/// # Panics
/// On the first line that is not as the format wants it.
pub(crate) fn read(page: &str) -> Samples {
    let body = page.strip_suffix("# EOF\n").expect("the page ends with # EOF");
    let (mut samples, mut families, mut helped) = (Samples::new(), BTreeMap::new(), BTreeSet::new());
    let mut current = String::new();
    for line in body.lines() {
        if let Some(meta) = line.strip_prefix("# ") {
            let words: Vec<&str> = meta.splitn(3, ' ').collect();
            let [kind, name, rest] = words[..] else { panic!("{line:?}") };
            assert!(is_name(name), "{line:?}");
            match kind {
                "HELP" => assert!(!rest.is_empty() && helped.insert(name.to_owned()), "{line:?}"),
                "TYPE" => {
                    assert!(["counter", "gauge", "histogram"].contains(&rest), "{line:?}");
                    assert!(families.insert(name.to_owned(), rest.to_owned()).is_none(), "twice: {line:?}");
                    assert!(helped.contains(name), "no HELP before {line:?}");
                    current = name.to_owned();
                }
                _ => panic!("{line:?}"),
            }
            continue;
        }
        let (series, value) = line.rsplit_once(' ').unwrap_or_else(|| panic!("{line:?}"));
        let name = series.split('{').next().unwrap();
        assert!(is_name(name), "{line:?}");
        check_labels(&series[name.len()..]);
        let suffixes: &[&str] = match &*families[&current] {
            "counter" => &["_total"],
            "histogram" => &["_bucket", "_sum", "_count"],
            _ => &[""],
        };
        let suffix = name.strip_prefix(&*current).unwrap_or_else(|| panic!("{line:?} is not of {current}"));
        assert!(suffixes.contains(&suffix), "{line:?} is not of {current}");
        let value: f64 = value.parse().unwrap_or_else(|_| panic!("{line:?}"));
        assert!(value.is_finite() && (suffix.is_empty() || value >= 0.0), "{line:?}");
        assert!(samples.insert(series.to_owned(), value).is_none(), "twice: {line:?}");
    }
    for (name, _) in families.iter().filter(|(_, kind)| *kind == "histogram") {
        check_histogram(name, body, &samples);
    }
    samples
}

fn is_name(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_alphabetic())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

/// `{name="value",name="value"}` or nothing; a value escapes `"`, `\` and line feeds.
fn check_labels(text: &str) {
    if text.is_empty() {
        return;
    }
    let mut rest =
        text.strip_prefix('{').and_then(|text| text.strip_suffix('}')).unwrap_or_else(|| panic!("{text:?}"));
    let mut names = BTreeSet::new();
    while !rest.is_empty() {
        let (name, value) = rest.split_once("=\"").unwrap_or_else(|| panic!("{text:?}"));
        assert!(is_name(name) && names.insert(name), "{text:?}");
        let mut end = None;
        let mut escaped = false;
        for (at, c) in value.char_indices() {
            match c {
                _ if escaped => {
                    assert!(['"', '\\', 'n'].contains(&c), "{text:?}");
                    escaped = false;
                }
                '\\' => escaped = true,
                '"' => {
                    end = Some(at);
                    break;
                }
                _ => {}
            }
        }
        let behind = &value[end.unwrap_or_else(|| panic!("{text:?}")) + 1..];
        rest = behind.strip_prefix(',').unwrap_or(behind);
        assert!(rest.is_empty() == behind.is_empty(), "{text:?}");
    }
}

/// Bounds ascend to infinity, counts never fall, and the last is the count.
fn check_histogram(name: &str, body: &str, samples: &Samples) {
    let prefix = format!("{name}_bucket{{le=\"");
    let mut last = (f64::NEG_INFINITY, 0.0);
    for line in body.lines().filter_map(|line| line.strip_prefix(&prefix)) {
        let (bound, count) = line.split_once("\"} ").unwrap();
        let next = (bound.parse::<f64>().unwrap(), count.parse::<f64>().unwrap());
        assert!(next.0 > last.0 && next.1 >= last.1, "{name}: {line}");
        last = next;
    }
    assert_eq!(last, (f64::INFINITY, samples[&format!("{name}_count")]), "{name}");
    assert!(samples.contains_key(&format!("{name}_sum")), "{name}");
}

#[test]
fn the_reader_reads_what_is_right() {
    let page =
        "# HELP a_b Bytes.\n# TYPE a_b counter\na_b_total{x=\"q\\\"\\\\\",y=\"\"} 3\na_b_total 4.5\n# EOF\n";
    assert_eq!(read(page).values().copied().collect::<Vec<_>>(), [4.5, 3.0]);
}

#[test]
fn the_reader_rejects_what_is_wrong() {
    for wrong in [
        "# HELP a A\n# TYPE a counter\na 3\n# EOF\n",
        "# TYPE a gauge\na 3\n# EOF\n",
        "# HELP a A\n# TYPE a gauge\na 3\na 4\n# EOF\n",
        "# HELP a A\n# TYPE a gauge\na 3\n",
        "# HELP a A\n# TYPE a gauge\nb 3\n# EOF\n",
        "# HELP a A\n# TYPE a gauge\na{x=\"1\",x=\"2\"} 3\n# EOF\n",
        "# HELP a A\n# TYPE a gauge\na{x=1} 3\n# EOF\n",
        "# HELP a A\n# TYPE a histogram\na_bucket{le=\"1.0\"} 1\na_sum 3\na_count 1\n# EOF\n",
        "# HELP a A\n# TYPE a histogram\na_bucket{le=\"1.0\"} 2\na_bucket{le=\"+Inf\"} 1\na_sum 3\na_count 1\n# EOF\n",
    ] {
        assert!(std::panic::catch_unwind(|| read(wrong)).is_err(), "{wrong}");
    }
}
