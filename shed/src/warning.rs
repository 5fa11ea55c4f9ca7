//! What the kernel grants, or is set to, that is less than a listener needs: it works, and will not
//! under load.
//!
//! In: the accept queue's limit as TCP_INFO has it, and three files of /proc/sys, once at build.
//! Out: [`Warning`]s; a file that cannot be read warns of nothing. Not here: what keeps a listener
//! from being built, [`BuildError`](crate::BuildError).

use std::{fmt, fs, str::FromStr};

use socket2::Socket;

use crate::sys;

/// Something that is set to less than a listener needs.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Warning {
    /// The accept queue is shorter than was asked for.
    Backlog {
        /// Connections that were asked for.
        asked: u32,
        /// Connections that the kernel granted.
        granted: u32,
        /// net.core.somaxconn of this network namespace, where it could be read.
        somaxconn: Option<u32>,
    },
    /// net.ipv4.tcp_syncookies is 0, and as many handshakes that nobody finishes as the accept
    /// queue has places keep everybody else out (`tcp_conn_request`, net/ipv4/tcp_input.c). Not
    /// told of a queue of 4,096 or more.
    SynCookies {
        /// The limit of the accept queue, in connections.
        granted: u32,
    },
    /// The host may have no file left before the listeners of this process have what they may take.
    FileMax {
        /// fs.file-max: open files of all processes.
        file_max: u64,
        /// Descriptors that the listeners of this process may take together.
        claimed: u64,
    },
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Backlog { asked, granted, somaxconn: Some(somaxconn) } => write!(
                f,
                "backlog is {asked}, granted {granted}: net.core.somaxconn is {somaxconn}; \
                 sysctl -w net.core.somaxconn={asked}, and listen again"
            ),
            Self::Backlog { asked, granted, somaxconn: None } => {
                write!(f, "backlog is {asked}, granted {granted}")
            }
            Self::SynCookies { granted } => write!(
                f,
                "net.ipv4.tcp_syncookies is 0: {granted} handshakes that nobody finishes keep \
                 everybody else out; sysctl -w net.ipv4.tcp_syncookies=1"
            ),
            Self::FileMax { file_max, claimed } => {
                let least = claimed.saturating_mul(2);
                write!(
                    f,
                    "fs.file-max is {file_max} for all processes, expected at least {least}: \
                     listeners of this one may take {claimed}; sysctl -w fs.file-max={least}"
                )
            }
        }
    }
}

/// What is looked at; `None`: it could not be read.
#[derive(Clone, Copy, Debug)]
struct Seen {
    asked: Option<u32>,
    granted: Option<u32>,
    somaxconn: Option<u32>,
    syncookies: Option<u32>,
    file_max: Option<u64>,
    claimed: u64,
}

/// An accept queue below this is small: net.core.somaxconn as it comes since Linux 5.4 (SOMAXCONN,
/// include/linux/socket.h).
const SMALL: u32 = 4_096;

/// What to warn of where `socket` was to have a queue of `asked`, or of any length, and listeners
/// of this process claim as many descriptors.
pub(crate) fn read(socket: &Socket, asked: Option<u16>, claimed: usize) -> Vec<Warning> {
    find(Seen {
        asked: asked.map(u32::from),
        granted: sys::queue(socket).ok().map(|(_, limit)| limit),
        somaxconn: sysctl("net/core/somaxconn"),
        syncookies: sysctl("net/ipv4/tcp_syncookies"),
        file_max: sysctl("fs/file-max"),
        claimed: claimed as u64,
    })
}

fn sysctl<T: FromStr>(name: &str) -> Option<T> {
    fs::read_to_string(format!("/proc/sys/{name}")).ok()?.trim_end().parse().ok()
}

fn find(seen: Seen) -> Vec<Warning> {
    let Seen { asked, granted, somaxconn, syncookies, file_max, claimed } = seen;
    let backlog = asked.zip(granted).filter(|(asked, granted)| granted < asked);
    let backlog = backlog.map(|(asked, granted)| Warning::Backlog { asked, granted, somaxconn });
    let granted = granted.filter(|&it| it < SMALL && syncookies == Some(0));
    let cookies = granted.map(|granted| Warning::SynCookies { granted });
    let file_max = file_max.filter(|&it| it < claimed.saturating_mul(2));
    let file_max = file_max.map(|file_max| Warning::FileMax { file_max, claimed });
    [backlog, cookies, file_max].into_iter().flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const FINE: Seen = Seen {
        asked: Some(4_096),
        granted: Some(4_096),
        somaxconn: Some(4_096),
        syncookies: Some(1),
        file_max: Some(25_000),
        claimed: 12_500,
    };

    #[track_caller]
    fn check(seen: Seen, expected: &[&str]) {
        let got: Vec<_> = find(seen).iter().map(ToString::to_string).collect();
        assert_eq!(got, expected, "{seen:?}");
    }

    #[test]
    fn warns_of_a_queue_that_is_shorter_than_asked() {
        check(FINE, &[]);
        check(Seen { asked: None, granted: Some(128), somaxconn: Some(128), ..FINE }, &[]);
        let low = "backlog is 10000, granted 4096: net.core.somaxconn is 4096; \
                   sysctl -w net.core.somaxconn=10000, and listen again";
        check(Seen { asked: Some(10_000), ..FINE }, &[low]);
        let unread = Seen { somaxconn: None, granted: Some(128), ..FINE };
        check(unread, &["backlog is 4096, granted 128"]);
        // longer than asked is as good
        check(Seen { asked: Some(500), ..FINE }, &[]);
    }

    #[test]
    fn warns_of_a_small_queue_without_cookies() {
        check(Seen { syncookies: Some(0), ..FINE }, &[]);
        let seen = Seen { asked: Some(10), granted: Some(10), syncookies: Some(0), ..FINE };
        let none = "net.ipv4.tcp_syncookies is 0: 10 handshakes that nobody finishes keep \
                    everybody else out; sysctl -w net.ipv4.tcp_syncookies=1";
        check(seen, &[none]);
        check(Seen { syncookies: Some(2), ..seen }, &[]);
        // unsaid, and short since somaxconn is
        check(Seen { asked: None, ..seen }, &[none]);
    }

    #[test]
    fn warns_of_less_than_twice_as_many_files() {
        let few = "fs.file-max is 24999 for all processes, expected at least 25000: listeners of \
                   this one may take 12500; sysctl -w fs.file-max=25000";
        check(Seen { file_max: Some(24_999), ..FINE }, &[few]);
        check(Seen { file_max: Some(i64::MAX as u64), claimed: u64::MAX / 4, ..FINE }, &[]);
    }

    #[test]
    fn what_cannot_be_read_warns_of_nothing() {
        let unread =
            Seen { granted: None, somaxconn: None, syncookies: None, file_max: None, ..FINE };
        check(unread, &[]);
        check(Seen { asked: Some(10_000), ..unread }, &[]);
    }

    #[test]
    fn the_files_are_there() {
        assert!(sysctl::<u32>("net/core/somaxconn").is_some_and(|it| 0 < it));
        assert!(sysctl::<u32>("net/ipv4/tcp_syncookies").is_some_and(|it| it <= 2));
        assert!(sysctl::<u64>("fs/file-max").is_some_and(|it| 0 < it));
        assert_eq!(sysctl::<u64>("fs/no-such-file"), None);
    }
}
