use std::{fs, net::Ipv6Addr};

use proptest::prelude::*;

use super::*;
use crate::{
    detect::{self, tuning::Tuning},
    id::NetnsId,
    outlet::{Auth, Url},
    time::Nanos,
};

/// Merges without touching the process's own environment or files.
fn merge(
    text: &str,
    variables: &[(&str, &str)],
    flags: &[(&'static str, &str)],
) -> Result<Loaded, ConfigError> {
    let file = tempfile::NamedTempFile::new().expect("a temporary file");
    fs::write(file.path(), text).expect("it can be written");
    let variable = |name: &str| {
        variables.iter().find(|(it, _)| *it == name).map(|(_, value)| OsString::from(value))
    };
    let flags: Vec<_> = flags.iter().map(|&(name, value)| (name, value.to_owned())).collect();
    load(Some(file.path()), variable, &flags)
}

#[track_caller]
fn check_file(text: &str, expected: Result<(&str, &str), &str>) {
    let mut loaded = Loaded::new();
    let got = file::apply(&mut loaded, Path::new("f.toml"), text).map_err(|err| err.to_string());
    match expected {
        Err(message) => assert_eq!(got, Err(message.into()), "{text:?}"),
        Ok((name, value)) => {
            assert_eq!(got, Ok(()), "{text:?}");
            let setting = loaded.settings().find(|(key, ..)| key.name == name);
            let (_, shown, from) = setting.expect("a key");
            assert_eq!(shown.to_string(), value, "{text:?}");
            assert_eq!(from.to_string(), "f.toml:1");
        }
    }
}

#[test]
fn a_file_is_taken_or_its_mistake_is_named_with_its_place() {
    check_file("slots = 16", Ok(("slots", "16")));
    check_file("sample_interval_seconds = 1", Ok(("sample_interval_seconds", "1")));
    check_file("sample_interval_seconds = 0.25", Ok(("sample_interval_seconds", "0.25")));
    check_file("socket = \"\"", Ok(("socket", "null")));
    check_file("listen = '[::1]:80'", Ok(("listen", "\"[::1]:80\"")));
    check_file("log = \"warn,backlogd=debug\"", Ok(("log", "\"warn,backlogd=debug\"")));
    check_file("log_format = \"json\"", Ok(("log_format", "\"json\"")));
    check_file(
        "# ä\nslots = 70000",
        Err("f.toml:2:9: slots: got 70000, expected a whole number, 16 to 65536"),
    );
    check_file(
        "slots = -1",
        Err("f.toml:1:9: slots: got -1, expected a whole number, 16 to 65536"),
    );
    check_file(
        "slots = 64.0",
        Err("f.toml:1:9: slots: got 64.0, expected a whole number, 16 to 65536"),
    );
    check_file(
        "stalled_after_seconds = nan",
        Err("f.toml:1:25: stalled_after_seconds: got nan, \
             expected a number of seconds, 1 to 3600"),
    );
    check_file("no_ebpf = 1", Err("f.toml:1:11: no_ebpf: got 1, expected true or false"));
    check_file("[no_ebpf]", Err("f.toml:1:1: no_ebpf: got a table, expected true or false"));
    check_file(
        "listen = \"localhost\"",
        Err("f.toml:1:10: listen: got \"localhost\", \
             expected an address and port such as 127.0.0.1:10511"),
    );
    check_file(
        "log = \"inof\"",
        Err("f.toml:1:7: log: got \"inof\", expected error, warn, info, debug, trace, off, \
             or a filter such as info,backlogd=debug"),
    );
    check_file(
        "log_format = \"xml\"",
        Err("f.toml:1:14: log_format: got \"xml\", expected text or json"),
    );
    check_file("histograms = \"native\"", Ok(("histograms", "\"native\"")));
    check_file(
        "histograms = \"sparse\"",
        Err("f.toml:1:14: histograms: got \"sparse\", expected both or native or classic"),
    );
    check_file("own_netns_only = true", Ok(("own_netns_only", "true")));
    check_file("table_cpu_ratio = 0", Ok(("table_cpu_ratio", "0")));
    check_file("table_cpu_ratio = 0.5", Ok(("table_cpu_ratio", "0.5")));
    for (value, column) in [("0.51", 19), ("-0.1", 19), ("nan", 19), ("\"0.1\"", 19)] {
        let expected = format!(
            "f.toml:1:{column}: table_cpu_ratio: got {value}, expected a share of a core, 0 to 0.5"
        );
        check_file(&format!("table_cpu_ratio = {value}"), Err(&expected));
    }
    check_file("host_root = \"/host\"", Ok(("host_root", "\"/host\"")));
    for value in ["", "host"] {
        let expected = format!(
            "f.toml:1:13: host_root: got \"{value}\", expected an absolute path of at most 4095 bytes"
        );
        check_file(&format!("host_root = \"{value}\""), Err(&expected));
    }
    check_file("series_limit = 1000000", Ok(("series_limit", "1000000")));
    check_file(
        "series_limit = 99",
        Err("f.toml:1:16: series_limit: got 99, expected a whole number, 100 to 1000000"),
    );
    check_file("slots = 64\nslots = 64", Err("f.toml:2:1: malformed TOML: duplicate key"));
    check_file("a\n", Err("f.toml:1:2: malformed TOML: key with no value, expected `=`"));
    check_file(
        "slots = 16\nslotz = 3",
        Err("f.toml:2:1: got unknown key `slotz`, expected one of listen, socket, \
             sample_interval_seconds, no_ebpf, tier, accept_tracepoints, slots, \
             own_netns_only, host_root, table_cpu_ratio, \
             listener_retention_seconds, length_max_window_seconds, stalled_after_seconds, \
             series_limit, textfile, histograms, log, log_format, \
             detect, expect, alertmanager, webhook, shed"),
    );
}

#[test]
fn a_flag_beats_a_variable_beats_the_file_beats_the_default() {
    let loaded = merge(
        "slots = 100\nstalled_after_seconds = 3\nno_ebpf = true",
        &[("BACKLOGD_SLOTS", "200"), ("BACKLOGD_STALLED_AFTER_SECONDS", "4")],
        &[("slots", "300")],
    )
    .expect("all of it is valid");
    assert_eq!(loaded.config.slots, 300);
    assert_eq!(loaded.config.stalled_after, Duration::from_secs(4));
    assert!(loaded.config.no_ebpf);
    let from = |name| {
        let setting = loaded.settings().find(|(key, ..)| key.name == name);
        setting.map(|(_, _, from)| from.to_string()).expect("a key")
    };
    assert_eq!(from("slots"), "--slots");
    assert_eq!(from("stalled_after_seconds"), "BACKLOGD_STALLED_AFTER_SECONDS");
    assert!(from("no_ebpf").ends_with(":3"));
    assert_eq!(from("log"), "default");
}

#[track_caller]
fn check_variable(name: &str, value: &str, expected: &str) {
    let got = merge("", &[(name, value)], &[]).map(|_| ()).map_err(|err| err.to_string());
    assert_eq!(got, Err(expected.into()));
}

#[test]
fn a_mistake_in_the_environment_names_the_variable() {
    check_variable(
        "BACKLOGD_SLOTS",
        "many",
        "BACKLOGD_SLOTS: got \"many\", expected a whole number, 16 to 65536",
    );
    check_variable(
        "BACKLOGD_NO_EBPF",
        "yes",
        "BACKLOGD_NO_EBPF: got \"yes\", expected true or false",
    );
}

#[test]
fn a_file_that_cannot_be_text_is_refused() {
    let file = tempfile::NamedTempFile::new().expect("a temporary file");
    fs::write(file.path(), b"slots = 16\n# \xff").expect("it can be written");
    let message = check(file.path()).expect_err("not UTF-8").to_string();
    assert!(message.ends_with(":2: got bytes that are not UTF-8, expected text"), "{message}");
    let message = check(Path::new("/dev/zero")).expect_err("endless").to_string();
    assert_eq!(message, "/dev/zero: larger than 1048576 bytes, which no configuration is");
}

#[test]
fn the_example_is_what_the_settings_give() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/backlogd.example.toml");
    let text = example::text();
    if std::env::var_os("UPDATE_EXPECT").is_some() {
        fs::write(path, &text).expect("the example can be written");
    }
    let committed = fs::read_to_string(path).expect("the example exists");
    assert_eq!(committed, text, "UPDATE_EXPECT=1 cargo test -p backlogd --lib config writes it");
}

#[test]
fn the_example_loads_also_with_every_key_uncommented() {
    let uncommented: String = example::text()
        .lines()
        .map(|line| line.strip_prefix('#').filter(|it| !it.starts_with(' ')).unwrap_or(line))
        .flat_map(|line| [line, "\n"])
        .collect();
    let mut loaded = Loaded::new();
    file::apply(&mut loaded, Path::new("example"), &uncommented).expect("it is valid");
    let Config { tuning, outlets, shed, .. } = &loaded.config;
    assert_eq!((2, 1, 2), (tuning.entries.len(), tuning.expected.len(), outlets.len()));
    assert_eq!(1, shed.len());
    let keys =
        Config { tuning: Arc::default(), outlets: Vec::new(), shed: Vec::new(), ..loaded.config };
    assert_eq!(keys, Config::default());
    assert!(loaded.origins.iter().all(|from| *from != Origin::Default));
}

#[track_caller]
fn check_tables(text: &str, expected: Result<&Config, &str>) {
    let mut loaded = Loaded::new();
    let got = file::apply(&mut loaded, Path::new("f.toml"), text).map_err(|err| err.to_string());
    assert_eq!(expected.map(drop).map_err(str::to_owned), got, "{text}");
    if let Ok(expected) = expected {
        assert_eq!(*expected, loaded.config, "{text}");
    }
}

/// The configuration of these entries.
fn tuned(entries: Vec<detect::tuning::Entry>) -> Config {
    let tuning = Arc::new(Tuning { entries, ..Tuning::default() });
    Config { tuning, ..Config::default() }
}

#[test]
fn a_detection_is_tuned_for_what_is_matched() {
    use crate::detect::tuning::{Entry, Match, Pattern};
    let pattern = |text: &str| Some(Pattern(text.into()));
    let port = |first, last| Match { port: Some(first..=last), ..Match::default() };
    let check = |text: &str, place: &str, entry| {
        let place = format!("f.toml:1: [[detect]]{place}");
        check_tables(text, Ok(&tuned(vec![Entry { place, ..entry }])));
    };
    check(
        "[[detect]]\nsilence = true\nmatch.port = 443",
        " match.port = 443",
        Entry { silence: Some(true), only: port(443, 443), ..Entry::default() },
    );
    check(
        "[[detect]]\nsilence = true\nmatch.port = \"443\"",
        " match.port = \"443\"",
        Entry { silence: Some(true), only: port(443, 443), ..Entry::default() },
    );
    check(
        "[[detect]]\nalert = \"ListenerStalled\"\nraise_for_seconds = 0.5\n\
         clear_for_seconds = 60\nmatch = { port = \"8000-8099\" }",
        " alert = \"ListenerStalled\" match.port = \"8000-8099\"",
        Entry {
            alert: Some("ListenerStalled"),
            raise_for: Nanos::from_seconds(0.5),
            clear_for: Nanos::from_seconds(60.0),
            only: port(8000, 8099),
            ..Entry::default()
        },
    );
    check(
        "[[detect]]\nsilence = false\n[detect.match]\naddr = \"::\"\nnetns = 4026531840\n\
         comm = \"nginx\"\nnamespace = \"shop\"\npod = \"web-*\"\ncontainer = \"c\"\nunit = \"u\"",
        " match.addr = \"::\" match.netns = 4026531840 match.comm = \"nginx\" \
         match.namespace = \"shop\" match.pod = \"web-*\" match.container = \"c\" \
         match.unit = \"u\"",
        Entry {
            silence: Some(false),
            only: Match {
                addr: Some(Ipv6Addr::UNSPECIFIED.into()),
                port: None,
                netns: Some(NetnsId(4_026_531_840)),
                comm: pattern("nginx"),
                namespace: pattern("shop"),
                pod: pattern("web-*"),
                container: pattern("c"),
                unit: pattern("u"),
            },
            ..Entry::default()
        },
    );
}

#[test]
fn every_threshold_can_be_set_of_its_own_detection() {
    for about in detect::all() {
        for threshold in about.thresholds {
            let (name, default) = (threshold.name, threshold.default);
            let text = format!("[[detect]]\nalert = {:?}\n{name} = {default}", about.name);
            let entry = detect::tuning::Entry {
                alert: Some(about.name),
                thresholds: vec![(name, default)],
                place: format!("f.toml:1: [[detect]] alert = {:?}", about.name),
                ..detect::tuning::Entry::default()
            };
            check_tables(&text, Ok(&tuned(vec![entry])));
            let text = format!("[[detect]]\n{} = 7", threshold.name);
            let err = file::apply(&mut Loaded::new(), Path::new("f.toml"), &text);
            let message = err.expect_err("no alert is named").to_string();
            let start = format!("f.toml:2:{}: detect.", threshold.name.len() + 4);
            assert!(message.starts_with(&start), "{message}");
            assert!(message.contains(&format!("{:?}", about.name)), "{message}");
        }
    }
}

#[test]
fn a_threshold_is_within_its_range_and_on_the_right_side_of_its_partner() {
    #[track_caller]
    fn check(text: &str, message: &str) {
        check_tables(text, Err(message));
    }
    #[track_caller]
    fn check_near_full(text: &str, message: &str) {
        check(&format!("[[detect]]\nalert = \"AcceptQueueNearLimit\"\n{text}"), message);
    }
    check(
        "[[detect]]\nalert = \"SynFlood\"\ncompleted_share = 5",
        "f.toml:3:19: detect.completed_share: got 5, expected a number, 0 to 1",
    );
    check(
        "[[detect]]\nalert = \"NobodyAccepts\"\nhandshakes = 0",
        "f.toml:3:14: detect.handshakes: got 0, expected a number, at least 1",
    );
    check(
        "[[detect]]\nalert = \"NobodyAccepts\"\nhandshakes = nan",
        "f.toml:3:14: detect.handshakes: got nan, expected a number, at least 1",
    );
    check_near_full(
        "clear_share = 0",
        "f.toml:3:15: detect.clear_share: got 0, expected a number, more than 0, less than share",
    );
    check_near_full(
        "clear_share = 0.8",
        "f.toml:3:15: detect.clear_share: got 0.8, expected less than share, which is 0.8 by default",
    );
    check_near_full(
        "share = 0.6",
        "f.toml:3:9: detect.share: got 0.6, expected more than clear_share, which is 0.6 by default",
    );
    check_near_full(
        "clear_share = 0.4\nshare = 0.3",
        "f.toml:3:15: detect.clear_share: got 0.4, expected less than share, which is 0.3",
    );
    check_near_full(
        "share = 0.9\n[[detect]]\nalert = \"AcceptQueueNearLimit\"\nmatch.port = 80\n\
         clear_share = 0.95",
        "f.toml:7:15: detect.clear_share: got 0.95, \
         expected less than share, which is 0.9 by f.toml:1:1",
    );
    check_near_full(
        "match.port = 80\nclear_share = 0.75\n[[detect]]\nalert = \"AcceptQueueNearLimit\"\n\
         share = 0.7",
        "f.toml:7:9: detect.share: got 0.7, \
         expected more than clear_share, which is 0.75 by f.toml:1:1",
    );
    check(
        "[[detect]]\nalert = \"HostFdsNearLimit\"\ncritical_ratio = 0.8",
        "f.toml:3:18: detect.critical_ratio: got 0.8, \
         expected at least ratio, which is 0.9 by default",
    );
    check(
        "[[detect]]\nalert = \"ProcessFdsFillingUp\"\nseconds_left = 60",
        "f.toml:3:16: detect.seconds_left: got 60, \
         expected at least critical_seconds_left, which is 300 by default",
    );
    let fine = "[[detect]]\nalert = \"AcceptQueueNearLimit\"\nshare = 0.95\nclear_share = 0.9\n\
                [[detect]]\nalert = \"AcceptQueueNearLimit\"\nmatch.port = 80\nclear_share = 0.85";
    file::apply(&mut Loaded::new(), Path::new("f.toml"), fine).expect("0.85 is less than 0.95");
}

#[test]
fn every_default_is_within_its_range_and_every_partner_exists() {
    for about in detect::all() {
        for threshold in about.thresholds {
            let (range, default) = (threshold.range, threshold.default);
            assert!(range.takes(default), "{} {threshold:?}", about.name);
            let Some(partner) = range.partner() else { continue };
            let partner = about.thresholds.iter().find(|it| it.name == partner).expect("it exists");
            assert!(range.suits(default, partner.default), "{} {threshold:?}", about.name);
        }
    }
}

#[test]
fn a_match_that_no_subject_can_have_is_refused() {
    let check = |text: &str, message: &str| check_tables(text, Err(message));
    check(
        "[[detect]]\nalert = \"HostFdsNearLimit\"\nsilence = true\nmatch.port = 443",
        "f.toml:4:14: detect.match.port: got 443, \
         expected no match: there is one subject of HostFdsNearLimit",
    );
    check(
        "[[detect]]\nalert = \"ProcessFdsNearLimit\"\nsilence = true\n\
         match = { comm = \"nginx\", addr = \"::1\" }",
        "f.toml:4:34: detect.match.addr: got \"::1\", \
         expected of ProcessFdsNearLimit a match by comm, namespace, pod, container, unit",
    );
    let down = "[[detect]]\nalert = \"ExpectedListenerDown\"\nsilence = true\nmatch.port = 81\n";
    check(
        &format!("{down}[[expect]]\nport = 80"),
        "f.toml:1: [[detect]] alert = \"ExpectedListenerDown\" match.port = 81: \
         got a match that takes no [[expect]], expected one that does",
    );
    let taken = format!("{down}[[expect]]\nport = 81");
    file::apply(&mut Loaded::new(), Path::new("f.toml"), &taken).expect("it takes the listener");
}

#[test]
fn what_is_there_twice_is_named_with_both_places() {
    let check = |text: &str, message: &str| check_tables(text, Err(message));
    check(
        "[[expect]]\nport = 80\n[[expect]]\nport = 81\n[[expect]]\nport = 80\nwithin_seconds = 9",
        "f.toml:5:1: expect: got the listener of f.toml:1:1 again, expected each once",
    );
    check(
        "[[webhook]]\nurl = \"http://a\"\n[[webhook]]\nurl = \"http://a:80/\"",
        "f.toml:3:1: webhook: got the url of f.toml:1:1 again, expected each once",
    );
    let fine = "[[expect]]\nport = 80\n[[expect]]\nport = 80\naddr = \"::1\"\n\
                [[webhook]]\nurl = \"http://a\"\n[[alertmanager]]\nurl = \"http://a\"";
    file::apply(&mut Loaded::new(), Path::new("f.toml"), fine).expect("none is there twice");
}

#[test]
fn a_mistake_in_a_table_is_named_with_its_place() {
    let fails = |text: &str, message: &str| check_tables(text, Err(message));
    let names: Vec<&str> = detect::all().iter().map(|about| about.name).collect();
    fails(
        "slots = 16\n[[detect]]\nalert = \"Stalled\"",
        &format!("f.toml:3:9: detect.alert: got \"Stalled\", expected one of {}", names.join(", ")),
    );
    fails(
        "[[detect]]\nsilenced = true",
        "f.toml:2:1: detect: got unknown key `silenced`, expected one of \
         alert, match, silence, raise_for_seconds, clear_for_seconds",
    );
    fails(
        "[[detect]]\nmatch = { port = 443, process = \"nginx\" }",
        "f.toml:2:23: detect.match: got unknown key `process`, expected one of \
         addr, port, netns, comm, namespace, pod, container, unit",
    );
    fails(
        "[[detect]]\nmatch = { port = 443 }",
        "f.toml:1:1: detect: got a table that changes nothing, \
         expected one of silence, raise_for_seconds, clear_for_seconds",
    );
    for port in
        ["0", "65536", "-1", "\"80-\"", "\"\"", "\"0\"", "\"90-80\"", "80.0", "true", "[80]"]
    {
        let got = if port == "[80]" { "an array" } else { port };
        let message = format!(
            "f.toml:3:8: detect.match.port: got {got}, \
             expected a port, 1 to 65535, or a range of them such as \"8000-8099\""
        );
        fails(&format!("[[detect]]\n[detect.match]\nport = {port}"), &message);
    }
    fails(
        "[[detect]]\nraise_for_seconds = -1",
        "f.toml:2:21: detect.raise_for_seconds: got -1, expected a number of seconds, 0 to 604800",
    );
    fails(
        "[[detect]]\nmatch = { pod = \"\" }",
        "f.toml:2:17: detect.match.pod: got \"\", \
         expected text that is not empty, in which * stands for any text",
    );
    fails("detect = 1", "f.toml:1:10: detect: got 1, expected tables that begin with [[detect]]");
    fails(
        "[expect]\nport = 1",
        "f.toml:1:1: expect: got a table, expected tables that begin with [[expect]]",
    );
    fails("[[expect]]", "f.toml:1:1: expect: got no port, expected a port, 1 to 65535");
    fails(
        "[[expect]]\nport = 80\naddr = \"localhost\"",
        "f.toml:3:8: expect.addr: got \"localhost\", expected an IP address such as 0.0.0.0",
    );
}

#[test]
fn a_receiver_is_taken_or_its_mistake_is_named() {
    let minimal = Outlet {
        form: Form::Alertmanager,
        url: Url::parse("http://a:9093").expect("a URL"),
        ca_file: None,
        auth: Auth::None,
        timeout: Duration::from_secs(10),
        resend: Duration::from_secs(60),
        labels: Vec::new(),
    };
    let config = |outlet| Config { outlets: vec![outlet], ..Config::default() };
    check_tables("[[alertmanager]]\nurl = \"http://a:9093\"", Ok(&config(minimal.clone())));
    check_tables(
        "[[webhook]]\nurl = \"https://[::1]/x\"\nca_file = \"/ca\"\nusername = \"u\"\n\
         password_file = \"/p\"\ntimeout_seconds = 0.5\nresend_seconds = 5\n\
         labels = { cluster = \"eu1\", instance = \"me\" }",
        Ok(&config(Outlet {
            form: Form::Webhook,
            url: Url::parse("https://[::1]:443/x").expect("a URL"),
            ca_file: Some("/ca".into()),
            auth: Auth::Basic { username: "u".into(), password_file: "/p".into() },
            timeout: Duration::from_millis(500),
            resend: Duration::from_secs(5),
            labels: [("cluster", "eu1"), ("instance", "me")]
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .into(),
        })),
    );
    let fails = |rest: &str, message: &str| {
        check_tables(&format!("[[webhook]]\n{rest}"), Err(message));
    };
    fails(
        "url = \"a:9093\"",
        &format!("f.toml:2:7: webhook.url: got \"a:9093\", expected {}", Url::EXPECTED),
    );
    fails("", &format!("f.toml:1:1: webhook: got no url, expected {}", Url::EXPECTED));
    fails(
        "url = \"http://a\"\nusername = \"u\"",
        "f.toml:1:1: webhook: got username alone, expected password_file beside it",
    );
    fails(
        "url = \"http://a\"\nca_file = \"ca.pem\"",
        "f.toml:3:11: webhook.ca_file: got \"ca.pem\", expected an absolute path of at most 4095 bytes",
    );
    fails(
        "url = \"http://a\"\nresend_seconds = 0",
        "f.toml:3:18: webhook.resend_seconds: got 0, expected a number of seconds, 1 to 3600",
    );
    let message = "f.toml:3:10: webhook.labels: got the label \"severity\", \
                   expected a name of letters, digits and _, and none of alertname, severity, netns, \
                   addr, port, comm, namespace, pod, container, dst, dst_port";
    fails("url = \"http://a\"\nlabels = { severity = \"x\" }", message);
    let many: String =
        (1..=17).map(|port| format!("[[webhook]]\nurl = \"http://a:{port}\"\n")).collect();
    check_tables(&many, Err("f.toml:33:1: webhook: got one more, expected at most 16 of them"));
}

/// What `config check` says of a receiver with `key`, a file with `content`; `None`: no file.
#[track_caller]
fn check_named(key: &str, content: Option<&[u8]>, expected: Result<(), (&str, &str)>) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (file, named) = (folder.path().join("f.toml"), folder.path().join("named"));
    if let Some(content) = content {
        fs::write(&named, content).expect("it can be written");
    }
    let text = format!("\n[[webhook]]\nurl = \"https://a\"\n{key} = {named:?}\n");
    let text = if key == "password_file" { text + "username = \"u\"\n" } else { text };
    fs::write(&file, text).expect("it can be written");
    let loaded = load(Some(&file), |_| None, &[]).expect("reading does without");
    assert_eq!(1, loaded.config.outlets.len());
    let got = check(&file).map(drop).map_err(|err| crate::error::chain(&err));
    let expected = expected.map_err(|(what, why)| {
        let place = format!("{}:4:{}", file.display(), key.len() + 4);
        format!("{place}: webhook.{key}: got {named:?}, expected {what}: {why}")
    });
    assert_eq!(expected, got, "{key}");
}

#[test]
fn a_file_that_is_of_no_use_is_said_by_check_and_does_not_hinder_reading() {
    let missing = "No such file or directory (os error 2)";
    let (pem, token) = ("a file of PEM certificates", "a file with a token");
    check_named("ca_file", None, Err((pem, missing)));
    check_named("ca_file", Some(b""), Err((pem, "it has no certificate")));
    check_named("ca_file", Some(b"\x30\x82"), Err((pem, "it has no certificate")));
    let key = b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n";
    check_named("ca_file", Some(key), Err((pem, "it has no certificate")));
    let other = b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    let why = "certificate 1: invalid peer certificate: BadEncoding";
    check_named("ca_file", Some(other), Err((pem, why)));
    let own = rcgen::generate_simple_self_signed(["a".to_owned()]).expect("a certificate");
    check_named("ca_file", Some(own.cert.pem().as_bytes()), Ok(()));
    check_named("bearer_token_file", None, Err((token, missing)));
    let why = "it is empty, or not one line of ASCII";
    check_named("bearer_token_file", Some(b" \n"), Err((token, why)));
    check_named("bearer_token_file", Some(b"a\nb\n"), Err((token, why)));
    check_named("bearer_token_file", Some(b"abc\n"), Ok(()));
    check_named("password_file", None, Err(("a file with a password", missing)));
    check_named("password_file", Some(b"a b\n"), Ok(()));
    let why = "it is larger than 65536 bytes";
    check_named("password_file", Some(&[b'a'; 65_537]), Err(("a file with a password", why)));
}

#[test]
fn the_daemon_does_not_listen_where_one_of_its_listeners_sheds() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = folder.path().join("f.toml");
    let table = "[[shed]]\nlisten = \"[::]:10511\"\nbackend = \"127.0.0.1:1\"\nsoft = 1\n";
    let message = |place: &str, line: usize| {
        let (got, table) = ("127.0.0.1:10511", "[::]:10511 of");
        let at = format!("{}:{line}:10: shed.listen", file.display());
        Err(format!("{place}: got {got}, expected another address than {table} {at}"))
    };
    let told = |text: &str| fs::write(&file, text).expect("it can be written");
    let checked = || check(&file).map(drop).map_err(|err| err.to_string());
    told(table);
    assert_eq!(checked(), message("listen, as it is unsaid", 2));
    told(&format!("listen = \"127.0.0.1:10511\"\n{table}"));
    assert_eq!(checked(), message(&format!("{}:1: listen", file.display()), 3));
    told(&format!("listen = \"127.0.0.1:10510\"\n{table}"));
    assert_eq!(checked(), Ok(()));
    let variable = |name: &str| (name == "BACKLOGD_LISTEN").then(|| "127.0.0.1:10511".into());
    let mut loaded = load(Some(&file), variable, &[]).expect("reading does without");
    let got = loaded.check_listen().map_err(|err| err.to_string());
    assert_eq!(got, message("BACKLOGD_LISTEN", 3));
}

/// A valid key and a value of any type, so that the checks are reached.
fn line() -> impl Strategy<Value = String> {
    let inner = [
        "[[detect]]\nalert",
        "[[detect]]\nmatch.port",
        "[[expect]]\nport",
        "detect",
        "[[webhook]]\nurl",
        "[[alertmanager]]\nurl = 'http://a'\nlabels.a",
    ];
    let names = KEYS.iter().map(|key| key.name).chain(inner).collect::<Vec<_>>();
    let name = prop::sample::select(names);
    let value = prop_oneof![
        any::<i64>().prop_map(|n| n.to_string()),
        any::<f64>().prop_map(|n| format!("{n:?}")),
        any::<String>().prop_map(|text| format!("{text:?}")),
        "[a-z0-9\\[\\]{}=,\"'. -]{0,12}",
    ];
    (name, value).prop_map(|(name, value)| format!("{name} = {value}\n"))
}

proptest! {
    #[test]
    fn no_text_makes_the_loader_panic(text in any::<String>(), lines in prop::collection::vec(line(), 0..4)) {
        for text in [text, lines.concat()] {
            let _ = file::apply(&mut Loaded::new(), Path::new("f.toml"), &text);
        }
    }

    #[test]
    fn what_is_shown_can_be_loaded(text in line()) {
        let mut loaded = Loaded::new();
        if file::apply(&mut loaded, Path::new("f.toml"), &text).is_ok() {
            for (key, value, _) in loaded.settings() {
                let text = match value {
                    serde_json::Value::Null => String::new(),
                    serde_json::Value::String(text) => text,
                    other => other.to_string(),
                };
                let mut again = Config::default();
                prop_assert_eq!(key.set(&mut again, Raw::Text(&text)), Ok(()));
                prop_assert_eq!(key.value(&again), key.value(&loaded.config));
            }
        }
    }
}
