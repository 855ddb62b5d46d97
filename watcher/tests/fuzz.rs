//! What comes from outside never makes a decoder panic, nor keeps it busy. The targets are functions of bytes, run
//! here over a corpus and over what chance makes of it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::fs;
use std::time::{Duration, Instant};

use serde_json::Value;
use watcher::manifests::document::{Syntax, decode};
use watcher::object;

/// Mutations of each text of the corpus.
const MUTATIONS: usize = 1_500;
/// No input of a few kilobytes may keep a decoder for longer, on a busy machine and without optimisation.
const LONGEST: Duration = Duration::from_secs(20);

fn yaml(bytes: &[u8]) {
    let contents = decode(bytes, Syntax::Yaml);
    contents.problems.iter().for_each(|problem| drop(problem.to_string()));
}

fn json(bytes: &[u8]) {
    let contents = decode(bytes, Syntax::Json);
    contents.problems.iter().for_each(|problem| drop(problem.to_string()));
}

/// As the watch of the Kubernetes API reads objects.
fn api(bytes: &[u8]) {
    let Ok(value) = serde_json::from_slice::<Value>(bytes) else { return };
    for (_, read) in object::read(&value) {
        if let Err(error) = read {
            drop(error.to_string());
        }
    }
}

/// A decoder and what it is called.
type Target = (&'static str, fn(&[u8]));

const TARGETS: [Target; 3] = [("yaml", yaml), ("json", json), ("api", api)];

fn corpus() -> Vec<(String, Vec<u8>)> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/corpus");
    let mut texts: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .map(|path| (path.display().to_string(), fs::read(path).unwrap()))
        .collect();
    texts.sort();
    assert!(texts.len() >= 4);
    texts
}

fn run(what: &str, bytes: &[u8]) {
    for (target, run) in TARGETS {
        let begun = Instant::now();
        if std::panic::catch_unwind(|| run(bytes)).is_err() {
            panic!("{target} panics on {what}: {:?}", String::from_utf8_lossy(bytes));
        }
        assert!(begun.elapsed() < LONGEST, "{target} took {:?} for {what}", begun.elapsed());
    }
}

/// xorshift: small, and the same on every machine.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % bound.max(1) as u64).unwrap()
    }
}

/// What is put into texts: what decoders trip over.
const TOKENS: [&str; 26] = [
    "null",
    "{}",
    "[]",
    "-1",
    "65536",
    "1e999",
    "18446744073709551616",
    "\"\"",
    "true",
    "~",
    "---\n",
    "...\n",
    "&a ",
    "*a",
    "<<: *a",
    "!!binary ",
    "\u{feff}",
    "\u{0}",
    "\t",
    "\r\n",
    "- ",
    ": ",
    "#",
    "|",
    "\"\\ud800\"",
    "%YAML 1.2\n",
];

fn mutated(text: &[u8], random: &mut Random) -> Vec<u8> {
    let mut text = text.to_vec();
    for _ in 0..=random.below(4) {
        let at = random.below(text.len() + 1);
        let end = (at + random.below(20)).min(text.len());
        match random.below(6) {
            0 => drop(text.drain(at..end)),
            1 => drop(text.splice(at..at, TOKENS[random.below(TOKENS.len())].bytes())),
            2 => drop(text.splice(at..end, TOKENS[random.below(TOKENS.len())].bytes())),
            3 => {
                let copy = text[at..end].to_vec();
                let to = random.below(text.len() + 1);
                drop(text.splice(to..to, copy));
            }
            4 => text.truncate(at),
            _ => {
                if let Some(byte) = text.get_mut(at) {
                    *byte = u8::try_from(random.below(256)).unwrap();
                }
            }
        }
    }
    text
}

#[test]
fn the_corpus_and_what_chance_makes_of_it_never_panic() {
    let mut random = Random(0x5eed);
    for (name, text) in corpus() {
        run(&name, &text);
        for n in 0..MUTATIONS {
            run(&format!("mutation {n} of {name}"), &mutated(&text, &mut random));
        }
    }
}

#[test]
fn texts_that_multiply_or_nest_without_end_are_refused_in_time() {
    let mut laughs = String::from("a0: &a0 [lol, lol, lol, lol, lol, lol, lol, lol, lol]\n");
    for i in 1..12 {
        let before = i - 1;
        laughs += &format!(
            "a{i}: &a{i} [*a{before}, *a{before}, *a{before}, *a{before}, *a{before}, *a{before}, *a{before}, *a{before}]\n"
        );
    }
    let nested = |open: &str, close: &str, depth: usize| open.repeat(depth) + &close.repeat(depth);
    let indented: String = (0..2_000).map(|depth| format!("{}a:\n", " ".repeat(depth))).collect();
    let texts = [
        ("laughs", laughs),
        ("lists", nested("[", "]", 100_000)),
        ("open lists", nested("[", "", 100_000)),
        ("objects", nested("{\"a\":", "}", 100_000)),
        ("sequences", nested("- ", "", 100_000)),
        ("indented", indented),
        ("lists of lists", nested("{\"kind\":\"List\",\"items\":[", "]}", 60)),
        ("a long key", format!("{}: 1", "k".repeat(1 << 20))),
        ("many documents", "---\na: 1\n".repeat(20_000)),
    ];
    for (what, text) in texts {
        run(what, text.as_bytes());
    }
    let laughs = decode(b"a: &a [x, x]\nb: *a\n", Syntax::Yaml);
    assert!(laughs.problems.len() <= 1, "an honest alias is no attack: {:?}", laughs.problems);
}
