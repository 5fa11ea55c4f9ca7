//! A real Alertmanager takes, groups and resolves what the agent tells it. Run by `cargo xtask test`,
//! which brings one; BACKLOGD_ALERTMANAGER names it.

#[path = "fixtures/services.rs"]
mod services;

use std::{
    io,
    net::{SocketAddr, TcpListener},
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

use crate::services::{Running, get, str_of, webhook};

const PATIENCE: Duration = Duration::from_secs(60);

/// Alertmanager on loopback, with a webhook that this test listens at.
struct Alertmanager {
    addr: SocketAddr,
    _process: Running,
    _folder: TempDir,
}

impl Alertmanager {
    fn start(addr: SocketAddr, webhook: &str) -> Self {
        let folder = TempDir::new().expect("a temporary folder");
        let process = services::alertmanager(folder.path(), addr, webhook, "1s", "");
        Self { addr, _process: process, _folder: folder }
    }

    /// Its groups of active alerts: name and size of each.
    fn groups(&self) -> io::Result<Vec<(String, usize)>> {
        let answer = get(self.addr, "/api/v2/alerts/groups")?;
        let groups = answer.as_array().ok_or(io::ErrorKind::InvalidData)?;
        let group = |group: &Value| {
            let name = str_of(&group["labels"]["alertname"]).to_owned();
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

/// Until a group of two is told; Alertmanager may begin with the first alone.
#[track_caller]
fn wait_for(told: &mpsc::Receiver<Value>, status: &str) {
    loop {
        let document = told.recv_timeout(PATIENCE).expect("it is told in time");
        let n = document["alerts"].as_array().map_or(0, Vec::len);
        if (str_of(&document["status"]), n) == (status, 2) {
            return;
        }
    }
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
    let alertmanager = Alertmanager::start(addr, &webhook);
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
