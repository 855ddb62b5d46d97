//! Log lines on standard error, as text or JSON; what libraries say through `log` comes along.
//! Standard output is never written to: it belongs to answers.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::FormatTime;
use tracing_subscriber::util::SubscriberInitExt;

use crate::arguments::LogFormat;

/// Our own crates: a bare level speaks of these, and of others only what they warn of.
const OURS: [&str; 4] = ["remora", "sidecar", "watcher", "selection"];

/// Whether `level` is one that [`start`] understands.
pub fn is_level(level: &str) -> bool {
    filter(level).is_some()
}

/// Starts logging for the rest of the process.
pub fn start(format: LogFormat, level: &str) {
    let filter = filter(level).unwrap_or_else(|| EnvFilter::new("warn"));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let is_started = match format {
        LogFormat::Text => builder.with_ansi(is_coloured()).finish().try_init(),
        LogFormat::Json => builder.json().flatten_event(true).finish().try_init(),
    };
    // Fails if logging has been started already, as in a test of more than one: then it goes on as it is.
    drop(is_started);
}

/// Starts the logging of a command that ends soon: our warnings, as bare sentences. What a library warns of is in the error
/// that the command ends with.
pub fn start_for_answer() {
    let ours = OURS.map(|name| format!("{name}=warn")).join(",");
    let filter = EnvFilter::new(format!("off,{ours}"));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let is_started =
        builder.with_ansi(is_coloured()).with_target(false).with_timer(NoTime).finish().try_init();
    drop(is_started);
}

fn is_coloured() -> bool {
    std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// The filter that `level` means; `None` if it means none.
fn filter(level: &str) -> Option<EnvFilter> {
    if level.is_empty() {
        return None;
    }
    if level.contains(['=', ',']) {
        return EnvFilter::try_new(level).ok();
    }
    let level: tracing::level_filters::LevelFilter = level.parse().ok().filter(|_| is_word(level))?;
    // Lines of connections are written only on demand, and then at whatever level.
    let others = level.min(tracing::level_filters::LevelFilter::WARN);
    let ours: Vec<String> = OURS.iter().map(|name| format!("{name}={level}")).collect();
    EnvFilter::try_new(format!("{others},access=info,{}", ours.join(","))).ok()
}

/// The parser of levels takes numbers too, which nobody could guess the meaning of.
fn is_word(level: &str) -> bool {
    level.bytes().all(|b| b.is_ascii_alphabetic())
}

struct NoTime;

impl FormatTime for NoTime {
    fn format_time(&self, _: &mut Writer<'_>) -> std::fmt::Result {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_level_is_a_word_or_a_filter() {
        for level in
            ["error", "warn", "info", "debug", "trace", "off", "INFO", "info,watcher=debug", "kube=info"]
        {
            assert!(is_level(level), "{level}");
        }
        for wrong in ["", "loud", "3", "info,watcher=loud"] {
            assert!(!is_level(wrong), "{wrong}");
        }
    }

    #[test]
    fn a_bare_level_speaks_of_our_own_crates() {
        let filter = filter("debug").unwrap().to_string();
        assert!(filter.contains("watcher=debug") && filter.contains("warn"), "{filter}");
    }
}
