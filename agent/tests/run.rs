//! The daemon through the real binary: it serves, reloads, stops, and refuses to half start.

#![expect(clippy::unwrap_used, reason = "outside of #[test] functions, but in a test")]

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, ChildStderr, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use tempfile::TempDir;

/// A daemon in the sampled tier, in a folder of its own.
struct Daemon {
    child: Child,
    log: BufReader<ChildStderr>,
    listen: String,
    dir: TempDir,
}

impl Daemon {
    fn start(extra: &[&str]) -> Self {
        let dir = TempDir::new().unwrap();
        let config = dir.path().join("backlogd.toml");
        fs::write(&config, "sample_interval_seconds = 0.1\n").unwrap();
        let mut child = command(dir.path()).args(extra).spawn().unwrap();
        let log = BufReader::new(child.stderr.take().unwrap());
        let mut daemon = Self { child, log, listen: String::new(), dir };
        let line = daemon.wait_for_line("started listen=");
        let after = line.split_once("listen=").unwrap().1;
        daemon.listen = after.split(' ').next().unwrap().to_owned();
        daemon.wait_until_ready();
        daemon
    }

    fn wait_for_line(&mut self, part: &str) -> String {
        let mut all = String::new();
        loop {
            let mut line = String::new();
            assert_ne!(0, self.log.read_line(&mut line).unwrap(), "no {part:?} in:\n{all}");
            if line.contains(part) {
                return line;
            }
            all.push_str(&line);
        }
    }

    fn wait_until_ready(&self) {
        let deadline = Instant::now() + Duration::from_secs(10);
        while !self.get("/readyz").starts_with("HTTP/1.1 200") {
            assert!(Instant::now() < deadline, "not ready");
            thread::yield_now();
        }
    }

    fn get(&self, path: &str) -> String {
        let mut stream = TcpStream::connect(&self.listen).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args(["-s", name, &pid]).status().unwrap().success());
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("backlogd.sock")
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // it has ended already where the test is about that
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn command(dir: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_backlogd"));
    command
        .args(["run", "--no-ebpf", "--listen", "127.0.0.1:0"])
        .arg("--config")
        .arg(dir.join("backlogd.toml"))
        .arg("--socket")
        .arg(dir.join("backlogd.sock"))
        .env("NO_COLOR", "1")
        .stderr(Stdio::piped());
    command
}

#[test]
fn it_serves_what_it_sees_and_says_how() {
    let daemon = Daemon::start(&[]);
    let port = daemon.listen.split_once(':').unwrap().1;
    let metrics = daemon.get("/metrics");
    let series = format!("addr=\"127.0.0.1\",port=\"{port}\",comm=\"backlogd\"");
    assert!(metrics.contains(&series), "{series}: {metrics}");
    assert!(!metrics.contains("\nbacklogd_listener_established_total"), "absent, not 0");
    let listening = metrics
        .lines()
        .find(|line| line.starts_with("backlogd_sockets{") && line.contains("state=\"listen\""));
    assert!(listening.is_some_and(|line| !line.ends_with(" 0")), "{metrics}");
    assert!(daemon.get("/readyz").contains("established none - (switched off by no_ebpf)"));
    assert!(daemon.get("/api/v1/listeners").contains("\"source\":\"daemon\""));
    assert!(daemon.get("/healthz").starts_with("HTTP/1.1 200"));
}

#[test]
fn sigterm_stops_it_within_a_second_also_while_a_client_holds_its_connection() {
    for signal in ["TERM", "INT"] {
        let mut daemon = Daemon::start(&[]);
        let _idle = TcpStream::connect(&daemon.listen).unwrap();
        assert!(daemon.socket().exists());
        let start = Instant::now();
        daemon.signal(signal);
        let status = daemon.child.wait().unwrap();
        assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
        assert_eq!(Some(0), status.code(), "{signal}");
        assert!(!daemon.socket().exists(), "its socket goes with it");
    }
}

#[test]
fn a_bad_file_at_sighup_keeps_the_old_one_and_a_good_one_is_taken() {
    let mut daemon = Daemon::start(&[]);
    let file = daemon.dir.path().join("backlogd.toml");
    fs::write(&file, "sample_interval_seconds = \"fast\"\n").unwrap();
    daemon.signal("HUP");
    let line = daemon.wait_for_line("not reloaded");
    assert!(line.contains("backlogd.toml:1:27: sample_interval_seconds: got"), "{line}");
    fs::write(&file, "sample_interval_seconds = 0.2\n").unwrap();
    daemon.signal("HUP");
    daemon.wait_for_line("reloaded");
    assert!(daemon.get("/healthz").starts_with("HTTP/1.1 200"));
}

/// Takes one POST and returns what was posted.
fn posted(receiver: &TcpListener) -> String {
    let (mut stream, _) = receiver.accept().unwrap();
    let mut request = String::new();
    let mut bytes = [0; 4096];
    while !request.ends_with("]}") {
        let n = stream.read(&mut bytes).unwrap();
        assert_ne!(0, n, "cut: {request}");
        request.push_str(std::str::from_utf8(&bytes[..n]).unwrap());
    }
    stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").unwrap();
    request
}

#[test]
fn an_alert_is_logged_and_shown_and_told_to_a_receiver_that_a_reload_brings() {
    let mut daemon = Daemon::start(&[]);
    let receiver = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = receiver.local_addr().unwrap();
    let free = TcpListener::bind("0.0.0.0:0").unwrap().local_addr().unwrap().port();
    let text = format!(
        "sample_interval_seconds = 0.1\n\
         [[expect]]\nport = {free}\nwithin_seconds = 0.3\n\
         [[detect]]\nmatch = {{ comm = \"nobody\" }}\nsilence = true\n\
         [[webhook]]\nurl = \"http://{addr}/hook\"\n"
    );
    fs::write(daemon.dir.path().join("backlogd.toml"), text).unwrap();
    daemon.signal("HUP");
    let line = daemon.wait_for_line("Nobody listens where somebody should");
    assert!(line.contains("alert=\"ExpectedListenerDown\" severity=\"critical\""), "{line}");
    let entry = "backlogd.toml:5: [[detect]] match.comm = \"nobody\"";
    daemon.wait_for_line(&format!("{entry} has matched nothing so far"));
    let entry = entry.replace('"', "\\\"");
    let check = daemon.get("/api/v1/check");
    assert!(check.contains(&format!("{entry}\"")), "{check}");
    let request = posted(&receiver);
    assert!(request.starts_with("POST /hook HTTP/1.1\r\n"), "{request}");
    for said in
        ["BacklogdExpectedListenerDown", "\"status\":\"firing\"", "\"severity\":\"critical\""]
    {
        assert!(request.contains(said), "{said}: {request}");
    }
    let metrics = daemon.get("/metrics");
    for series in [
        format!(
            "backlogd_alert_firing{{alert=\"ExpectedListenerDown\",severity=\"critical\",port=\"{free}\"}} 1"
        ),
        format!("backlogd_expected_listener_up{{port=\"{free}\"}} 0"),
    ] {
        assert!(metrics.contains(&series), "{series}: {metrics}");
    }
    assert!(daemon.get("/api/v1/alerts").contains("\"alert\":\"ExpectedListenerDown\""));
    let ours = TcpListener::bind(("0.0.0.0", free)).unwrap();
    daemon.wait_for_line("cleared alert=\"ExpectedListenerDown\"");
    // other alerts may be told of, where the machine is busy
    let is_told = (0..5).any(|_| posted(&receiver).contains("\"status\":\"resolved\""));
    assert!(is_told);
    drop(ours);
}

#[test]
fn a_port_or_socket_that_is_taken_is_named_and_nothing_starts() {
    let daemon = Daemon::start(&[]);
    let run = |dir: &Path, extra: &[&str]| {
        let output = command(dir).args(extra).output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    let (code, err) = run(daemon.dir.path(), &[]);
    assert_eq!(Some(3), code);
    assert!(err.contains("another backlogd answers on"), "{err}");

    let dir = TempDir::new().unwrap();
    fs::write(dir.path().join("backlogd.toml"), format!("listen = \"{}\"\n", daemon.listen))
        .unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_backlogd"))
        .args(["run", "--no-ebpf", "--socket", "", "--config"])
        .arg(dir.path().join("backlogd.toml"))
        .output()
        .unwrap();
    let err = String::from_utf8(output.stderr).unwrap();
    assert_eq!(Some(3), output.status.code(), "{err}");
    let (listen, pid) = (&daemon.listen, daemon.child.id());
    let expected = format!("cannot listen on {listen}: the address is in use, by socket ");
    assert!(err.contains(&expected), "{err}");
    assert!(err.contains(&format!(", backlogd[{pid}]: Address already in use")), "{err}");
}

#[test]
fn the_textfile_is_whole_and_leaves_process_metrics_to_node_exporter() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("backlogd.prom");
    let _daemon = Daemon::start(&["--textfile", dir.path().to_str().unwrap()]);
    let deadline = Instant::now() + Duration::from_secs(15);
    while !path.exists() {
        assert!(Instant::now() < deadline, "not written");
        thread::sleep(Duration::from_millis(20));
    }
    let text = fs::read_to_string(&path).unwrap();
    assert!(text.contains("# TYPE backlogd_listener_accept_queue_length gauge"), "{text}");
    assert!(!text.lines().any(|line| line.starts_with("process_")), "{text}");
}

#[test]
fn a_file_where_its_socket_should_be_stays() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("precious");
    fs::write(&path, "precious").unwrap();
    let file = dir.path().join("backlogd.toml");
    fs::write(&file, "").unwrap();
    let mut child = Command::new(env!("CARGO_BIN_EXE_backlogd"))
        .args(["run", "--no-ebpf", "--listen", "127.0.0.1:0", "--config"])
        .arg(&file)
        .arg("--socket")
        .arg(&path)
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut log = BufReader::new(child.stderr.take().unwrap()).lines().map(Result::unwrap);
    assert!(log.any(|line| line.contains("no socket, and it stays")));
    assert!(log.any(|line| line.contains("started listen=")));
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!("precious", fs::read_to_string(&path).unwrap());
}
