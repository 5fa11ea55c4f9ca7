//! Whole verbs through the real binary: messages, exit codes, help.

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{TcpListener, TcpStream},
    os::{
        fd::AsRawFd as _,
        unix::{net::UnixListener, process::CommandExt as _},
    },
    path::Path,
    process::{Command, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

use tempfile::TempDir;

/// The binary, with nothing of the caller's environment.
fn backlogd(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_backlogd"));
    command.args(arguments).env_clear().env("COLUMNS", "100").stdin(Stdio::null());
    command
}

/// Exit code, standard output, standard error.
fn output(command: &mut Command) -> (Option<i32>, String, String) {
    let Output { status, stdout, stderr } = command.output().expect("the binary runs");
    let text = |bytes| String::from_utf8(bytes).expect("output is UTF-8");
    (status.code(), text(stdout), text(stderr))
}

/// Runs with `text` as the file FILE.
#[track_caller]
fn check_file(text: &str, arguments: &[&str], code: i32, message: &str) {
    let folder = TempDir::new().expect("a temporary folder");
    let path = folder.path().join("backlogd.toml");
    fs::write(&path, text).expect("the file can be written");
    let path = path.to_str().expect("a path in UTF-8");
    let arguments: Vec<_> =
        arguments.iter().map(|&word| if word == "FILE" { path } else { word }).collect();
    let (got, _, stderr) = output(&mut backlogd(&arguments));
    assert_eq!(stderr.replace(path, "FILE"), message, "{arguments:?}");
    assert_eq!(got, Some(code), "{arguments:?}");
}

#[test]
fn a_wrong_file_is_78_and_the_message_has_place_got_and_expected() {
    let check = &["config", "check", "FILE"];
    check_file("slots = 64\n", check, 0, "");
    check_file(
        "slots = 8\n",
        check,
        78,
        "backlogd: FILE:1:9: slots: got 8, expected a whole number, 16 to 65536\n",
    );
    check_file(
        "\n  slots = \"64\"\n",
        check,
        78,
        "backlogd: FILE:2:11: slots: got \"64\", expected a whole number, 16 to 65536\n",
    );
    check_file(
        "verbose = true\n",
        check,
        78,
        "backlogd: FILE:1:1: got unknown key `verbose`, expected one of listen, socket, \
         sample_interval_seconds, no_ebpf, tier, accept_tracepoints, slots, own_netns_only, \
         host_root, table_cpu_ratio, listener_retention_seconds, length_max_window_seconds, \
         stalled_after_seconds, series_limit, textfile, histograms, log, log_format, detect, expect, alertmanager, webhook, shed\n",
    );
    check_file(
        "slots 64\n",
        check,
        78,
        "backlogd: FILE:1:7: malformed TOML: key with no value, expected `=`\n",
    );
    for verb in [&["run", "--config", "FILE"], &["config", "show", "--config", "FILE"][..]] {
        check_file(
            "no_ebpf = \"no\"\n",
            verb,
            78,
            "backlogd: FILE:1:11: no_ebpf: got \"no\", expected true or false\n",
        );
    }
}

#[test]
fn a_file_that_cannot_be_read_is_78() {
    let missing = "backlogd: /nonexistent/b.toml: cannot read the configuration: \
                   No such file or directory (os error 2)\n";
    let named = ["config", "show", "--config", "/nonexistent/b.toml"];
    let (code, _, stderr) = output(&mut backlogd(&named));
    assert_eq!((code, stderr.as_str()), (Some(78), missing));
    let (code, _, stderr) =
        output(backlogd(&["run"]).env("BACKLOGD_CONFIG", "/nonexistent/b.toml"));
    assert_eq!((code, stderr.as_str()), (Some(78), missing));
    let (code, _, stderr) = output(&mut backlogd(&["config", "check", "/"]));
    let message = "backlogd: /: cannot read the configuration: Is a directory (os error 21)\n";
    assert_eq!((code, stderr.as_str()), (Some(78), message));
}

#[test]
fn a_file_that_silences_all_detections_is_right_with_a_warning() {
    let check = &["config", "check", "FILE"];
    let warning = "backlogd: warning: FILE:1: [[detect]] silences all detections\n";
    check_file("[[detect]]\nsilence = true\n", check, 0, warning);
    check_file("[[detect]]\nsilence = true\nmatch.port = 80\n", check, 0, "");
}

#[test]
fn a_wrong_variable_is_78_and_named() {
    let (code, _, stderr) = output(backlogd(&["run"]).env("BACKLOGD_LISTEN", "10511"));
    let message = "backlogd: BACKLOGD_LISTEN: got \"10511\", \
                   expected an address and port such as 127.0.0.1:10511\n";
    assert_eq!((code, stderr.as_str()), (Some(78), message));
}

#[track_caller]
fn check_usage(arguments: &[&str], message: &str) {
    let (code, stdout, stderr) = output(&mut backlogd(arguments));
    assert_eq!((code, stdout.as_str()), (Some(64), ""), "{arguments:?}");
    assert!(stderr.contains(message), "{arguments:?}: {stderr}");
}

#[test]
fn wrong_usage_is_64() {
    check_usage(&[], "Usage: backlogd [OPTIONS] <COMMAND>");
    check_usage(&["lsit"], "a similar subcommand exists: 'list'");
    check_usage(&["list", "--prot", "80"], "unexpected argument '--prot' found");
    check_usage(&["list", "--port", "90-80"], "expected a port or a range of ports");
    check_usage(&["list", "--netns", "blue"], "expected an inode number, or a path such as");
    check_usage(&["list", "--interval", "0.2"], "expected a time such as 200ms");
    check_usage(&["check", "nginx"], "expected a port, an address, or both");
    check_usage(&["check", "--for", "3"], "expected a time such as 200ms");
    check_usage(&["explain"], "<PORT|PID>");
    check_usage(&["explain", "0"], "expected a port or a process id, from 1");
    check_usage(&["explain", "80", "--pid", "1"], "cannot be used with");
    check_usage(&["trace", "--port", "0"], "invalid value '0' for '--port <PORT>'");
    check_usage(&["trace", "--comm", ""], "expected the name of a process");
    check_usage(&["trace", "--netns", "blue"], "expected an inode number, or a path such as");
    check_usage(&["trace", "--count", "0"], "invalid value '0' for '--count <NUMBER>'");
    check_usage(&["trace", "--duration", "10"], "expected a time such as 200ms");
    check_usage(
        &["run", "--slots", "8"],
        "invalid value '8' for '--slots <NUMBER>': expected a whole number, 16 to 65536",
    );
    check_usage(
        &["run", "--series-limit", "99"],
        "invalid value '99' for '--series-limit <NUMBER>': expected a whole number, 100 to 1000000",
    );
    check_usage(
        &["run", "--table-cpu-ratio", "0.6"],
        "'--table-cpu-ratio <RATIO>': expected a share of a core, 0 to 0.5",
    );
    check_usage(&["config", "check"], "required arguments were not provided");
}

#[test]
fn an_unknown_event_is_64_and_the_known_ones_are_named() {
    let known = "[possible values: syn, cookie, syn_drop, overflow, established, reset, accept, \
                 accept_error, close, discard, listen, unlisten, connect_error]";
    check_usage(&["trace", "--event", "syn,acept"], "invalid value 'acept'");
    check_usage(&["trace", "--event", "syn,acept"], known);
}

#[test]
fn a_trace_that_cannot_see_anything_is_3_and_says_why() {
    let check = |arguments: &[&str], message: &str| {
        let (code, stdout, stderr) = output(&mut backlogd(&[&["trace"], arguments].concat()));
        assert_eq!((code, stdout.as_str(), stderr.as_str()), (Some(3), "", message));
    };
    let why = "backlogd: cannot trace: no eBPF program runs: switched off by no_ebpf\n";
    check(&["--no-ebpf"], why);
    let missing = "No such file or directory (os error 2)";
    let path = format!("backlogd: cannot enter /nonexistent: {missing}\n");
    check(&["--netns", "/nonexistent"], &path);
    let nowhere = "backlogd: no network namespace net:[1] found in /proc or /run/netns\n";
    check(&["--netns", "1"], nowhere);
}

#[test]
fn config_show_tells_where_each_value_came_from() {
    let folder = TempDir::new().expect("a temporary folder");
    let path = folder.path().join("b.toml");
    let text = "# three values\nslots = 100\nlog = \"warn\"\nstalled_after_seconds = 2.5\n\
                [[detect]]\nmatch.port = 443\nsilence = true\n[[expect]]\nport = 80\n";
    fs::write(&path, text).expect("the file can be written");
    let path = path.to_str().expect("a path in UTF-8");
    let show = |form| {
        let arguments = ["config", "show", "--config", path, "--log", "debug", "-o", form];
        let (code, stdout, stderr) = output(backlogd(&arguments).env("BACKLOGD_SLOTS", "200"));
        assert_eq!((code, stderr.as_str()), (Some(0), ""));
        stdout.replace(path, "FILE")
    };
    insta::assert_snapshot!("config_show_table", show("table"));
    insta::assert_snapshot!("config_show_json", show("json"));
    insta::assert_snapshot!("config_show_yaml", show("yaml"));
}

#[test]
fn each_verb_has_help_with_an_example() {
    const CONFIG: [&[&str]; 2] = [&["config", "check"], &["config", "show"]];
    const REPLAY: [&[&str]; 5] = [
        &["replay"],
        &["replay", "FILE", "list"],
        &["replay", "FILE", "check"],
        &["replay", "FILE", "explain"],
        &["replay", "FILE", "alerts"],
    ];
    let verbs = ["run", "list", "check", "explain", "trace", "doctor", "record", "shed"];
    let verbs = verbs.iter().map(std::slice::from_ref);
    for verb in [&[][..]].into_iter().chain(verbs).chain(CONFIG).chain(REPLAY) {
        let (code, stdout, stderr) = output(&mut backlogd(&[verb, &["--help"]].concat()));
        assert_eq!((code, stderr.as_str()), (Some(0), ""), "{verb:?}");
        assert!(stdout.contains("Example"), "{verb:?}");
        insta::assert_snapshot!([&["help"], verb].concat().join("_"), stdout);
    }
}

#[test]
fn the_version_has_the_commit() {
    let (code, stdout, _) = output(&mut backlogd(&["--version"]));
    assert_eq!(code, Some(0));
    let expected = concat!("backlogd ", env!("CARGO_PKG_VERSION"), " (commit ");
    assert!(stdout.starts_with(expected), "{stdout}");
}

#[test]
fn a_closed_pipe_ends_quietly_and_a_full_disk_does_not() {
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    let mut command = backlogd(&["config", "show"]);
    let status = command.stdout(writer).stderr(Stdio::piped()).output().expect("it runs");
    assert_eq!((status.status.code(), status.stderr.as_slice()), (Some(0), &b""[..]));
    let full = fs::File::options().write(true).open("/dev/full").expect("/dev/full");
    let (code, _, stderr) = output(backlogd(&["config", "show"]).stdout(full));
    let message = "backlogd: standard output: No space left on device (os error 28)\n";
    assert_eq!((code, stderr.as_str()), (Some(3), message));
}

#[test]
fn colours_are_for_terminals_unless_asked_for() {
    let colored = |arguments: &[&str], no_color: &str| {
        let (_, stdout, _) = output(backlogd(arguments).env("NO_COLOR", no_color));
        stdout.contains('\x1b')
    };
    assert!(!colored(&["--help"], ""));
    assert!(!colored(&["config", "show"], ""));
    assert!(!colored(&["config", "show", "--color", "never"], ""));
}

/// A daemon that answers one question; joined, it gives the question.
fn daemon(socket: &Path, answer: String) -> thread::JoinHandle<String> {
    let listener = UnixListener::bind(socket).expect("a socket");
    thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("a client");
        let mut request = [0; 1024];
        let n = stream.read(&mut request).expect("a request");
        stream.write_all(answer.as_bytes()).expect("the client reads");
        String::from_utf8_lossy(&request[..n]).into_owned()
    })
}

#[test]
fn list_asks_the_daemon() {
    let folder = TempDir::new().expect("a temporary folder");
    let socket = folder.path().join("s");
    let parts = [
        "{\"schema_version\": 1, \"unix_time_seconds\": 7.5, ",
        "\"source\": \"daemon\", \"interval_seconds\": 1.0, \"listeners\": []}",
        "",
    ];
    let chunks = parts.map(|part| format!("{:x}\r\n{part}\r\n", part.len())).concat();
    let head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
    let daemon = daemon(&socket, format!("{head}{chunks}"));
    let path = socket.to_str().expect("a path in UTF-8");
    let (code, stdout, stderr) =
        output(&mut backlogd(&["list", "-v", "-o", "json", "--socket", path]));
    let request = daemon.join().expect("the daemon was asked");
    assert!(request.starts_with("GET /api/v1/listeners HTTP/1.1\r\n"), "{request}");
    assert_eq!(code, Some(0), "{stderr}");
    assert!(stdout.contains("\"unix_time_seconds\": 7.5"), "{stdout}");
    assert!(stderr.contains(&format!("from the daemon at {path}")), "{stderr}");
}

#[test]
fn list_shows_a_queue_without_a_daemon_and_without_ebpf() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address");
    let clients = [(); 2].map(|()| TcpStream::connect(address).expect("it listens"));
    let port = address.port().to_string();
    let list = ["list", "--standalone", "--no-ebpf", "--interval", "10ms", "--no-headers", "-p"];
    let end = Instant::now() + Duration::from_secs(10);
    loop {
        let (code, stdout, stderr) = output(&mut backlogd(&[&list[..], &[&port]].concat()));
        assert_eq!((code, stderr.as_str()), (Some(0), ""));
        let row: Vec<_> = stdout.split_whitespace().collect();
        let owner = format!("/{}", std::process::id());
        // The last ACK of a handshake may be on its way when connect returns.
        if row[2].starts_with("2/") {
            assert_eq!(row[0], address.to_string());
            assert!(row[1].ends_with(&owner), "{row:?}");
            assert_eq!(row[row.len() - 1], "-", "stalled or not cannot be known: {row:?}");
            break;
        }
        assert!(Instant::now() < end, "{stdout}");
    }
    drop(clients);
}

#[test]
fn check_and_explain_without_ebpf_cannot_tell_whether_a_queue_is_served_and_say_so() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address");
    let clients = [(); 2].map(|()| TcpStream::connect(address).expect("it listens"));
    let place = address.to_string();
    let own = ["--standalone", "--no-ebpf", "--own-netns-only", "--for", "60ms"];
    let run = |words: &[&str]| output(&mut backlogd(&[words, &own].concat()));
    let (code, stdout, stderr) = run(&["check", &place]);
    assert_eq!((code, stderr.as_str()), (Some(3), ""), "{stdout}");
    let why = format!(
        " detections not judged: whether anybody accepts on {place} cannot be told: no eBPF program runs\n"
    );
    assert!(stdout.starts_with("UNKNOWN: 1 listener, ") && stdout.contains(&why), "{stdout}");
    let (code, stdout, _) = run(&["check", &place, "-o", "nagios"]);
    assert_eq!(code, Some(3), "{stdout}");
    assert!(stdout.starts_with("BACKLOGD UNKNOWN - 1 listener, "), "{stdout}");
    assert!(stdout.contains(" | 'alerts'=0;;;0 "), "{stdout}");
    let (code, stdout, stderr) = run(&["explain", &place]);
    assert_eq!((code, stderr.as_str()), (Some(0), ""), "{stdout}");
    assert!(stdout.contains("2 connections wait; whether anybody accepts cannot"), "{stdout}");
    drop((clients, listener));
    let (code, stdout, stderr) = run(&["check", &place]);
    let nobody = format!("backlogd: nobody listens on {place}\n");
    assert_eq!((code, stdout.as_str(), stderr), (Some(3), "", nobody));
    let (code, stdout, _) = run(&["check", &place, "-o", "nagios"]);
    let nobody = format!("BACKLOGD UNKNOWN - nobody listens on {place}\n");
    assert_eq!((code, stdout), (Some(3), nobody));
    assert_eq!(run(&["explain", &place]).0, Some(3));
}

#[test]
fn list_samples_by_itself_when_the_named_daemon_does_not_answer_and_says_so() {
    let folder = TempDir::new().expect("a temporary folder");
    let socket = folder.path().join("s");
    let path = socket.to_str().expect("a path in UTF-8");
    let list = |arguments: &[&str]| {
        // Nobody listens on port 1, so that there is nothing to print.
        let own = ["list", "--no-ebpf", "--interval", "10ms", "--port", "1"];
        output(&mut backlogd(&[&own, arguments].concat()))
    };
    let said = |why: &str| {
        let why = format!("backlogd: the daemon at {path}: {why}; taking own samples\n");
        (Some(0), why + "backlogd: no such listener\n")
    };
    let (code, _, stderr) = list(&["--socket", path]);
    let why = "cannot connect: No such file or directory (os error 2)";
    assert_eq!((code, stderr), said(why));
    let (code, _, stderr) = list(&["--socket", path, "--standalone"]);
    assert_eq!((code, stderr.as_str()), (Some(0), "backlogd: no such listener\n"));
    let answer = "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n";
    let daemon = daemon(&socket, answer.into());
    let (code, _, stderr) = list(&["--socket", path]);
    assert_eq!((code, stderr), said("got HTTP status 503, expected 200"));
    daemon.join().expect("the daemon was asked");
}

/// The binary as a user that may do nothing. Started by its open file: that user may not be let
/// into the folder where it is.
fn unprivileged(binary: &fs::File, arguments: &[&str]) -> Command {
    const NOBODY: u32 = 65534;
    if !rustix::process::geteuid().is_root() {
        return backlogd(arguments);
    }
    let mut command = Command::new(format!("/proc/self/fd/{}", binary.as_raw_fd()));
    command.args(arguments).env_clear().stdin(Stdio::null()).uid(NOBODY).gid(NOBODY);
    command
}

#[test]
fn doctor_without_privileges_is_3_and_names_the_capabilities() {
    let binary = fs::File::open(env!("CARGO_BIN_EXE_backlogd")).expect("it was built");
    let (code, stdout, stderr) =
        output(&mut unprivileged(&binary, &["doctor", "--own-netns-only"]));
    assert_eq!((code, stderr.as_str()), (Some(3), ""), "{stdout}");
    assert!(stdout.starts_with("verdict "), "{stdout}");
    for said in [
        "no eBPF program runs: 2 findings\n",
        "this process lacks CAP_BPF and CAP_PERFMON",
        "systemd unit: AmbientCapabilities=CAP_BPF CAP_PERFMON\n",
        "this process lacks CAP_SYS_PTRACE and CAP_DAC_READ_SEARCH",
    ] {
        assert!(stdout.contains(said), "{said}: {stdout}");
    }
}

#[test]
fn doctor_says_whether_a_daemon_answers_and_that_ebpf_is_switched_off() {
    let folder = TempDir::new().expect("a temporary folder");
    let socket = folder.path().join("s");
    let path = socket.to_str().expect("a path in UTF-8");
    let doctor = || {
        let arguments = ["doctor", "--no-ebpf", "-o", "json", "--socket", path];
        let (code, stdout, stderr) = output(&mut backlogd(&arguments));
        assert_eq!((code, stderr.as_str()), (Some(3), ""), "{stdout}");
        serde_json::from_str::<serde_json::Value>(&stdout).expect("JSON")
    };
    let report = doctor();
    assert_eq!((&report["schema_version"], &report["verdict"]), (&1.into(), &"no_ebpf".into()));
    assert_eq!(report["findings"][0]["change"][0]["how"], "no_ebpf = false");
    assert_eq!(report["daemon"]["why"], "nobody listens there");
    let answer = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
    let daemon = daemon(&socket, answer.into());
    assert_eq!(doctor()["daemon"]["answers"], true);
    let request = daemon.join().expect("the daemon was asked");
    assert!(request.starts_with("GET /healthz HTTP/1.1\r\n"), "{request}");
}

#[test]
fn variables_hold_for_a_listener_of_flags_as_for_one_of_a_file() {
    let dir = TempDir::new().expect("a folder");
    let file = dir.path().join("f.toml");
    let table = "[[shed]]\nlisten = \"127.0.0.1:0\"\nbackend = \"127.0.0.1:1\"\nsoft = 10\n";
    fs::write(&file, table).expect("it can be written");
    let flags = ["--listen", "127.0.0.1:0", "--backend", "127.0.0.1:1", "--soft", "10"];
    for by in [&flags[..], &["--config", file.to_str().expect("a path")]] {
        let shed = |log_format: &str| {
            let mut command = backlogd(&["shed", "--metrics", "127.0.0.1:0"]);
            command.args(by).env("BACKLOGD_LOG_FORMAT", log_format);
            command
        };
        let (code, stdout, stderr) = output(shed("bogus").arg("--check"));
        assert_eq!((code, &*stdout), (Some(78), ""), "{by:?}");
        let message = "backlogd: BACKLOGD_LOG_FORMAT: got \"bogus\", expected ";
        assert!(stderr.starts_with(message), "{by:?}: {stderr}");
        let mut child = shed("json").stderr(Stdio::piped()).spawn().expect("the binary runs");
        let mut line = String::new();
        let read = BufReader::new(child.stderr.take().expect("a pipe")).read_line(&mut line);
        child.kill().and_then(|()| child.wait()).expect("it was there");
        read.expect("text");
        assert!(line.starts_with('{'), "{by:?}: {line}");
    }
}

#[test]
fn shed_names_what_cannot_be_before_anything_listens() {
    #[track_caller]
    fn check(arguments: &[&str], code: i32, message: &str) {
        let (got, stdout, stderr) = output(backlogd(&["shed"]).args(arguments));
        assert_eq!((got, &*stdout), (Some(code), ""), "{arguments:?}: {stderr}");
        assert!(stderr.starts_with(message), "{arguments:?}: {stderr}");
    }
    // taken: an attempt to listen there would be what it says
    let taken = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let addr = taken.local_addr().expect("bound").to_string();
    let front = ["--listen", &addr, "--backend", "127.0.0.1:1", "--metrics", "127.0.0.1:0"];
    let with = |more: &[&'static str]| [&front[..], more].concat();
    check(
        &with(&["--soft", "10", "--hard", "11"]),
        78,
        "backlogd: --hard: got 11, expected at least 12: 20 % above the soft limit, which is 10\n",
    );
    check(
        &with(&["--soft", "0"]),
        78,
        "backlogd: --soft: got 0, expected connections, 1 to 1747625\n",
    );
    for (listen, backend) in
        [(&*addr, &*addr), ("0.0.0.0:9", "127.0.0.1:9"), ("[::]:9", "localhost:9")]
    {
        let flags = ["--listen", listen, "--backend", backend, "--soft", "10"];
        let message = format!(
            "backlogd: --backend: got {backend}, expected an address that does not lead back to \
             listen, which is {listen}\n"
        );
        check(&flags, 78, &message);
        check(&[&flags[..], &["--check"]].concat(), 78, &message);
    }
    let flags = ["--listen", "0.0.0.0:9", "--backend", "127.0.0.1:1", "--soft", "10"];
    let message = "backlogd: --metrics: got 127.0.0.1:9, expected another address than 0.0.0.0:9 of \
                   --listen\n";
    check(&[&flags[..], &["--metrics", "127.0.0.1:9", "--check"]].concat(), 78, message);
    check(&with(&[]), 64, "error: the following required arguments were not provided");
    check(
        &["--config", "/dev/null", "--listen", &addr],
        64,
        "error: the argument '--config <FILE>'",
    );
    let nothing =
        "backlogd: nothing to shed for, expected --listen, or a file with [[shed]] tables\n";
    check(&[], 64, nothing);
    let none = "backlogd: /dev/null: no table [[shed]], expected at least one\n";
    check(&["--config", "/dev/null"], 78, none);
    check(
        &["--listen", "[::1]:0", "--backend", "here", "--soft", "1"],
        64,
        "error: invalid value 'here' for '--backend <ADDR>': expected HOST:PORT",
    );
    let message = format!(
        "backlogd: shedding listener {addr}: listener {addr}: the address is in use, by socket "
    );
    check(&with(&["--soft", "1"]), 3, &message);
}
