//! The daemon with its programs, from the kernel to `/metrics`, through the real binary.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    process::{Child, Stdio},
};

use crate::{
    clients::Clients,
    namespace::{in_own_netns, wait_for},
    offenders::NeverAccepts,
    tier::backlogd,
};

/// A running daemon; it ends, however the test ends.
pub(crate) struct Daemon {
    process: Child,
    addr: SocketAddr,
}

impl Daemon {
    /// Starts it with `arguments` besides the usual ones; returns once it serves.
    pub(crate) fn start(arguments: &[&str]) -> Self {
        Self::sampling("0.1", arguments)
    }

    /// The same, with another interval of samples, in seconds.
    pub(crate) fn sampling(interval: &str, arguments: &[&str]) -> Self {
        let mut process = backlogd()
            .args(["run", "--listen", "127.0.0.1:0", "--socket", ""])
            .args(["--sample-interval-seconds", interval, "--config", "/dev/null"])
            .args(arguments)
            .env("NO_COLOR", "1")
            .stderr(Stdio::piped())
            .spawn()
            .expect("the binary");
        let log = BufReader::new(process.stderr.take().expect("piped"));
        let listen = log.lines().map_while(Result::ok).find_map(|line| {
            let (_, after) = line.split_once("started listen=")?;
            after.split(' ').next()?.parse().ok()
        });
        Self { process, addr: listen.expect("it starts") }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.process.id()
    }

    /// What it answers to GET.
    pub(crate) fn get(&self, path: &str) -> String {
        let mut answer = String::new();
        let mut stream = TcpStream::connect(self.addr).expect("the daemon listens");
        write!(stream, "GET {path} HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
            .expect("sent");
        stream.read_to_string(&mut answer).expect("an answer");
        answer
    }
}

/// By SIGKILL.
impl Drop for Daemon {
    fn drop(&mut self) {
        // both fail only when it has ended already
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[test]
#[ignore = "kernel: needs root"]
fn what_the_kernel_counts_stands_in_metrics() {
    in_own_netns(|| {
        let daemon = Daemon::start(&[]);
        let server = NeverAccepts::listen("127.0.0.1:0", 5);
        let clients = Clients::connect(3, server.addr);
        drop(server.accept(1));
        let port = server.addr.port();
        let value = |text: &str, name: &str| {
            let series = format!("{name}{{");
            let of = |line: &&str| {
                line.starts_with(&series) && line.contains(&format!("port=\"{port}\""))
            };
            text.lines().find(of).and_then(|line| line.rsplit(' ').next().map(str::to_owned))
        };
        let expected = [
            ("backlogd_listener_established_total", "3"),
            ("backlogd_listener_accepted_total", "1"),
            ("backlogd_listener_accept_queue_length", "2"),
            ("backlogd_listener_accept_queue_length_max", "3"),
            ("backlogd_listener_accept_queue_limit", "5"),
            ("backlogd_listener_drops_total", "0"),
            ("backlogd_listener_syn_queue_length", "0"),
        ];
        wait_for("the numbers", || {
            let text = daemon.get("/metrics");
            expected.iter().all(|(name, number)| value(&text, name).as_deref() == Some(number))
        });
        assert!(daemon.get("/readyz").contains("established tracepoint state\n"));
        drop(clients);
    });
}
