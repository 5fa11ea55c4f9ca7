//! Spans of time as people write and read them.

use std::time::Duration;

/// Reads `200ms`, `2s`, `1.5s`, `3m` or `1h`, from 10 ms to a day.
///
/// # Errors
/// What was expected.
pub(super) fn parse(text: &str) -> Result<Duration, String> {
    const UNITS: [(&str, f64); 4] = [("ms", 1e-3), ("s", 1.0), ("m", 60.0), ("h", 3600.0)];
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = UNITS.into_iter().find(|(name, _)| *name == &text[digits.len()..]);
    let seconds = unit.and_then(|(_, scale)| Some(digits.parse::<f64>().ok()? * scale));
    seconds
        .filter(|seconds| (0.01..=86400.0).contains(seconds))
        .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
        .ok_or_else(|| "expected a time such as 200ms, 2s or 1m, 10ms to 24h".into())
}

/// Writes a span of seconds in at most five characters: `0.3s`, `12s`, `5m`, `3h`, `20d`.
pub(super) fn show(seconds: f64) -> String {
    match seconds {
        s if s < 9.95 => format!("{s:.1}s"),
        s if s < 120.0 => format!("{s:.0}s"),
        s if s < 7200.0 => format!("{:.0}m", s / 60.0),
        s if s < 172_800.0 => format!("{:.0}h", s / 3600.0),
        s => format!("{:.0}d", s / 86400.0),
    }
}

/// Writes a span of seconds that can be far below one, in at most five characters: `12us`,
/// `1.2ms`, `250ms`, `1.2s`; from a second on as [`show`].
pub(super) fn show_short(seconds: f64) -> String {
    match seconds {
        s if s < 9.95e-6 => format!("{:.1}us", s * 1e6),
        s if s < 999.5e-6 => format!("{:.0}us", s * 1e6),
        s if s < 9.95e-3 => format!("{:.1}ms", s * 1e3),
        s if s < 0.9995 => format!("{:.0}ms", s * 1e3),
        s => show(s),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, milliseconds: Option<u64>) {
        assert_eq!(parse(text).ok(), milliseconds.map(Duration::from_millis), "{text}");
    }

    #[test]
    fn a_span_has_a_unit_and_a_range() {
        check("200ms", Some(200));
        check("2s", Some(2000));
        check("0.5s", Some(500));
        check("1m", Some(60_000));
        check("24h", Some(86_400_000));
        for wrong in ["", "2", "s", "-1s", "nans", "infs", "1ms", "25h", "1d", "2 s", "1sm", "é"] {
            check(wrong, None);
        }
    }

    #[test]
    fn a_span_is_short() {
        let shown = [0.0, 0.31, 9.97, 119.0, 300.0, 10_000.0, 1e6].map(show);
        assert_eq!(shown, ["0.0s", "0.3s", "10s", "119s", "5m", "3h", "12d"]);
    }

    #[test]
    fn a_short_span_keeps_two_digits() {
        let shown = [0.95e-6, 9.97e-6, 123e-6, 1.23e-3, 0.25, 0.9996, 12.0].map(show_short);
        assert_eq!(shown, ["0.9us", "10us", "123us", "1.2ms", "250ms", "1.0s", "12s"]);
    }
}
