//! Where verbs that judge get their answer: a document of the daemon, or what own samples show.

use std::{
    collections::BTreeMap,
    io::{self, IsTerminal as _},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use serde::de::DeserializeOwned;

use super::{
    out,
    snapshot::{Sampler, ask, is_nobody},
};
use crate::{
    config::Config,
    detect::{Detector, Judged, tuning::Tuning},
    id::ListenerKey,
    input::{Absent, Known},
    model::snapshot::Snapshot,
    publish::api::Source,
    time::Nanos,
};

/// How long the daemon has for its answer: own samples are had in a few seconds more.
const PATIENCE: Duration = Duration::from_secs(2);
/// Steps without an accept after which failing ones are looked for.
const SUSPICIOUS: u32 = 1;
/// Longest time between two own samples.
const STEP: Duration = Duration::from_secs(1);

/// How to get an answer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Request<'a> {
    /// Leave the daemon alone.
    pub(super) standalone: bool,
    /// Say so when the daemon cannot be reached; otherwise a missing one is passed over.
    pub(super) insist: bool,
    /// What to ask the daemon for.
    pub(super) target: &'a str,
    /// How long to watch without it.
    pub(super) span: Duration,
}

/// The daemon's document, or what `own` makes of own samples and the time that they cover.
pub(super) fn answer<T: DeserializeOwned>(
    config: &Config,
    request: Request<'_>,
    own: impl FnOnce(&Judged, Nanos) -> T,
) -> anyhow::Result<T> {
    if let Some(socket) = config.socket.as_deref().filter(|_| !request.standalone) {
        match ask(socket, request.target, PATIENCE) {
            Ok(document) => return Ok(document),
            Err(err) if is_nobody(&err) && !request.insist => {}
            Err(err) => out::note(&format!("{err:#}; taking own samples")),
        }
    }
    let (judged, watched) = watch(config, request.span)?;
    Ok(own(&judged, watched))
}

/// Tells people whose answer it is; JSON and YAML say it in `source`.
pub(super) fn describe(source: Source, verbose: bool) {
    if verbose || io::stderr().is_terminal() {
        out::note(match source {
            Source::Daemon => "from the daemon",
            Source::Standalone => "from own samples",
            Source::Recording => "from the recording",
        });
    }
}

/// Most entries of the configuration that are told one by one.
const TOLD: usize = 20;

/// Tells people which entries of the configuration have matched nothing.
pub(super) fn tell_unmatched(entries: &[impl AsRef<str>]) {
    for entry in entries.iter().take(TOLD) {
        out::note(&format!("{} has matched nothing so far", entry.as_ref()));
    }
    let more = entries.len().saturating_sub(TOLD);
    if 0 < more {
        out::note(&format!("{more} more entries have matched nothing so far"));
    }
}

/// Samples for `span`, and longer while a queue may turn out to be stalled.
fn watch(config: &Config, span: Duration) -> anyhow::Result<(Judged, Nanos)> {
    let mut sampler = Sampler::open(config)?;
    let step = STEP.min(span / 3);
    let mut detector = Detector::new(tuning(config, span - step / 2));
    let longest = span.max(config.stalled_after + 2 * step);
    let start = Instant::now();
    let mut turn = 0;
    let (mut first, mut unserved) = (None, None);
    loop {
        let snapshot = sampler.next();
        let verdicts = detector.judge(&snapshot);
        let first = *first.get_or_insert(snapshot.at);
        let still = Unserved::next(unserved.as_ref(), &snapshot);
        // early enough to see errors for as long as it takes to be sure of them
        sampler.look_closer(SUSPICIOUS <= turn && !still.0.is_empty());
        let until = if still.0.is_empty() { span } else { longest };
        if until <= start.elapsed() {
            let watched = snapshot.at - first;
            return Ok((Judged { snapshot: snapshot.into(), verdicts: verdicts.into() }, watched));
        }
        unserved = Some(still);
        turn += 1;
        thread::sleep((step * turn).saturating_sub(start.elapsed()));
    }
}

/// What is configured, for somebody who knows nothing of what was before `look`: a listener that is missing
/// all the while is told.
fn tuning(config: &Config, look: Duration) -> Arc<Tuning> {
    let mut tuning = Tuning::clone(&config.tuning);
    for expected in &mut tuning.expected {
        expected.look = Some(look.into());
    }
    tuning.into()
}

/// Listeners where connections waited in each sample so far and nobody accepted, with what had been
/// accepted.
struct Unserved(BTreeMap<ListenerKey, Known<u64>>);

impl Unserved {
    fn next(before: Option<&Self>, now: &Snapshot) -> Self {
        let waits = now.listeners.iter().filter(|it| {
            let can_be_told = it.stalled.is_ok() || it.stalled == Err(Absent::TooEarly);
            0 < it.length && can_be_told
        });
        let waits = waits.map(|it| (it.key, it.counters.accepted));
        Self(
            waits
                .filter(|(key, accepted)| {
                    before.is_none_or(|before| before.0.get(key) == Some(accepted))
                })
                .collect(),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::detect::fixture;

    /// Length and accepted of one listener in each sample; whether it may turn out to be stalled.
    #[track_caller]
    fn check(samples: &[(u64, u64)], expected: bool) {
        let mut before = None;
        for &(length, accepted) in samples {
            let mut now = fixture::snapshot(vec![fixture::listener(80)]);
            now.listeners[0].length = length;
            now.listeners[0].counters.accepted = Ok(accepted);
            before = Some(Unserved::next(before.as_ref(), &now));
        }
        let last = before.expect("the case has samples");
        assert_eq!(expected, !last.0.is_empty(), "{samples:?}");
    }

    #[test]
    fn a_queue_is_watched_for_longer_while_nobody_has_accepted_since_the_first_sample() {
        check(&[(1, 5), (2, 5), (9, 5)], true);
        check(&[(1, 5), (2, 6), (9, 6)], false);
        check(&[(1, 5), (0, 5), (9, 5)], false);
        check(&[(0, 5), (2, 5), (9, 5)], false);
    }
}
