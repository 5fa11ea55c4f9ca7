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
    snapshot::{Sampler, ask, is_late, is_nobody},
};
use crate::{
    config::Config,
    detect::{Detector, Judged, tuning::Tuning},
    id::ListenerKey,
    input::{Absent, Known},
    model::snapshot::{Member, Snapshot},
    publish::api::Source,
    time::Nanos,
};

/// How long the daemon has for its answer: own samples are had in a few seconds more.
const PATIENCE: Duration = Duration::from_secs(2);
/// Steps without an accept after which failing ones are looked for.
const SUSPICIOUS: u32 = 1;
/// Shortest time that two own samples cover.
const LEAST: Duration = Duration::from_millis(200);
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
    let mut stay = Stay::Long;
    if let Some(socket) = config.socket.as_deref().filter(|_| !request.standalone) {
        match ask(socket, request.target, PATIENCE) {
            Ok(document) => return Ok(document),
            Err(err) if is_nobody(&err) && !request.insist => {}
            Err(err) => {
                out::note(&format!("{err:#}; taking own samples"));
                if is_late(&err) {
                    stay = Stay::Short;
                }
            }
        }
    }
    let (judged, watched) = watch(config, request.span, stay)?;
    Ok(own(&judged, watched))
}

/// How long own samples may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stay {
    /// As long as asked for, what it takes to begin included: whoever asks has waited for a daemon.
    Short,
    /// As long as asked for once there is a first sample, and until it is certain that a queue is stalled.
    Long,
}

impl Stay {
    /// When the last sample is due: `began` to open what is read, the first sample at `start`.
    fn end(
        self,
        (began, start): (Instant, Instant),
        (span, longest): (Duration, Duration),
        is_unserved: bool,
    ) -> Instant {
        match (self, is_unserved) {
            (Self::Short, _) => began + span,
            (Self::Long, false) => start + span,
            (Self::Long, true) => start + longest,
        }
    }
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

/// Samples for `span`, and as `stay` has it longer while a queue may turn out to be stalled; two at
/// least.
fn watch(config: &Config, span: Duration, stay: Stay) -> anyhow::Result<(Judged, Nanos)> {
    let began = Instant::now();
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
        let end = stay.end((began, start), (span, longest), !still.0.is_empty());
        if end <= Instant::now() && 0 < turn {
            let watched = snapshot.at - first;
            return Ok((Judged { snapshot: snapshot.into(), verdicts: verdicts.into() }, watched));
        }
        unserved = Some(still);
        turn += 1;
        let next = (start + step * turn).min(end.max(start + LEAST));
        thread::sleep(next.saturating_duration_since(Instant::now()));
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

/// Whether nobody has accepted from a queue for most of the time that was watched, and that was too short to
/// call it stalled.
pub(super) fn may_be_stalled(now: &Snapshot, watched: Nanos, stalled_after: Duration) -> bool {
    let is_long = |waiting: Nanos| watched.as_seconds() <= 2.0 * waiting.as_seconds();
    let is_unserved = |it: &Member| {
        it.stalled == Ok(false) && it.waiting.is_ok_and(|it| Nanos(0) < it && is_long(it))
    };
    let mut members = now.listeners.iter().flat_map(|it| &it.members);
    watched.as_seconds() < stalled_after.as_secs_f64() && members.any(is_unserved)
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

    /// How long own samples take by default, in milliseconds, when it took a second to begin.
    #[track_caller]
    fn check_end(stay: Stay, is_unserved: bool, expected: u64) {
        let began = Instant::now();
        let start = began + Duration::from_secs(1);
        let spans = (Duration::from_secs(3), Duration::from_secs(6));
        let end = stay.end((began, start), spans, is_unserved);
        assert_eq!(Duration::from_millis(expected), end - began, "{stay:?} {is_unserved}");
    }

    #[test]
    fn who_has_waited_for_a_daemon_that_hangs_is_not_kept_waiting() {
        check_end(Stay::Long, false, 4_000);
        check_end(Stay::Long, true, 7_000);
        check_end(Stay::Short, false, 3_000);
        check_end(Stay::Short, true, 3_000);
    }

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
    fn a_queue_that_was_watched_too_shortly_is_not_called_served() {
        let check = |waiting: u64, watched: u64, expected| {
            let mut now = fixture::snapshot(vec![fixture::listener(80)]);
            now.listeners[0].members[0].waiting = Ok(Nanos(waiting * 1_000_000_000));
            let watched = Nanos(watched * 1_000_000_000);
            assert_eq!(expected, may_be_stalled(&now, watched, Duration::from_secs(4)), "{now:?}");
        };
        check(3, 3, true);
        check(2, 3, true);
        check(0, 3, false);
        check(1, 3, false);
        check(3, 5, false);
    }

    #[test]
    fn a_queue_is_watched_for_longer_while_nobody_has_accepted_since_the_first_sample() {
        check(&[(1, 5), (2, 5), (9, 5)], true);
        check(&[(1, 5), (2, 6), (9, 6)], false);
        check(&[(1, 5), (0, 5), (9, 5)], false);
        check(&[(0, 5), (2, 5), (9, 5)], false);
    }
}
