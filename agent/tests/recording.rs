//! Recordings: what is written is read, and whatever is read there is an answer.

#[path = "fixtures/snapshot.rs"]
mod fixture;

use std::{
    cell::RefCell,
    fs,
    io::{self, Read as _, Write},
    os::unix::fs::PermissionsExt as _,
    path::Path,
    process::{Command, Output, Stdio},
    rc::Rc,
    sync::{Arc, LazyLock},
};

use backlogd::{
    id::Pid,
    input::Absent,
    model::snapshot::{Listener, Snapshot},
    recording::{Recording, RecordingError, Writer},
    sys::clock::thread_cpu,
    time::{Nanos, UnixTime},
};
use flate2::{Compression, read::GzDecoder, write::GzEncoder};
use proptest::prelude::*;
use tempfile::TempDir;

const SECOND: u64 = 1_000_000_000;

/// The fixture `n` seconds later: numbers move, listeners, sockets, names and namespaces come and
/// go.
fn moved(snapshot: &Snapshot, n: u64) -> Snapshot {
    let mut snapshot = snapshot.clone();
    snapshot.at.0 += n * SECOND;
    snapshot.unix_time.0 += n * SECOND + n;
    snapshot.samples += n;
    snapshot.interval = Ok(Nanos(SECOND + n));
    for (at, listener) in (0..).zip(&mut snapshot.listeners) {
        listener.since_accept = listener.since_accept.map(|since| Nanos(since.0 + n * SECOND));
        if (n + at).is_multiple_of(3) {
            listener.length += n;
            listener.counters.established = Ok(n * 7 + at);
            listener.rates.accepted = Ok(1.0 / (n + 1) as f64);
            listener.since_accept = Ok(Nanos(0));
        }
    }
    if n % 4 == 1 {
        Arc::make_mut(&mut snapshot.threads).pop_first();
    }
    if n % 7 == 3 {
        snapshot.listeners.remove(0);
        snapshot.namespaces.pop();
        snapshot.listeners[0].members.clear();
    }
    if n % 5 == 2 {
        snapshot.degraded.insert("owners", format!("failed {n} times"));
        snapshot.errors = Err(Absent::NotPermitted);
        snapshot.processes.pop_first();
        let pid = Pid(u32::try_from(n).expect("few"));
        Arc::make_mut(&mut snapshot.threads).insert(pid, Err(Absent::NotPermitted));
        snapshot.hooks = Arc::from(&snapshot.hooks[1..]);
        snapshot.udp.clear();
    }
    snapshot
}

/// What was written so far, also while the writer goes on.
#[derive(Clone, Default)]
struct File(Rc<RefCell<Vec<u8>>>);

impl Write for File {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.borrow_mut().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn write(snapshots: &[Snapshot]) -> Vec<u8> {
    let mut writer =
        Writer::new(Vec::new(), "6.1.0-test", UnixTime(1_700_000_000 * SECOND)).expect("in memory");
    snapshots.iter().for_each(|snapshot| writer.push(snapshot).expect("in memory"));
    assert_eq!(snapshots.len() as u64, writer.place().snapshots);
    writer.finish().expect("in memory")
}

/// All snapshots, and the error after them.
fn read(bytes: &[u8]) -> (Vec<Snapshot>, Option<RecordingError>) {
    let (mut snapshots, mut error) = (Vec::new(), None);
    match Recording::open(bytes) {
        Ok(recording) => {
            for snapshot in recording.snapshots() {
                assert!(error.is_none(), "nothing comes after an error");
                match snapshot {
                    Ok(snapshot) => snapshots.push(snapshot),
                    Err(err) => error = Some(err),
                }
            }
        }
        Err(err) => error = Some(err),
    }
    (snapshots, error)
}

/// `lines` as a recording's file.
fn pack(lines: &str) -> Vec<u8> {
    let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
    gzip.write_all(lines.as_bytes()).expect("in memory");
    gzip.finish().expect("in memory")
}

fn unpack(bytes: &[u8]) -> String {
    let mut text = String::new();
    GzDecoder::new(bytes).read_to_string(&mut text).expect("in memory");
    text
}

fn snapshots(n: u64) -> Vec<Snapshot> {
    (0..n).map(|n| moved(&fixture::snapshot(), n)).collect()
}

#[test]
fn what_is_written_is_read() {
    let written = snapshots(130);
    let bytes = write(&written);
    let (got, error) = read(&bytes);
    assert!(error.is_none(), "{error:?}");
    assert_eq!(written.len(), got.len());
    for (written, got) in written.iter().zip(&got) {
        assert_eq!(written, got);
    }
    let text = unpack(&bytes);
    let whole = text.lines().filter(|line| line.starts_with("{\"whole\"")).count();
    assert_eq!((3, 131), (whole, text.lines().count()));
    let header = Recording::open(&*bytes).expect("in memory").header().clone();
    assert_eq!((1, "6.1.0-test"), (header.version, &*header.host));
    assert_eq!(1_700_000_000.0, header.unix_time_seconds);
}

#[test]
fn the_same_snapshot_twice_is_read_twice() {
    let one = fixture::snapshot();
    let (got, error) = read(&write(&[one.clone(), one.clone()]));
    assert!(error.is_none());
    assert_eq!(vec![one.clone(), one], got);
}

#[test]
fn a_list_that_is_replaced_as_a_whole_is_read_as_a_whole() {
    let one = fixture::snapshot();
    let mut other = one.clone();
    other.listeners[1].length = 77;
    let whole = serde_json::to_value(&other).expect("in memory")["listeners"].take();
    // equal but for that, which is the instant in the file
    let whole = whole.to_string().replace("\"Ok\":1500000000", "\"Ok\":98500000000");
    let (got, error) =
        read(&then(&format!(r#"{{"delta":{{"~":{{"listeners":{{"=":{whole}}}}}}}}}"#)));
    assert!(error.is_none(), "{error:?}");
    assert_eq!(vec![one, other], got);
}

#[test]
fn every_field_is_read_from_what_changed() {
    let whole = unpack(&write(&[fixture::snapshot()]));
    let whole = whole.lines().nth(1).expect("after the header");
    let whole: serde_json::Value = serde_json::from_str(whole).expect("it is JSON");
    let fields = whole["whole"].as_object().expect("a snapshot");
    assert!(10 < fields.len(), "{fields:?}");
    for field in fields.keys() {
        // no field is text: who reads it refuses that
        let (got, error) = read(&then(&format!(r#"{{"delta":{{"~":{{"{field}":"x"}}}}}}"#)));
        assert_eq!(1, got.len(), "{field}");
        assert!(matches!(error, Some(RecordingError::Damaged { .. })), "{field}: {error:?}");
    }
}

#[test]
fn what_does_not_change_is_shared() {
    let (got, _) = read(&write(&[fixture::snapshot(), moved(&fixture::snapshot(), 1)]));
    assert!(Arc::ptr_eq(&got[0].hooks, &got[1].hooks));
    assert!(Arc::ptr_eq(&got[0].listeners[0].workload, &got[1].listeners[0].workload));
}

#[test]
fn of_a_recorder_that_was_killed_there_is_all_but_the_last_few() {
    let file = File::default();
    let written = snapshots(43);
    let mut writer = Writer::new(file.clone(), "x", UnixTime(0)).expect("in memory");
    written.iter().for_each(|snapshot| writer.push(snapshot).expect("in memory"));
    let bytes = file.0.borrow().clone();
    let (got, error) = read(&bytes);
    assert_eq!(written[..41], got);
    let message = error.map(|err| err.to_string());
    assert_eq!(Some("the recording is cut after snapshot 41 (00:00:40)"), message.as_deref());
}

#[test]
fn wherever_it_is_cut_all_before_is_read_and_the_cut_is_told() {
    let written = snapshots(12);
    let bytes = write(&written);
    let lengths = (0..bytes.len()).step_by(37).chain(bytes.len() - 9..bytes.len());
    for length in lengths {
        let (got, error) = read(&bytes[..length]);
        assert_eq!(written[..got.len()], got);
        match (length, error) {
            (0 | 1, Some(RecordingError::NotARecording { .. })) => {}
            (_, Some(RecordingError::Cut(at))) => assert_eq!(got.len() as u64, at.snapshots),
            (_, other) => panic!("{length}: {other:?}"),
        }
    }
}

#[track_caller]
fn check_refused(bytes: &[u8], message: &str) {
    let (_, error) = read(bytes);
    assert_eq!(Some(message), error.map(|err| err.to_string()).as_deref());
}

#[test]
fn what_comes_after_its_end_is_told() {
    let whole = write(&snapshots(3));
    let told = "the recording is damaged after snapshot 3 (00:00:02): bytes after its end, expected one \
                gzip member";
    check_refused(&[&*whole, b"x"].concat(), told);
    check_refused(&[&*whole, &[0; 512]].concat(), told);
    check_refused(&[&*whole, &*whole].concat(), told);
}

#[test]
fn a_wall_clock_may_go_back() {
    let mut written = snapshots(3);
    written[2].unix_time = UnixTime(5);
    let (got, error) = read(&write(&written));
    assert!(error.is_none(), "{error:?}");
    assert_eq!(written, got);
}

const HEADER: &str =
    r#"{"backlogd_recording":1,"agent":"0.1.0","unix_time_seconds":1.0,"host":"x"}"#;

#[test]
fn what_is_no_recording_is_refused_and_named() {
    let expected = "expected the gzip file that `backlogd record` writes";
    check_refused(b"", &format!("not a recording: an empty file, {expected}"));
    let got = "a file that begins with the bytes [7b, 22]";
    check_refused(br#"{"a":1}"#, &format!("not a recording: {got}, {expected}"));
    let got = "a first line that is no header";
    check_refused(&pack("hello\n"), &format!("not a recording: {got}, {expected}"));
    check_refused(&pack("{\"a\":1}\n"), &format!("not a recording: {got}, {expected}"));
    let got = "a first line of more than 65536 bytes";
    check_refused(&pack(&" ".repeat(1 << 20)), &format!("not a recording: {got}, {expected}"));
    check_refused(&pack(""), "the recording is cut before its first snapshot");
    check_refused(b"\x1f\x8b\x07", "the recording is cut before its first snapshot");
    for (version, said) in [("0", "0"), ("-1", "-1"), ("1.5", "1.5"), ("1e30", "1e+30")] {
        let header = HEADER.replace(":1,", &format!(":{version},"));
        check_refused(
            &pack(&format!("{header}\n")),
            &format!("a recording of version {said}, expected 1"),
        );
    }
    check_refused(
        &pack(&(HEADER.replace(":1,", ":1099511627776,") + "\n")),
        "a recording of version 1099511627776, made by backlogd 0.1.0; this is backlogd 0.1.0, which \
         reads up to version 1",
    );
    check_refused(
        &pack("{\"backlogd_recording\":2,\"agent\":\"0.9.0\\u001b[31m\",\"more\":[]}\n"),
        "a recording of version 2, made by backlogd 0.9.0[31m; this is backlogd 0.1.0, which reads \
         up to version 1",
    );
}

/// A recording of one snapshot, and then `line`.
fn then(line: &str) -> Vec<u8> {
    let text = unpack(&write(&[fixture::snapshot()]));
    pack(&format!("{text}{line}\n"))
}

#[test]
fn what_is_hostile_is_refused() {
    let damaged = "the recording is damaged after snapshot 1 (00:00:00)";
    let nested = format!("{{\"delta\":{{\"~\":{{\"at\":{}", "[".repeat(100_000));
    check_refused(
        &then(&nested),
        &format!("{damaged}: recursion limit exceeded at line 1 column 145"),
    );
    check_refused(
        &then(r#"{"delta":{"~":{"at":{"~":{"a":1}}}}}"#),
        &format!("{damaged}: changed keys of what is no object"),
    );
    check_refused(
        &then(r#"{"delta":{"~":{"at":-1}}}"#),
        &format!("{damaged}: invalid value: integer `-1`, expected u64"),
    );
    check_refused(
        &then(&format!(
            r#"{{"delta":{{"~":{{"degraded":{{"=":{{"{}":""}}}}}}}}}}"#,
            "x".repeat(65)
        )),
        &format!("{damaged}: a name of 65 bytes, expected at most 64"),
    );
    check_refused(
        &pack(&format!("{HEADER}\n{{\"delta\":1}}\n")),
        "the recording is damaged before its first snapshot: it begins with changes, expected a \
         whole snapshot",
    );
}

/// A change of the first listener of the fixture.
fn of_first(change: &str) -> String {
    let name = fixture::snapshot().listeners[0].key.to_string();
    format!(r#"{{"delta":{{"~":{{"listeners":{{"~":{{"{name}":{change}}}}}}}}}}}"#)
}

#[test]
fn what_no_recorder_writes_is_refused() {
    let listener = serde_json::to_string(&fixture::snapshot().listeners[0]).expect("in memory");
    for (line, why) in [
        ("{}", "no key, expected `whole` or `delta`"),
        (r#"{"part":1}"#, "the key \"part\", expected `whole` or `delta`"),
        (r#"{"delta":1}"#, "invalid type: integer `1`, expected changes of a snapshot"),
        (r#"{"delta":{}}"#, "an object that is no delta"),
        (r#"{"delta":{"~":{}},"delta":{"~":{}}}"#, "a second key, expected one"),
        (r#"{"delta":{"~":{"listeners":{"~":{}},"listeners":{"~":{}}}}}"#, "no delta"),
        (r#"{"delta":{"~":{"listeners":{"~":{},"~":{}}}}}"#, "no delta"),
        (r#"{"delta":{"-":["listeners"]}}"#, "a field went that every snapshot has"),
        (r#"{"delta":{"-":["at"]}}"#, "missing field `at`"),
        (r#"{"delta":{"~":{"at":1}}}"#, "its clock goes back, which no clock since boot does"),
        (r#"{"delta":{"~":{"at":NaN}}}"#, "expected value"),
        (r#"{"delta":{"~":{"at":1e999}}}"#, "number out of range"),
        (&of_first(r#"{"~":{"length":NaN}}"#), "expected value"),
        (&of_first(r#"{"~":{"length":-1}}"#), "invalid value: integer `-1`, expected u64"),
        (&of_first(r#"{"~":{"counters":{"~":{"drops":1}}}}"#), "expected changes of an object"),
        (&of_first(r#"{"-":["length"]}"#), "a field went that every snapshot has"),
        (&of_first(r#"{"~":{"key":{"~":{"port":81}}}}"#), "with another one's name"),
        (&of_first(r#"{"~":{"members":{"@":[[99,{"~":{}}]]}}}"#), "or not as long"),
        (
            &format!(r#"{{"delta":{{"~":{{"listeners":{{"~":{{"x":{{"=":{listener}}}}}}}}}}}}}"#),
            "a listener with another one's name",
        ),
    ] {
        let (got, error) = read(&then(line));
        let error = error.map(|err| err.to_string()).unwrap_or_default();
        assert_eq!(1, got.len(), "{line}");
        assert!(error.starts_with("the recording is damaged after snapshot 1 "), "{line}: {error}");
        assert!(error.contains(why), "{line}: {error}");
    }
    let mut text = unpack(&write(&[fixture::snapshot()])).into_bytes();
    text.extend(b"{\"delta\":{\"~\":{\"\xff\":1}}}\n");
    let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
    gzip.write_all(&text).expect("in memory");
    check_refused(
        &gzip.finish().expect("in memory"),
        "the recording is damaged after snapshot 1 (00:00:00): invalid unicode code point at line 1 \
         column 17",
    );
}

#[test]
fn what_a_later_agent_adds_is_passed_over() {
    let one = fixture::snapshot();
    for line in [
        r#"{"delta":{"~":{"new":{"=":{"a":1}}}}}"#,
        r#"{"delta":{"-":["new"]}}"#,
        &of_first(r#"{"~":{"new":{"~":{"a":[1]}}}}"#),
        &of_first(r#"{"-":["new"],"~":{"counters":{"~":{"new":{"@":[[0,1]]}}}}}"#),
        &of_first(r#"{"~":{"accept_wait":{"~":{"Ok":{"~":{"new":1}}}}}}"#),
    ] {
        let (got, error) = read(&then(line));
        assert!(error.is_none(), "{line}: {error:?}");
        assert_eq!([&one, &one], [&got[0], &got[1]], "{line}");
    }
}

/// `value` with one of its parts changed, for each part.
fn changes(value: &serde_json::Value) -> Vec<serde_json::Value> {
    use serde_json::{Value, json};
    let mut all = match value {
        Value::Bool(is) => vec![json!(!is)],
        Value::Number(n) if n.is_f64() => vec![json!(0.25), json!(null)],
        Value::Number(_) => vec![json!(7), json!(null)],
        Value::String(_) => vec![json!("no_slot"), json!("10.9.8.7"), json!(null)],
        Value::Null => vec![json!("x"), json!(7), json!(0.25)],
        Value::Array(list) => vec![json!([]), list.iter().chain(list).cloned().collect()],
        Value::Object(known) if known.contains_key("Ok") => vec![json!({ "Err": "no_slot" })],
        Value::Object(known) if known.contains_key("Err") => {
            [json!(true), json!(7), json!(0.25)].map(|value| json!({ "Ok": value })).into()
        }
        Value::Object(_) => vec![json!({}), json!({ "3": 4 })],
    };
    let replaced = |key: &str, part: Value| {
        let mut value = value.clone();
        *value.pointer_mut(&format!("/{key}")).expect("it is there") = part;
        value
    };
    match value {
        Value::Array(list) => {
            let parts = (0..list.len())
                .flat_map(|at| changes(&list[at]).into_iter().map(move |it| (at, it)));
            all.extend(parts.map(|(at, part)| replaced(&at.to_string(), part)));
        }
        Value::Object(map) => {
            let parts = map
                .iter()
                .flat_map(|(key, part)| changes(part).into_iter().map(move |it| (key, it)));
            all.extend(parts.map(|(key, part)| replaced(key, part)));
        }
        _ => {}
    }
    all
}

#[test]
fn every_part_of_a_listener_is_read_from_what_changed() {
    let base = fixture::snapshot();
    let mut n = 0;
    for at in 0..base.listeners.len() {
        let listener = serde_json::to_value(&base.listeners[at]).expect("in memory");
        for changed in changes(&listener) {
            // where it is another type it is no listener
            let Ok(changed) = serde_json::from_value::<Listener>(changed) else { continue };
            let mut snapshot = base.clone();
            snapshot.listeners[at] = changed;
            snapshot.listeners.sort_by_key(|it| it.key);
            let there_and_back = [base.clone(), snapshot, base.clone()];
            let (got, error) = read(&write(&there_and_back));
            assert!(error.is_none(), "{error:?}");
            assert_eq!(there_and_back[..], got);
            n += 1;
        }
    }
    assert!(300 < n, "{n} changes");
}

#[test]
fn a_recording_of_version_1_is_read_by_every_later_agent() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/recording/v1.backlogd");
    let (got, error) = read(&fs::read(path).expect("it is committed"));
    assert!(error.is_none(), "{error:?}");
    assert_eq!(vec![42, 43, 44], got.iter().map(|it| it.samples).collect::<Vec<_>>());
    let [nginx, postgres, gone] = &*got[2].listeners else { panic!("{:?}", got[2].listeners) };
    assert_eq!((80, Some("nginx")), (nginx.key.port, nginx.comm.as_deref()));
    assert_eq!(Ok(9_007_199_254_740_993), nginx.counters.established);
    assert_eq!(Ok(15), postgres.counters.established);
    assert_eq!((8080, 0), (gone.key.port, gone.members.len()));
}

/// What somebody did to bytes.
#[derive(Clone, Debug)]
enum Harm {
    Flip(usize, u8),
    Cut(usize),
    Insert(usize, Vec<u8>),
    Remove(usize, usize),
}

fn harm() -> impl Strategy<Value = Harm> {
    let bytes = proptest::collection::vec(any::<u8>(), 1..20);
    prop_oneof![
        4 => (any::<usize>(), 1..=255_u8).prop_map(|(at, bits)| Harm::Flip(at, bits)),
        1 => any::<usize>().prop_map(Harm::Cut),
        1 => (any::<usize>(), bytes).prop_map(|(at, bytes)| Harm::Insert(at, bytes)),
        1 => (any::<usize>(), 1..40_usize).prop_map(|(at, n)| Harm::Remove(at, n)),
    ]
}

fn do_harm(bytes: &mut Vec<u8>, harm: Harm) {
    let length = bytes.len();
    if length == 0 {
        return;
    }
    match harm {
        Harm::Flip(at, bits) => bytes[at % length] ^= bits,
        Harm::Cut(at) => bytes.truncate(at % length),
        Harm::Insert(at, more) => drop(bytes.splice(at % length..at % length, more)),
        Harm::Remove(at, n) => drop(bytes.drain(at % length..(at % length + n).min(length))),
    }
}

/// A recording of eight snapshots.
static EIGHT: LazyLock<Vec<u8>> = LazyLock::new(|| write(&snapshots(8)));

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_damaged_file_gives_what_was_written_before_the_damage_or_an_error(
        harms in proptest::collection::vec(harm(), 1..3),
    ) {
        let mut bytes = EIGHT.clone();
        harms.into_iter().for_each(|harm| do_harm(&mut bytes, harm));
        let (got, _) = read(&bytes);
        prop_assert!(got.len() <= 8);
    }

    #[test]
    fn lines_that_somebody_changed_are_read_or_refused(
        harms in proptest::collection::vec(harm(), 1..3),
    ) {
        let mut text = unpack(&EIGHT).into_bytes();
        harms.into_iter().for_each(|harm| do_harm(&mut text, harm));
        let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
        gzip.write_all(&text).expect("in memory");
        read(&gzip.finish().expect("in memory"));
    }

    #[test]
    fn any_bytes_are_no_recording(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let (got, error) = read(&bytes);
        prop_assert!(got.is_empty() && error.is_some());
    }
}

/// Exit code, standard output, standard error; in this folder.
fn backlogd(folder: &TempDir, arguments: &str) -> (Option<i32>, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_backlogd"));
    command.args(arguments.split(' ')).env_clear().current_dir(folder).stdin(Stdio::null());
    let Output { status, stdout, stderr } = command.output().expect("the binary runs");
    let text = |bytes| String::from_utf8(bytes).expect("output is UTF-8");
    (status.code(), text(stdout), text(stderr))
}

/// What a verb says of a recording of ten snapshots; as r, and without its end as cut.
fn replay(arguments: &str) -> (Option<i32>, String, String) {
    let folder = TempDir::new().expect("a temporary folder");
    let bytes = write(&snapshots(10));
    fs::write(folder.path().join("r"), &bytes).expect("a temporary file");
    fs::write(folder.path().join("cut"), cut(&bytes)).expect("a temporary file");
    fs::write(folder.path().join("text"), "hello").expect("a temporary file");
    fs::write(folder.path().join("empty"), "").expect("a temporary file");
    fs::write(folder.path().join("gzip"), pack("")).expect("a temporary file");
    fs::write(folder.path().join("none"), pack(&format!("{HEADER}\n"))).expect("a temporary file");
    backlogd(&folder, arguments)
}

/// All but the end.
fn cut(bytes: &[u8]) -> &[u8] {
    &bytes[..bytes.len() - 9]
}

#[test]
fn a_replay_says_what_there_is_and_lists_what_there_was() {
    for (name, arguments) in [
        ("summary", "replay r"),
        ("summary_json", "replay r -o json --at 5s"),
        ("list", "replay r list"),
        ("list_at", "replay r list --at 00:00:03 -o json --port 80,5432"),
    ] {
        let (code, stdout, stderr) = replay(arguments);
        assert_eq!((Some(0), ""), (code, &*stderr), "{arguments}");
        insta::assert_snapshot!(format!("replay_{name}"), stdout);
    }
    let at = |time: &str| replay(&format!("replay r --at {time} list -o json"));
    assert_eq!(at("00:00:03"), at("3999ms"));
    assert_eq!(at("last"), at("9900ms"));
}

/// A hundred seconds of one listener: from the fifth on connections wait, and nobody accepts until the
/// eightieth.
fn stall() -> Vec<Snapshot> {
    (0..100).map(stalled).collect()
}

fn stalled(second: u64) -> Snapshot {
    let mut now = fixture::snapshot();
    now.at.0 += second * SECOND;
    now.unix_time.0 += second * SECOND;
    now.samples = second + 1;
    now.listeners.truncate(1);
    now.degraded.clear();
    now.udp.clear();
    now.processes.clear();
    now.namespaces.truncate(1);
    now.namespaces[0].table = Err(Absent::TooEarly);
    now.namespaces[0].ports = Err(Absent::TooEarly);
    now.errors = Err(Absent::NotOnThisKernel);
    let waited = if second < 80 { second.saturating_sub(5) } else { 0 };
    let it = &mut now.listeners[0];
    it.fill_ratio_max = Some(waited as f64 / 128.0);
    (it.length, it.limit, it.length_max) = (2 * waited, 256, Ok(2 * waited));
    it.stalled = Ok(5 <= waited);
    it.since_accept = Ok(Nanos(waited * SECOND));
    it.counters.drops = Ok(0);
    it.counters.drops_by.accept_queue_full_syn = Ok(0);
    it.counters.full = Nanos(0);
    for member in &mut it.members {
        (member.limit, member.length) = (128, u32::try_from(waited).expect("small"));
        (member.waiting, member.stalled) = (Ok(Nanos(waited * SECOND)), Ok(5 <= waited));
    }
    now
}

/// What a verb says of [`stall`]; as r, without its end as cut, with a line that is none as damaged, with
/// more after its end as more, and a configuration as c.
fn replay_stall(arguments: &str) -> (Option<i32>, String, String) {
    let folder = TempDir::new().expect("a temporary folder");
    let bytes = write(&stall());
    let silence = "[[detect]]\nalert = \"ListenerStalled\"\nsilence = true\n";
    let damaged = pack(&unpack(&bytes).replacen("\"at\":130", "\"at\":x", 1));
    let more = [&*bytes, b"more"].concat();
    for (name, bytes) in [
        ("r", &*bytes),
        ("cut", cut(&bytes)),
        ("damaged", &damaged),
        ("more", &more),
        ("header", &bytes[..100]),
        ("c", silence.as_bytes()),
    ] {
        fs::write(folder.path().join(name), bytes).expect("a temporary file");
    }
    backlogd(&folder, arguments)
}

#[test]
fn a_replay_tells_when_alerts_came_and_went() {
    for (name, arguments) in [
        ("alerts", "replay r alerts"),
        ("alerts_wide", "replay r alerts --at 12s -o wide"),
        ("alerts_json", "replay r alerts --at 12s -o json"),
        ("stall_summary", "replay r"),
    ] {
        let (code, stdout, stderr) = replay_stall(arguments);
        assert_eq!((Some(0), ""), (code, &*stderr), "{arguments}");
        insta::assert_snapshot!(format!("replay_{name}"), stdout);
    }
    let silent = replay_stall("replay r alerts --config c");
    assert_eq!((Some(0), "", "backlogd: no alert was told\n"), (silent.0, &*silent.1, &*silent.2));
    let (code, stdout, stderr) = replay_stall("replay cut alerts --at last");
    assert_eq!((Some(1), true), (code, stderr.contains("cut: the recording is cut after")));
    assert!(stdout.contains("ListenerStalled"), "{stdout}");
}

#[test]
fn a_replay_names_what_of_the_configuration_matched_nothing() {
    let config = "[[detect]]\nalert = \"ListenerStalled\"\nsilence = true\n\
                  match = { comm = \"nginxx\", port = \"80-81\" }\n\
                  [[detect]]\nmatch.port = 80\nraise_for_seconds = 1\n\
                  [[expect]]\nport = 80\n[[expect]]\nport = 8443\nwithin_seconds = 9\n";
    let note = "backlogd: c:1: [[detect]] alert = \"ListenerStalled\" match.comm = \"nginxx\" \
                match.port = \"80-81\" has matched nothing so far\n\
                backlogd: c:10: [[expect]] port = 8443 has matched nothing so far\n";
    let folder = TempDir::new().expect("a temporary folder");
    fs::write(folder.path().join("r"), write(&stall())).expect("a temporary file");
    fs::write(folder.path().join("c"), config).expect("a temporary file");
    for verb in ["", " alerts", " check 80", " explain 80"] {
        let (_, stdout, stderr) = backlogd(&folder, &format!("replay --config c r{verb}"));
        assert_eq!((false, note), (stdout.is_empty(), &*stderr), "{verb}");
    }
}

#[test]
fn a_replay_checks_and_explains_a_time() {
    for (name, arguments, expected) in [
        ("check", "replay r check --at 12s 80", 1),
        ("check_before", "replay r check --at 2s", 0),
        ("explain", "replay r explain --at 12s 80", 0),
    ] {
        let (code, stdout, stderr) = replay_stall(arguments);
        assert_eq!((Some(expected), ""), (code, &*stderr), "{arguments}");
        insta::assert_snapshot!(format!("replay_{name}"), stdout);
    }
    let check = |arguments: &str, code: i32, stdout: &str, stderr: &str| {
        let got = replay_stall(arguments);
        assert_eq!((Some(code), stdout, stderr), (got.0, &*got.1, &*got.2), "{arguments}");
    };
    let nobody = "backlogd: nobody listens on 8080\n";
    check("replay r check 8080", 3, "", nobody);
    check(
        "replay r check 8080 -o nagios",
        3,
        "BACKLOGD UNKNOWN - nobody listens on 8080\n",
        nobody,
    );
    let none = "backlogd: no listener has the port, the address or the process id 8080\n";
    check("replay r explain 8080", 3, "", none);
    // nothing was wrong, but there was more
    assert_eq!(Some(1), replay_stall("replay cut --at last check 80 -o json").0);
    assert_eq!(Some(0), replay_stall("replay cut --at 3s check 80 -o json").0);
    assert_eq!(Some(78), replay_stall("replay r --config r alerts").0);
}

#[test]
fn of_a_recording_that_is_cut_or_damaged_every_verb_shows_what_is_before() {
    let told = "the recording is damaged after snapshot 30 (00:00:29): ";
    let cut = "the recording is cut after snapshot ";
    let more = "the recording is damaged after snapshot 100 (00:01:39): bytes after its end";
    for (verb, shown, code) in [
        ("", "snapshots   ", 1),
        (" -o json", "\"snapshots\": ", 1),
        (" list", "nginx", 1),
        (" alerts", "ListenerStalled", 1),
        (" check 80", "not judged", 1),
        (" explain 80", "nginx", 1),
    ] {
        for (file, code, why) in [("cut", code, cut), ("damaged", 3, told), ("more", 3, more)] {
            let (got, stdout, stderr) = replay_stall(&format!("replay {file}{verb}"));
            assert_eq!(Some(code), got, "{file}{verb}: {stderr}");
            assert!(stdout.contains(shown), "{file}{verb}: {stdout}");
            assert!(stderr.starts_with(&format!("backlogd: {file}: {why}")), "{verb}: {stderr}");
            assert!(stderr.ends_with("; what is shown is from before\n"), "{verb}: {stderr}");
            assert_eq!(1, stderr.lines().count(), "{verb}: {stderr}");
        }
        let nothing = "backlogd: header: the recording is cut before its first snapshot\n";
        let got = replay_stall(&format!("replay header{verb}"));
        assert_eq!((Some(3), "", nothing), (got.0, &*got.1, &*got.2), "{verb}");
    }
    let before = replay_stall("replay damaged --at 20s list");
    assert_eq!((Some(0), ""), (before.0, &*before.2), "the damage is later");
    let (code, stdout, stderr) = replay_stall("replay damaged --at 40s list");
    let end = format!("backlogd: damaged: it ends at 00:00:29, before 00:00:40: {told}");
    assert_eq!((Some(3), ""), (code, &*stdout));
    assert!(stderr.starts_with(&end), "{stderr}");
    let (code, _, stderr) = replay_stall("replay damaged explain 8080");
    let lines: Vec<_> = stderr.lines().collect();
    assert_eq!((Some(3), 2), (code, lines.len()), "{stderr}");
    assert!(lines[0].contains(told) && lines[1].contains("8080"), "{stderr}");
}

#[test]
fn an_output_that_takes_no_more_ends_it() {
    let folder = TempDir::new().expect("a temporary folder");
    fs::write(folder.path().join("cut"), cut(&write(&snapshots(10)))).expect("a temporary file");
    let replay = |stdout: Stdio| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_backlogd"));
        command.args(["replay", "cut", "list"]).current_dir(&folder).stdout(stdout);
        let Output { status, stderr, .. } = command.output().expect("the binary runs");
        (status.code(), String::from_utf8(stderr).expect("output is UTF-8"))
    };
    let (reader, writer) = io::pipe().expect("a pipe");
    drop(reader);
    assert_eq!((Some(0), String::new()), replay(writer.into()));
    let full = fs::OpenOptions::new().write(true).open("/dev/full").expect("it is there");
    let message = "backlogd: standard output: No space left on device (os error 28)\n";
    assert_eq!((Some(3), message.into()), replay(full.into()));
}

#[track_caller]
fn check_replay(arguments: &str, code: i32, message: &str) {
    let (got, stdout, stderr) = replay(arguments);
    assert_eq!((Some(code), message), (got, &*stderr), "{arguments}");
    assert_eq!(code != 1, stdout.is_empty(), "{arguments}");
}

#[test]
fn a_replay_that_cannot_tell_all_says_why() {
    let bytes = write(&snapshots(10));
    let n = read(cut(&bytes)).0.len();
    assert!(0 < n, "something is left");
    let said = format!(
        "backlogd: cut: the recording is cut after snapshot {n} (00:00:{:02}); what is shown is from \
         before\n",
        n - 1
    );
    check_replay("replay cut", 1, &said);
    check_replay("replay cut list", 1, &said);
    check_replay(
        "replay nothing",
        3,
        "backlogd: nothing: No such file or directory (os error 2)\n",
    );
    let text = "backlogd: text: not a recording: a file that begins with the bytes [68, 65], \
                expected the gzip file that `backlogd record` writes\n";
    check_replay("replay text list", 3, text);
    for (file, why) in [
        (".", "cannot read the recording before its first snapshot: Is a directory (os error 21)"),
        (
            "empty",
            "not a recording: an empty file, expected the gzip file that `backlogd record` writes",
        ),
        ("gzip", "the recording is cut before its first snapshot"),
        ("none", "a recording without snapshots"),
    ] {
        let message = format!("backlogd: {file}: {why}\n");
        for verb in ["", " list"] {
            check_replay(&format!("replay {file}{verb}"), 3, &message);
        }
    }
    let end = "backlogd: r: it ends at 00:00:09, before 00:00:30\n";
    check_replay("replay r list --at 30s", 3, end);
    check_replay("replay r --at 30s", 3, end);
    let place = "backlogd: -o comes after the verb, as in: backlogd replay FILE list -o json\n";
    check_replay("replay r -o json list", 64, place);
    assert_eq!(Some(64), replay("replay r --at 12:30").0);
    assert_eq!(Some(64), replay("replay r lists").0);
}

#[test]
fn a_record_ends_in_time_or_by_a_signal_and_leaves_other_files_alone() {
    const OWN: &str = "--no-ebpf --own-netns-only --interval 50ms";
    let folder = TempDir::new().expect("a temporary folder");
    let (code, stdout, stderr) = backlogd(&folder, &format!("record r {OWN} --for 500ms"));
    assert_eq!((Some(0), ""), (code, &*stdout), "{stderr}");
    assert!(stderr.contains("backlogd: recording to r; SIGINT ends it\n"), "{stderr}");
    assert!(stderr.contains(" over 00:00:00, "), "{stderr}");
    let mode =
        fs::metadata(folder.path().join("r")).expect("a temporary file").permissions().mode();
    assert_eq!(0o600, mode & 0o777);
    let (got, error) = read(&fs::read(folder.path().join("r")).expect("a temporary file"));
    assert!(error.is_none() && (1..=11).contains(&got.len()), "{error:?} {}", got.len());

    let (code, _, stderr) = backlogd(&folder, &format!("record r {OWN} --for 1s"));
    let message = "backlogd: r: there is such a file; --force overwrites it\n";
    assert_eq!((Some(3), message), (code, &*stderr));
    let (code, ..) = backlogd(&folder, &format!("record r {OWN} --for 10ms --force"));
    let (got, _) = read(&fs::read(folder.path().join("r")).expect("a temporary file"));
    assert_eq!((Some(0), 1), (code, got.len()));

    let mut command = Command::new(env!("CARGO_BIN_EXE_backlogd"));
    command.args(format!("record s {OWN}").split(' ')).current_dir(&folder).stderr(Stdio::piped());
    let mut child = command.spawn().expect("the binary runs");
    // the file is there once signals are looked for
    while !folder.path().join("s").exists() {
        std::thread::yield_now();
    }
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("a temporary file");
    assert_eq!(Some(0), child.wait().expect("a temporary file").code());
    let (got, error) = read(&fs::read(folder.path().join("s")).expect("a temporary file"));
    assert!(error.is_none() && !got.is_empty(), "{error:?}");
}

#[test]
#[ignore = "a measurement: cargo test --release -p backlogd --test recording -- --ignored --nocapture"]
#[expect(clippy::print_stderr, reason = "what was measured")]
fn a_recording_is_read_much_faster_than_it_was_made() {
    for (n, busy) in [(20, 7), (1000, 20), (1000, 333)] {
        let base = fixture::listeners(n);
        let count = 600;
        let at = |second| {
            let mut snapshot = moved(&base, second);
            let still = base.listeners.get(3 * busy..).unwrap_or_default();
            snapshot.listeners.retain(|it| still.iter().all(|still| still.key != it.key));
            snapshot.listeners.extend(still.iter().map(|listener| Listener {
                since_accept: listener.since_accept.map(|it| Nanos(it.0 + second * SECOND)),
                ..listener.clone()
            }));
            snapshot
        };
        let written: Vec<_> = (0..count).map(at).collect();
        let start = thread_cpu();
        let bytes = write(&written);
        let wrote = Nanos((thread_cpu().0 - start.0) / count);
        let start = thread_cpu();
        let recording = Recording::open(&*bytes).expect("in memory");
        let read = recording.snapshots().filter(Result::is_ok).count();
        let took = Nanos((thread_cpu().0 - start.0) / count);
        assert_eq!(written.len(), read);
        eprintln!(
            "{n} listeners, {busy} busy: a snapshot has {} bytes, takes {:.2} ms to write and {:.2} ms \
             to read: {:.0} times real time",
            bytes.len() / written.len(),
            wrote.as_seconds() * 1e3,
            took.as_seconds() * 1e3,
            1.0 / took.as_seconds(),
        );
    }
}
