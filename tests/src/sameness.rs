//! Cases that every build of the decision must answer alike, and the comparison.
//!
//! In: a build, as whoever answers bytes with bytes. Out: nothing, or a text that shows the first difference. The cases
//! are made here once, and each build is given the same bytes: no build makes its own.

mod random;
mod vectors;

use filter::cases::{Answer, Batch, Step};

pub use random::random;
pub use vectors::vectors;

/// Bytes of cases that are answered at once, more or less.
const AT_ONCE: usize = 256 << 10;

/// A batch, and the answers that are known without asking any build.
pub struct Case {
    /// What it is, for messages.
    pub name: String,
    /// What happens.
    pub batch: Batch,
    /// For each step its answer, if it is known.
    pub expected: Vec<Option<Answer>>,
}

/// Cases as bytes, and what the native build answers.
pub struct Cases {
    /// To be answered at once, each.
    pub pages: Vec<Page>,
    cases: Vec<Case>,
    answers: Vec<Vec<Answer>>,
}

/// Some of the cases.
pub struct Page {
    /// As bytes.
    pub bytes: Vec<u8>,
    first: usize,
    count: usize,
}

/// How many questions there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// Picks of which everything is told.
    pub asks: usize,
    /// Connections through the state of one VM.
    pub connects: usize,
    /// Whole tables.
    pub tables: usize,
}

impl Case {
    /// A case without steps.
    pub fn new(name: String, batch: Batch) -> Case {
        assert!(batch.steps.is_empty(), "steps come with what is expected");
        Case { name, batch, expected: Vec::new() }
    }

    /// One more thing happens.
    pub fn add(&mut self, step: Step, expected: Option<Answer>) {
        self.batch.steps.push(step);
        self.expected.push(expected);
    }

    /// Frames of the feed come.
    pub fn frames(&mut self, frames: Vec<Vec<u8>>) {
        frames.into_iter().for_each(|frame| self.add(Step::Frame(frame), None));
    }
}

impl Cases {
    /// Lets the native build answer, which must say what is expected.
    ///
    /// # Panics
    /// At the first other answer.
    pub fn new(cases: Vec<Case>) -> Cases {
        let mut all = Cases { pages: pages(&cases), cases, answers: Vec::new() };
        for page in &all.pages {
            let answers = filter::cases::examine(&page.bytes).expect("cases that can be answered");
            all.answers.extend(filter::cases::read(&answers).expect("answers"));
        }
        assert_eq!(all.answers.len(), all.cases.len());
        for (case, answers) in all.cases.iter().zip(&all.answers) {
            assert_eq!(answers.len(), case.expected.len(), "{}", case.name);
            for (at, (expected, answer)) in case.expected.iter().zip(answers).enumerate() {
                if let Some(expected) = expected
                    && !agree(expected, answer)
                {
                    panic!("{}", different("the native build", case, at, expected, answer));
                }
            }
        }
        all
    }

    /// Compares what another build answered to one of the pages. An `Err` shows the first difference.
    pub fn compare(&self, build: &str, page: &Page, answers: &[u8]) -> Result<(), String> {
        let answers = filter::cases::read(answers).map_err(|why| format!("{build}: {why}"))?;
        if answers.len() != page.count {
            return Err(format!("{build} answers {} of {} batches", answers.len(), page.count));
        }
        let range = page.first..page.first + page.count;
        let natively = self.cases[range.clone()].iter().zip(&self.answers[range]);
        for ((case, natively), there) in natively.zip(&answers) {
            if natively.len() != there.len() {
                return Err(format!("{build} answers {} of {} steps", there.len(), natively.len()));
            }
            if let Some(at) = natively.iter().zip(there).position(|(one, other)| one != other) {
                return Err(different(build, case, at, &natively[at], &there[at]));
            }
        }
        Ok(())
    }

    /// How many questions there are.
    pub fn count(&self) -> Count {
        let mut count = Count::default();
        for step in self.cases.iter().flat_map(|case| &case.batch.steps) {
            match step {
                Step::Ask(_) => count.asks += 1,
                Step::Connect(_) => count.connects += 1,
                Step::Rows => count.tables += 1,
                Step::Frame(_) | Step::Settle(_) => {}
            }
        }
        count
    }

    /// The answers of the native build.
    pub fn answers(&self) -> impl Iterator<Item = &Answer> {
        self.answers.iter().flatten()
    }
}

/// Tables are compared as JSON, in whatever order their fields and rows are.
fn agree(expected: &Answer, answer: &Answer) -> bool {
    let (Answer::Rows(expected), Answer::Rows(answer)) = (expected, answer) else {
        return expected == answer;
    };
    let rows = |text: &str| {
        let mut rows: Vec<serde_json::Value> = serde_json::from_str(text).expect("rows");
        rows.sort_by_key(|row| ["service", "family", "port", "protocol"].map(|key| row[key].to_string()));
        rows
    };
    rows(expected) == rows(answer)
}

fn pages(cases: &[Case]) -> Vec<Page> {
    let mut pages = Vec::new();
    let mut first = 0;
    while first < cases.len() {
        let mut size = 0;
        let fits = cases[first..].iter().take_while(|case| {
            let is_first = size == 0;
            size += filter::cases::write(&[&case.batch]).len();
            is_first || size <= AT_ONCE
        });
        let count = fits.count();
        let batches: Vec<&Batch> = cases[first..first + count].iter().map(|case| &case.batch).collect();
        pages.push(Page { bytes: filter::cases::write(&batches), first, count });
        first += count;
    }
    pages
}

/// Shows a case up to the step that differs, without the bytes of frames.
fn different(build: &str, case: &Case, at: usize, expected: &Answer, answer: &Answer) -> String {
    let Batch { node, zone, seed, steps } = &case.batch;
    let before = steps[..at].iter().enumerate().filter(|(_, step)| !matches!(step, Step::Frame(_)));
    let before: Vec<String> = before.map(|(at, step)| format!("    {at}: {step:?}")).collect();
    let last = &before[before.len().saturating_sub(12)..];
    format!(
        "{build} answers otherwise, {}, step {at} (node {node:?}, zone {zone:?}, seed {seed:?}):\n  {:?}\n  expected {expected:?}\n  \
         answered {answer:?}\n  the last steps before it, without frames:\n{}",
        case.name,
        steps[at],
        last.join("\n")
    )
}
