//! What is in a recording, in a few lines.

use std::collections::BTreeSet;

use serde::Serialize;

use super::playback::Playback;
use crate::{
    cli::out::{self, Format},
    publish::api::SCHEMA_VERSION,
    recording::clock,
    time::{Nanos, UnixTime},
};

/// The stable form.
#[derive(Debug, Serialize)]
struct Summary {
    schema_version: u32,
    /// The kernel's release.
    host: String,
    /// Version of the agent that wrote it.
    agent: String,
    /// Of the first snapshot, in seconds since 1970; null without snapshots.
    first_unix_time_seconds: Option<f64>,
    /// Of the last one.
    last_unix_time_seconds: Option<f64>,
    /// From the first to the last by the clock that never goes back.
    duration_seconds: f64,
    snapshots: u64,
    /// Different listeners, over all snapshots.
    listeners: usize,
    /// Different network namespaces, likewise.
    namespaces: usize,
}

/// Plays all and says what there was.
pub(super) fn run(playback: &mut Playback, format: Format) -> anyhow::Result<()> {
    let (mut first, mut last) = (None, None);
    let (mut listeners, mut namespaces) = (BTreeSet::new(), BTreeSet::new());
    for snapshot in playback.by_ref() {
        let snapshot = snapshot?;
        first.get_or_insert(snapshot.unix_time);
        last = Some(snapshot.unix_time);
        listeners.extend(snapshot.listeners.iter().map(|listener| listener.key));
        namespaces.extend(snapshot.namespaces.iter().map(|namespace| namespace.netns));
    }
    let (header, played) = (playback.header(), playback.played());
    let seconds = |time: UnixTime| Nanos(time.0).as_seconds();
    let summary = Summary {
        schema_version: SCHEMA_VERSION,
        host: header.host.clone(),
        agent: header.agent.clone(),
        first_unix_time_seconds: first.map(seconds),
        last_unix_time_seconds: last.map(seconds),
        duration_seconds: played.time.as_seconds(),
        snapshots: played.snapshots,
        listeners: listeners.len(),
        namespaces: namespaces.len(),
    };
    out::print(&match format {
        Format::Table | Format::Wide => summary.text(first.zip(last), played.time),
        Format::Json => out::json(&summary)?,
        Format::Yaml => out::yaml(&summary)?,
    })?;
    Ok(())
}

impl Summary {
    fn text(&self, times: Option<(UnixTime, UnixTime)>, duration: Nanos) -> String {
        let time = |time: Option<UnixTime>| time.map_or_else(|| "-".into(), utc);
        let lines = [
            ("host", format!("Linux {}", out::printable(&self.host))),
            ("agent", format!("backlogd {}", out::printable(&self.agent))),
            ("from", time(times.map(|(first, _)| first))),
            ("to", time(times.map(|(_, last)| last))),
            ("duration", clock(duration)),
            ("snapshots", self.snapshots.to_string()),
            ("listeners", self.listeners.to_string()),
            ("namespaces", self.namespaces.to_string()),
        ];
        lines.into_iter().map(|(name, value)| format!("{name:<10}  {value}\n")).collect()
    }
}

/// As `2026-11-22 00:46:01 UTC`.
fn utc(time: UnixTime) -> String {
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
