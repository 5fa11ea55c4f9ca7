//! An agent that looks each second and says what is wrong, as the daemon does.

use std::{
    env,
    fmt::Write as _,
    fs::{self, File},
    mem,
    path::PathBuf,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use backlogd::{
    detect::{
        Detector,
        alert::{Alert, Verdicts},
        phase::Severity,
    },
    model::snapshot::Snapshot,
    recording::Writer,
    sys::clock,
};

use crate::{
    actors::Actor,
    agent::{Agent, find},
};

#[path = "../../fixtures/incidents.rs"]
mod list;

/// From one look to the next.
pub(super) const CADENCE: Duration = Duration::from_secs(1);

/// A stall and a loop of failing accepts must be told within five seconds, and what a look takes.
pub(super) const SOON: Duration = Duration::from_millis(5_500);

/// Tables are read every ten seconds, and some things must be in two of them.
pub(super) const TWO_TABLES: Duration = Duration::from_secs(25);

/// Whether this is told rightly, after a minute: on machines whose first process nobody may look at,
/// as in some containers, it may own whatever has no other owner.
fn is_of_this_machine(alert: &Alert) -> bool {
    alert.about.name == "AgentDegraded"
        && alert.latest.seen.starts_with("not readable: owners (")
        && fs::read_dir("/proc/1/fd").is_err()
}

/// Watches this namespace.
pub(super) struct Watch {
    pub(super) agent: Agent,
    detector: Detector,
    recording: Option<Writer<File>>,
    next: Instant,
    /// Alerts that may be told.
    allowed: Vec<&'static str>,
    /// The newest snapshot, and what is told of it.
    pub(super) snapshot: Snapshot,
    pub(super) verdicts: Verdicts,
}

impl Watch {
    /// Begins to watch; only `allowed` may ever be told.
    pub(super) fn start(incident: &str, allowed: &[&'static str]) -> Self {
        let recording = env::var_os("BACKLOGD_TEST_RECORD").map(|folder| {
            let path = PathBuf::from(folder).join(format!("{incident}.backlogd"));
            let release = rustix::system::uname().release().to_string_lossy().into_owned();
            let file = File::create(&path).expect("a folder for recordings");
            Writer::new(file, &release, clock::realtime()).expect("a recording")
        });
        let mut agent = Agent::start();
        let snapshot = agent.look_closer();
        let mut watch = Self {
            agent,
            detector: Detector::new(list::tuning(incident)),
            recording,
            next: Instant::now(),
            allowed: allowed.to_vec(),
            snapshot,
            verdicts: Verdicts::default(),
        };
        watch.quiet(3);
        watch
    }

    /// Only these may be told from here on.
    pub(super) fn allow(&mut self, names: &[&'static str]) {
        self.allowed = names.to_vec();
    }

    /// Waits for the next look and takes it.
    #[track_caller]
    pub(super) fn look(&mut self) {
        self.next += CADENCE;
        thread::sleep(self.next.saturating_duration_since(Instant::now())); // the agent's cadence
        self.snapshot = self.agent.look_closer();
        self.verdicts = self.detector.judge(&self.snapshot);
        if let Some(recording) = &mut self.recording {
            recording.push(&self.snapshot).expect("room for a recording");
        }
        let is_allowed =
            |it: &Arc<Alert>| self.allowed.contains(&it.about.name) || is_of_this_machine(it);
        assert!(
            self.verdicts.told().all(is_allowed),
            "only {:?} may be told:\n{}",
            self.allowed,
            self.described()
        );
    }

    /// Looks until `name` is told, which must be soon enough, and says how soon it was.
    #[track_caller]
    #[expect(
        clippy::print_stderr,
        reason = "the time to tell is what a reader of the log looks for"
    )]
    pub(super) fn told(&mut self, name: &str, within: Duration) -> Arc<Alert> {
        let start = Instant::now();
        loop {
            self.look();
            let waited = start.elapsed();
            assert!(waited < within, "{name} is not told in {waited:?}:\n{}", self.described());
            if let Some(alert) = self.find(name) {
                eprintln!("{name} after {:.1} s", waited.as_secs_f64());
                return alert;
            }
        }
    }

    /// Looks until the queue of `server` is empty and nothing comes any more.
    #[track_caller]
    pub(super) fn rests(&mut self, server: &mut Actor) -> u64 {
        let mut before = server.done().accepted;
        for _ in 0..20 {
            self.look();
            let is_empty = find(&self.snapshot, server.addr).length == 0;
            let accepted = server.done().accepted;
            if is_empty && accepted == before {
                return accepted;
            }
            before = accepted;
        }
        panic!("{} never rests:\n{}", server.addr, self.described());
    }

    /// Looks until `name` is told no more.
    #[track_caller]
    pub(super) fn clears(&mut self, name: &str, within: Duration) {
        let start = Instant::now();
        while self.find(name).is_some() {
            let waited = start.elapsed();
            assert!(waited < within, "{name} goes on for {waited:?}:\n{}", self.described());
            self.look();
        }
    }

    /// Looks `n` times; nothing may be told.
    #[track_caller]
    pub(super) fn quiet(&mut self, n: usize) {
        let allowed = mem::take(&mut self.allowed);
        (0..n).for_each(|_| self.look());
        self.allowed = allowed;
    }

    /// What is told of that name.
    pub(super) fn find(&self, name: &str) -> Option<Arc<Alert>> {
        self.verdicts.told().find(|alert| alert.about.name == name).cloned()
    }

    /// Whether a detection could not judge.
    pub(super) fn is_unknown(&self, name: &str) -> bool {
        self.verdicts.unknown.iter().any(|it| it.alert == name)
    }

    /// All that fires, in words.
    fn described(&self) -> String {
        let mut text = String::new();
        for alert in &self.verdicts.alerts {
            _ = writeln!(
                text,
                "{} {} {}: {:?}; inhibited by {:?}",
                alert.about.name,
                alert.severity.name(),
                alert.subject.name,
                alert.latest,
                alert.inhibited_by
            );
        }
        _ = write!(text, "unknown: {:?}", self.verdicts.unknown);
        text
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        if let Some(recording) = self.recording.take() {
            recording.finish().expect("room for a recording");
        }
    }
}

/// What an alert says, compared at once.
#[track_caller]
pub(super) fn check(
    alert: &Alert,
    (severity, subject): (Severity, &str),
    seen: &str,
    cause: Option<&str>,
    mend: &str,
) {
    let latest = &alert.latest;
    assert_eq!((severity, subject), (alert.severity, &*alert.subject.name), "{alert:?}");
    for (part, text) in [
        (seen, Some(&*latest.seen)),
        (cause.unwrap_or_default(), latest.cause.as_deref()),
        (mend, Some(&*latest.mend)),
    ] {
        assert!(text.unwrap_or_default().contains(part), "{part:?} is not in {text:?}");
    }
    assert_eq!(cause.is_some(), latest.cause.is_some(), "{alert:?}");
}

/// A number of an alert.
#[track_caller]
pub(super) fn value(alert: &Alert, name: &str) -> f64 {
    let found = alert.latest.values.iter().find(|(it, _)| *it == name);
    found.unwrap_or_else(|| panic!("no {name}: {alert:?}")).1
}
