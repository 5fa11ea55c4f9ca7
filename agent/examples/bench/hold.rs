//! Processes that hold sockets until the bench ends them: 20,000 descriptors are the limit of one.

use std::{
    io::{self, Read as _},
    net::{IpAddr, TcpListener, TcpStream},
};

use anyhow::Result;

use crate::child::Running;

/// Pairs of sockets that one process holds at most.
pub(crate) const PAIRS: usize = 9_000;
/// First port of the listeners.
const FIRST_PORT: usize = 11_000;

/// Holds `pairs` established connections, both ends, to `addr`, an address for these alone: each
/// has the ephemeral ports to itself. Nobody listens any more then.
pub(crate) fn connections(addr: IpAddr, pairs: usize) -> Result<()> {
    let listener = TcpListener::bind((addr, 7_000))?;
    let mut held = Vec::with_capacity(pairs);
    for _ in 0..pairs {
        held.push((TcpStream::connect((addr, 7_000))?, listener.accept()?.0));
    }
    drop(listener);
    wait()
}

/// Holds `n` listeners of 127.0.0.1.
pub(crate) fn listeners(first_port: u16, n: u16) -> Result<()> {
    let ports = first_port..first_port + n;
    let held: io::Result<Vec<_>> =
        ports.map(|port| TcpListener::bind(("127.0.0.1", port))).collect();
    let _held = held?;
    wait()
}

/// Until the bench closes the pipe, also by its death.
fn wait() -> Result<()> {
    println!("ready");
    io::stdin().read_to_end(&mut Vec::new())?;
    Ok(())
}

/// Processes that hold `n_pairs` connections together. `group` keeps the addresses of two calls
/// apart.
pub(crate) fn hold(group: u8, n_pairs: usize) -> Result<Vec<Running>> {
    let full = std::iter::repeat_n(PAIRS, n_pairs / PAIRS);
    let sizes = full.chain([n_pairs % PAIRS]).filter(|&pairs| 0 < pairs);
    let start = |(host, pairs): (usize, usize)| {
        Running::part(&["hold", &format!("127.9.{group}.{host}"), &pairs.to_string()])
    };
    (1..).zip(sizes).map(start).collect()
}

/// `n_listeners` listeners in `n_processes` processes.
pub(crate) fn listen(n_listeners: usize, n_processes: usize) -> Result<Vec<Running>> {
    let each = n_listeners / n_processes;
    let start = |process: usize| {
        let port = (FIRST_PORT + process * each).to_string();
        Running::part(&["listen", &port, &each.to_string()])
    };
    (0..n_processes).map(start).collect()
}
