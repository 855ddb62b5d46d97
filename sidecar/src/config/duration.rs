//! Durations as people type them: a whole number and `ms`, `s`, `m` or `h`.

use std::time::Duration;

/// The duration that `text` names, `None` if it names none.
pub(super) fn parse(text: &str) -> Option<Duration> {
    let digits = text.find(|c: char| !c.is_ascii_digit())?;
    let (number, unit) = text.split_at(digits);
    let number: u32 = number.parse().ok()?;
    let milliseconds = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return None,
    };
    Some(Duration::from_millis(u64::from(number) * milliseconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_is_a_number_and_a_unit() {
        assert_eq!(parse("500ms"), Some(Duration::from_millis(500)));
        assert_eq!(parse("5s"), Some(Duration::from_secs(5)));
        assert_eq!(parse("0s"), Some(Duration::ZERO));
        assert_eq!(parse("1m"), Some(Duration::from_secs(60)));
        assert_eq!(parse("2h"), Some(Duration::from_secs(7_200)));
        for wrong in ["", "5", "s", "-1s", "1.5s", "5 s", "5S", "99999999999s", "1m30s"] {
            assert_eq!(parse(wrong), None, "{wrong:?}");
        }
    }
}
