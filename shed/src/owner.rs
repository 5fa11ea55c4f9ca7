//! Who has an address that is in use.
//!
//! In: sock_diag and /proc. Cost: a look at the descriptors of all processes that may be seen,
//! once, when there is an error to tell.

use std::{fmt, fs, io, net::SocketAddr};

use crate::diag;

/// A socket that is bound where ours was to be.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Owner {
    /// The inode of the socket, as in `socket:[INODE]` of /proc/PID/fd.
    pub inode: u32,
    /// Whose it is.
    pub uid: u32,
    /// A process that has it, and its name; `None`: none that may be seen.
    pub process: Option<(u32, String)>,
}

impl Owner {
    /// Who listens on `address`, or else on its port, in the network namespace of this thread;
    /// `None`: nobody that is seen, as one that is bound and does not listen.
    #[must_use]
    pub fn of_listener(address: SocketAddr) -> Option<Self> {
        of(address, diag::listeners)
    }
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "socket {} of uid {}", self.inode, self.uid)?;
        match &self.process {
            Some((pid, comm)) => write!(f, ", {comm}[{pid}]"),
            None => Ok(()),
        }
    }
}

/// Who has the port of `address`, of those whom `of_port` gives; first those on the address itself
/// or on all.
pub(crate) fn of(
    address: SocketAddr,
    of_port: impl FnOnce(u16) -> io::Result<Vec<diag::Row>>,
) -> Option<Owner> {
    let rows = of_port(address.port()).ok()?;
    let ip = match address {
        SocketAddr::V4(it) => it.ip().octets().to_vec(),
        SocketAddr::V6(it) => it.ip().octets().to_vec(),
    };
    // the source is after the two ports (`struct inet_diag_sockid`)
    let is_there = |row: &&diag::Row| {
        let source = &row.id[4..20];
        source.starts_with(&ip) || source == [0; 16]
    };
    let row = rows.iter().find(is_there).or(rows.first())?;
    Some(Owner { inode: row.inode, uid: row.uid, process: process_with(row.inode) })
}

fn process_with(inode: u32) -> Option<(u32, String)> {
    let wanted = format!("socket:[{inode}]");
    let mut pids = fs::read_dir("/proc")
        .ok()?
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok());
    let pid = pids.find(|pid| {
        let Ok(mut fds) = fs::read_dir(format!("/proc/{pid}/fd")) else { return false };
        fds.any(|fd| {
            let link = fd.and_then(|fd| fs::read_link(fd.path()));
            link.is_ok_and(|link| link.as_os_str() == &*wanted)
        })
    })?;
    let comm = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    Some((pid, comm.trim_end().to_owned()))
}
