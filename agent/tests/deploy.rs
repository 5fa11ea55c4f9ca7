//! What is in `deploy/` suffices for the agent: the unit's capabilities, its socket, a container that
//! holds nothing but the binary. As root; run by `cargo xtask test`, where BACKLOGD_STATIC names a
//! static binary.

#![expect(clippy::unwrap_used, reason = "outside of #[test] functions, but in a test")]

use std::{
    collections::BTreeSet,
    env, fs,
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream},
    os::unix::{
        fs::{MetadataExt as _, PermissionsExt as _},
        net::UnixDatagram,
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use tempfile::TempDir;

const PATIENCE: Duration = Duration::from_secs(30);

fn deploy(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy").join(name)
}

/// A network namespace with nothing but a process in it, and its number.
fn namespace() -> (Running, u64) {
    let process = Running(Command::new("unshare").args(["--net", "sleep", "600"]).spawn().unwrap());
    let inode = |pid: &str| fs::metadata(format!("/proc/{pid}/ns/net")).unwrap().ino();
    let deadline = Instant::now() + PATIENCE;
    while inode(&process.0.id().to_string()) == inode("self") {
        assert!(Instant::now() < deadline, "unshare needs root");
        thread::sleep(Duration::from_millis(10));
    }
    let number = inode(&process.0.id().to_string());
    (process, number)
}

/// Ends with its test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The values of `key` in a unit file, joined, from the last empty one on.
fn setting(unit: &str, key: &str) -> Vec<String> {
    let mut words = Vec::new();
    for line in unit.lines() {
        match line.split_once('=') {
            Some((name, "")) if name == key => words.clear(),
            Some((name, value)) if name == key => {
                words.extend(value.split(' ').map(str::to_owned));
            }
            Some(_) | None => {}
        }
    }
    words
}

/// A port that is free now.
fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn get(port: u16, path: &str) -> Option<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    Some(answer)
}

/// The first answer to `path` that `is_it`.
fn wait_for(port: u16, path: &str, is_it: impl Fn(&str) -> bool) -> String {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let answer = get(port, path).unwrap_or_default();
        if is_it(&answer) {
            return answer;
        }
        assert!(Instant::now() < deadline, "{path}: {answer}");
        thread::sleep(Duration::from_millis(100));
    }
}

#[test]
fn the_configurations_that_are_shipped_load() {
    for name in ["kubernetes/base/backlogd.toml", "backlogd.example.toml"] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_backlogd"));
        let output = command.args(["config", "check"]).arg(deploy(name)).output().unwrap();
        assert_eq!(Some(0), output.status.code(), "{name}: {output:?}");
    }
}

/// How each event is obtained.
fn hooks(metrics: &str) -> BTreeSet<&str> {
    metrics.lines().filter(|line| line.starts_with("backlogd_hook_info{")).collect()
}

/// What an agent shows that has all capabilities, or as many as there are here.
fn metrics_as_root() -> String {
    let port = free_port();
    let mut command = Command::new(env!("CARGO_BIN_EXE_backlogd"));
    command.arg("run").arg(format!("--listen=127.0.0.1:{port}")).args(["--socket", ""]);
    let _daemon = Running(command.spawn().unwrap());
    wait_for(port, "/readyz", |answer| answer.starts_with("HTTP/1.1 200"));
    let metrics = get(port, "/metrics").unwrap();
    let is_counted = |line: &&str| line.contains("event=\"established\"");
    let established = hooks(&metrics).into_iter().find(is_counted).unwrap();
    assert!(!established.contains("none") && !established.contains("sampled"), "{established}");
    metrics
}

/// Runs the agent as systemd would by these lines of unit files: as a user of its own, with these
/// capabilities. It must have the hooks that root has, name owners that are root's processes, and
/// enter other namespaces unless it is told not to.
fn check_capabilities(unit: &str) {
    let capabilities = setting(unit, "AmbientCapabilities");
    assert_eq!(capabilities, setting(unit, "CapabilityBoundingSet"));
    let plus = |name: &String| format!("+{}", name.strip_prefix("CAP_").unwrap().to_lowercase());
    let set = format!("-all,{}", capabilities.iter().map(plus).collect::<Vec<_>>().join(","));
    let dir = TempDir::new().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o777)).unwrap();
    let binary = dir.path().join("backlogd");
    fs::copy(env!("CARGO_BIN_EXE_backlogd"), &binary).unwrap();
    let socket = dir.path().join("run.sock");
    let port = free_port();
    let privileges = || {
        let mut command = Command::new("setpriv");
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups", "--no-new-privs"]);
        command
            .args(["--inh-caps", "--ambient-caps", "--bounding-set"].map(|f| format!("{f}={set}")));
        command.arg("--").arg(&binary);
        command
    };
    let mut command = privileges();
    command.arg("run").arg(format!("--listen=127.0.0.1:{port}")).arg("--socket").arg(&socket);
    let environment = setting(unit, "Environment");
    command.envs(environment.iter().filter_map(|pair| pair.split_once('=')));
    let (_process, other) = namespace();
    let _daemon = Running(command.spawn().unwrap());
    wait_for(port, "/readyz", |answer| answer.starts_with("HTTP/1.1 200"));

    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let theirs = listener.local_addr().unwrap().port().to_string();
    let _connection = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let name = fs::read_to_string("/proc/self/comm").unwrap();
    let is_ours = |line: &str, metric: &str| {
        line.starts_with(metric)
            && line.contains(&format!("port=\"{theirs}\",comm=\"{}\"", name.trim()))
    };
    let metrics = wait_for(port, "/metrics", |answer| {
        let mut lines = answer.lines();
        lines.any(|line| {
            is_ours(line, "backlogd_listener_established_total") && line.ends_with(" 1")
        })
    });
    assert_eq!(hooks(&metrics_as_root()), hooks(&metrics), "as root, and by the unit");
    if !environment.contains(&"BACKLOGD_OWN_NETNS_ONLY=true".to_owned()) {
        let entered = format!("backlogd_sysctl_value{{netns=\"{other}\"");
        wait_for(port, "/metrics", |answer| answer.contains(&entered));
    }
    let list = privileges().arg("list").env("BACKLOGD_SOCKET", &socket).output().unwrap();
    let text = String::from_utf8(list.stdout).unwrap();
    assert!(text.contains(&format!("127.0.0.1:{theirs}")), "{text}");
}

#[test]
#[ignore = "needs root, and eBPF programs"]
fn the_unit_has_the_capabilities_that_the_agent_uses() {
    check_capabilities(&fs::read_to_string(deploy("systemd/backlogd.service")).unwrap());
}

#[test]
#[ignore = "needs root, and eBPF programs"]
fn the_unit_for_one_namespace_needs_no_cap_sys_admin() {
    let files = ["systemd/backlogd.service", "systemd/drop-ins/own-netns.conf"];
    let unit = files.map(|name| fs::read_to_string(deploy(name)).unwrap()).concat();
    assert!(!setting(&unit, "AmbientCapabilities").contains(&"CAP_SYS_ADMIN".to_owned()));
    check_capabilities(&unit);
}

#[test]
#[ignore = "needs systemd-socket-activate"]
fn systemd_passes_the_socket_and_hears_ready() {
    let dir = TempDir::new().unwrap();
    let notify = dir.path().join("notify");
    let manager = UnixDatagram::bind(&notify).unwrap();
    manager.set_read_timeout(Some(PATIENCE)).unwrap();
    let port = free_port();
    let mut command = Command::new("systemd-socket-activate");
    command.arg(format!("--listen=127.0.0.1:{port}"));
    command.arg(format!("--setenv=NOTIFY_SOCKET={}", notify.display()));
    command.arg(env!("CARGO_BIN_EXE_backlogd")).args(["run", "--no-ebpf", "--socket", ""]);
    // not the address that is configured: the socket's counts
    command.args(["--listen", "127.0.0.1:1"]);
    let _daemon = Running(command.spawn().unwrap());
    // the connection that starts it is the first that it answers
    wait_for(port, "/healthz", |answer| answer.starts_with("HTTP/1.1 200"));
    let mut message = [0; 512];
    let n = manager.recv(&mut message).unwrap();
    assert!(message[..n].starts_with(b"READY=1\n"), "{:?}", String::from_utf8_lossy(&message[..n]));
}

#[test]
#[ignore = "needs systemd-socket-activate"]
fn systemd_passes_a_shedding_listener_and_its_scrapes() {
    let backend = TcpListener::bind("127.0.0.1:0").unwrap();
    let (port, metrics) = (free_port(), free_port());
    let mut command = Command::new("systemd-socket-activate");
    command.arg(format!("--listen=127.0.0.1:{port}")).arg(format!("--listen=127.0.0.1:{metrics}"));
    command.args(["--fdname=web:unknown", env!("CARGO_BIN_EXE_backlogd"), "shed", "--soft=5"]);
    command.arg(format!("--listen=127.0.0.1:{port}")).arg(format!("--metrics=127.0.0.1:{metrics}"));
    command.arg("--backend").arg(backend.local_addr().unwrap().to_string());
    let _daemon = Running(command.spawn().unwrap());
    let metrics = wait_for(metrics, "/metrics", |answer| answer.contains("backlogd_shed_ready{"));
    let mut client = TcpStream::connect(("127.0.0.1", port)).unwrap();
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    backend.accept().unwrap().0.write_all(b"hello").unwrap();
    let mut text = String::new();
    client.read_to_string(&mut text).unwrap();
    assert_eq!("hello", text, "{metrics}");
}

/// The agent in a folder that holds nothing but its binary, with /proc and /sys as a runtime mounts
/// them.
fn in_container(folder: &Path, arguments: &[&str]) -> Command {
    let script = "mount -t proc proc \"$0/proc\" && mount --rbind --make-slave /sys \"$0/sys\" && \
                  exec chroot \"$0\" /backlogd \"$@\"";
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", script]).arg(folder).args(arguments);
    command.env_clear().env("PATH", env::var_os("PATH").unwrap());
    command
}

#[test]
#[ignore = "needs root, and a static binary"]
fn a_container_needs_nothing_but_the_binary() {
    let dir = TempDir::new().unwrap();
    let program = env::var_os("BACKLOGD_STATIC").expect("`cargo xtask test` sets it");
    fs::copy(program, dir.path().join("backlogd")).unwrap();
    for name in ["proc", "sys"] {
        fs::create_dir(dir.path().join(name)).unwrap();
    }
    let output = in_container(dir.path(), &["--version"]).output().unwrap();
    assert!(output.stdout.starts_with(b"backlogd "), "{output:?}");

    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let output = in_container(dir.path(), &["list"]).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains(&listener.local_addr().unwrap().to_string()), "{output:?}");

    let port = free_port();
    let listen = format!("--listen=127.0.0.1:{port}");
    let mut command = in_container(dir.path(), &["run", "--no-ebpf", &listen]);
    let _daemon = Running(command.stderr(Stdio::null()).spawn().unwrap());
    let metrics = wait_for(port, "/metrics", |answer| answer.contains("backlogd_build_info{"));
    let theirs = listener.local_addr().unwrap().port();
    assert!(metrics.contains(&format!("port=\"{theirs}\"")), "{metrics}");
}
