//! A real Alertmanager takes, groups and resolves what the agent tells it. Run by `cargo xtask test`,
//! which brings one; BACKLOGD_ALERTMANAGER names it.

use std::{
    env, fs,
    io::{self, BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    path::Path,
    process::{Child, Command, Stdio},
    sync::{Arc, mpsc},
    thread,
    time::{Duration, Instant, SystemTime},
};

use backlogd::{
    detect::{
        self,
        alert::{Alert, AlertId, Verdicts},
        phase::Severity,
        rule::Evidence,
        subject::{Labels, Subject, SubjectKind},
    },
    id::NetnsId,
    outlet::{Auth, Form, Outlet, Url},
    publish::outlet::{Deliveries, Outlets},
    time::{Nanos, UnixTime},
};
use serde_json::Value;
use tempfile::TempDir;
use tokio::sync::watch;

const PATIENCE: Duration = Duration::from_secs(60);

/// Alertmanager on loopback, with a webhook that this test listens at.
struct Alertmanager {
    addr: SocketAddr,
    process: Child,
    _folder: TempDir,
}

impl Alertmanager {
    fn start(addr: SocketAddr, webhook: SocketAddr) -> Self {
        let program = env::var_os("BACKLOGD_ALERTMANAGER").expect("`cargo xtask test` sets it");
        let folder = TempDir::new().expect("a temporary folder");
        let config = folder.path().join("config.yml");
        let text = format!(
            "route: {{receiver: us, group_by: [alertname], group_wait: 1s, group_interval: 1s}}\n\
             receivers: [{{name: us, webhook_configs: [{{url: 'http://{webhook}/'}}]}}]\n"
        );
        fs::write(&config, text).expect("it can be written");
        let flag = |name: &str, value: &Path| format!("--{name}={}", value.display());
        // Debian's reads templates below /usr/share, also where the package is but unpacked
        let with_share = "mount --bind \"${0%/bin/*}/share\" /usr/share && exec \"$0\" \"$@\"";
        let process = Command::new("unshare")
            .args(["--mount", "sh", "-c", with_share])
            .arg(program)
            .arg(flag("config.file", &config))
            .arg(flag("storage.path", folder.path()))
            .args([format!("--web.listen-address={addr}"), "--cluster.listen-address=".into()])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("it starts");
        Self { addr, process, _folder: folder }
    }

    /// Its groups of active alerts: name and size of each.
    fn groups(&self) -> io::Result<Vec<(String, usize)>> {
        let mut stream = TcpStream::connect(self.addr)?;
        let request = "GET /api/v2/alerts/groups HTTP/1.0\r\n\r\n";
        stream.write_all(request.as_bytes())?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let (_, body) = answer.split_once("\r\n\r\n").ok_or(io::ErrorKind::InvalidData)?;
        let groups: Vec<Value> = serde_json::from_str(body)?;
        let group = |group: &Value| {
            let name = group["labels"]["alertname"].as_str().unwrap_or_default().to_owned();
            (name, group["alerts"].as_array().map_or(0, Vec::len))
        };
        Ok(groups.iter().map(group).collect())
    }

    #[track_caller]
    fn wait_for(&self, expected: &[(&str, usize)]) {
        let expected: Vec<_> = expected.iter().map(|&(name, n)| (name.to_owned(), n)).collect();
        let end = Instant::now() + PATIENCE;
        loop {
            let groups = self.groups();
            if groups.as_ref().is_ok_and(|groups| *groups == expected) {
                return;
            }
            assert!(Instant::now() < end, "{groups:?}, expected {expected:?}");
            thread::sleep(Duration::from_millis(50));
        }
    }
}

impl Drop for Alertmanager {
    fn drop(&mut self) {
        // both fail only when it has ended
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// What Alertmanager tells of its groups: status, and how many alerts.
fn webhook() -> (SocketAddr, mpsc::Receiver<(String, usize)>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("loopback has a free port");
    let addr = listener.local_addr().expect("it is bound");
    let (tell, told) = mpsc::channel();
    thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            let document = read(&mut stream).expect("Alertmanager sends JSON");
            let answer = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
            let _ = stream.write_all(answer.as_bytes());
            let status = document["status"].as_str().unwrap_or_default().to_owned();
            let n = document["alerts"].as_array().map_or(0, Vec::len);
            if tell.send((status, n)).is_err() {
                return;
            }
        }
    });
    (addr, told)
}

/// Until a group of two is told; Alertmanager may begin with the first alone.
#[track_caller]
fn wait_for(told: &mpsc::Receiver<(String, usize)>, status: &str) {
    let expected = (status.to_owned(), 2);
    while told.recv_timeout(PATIENCE).expect("it is told in time") != expected {}
}

/// The body of a request.
fn read(stream: &mut TcpStream) -> io::Result<Value> {
    let mut reader = BufReader::new(stream);
    let (mut line, mut length) = (String::new(), 0);
    while line != "\r\n" {
        line.clear();
        if reader.read_line(&mut line)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if let Some(value) = line.to_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().map_err(io::Error::other)?;
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    Ok(serde_json::from_slice(&body)?)
}

fn now() -> UnixTime {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("after 1970");
    UnixTime(Nanos::from(since).0)
}

/// The first detection fires for listeners on ports 1 to `n`.
fn verdicts(n: u16) -> Arc<Verdicts> {
    let at = now();
    let alert = |port: u16| {
        let labels = Labels {
            netns: Some(NetnsId(7)),
            addr: Some([0, 0, 0, 0].into()),
            port: Some(port),
            comm: Some("nginx".into()),
            ..Labels::default()
        };
        let name = format!("nginx 0.0.0.0:{port}");
        let evidence = Arc::new(Evidence { seen: "it is seen".into(), ..Evidence::default() });
        let subject = Subject { kind: SubjectKind::Listener, name, labels, pids: Arc::new([]) };
        Arc::new(Alert {
            id: AlertId(port.into()),
            about: detect::all()[0],
            subject: Arc::new(subject),
            severity: Severity::Warning,
            since: at,
            raised: at,
            at_raise: evidence.clone(),
            latest: evidence,
            unknown: None,
            inhibited_by: None,
        })
    };
    let alerts = (1..=n).map(alert).collect();
    Arc::new(Verdicts { unix_time: at, alerts, ..Verdicts::default() })
}

/// The agent's outlet, on a thread of its own, for as long as the sender lives.
fn agent(url: &str) -> watch::Sender<Arc<Verdicts>> {
    let outlet = Outlet {
        form: Form::Alertmanager,
        url: Url::parse(url).expect("a URL"),
        ca_file: None,
        auth: Auth::None,
        timeout: Duration::from_secs(10),
        resend: Duration::from_secs(60),
        labels: vec![("cluster".into(), "test".into())],
    };
    let (tell, mut seen) = watch::channel(verdicts(2));
    thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.expect("a runtime starts").block_on(async {
            let all = [outlet];
            let outlets = Outlets::start(&all, "host1".into(), seen.clone(), Deliveries::default());
            while seen.changed().await.is_ok() {}
            outlets.stop().await;
        });
    });
    tell
}

#[test]
#[ignore = "needs root and Alertmanager: cargo xtask test"]
fn alertmanager_takes_groups_and_resolves_alerts() {
    let free = TcpListener::bind("127.0.0.1:0").and_then(|it| it.local_addr());
    let addr = free.expect("loopback has a free port");
    let name = format!("Backlogd{}", detect::all()[0].name);
    // the agent is there first: its receiver is dead
    let tell = agent(&format!("http://{addr}"));
    let (webhook, told) = webhook();
    let alertmanager = Alertmanager::start(addr, webhook);
    alertmanager.wait_for(&[(&name, 2)]);
    wait_for(&told, "firing");
    tell.send_replace(verdicts(0));
    alertmanager.wait_for(&[]);
    wait_for(&told, "resolved");
    // a storm: each of them is there
    tell.send_replace(verdicts(10_000));
    alertmanager.wait_for(&[(&name, 10_000)]);
    tell.send_replace(verdicts(0));
    alertmanager.wait_for(&[]);
}
