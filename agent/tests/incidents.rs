//! Incidents that were provoked and recorded: what is told of each, and when; docs/incidents.md.

#[path = "fixtures/incidents.rs"]
mod list;
#[path = "fixtures/shell.rs"]
mod shell;

use std::{
    collections::BTreeSet, fmt::Write as _, fs::File, io::BufReader, path::PathBuf, sync::Arc,
};

use backlogd::{
    audit::wanted::{Asked, Wanted},
    detect::{Detector, Judged, alert::Alert, phase::Change},
    input::{ErrorCounts, Known},
    model::snapshot::Snapshot,
    publish::api::{Check, Explanation, Source},
    recording::{Recording, clock},
    time::Nanos,
};

fn path(incident: &str) -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "tests/incidents", &format!("{incident}.backlogd")]
        .iter()
        .collect()
}

fn snapshots(incident: &str) -> Vec<Snapshot> {
    let file = File::open(path(incident)).expect("a recording of this name");
    let recording = Recording::open(BufReader::new(file)).expect("a recording");
    recording.snapshots().collect::<Result<_, _>>().expect("a whole recording")
}

/// Each time that something was told, was told with another severity, or was over, by the time since the
/// first snapshot.
fn told(incident: &str, snapshots: &[Snapshot]) -> Vec<(Nanos, Change, Arc<Alert>)> {
    let mut detector = Detector::new(list::tuning(incident));
    let mut told = Vec::new();
    for snapshot in snapshots {
        let after = snapshot.at - snapshots[0].at;
        let changes = detector.judge(snapshot).changes;
        told.extend(changes.into_iter().map(|(change, alert)| (after, change, alert)));
    }
    told
}

/// A line for each of them.
fn timeline(incident: &str, snapshots: &[Snapshot]) -> String {
    let told = told(incident, snapshots);
    told.iter().map(|(after, change, alert)| line(&clock(*after), *change, alert)).collect()
}

fn line(after: &str, change: Change, alert: &Alert) -> String {
    let (name, severity) = (alert.about.name, alert.severity.name());
    let subject = &alert.subject.name;
    let what = match change {
        Change::Raised => "raised",
        Change::Severity => "changed",
        Change::Cleared => return format!("{after} cleared {name} {severity} {subject}\n"),
        Change::Lost(_) | Change::Inhibited(_) | Change::Silenced => {
            let (word, why) = (change.name().expect("a word"), change.reason().expect("a reason"));
            return format!("{after} {word} {name} {severity} {subject}: {why}\n");
        }
        Change::None => return String::new(),
    };
    let evidence = &alert.latest;
    let mut text = format!("{after} {what} {name} {severity} {subject}: {}\n", evidence.seen);
    for (word, said) in [("cause", evidence.cause.as_deref()), ("mend", Some(&*evidence.mend))] {
        if let Some(said) = said {
            _ = writeln!(text, "         {word}: {said}");
        }
    }
    text
}

/// The names of all recordings; each is small.
fn library() -> Vec<String> {
    let folder = path("x").parent().expect("a file in a folder").to_owned();
    let names = folder.read_dir().expect("a folder").map(|file| {
        let file = file.expect("a file");
        let name = file.file_name().into_string().expect("a name in ASCII");
        assert!(file.metadata().expect("a file").len() < 300 << 10, "{name}");
        name.strip_suffix(".backlogd").expect("a recording").to_owned()
    });
    names.collect()
}

#[test]
fn each_recorded_incident_is_told_as_it_was() {
    let library = library();
    assert_eq!(list::INCIDENTS.len(), library.len(), "{library:?}");
    for incident in library {
        let snapshots = snapshots(&incident);
        let told = timeline(&incident, &snapshots);
        assert!(told.contains(" raised "), "{incident}: {told}");
        assert_eq!(told, timeline(&incident, &snapshots), "{incident}, judged once more");
        insta::assert_snapshot!(incident, told);
    }
}

/// All that is proposed in a recording: by alerts, by findings, and in stories.
fn mends(incident: &str) -> BTreeSet<String> {
    let mut detector = Detector::new(list::tuning(incident));
    let mut mends = BTreeSet::new();
    for snapshot in snapshots(incident) {
        let verdicts = detector.judge(&snapshot);
        let judged = Judged { snapshot: snapshot.into(), verdicts: verdicts.into() };
        let check = Check::new(&judged, Source::Recording, None);
        mends.extend(check.alerts.into_iter().map(|alert| alert.mend));
        mends.extend(check.findings.into_iter().map(|finding| finding.mend));
        let all = Asked::Place(Wanted { addr: None, port: None });
        let stories = Explanation::new(&judged, &all, Source::Recording).listeners.into_iter();
        let sections = stories.flat_map(|story| story.sections);
        let todo = sections.filter(|section| section.section == "todo");
        mends.extend(todo.flat_map(|section| section.lines).filter(|line| line != "Nothing."));
    }
    mends
}

/// `backlogd check -o json | jq -r '.alerts[], .findings[] | .mend'`
#[test]
fn all_that_is_proposed_is_text_that_a_shell_takes() {
    let mends: BTreeSet<String> = library().iter().flat_map(|incident| mends(incident)).collect();
    assert!(20 < mends.len(), "{mends:#?}");
    mends.iter().for_each(|mend| shell::check_mend(mend));
}

/// A recording of an incident that takes its time, and what is told of it.
struct Slow {
    snapshots: Vec<Snapshot>,
    told: Vec<(Nanos, Change, Arc<Alert>)>,
}

impl Slow {
    /// All that is told is `expected`, and at the end only that a listener is gone whose process ended.
    #[track_caller]
    fn of(incident: &str, expected: &[&str]) -> Self {
        Self::judge(incident, snapshots(incident), expected)
    }

    #[track_caller]
    fn judge(incident: &str, snapshots: Vec<Snapshot>, expected: &[&str]) -> Self {
        let told = told(incident, &snapshots);
        let names: BTreeSet<&str> = told.iter().map(|(_, _, alert)| alert.about.name).collect();
        assert_eq!(expected, names.into_iter().collect::<Vec<_>>(), "{incident}");
        let slow = Self { snapshots, told };
        for name in expected.iter().filter(|name| **name != "ListenerGone") {
            let last = slow.changes(name).last().map(|(_, change)| change);
            let is_over = match last {
                Some(Change::Cleared) => true,
                // which is over at the end, as all of them
                Some(Change::Inhibited(by)) => expected.contains(&by),
                _ => false,
            };
            assert!(is_over, "{incident}: {name}: {last:?}");
        }
        slow
    }

    fn changes(&self, name: &str) -> impl Iterator<Item = (Nanos, Change)> {
        let of_it = self.told.iter().filter(move |(_, _, alert)| alert.about.name == name);
        of_it.map(|&(after, change, _)| (after, change))
    }

    /// When an alert was first told.
    fn raised(&self, name: &str) -> Nanos {
        self.changes(name).next().expect("told").0
    }

    /// When something was first so.
    fn first(&self, is_so: impl Fn(&Snapshot) -> bool) -> Nanos {
        let first = self.snapshots.iter().find(|snapshot| is_so(snapshot));
        first.expect("it happens").at - self.snapshots[0].at
    }
}

const SECOND: u64 = 1_000_000_000;

const fn minutes(n: u64) -> Nanos {
    Nanos(n * 60 * SECOND)
}

/// An alert is told five minutes before what it announces begins.
#[track_caller]
fn check_ahead(slow: &Slow, alert: &str, is_exhausted: impl Fn(&Snapshot) -> bool) {
    let (raised, exhausted) = (slow.raised(alert), slow.first(is_exhausted));
    let (at, end) = (clock(raised), clock(exhausted));
    assert!(raised + minutes(5) <= exhausted, "{alert} is told at {at}, none are left at {end}");
}

/// Whether a call has failed so.
fn has_failed(call: &Known<Arc<ErrorCounts>>, errno: &str) -> bool {
    call.as_ref().expect("seen").keys().any(|(_, it)| it.to_string() == errno)
}

#[test]
fn descriptors_that_run_out_steadily_are_told_five_minutes_ahead() {
    let slow = Slow::of("files_not_closed", &["AcceptErrors", "ProcessFdsFillingUp"]);
    check_ahead(&slow, "ProcessFdsFillingUp", |now| {
        let is_full = now.processes.values().any(|it| it.now.open_fds == it.now.max_fds);
        is_full || has_failed(&now.errors.as_ref().expect("known").accept, "EMFILE")
    });
}

#[test]
fn local_ports_that_run_out_steadily_are_told_five_minutes_ahead() {
    let expected = ["ConnectAddressesExhausted", "EphemeralPortsNearLimit"];
    check_ahead(&Slow::of("ports_kept", &expected), "EphemeralPortsNearLimit", |now| {
        has_failed(&now.errors.as_ref().expect("known").connect, "EADDRNOTAVAIL")
    });
}

#[test]
fn open_files_of_the_host_that_run_out_steadily_are_told_five_minutes_ahead() {
    let slow = Slow::of("host_files", &["HostFdsNearLimit"]);
    check_ahead(&slow, "HostFdsNearLimit", |now| {
        let (open, max) = (now.host.open_fds.expect("read"), now.host.max_fds.expect("read"));
        // what is shown goes up in steps of 32 (`percpu_counter_batch`, lib/percpu_counter.c)
        max < open + 32
    });
}

/// A leak is told within two windows of the first connection that leaks, and more soon where a limit is
/// given. The window is that of `ConnectionLeak` without a configuration.
#[track_caller]
fn check_leak(slow: &Slow, within: Nanos) {
    const WINDOW: Nanos = minutes(15);
    assert!(within <= Nanos(2 * WINDOW.0));
    // the peer's end goes from ESTABLISHED to CLOSE (`tcp_set_state`, net/ipv4/tcp.c)
    let ended = |now: &Snapshot| {
        let netstat = now.namespaces[0].netstat.as_ref().expect("read");
        netstat.get("EstabResets").copied().expect("there")
    };
    let begun = slow.first(|now| 0 < ended(now));
    let raised = slow.raised("ConnectionLeak");
    let (from, at) = (clock(begun), clock(raised));
    assert!(begun < raised && raised <= begun + within, "begun at {from}, told at {at}");
}

#[test]
fn connections_whose_peers_went_without_a_word_are_told_within_two_windows() {
    let incident = "vanished_peers";
    let mut snapshots = snapshots(incident);
    // two minutes after the process has ended; that takes ten to be over, in which nothing happens
    let last = snapshots.last().expect("some").clone();
    assert!(last.listeners.iter().all(|it| it.members.is_empty() && it.open == Ok(0)));
    let after = |second: u64| Snapshot { at: last.at + Nanos(second * SECOND), ..last.clone() };
    snapshots.extend((2..=600).step_by(2).map(after));
    check_leak(&Slow::judge(incident, snapshots, &["ConnectionLeak", "ListenerGone"]), minutes(30));
}

#[test]
fn connections_that_were_reset_and_not_closed_are_told_within_five_minutes() {
    let slow = Slow::of("reset_and_lost", &["ConnectionLeak"]);
    check_leak(&slow, minutes(5));
}
