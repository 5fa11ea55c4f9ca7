//! Incidents that the kernel tests provoked and recorded: what is told of each, and when;
//! docs/incidents.md.

#[path = "fixtures/incidents.rs"]
mod list;

use std::{fmt::Write as _, fs::File, io::BufReader, path::PathBuf};

use backlogd::{
    detect::{Detector, alert::Alert, phase::Change},
    model::snapshot::Snapshot,
    recording::{Recording, clock},
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

/// A line for each time that something was told, was told with another severity, or was over.
fn timeline(incident: &str, snapshots: &[Snapshot]) -> String {
    let mut detector = Detector::new(list::tuning(incident));
    let mut text = String::new();
    for snapshot in snapshots {
        let after = clock(snapshot.at - snapshots[0].at);
        for (change, alert) in detector.judge(snapshot).changes {
            text.push_str(&line(&after, change, &alert));
        }
    }
    text
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
        assert!(file.metadata().expect("a file").len() < 200 << 10, "{name}");
        name.strip_suffix(".backlogd").expect("a recording").to_owned()
    });
    names.collect()
}

#[test]
fn each_recorded_incident_is_told_as_it_was() {
    let library = library();
    assert!(13 <= library.len(), "{library:?}");
    for incident in library {
        let snapshots = snapshots(&incident);
        let told = timeline(&incident, &snapshots);
        assert!(told.contains(" raised "), "{incident}: {told}");
        assert_eq!(told, timeline(&incident, &snapshots), "{incident}, judged once more");
        insta::assert_snapshot!(incident, told);
    }
}
