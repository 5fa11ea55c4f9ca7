//! A date of the calendar from seconds since 1970.

use crate::time::UnixTime;

/// As `2026-11-22 00:46:01 UTC`.
pub(super) fn utc(time: UnixTime) -> String {
    let seconds = time.0 / 1_000_000_000;
    // years of 400 have 146,097 days; those here begin in March, so that a leap day is the last
    // (Howard Hinnant, chrono-compatible low-level date algorithms, civil_from_days)
    let days = seconds / 86_400 + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = era * 400 + year + u64::from(month <= 2);
    let (hours, minutes) = (seconds / 3600 % 24, seconds / 60 % 60);
    format!("{year:04}-{month:02}-{day:02} {hours:02}:{minutes:02}:{:02} UTC", seconds % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(seconds: u64, expected: &str) {
        assert_eq!(expected, utc(UnixTime(seconds * 1_000_000_000 + 999_999_999)));
    }

    #[test]
    fn a_date_is_that_of_the_calendar() {
        check(0, "1970-01-01 00:00:00 UTC");
        check(951_782_399, "2000-02-28 23:59:59 UTC");
        check(951_782_400, "2000-02-29 00:00:00 UTC");
        check(1_709_251_199, "2024-02-29 23:59:59 UTC");
        check(1_709_251_200, "2024-03-01 00:00:00 UTC");
        check(4_107_542_399, "2100-02-28 23:59:59 UTC");
        check(4_107_542_400, "2100-03-01 00:00:00 UTC");
        check(1_798_761_599, "2026-12-31 23:59:59 UTC");
    }
}
