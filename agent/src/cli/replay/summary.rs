//! What is in a recording, in a few lines.

use std::collections::BTreeSet;

use serde::Serialize;

use super::{date::utc, playback::Playback};
use crate::{
    cli::{
        Exit,
        judged::tell_unmatched,
        out::{self, Format},
    },
    detect::{Detector, phase::Change},
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
    /// Of the first snapshot, in seconds since 1970.
    first_unix_time_seconds: f64,
    /// Of the last one.
    last_unix_time_seconds: f64,
    /// From the first to the last by the clock that never goes back.
    duration_seconds: f64,
    snapshots: u64,
    /// Different listeners, over all snapshots.
    listeners: usize,
    /// Different network namespaces, likewise.
    namespaces: usize,
    /// Times that an alert was raised.
    alerts: usize,
    /// Alerts that fire at the end.
    alerts_firing: usize,
}

/// Plays all and says what there was.
pub(super) fn run(
    playback: &mut Playback,
    mut detector: Detector,
    format: Format,
) -> anyhow::Result<Exit> {
    let mut first = None;
    let (mut listeners, mut namespaces) = (BTreeSet::new(), BTreeSet::new());
    let (mut alerts, mut firing, mut idle) = (0, 0, Vec::new());
    let last = playback.play(|snapshot| {
        first.get_or_insert(snapshot.unix_time);
        listeners.extend(snapshot.listeners.iter().map(|listener| listener.key));
        namespaces.extend(snapshot.namespaces.iter().map(|namespace| namespace.netns));
        let verdicts = detector.judge(snapshot);
        alerts += verdicts.changes.iter().filter(|(change, _)| *change == Change::Raised).count();
        firing = verdicts.told().count();
        idle = verdicts.idle;
    })?;
    let (first, last) = (first.unwrap_or(last.unix_time), last.unix_time);
    let (header, played) = (playback.header(), playback.played());
    let seconds = |time: UnixTime| Nanos(time.0).as_seconds();
    let summary = Summary {
        schema_version: SCHEMA_VERSION,
        host: header.host.clone(),
        agent: header.agent.clone(),
        first_unix_time_seconds: seconds(first),
        last_unix_time_seconds: seconds(last),
        duration_seconds: played.time.as_seconds(),
        snapshots: played.snapshots,
        listeners: listeners.len(),
        namespaces: namespaces.len(),
        alerts,
        alerts_firing: firing,
    };
    out::print(&match format {
        Format::Table | Format::Wide => summary.text(first, last, played.time),
        Format::Json => out::json(&summary)?,
        Format::Yaml => out::yaml(&summary)?,
    })?;
    tell_unmatched(&idle);
    Ok(Exit::Fine)
}

impl Summary {
    fn text(&self, first: UnixTime, last: UnixTime, duration: Nanos) -> String {
        let alerts = match (self.alerts, self.alerts_firing) {
            (0, _) => "none".to_owned(),
            (n, 0) => format!("{n}, all over at the end"),
            (n, 1) => format!("{n}, of which 1 fires at the end"),
            (n, firing) => format!("{n}, of which {firing} fire at the end"),
        };
        let lines = [
            ("host", format!("Linux {}", out::printable(&self.host))),
            ("agent", format!("backlogd {}", out::printable(&self.agent))),
            ("from", utc(first)),
            ("to", utc(last)),
            ("duration", clock(duration)),
            ("snapshots", self.snapshots.to_string()),
            ("listeners", self.listeners.to_string()),
            ("namespaces", self.namespaces.to_string()),
            ("alerts", alerts),
        ];
        lines.into_iter().map(|(name, value)| format!("{name:<10}  {value}\n")).collect()
    }
}
