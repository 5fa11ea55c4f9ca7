//! Where accept-queue limits come from, how programs call their backlog argument of listen(2), and how
//! much of it is wanted.

use super::{
    command::{RESTART, raise_somaxconn},
    shell::noted,
};
use crate::model::snapshot::{Listener, Snapshot};

/// A backlog argument that is enough for most: less is never proposed.
const ENOUGH: u64 = 1024;

/// By the exact name of the program.
const SETTINGS: [(&str, &str); 19] = [
    ("apache2", "`ListenBacklog`, 511 by default"),
    ("envoy", "`tcp_backlog_size` of the listener"),
    ("gunicorn", "`--backlog`, 2048 by default"),
    ("haproxy", "`backlog`, by default the frontend's `maxconn`"),
    ("httpd", "`ListenBacklog`, 511 by default"),
    ("mariadbd", "`back_log`"),
    ("memcached", "`-b`, 1024 by default"),
    ("mysqld", "`back_log`"),
    ("nginx", "`backlog=` of `listen`, 511 by default"),
    ("node", "`backlog` of `server.listen()`, 511 by default"),
    ("node-MainThread", "`backlog` of `server.listen()`, 511 by default"),
    ("nodejs", "`backlog` of `server.listen()`, 511 by default"),
    ("php-fpm", "`listen.backlog`, 511 by default"),
    ("redis-server", "`tcp-backlog`, 511 by default"),
    ("systemd", "`Backlog=` of the socket unit"),
    ("uvicorn", "`--backlog`, 2048 by default"),
    ("uwsgi", "`--listen`, 100 by default"),
    ("uwsgi-core", "`--listen`, 100 by default"),
    ("valkey-server", "`tcp-backlog`, 511 by default"),
];

/// Where the limit of a listening socket comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// It is somaxconn: the program asked for as much or more.
    Somaxconn,
    /// It is less: the program asked for no more, or somaxconn was as low when it did.
    Argument,
    /// It is more: somaxconn has been lowered since.
    Lowered,
}

impl Origin {
    /// Of a limit where somaxconn is as it is now.
    #[must_use]
    pub fn of(limit: u32, somaxconn: i64) -> Self {
        match i64::from(limit).cmp(&somaxconn) {
            std::cmp::Ordering::Less => Self::Argument,
            std::cmp::Ordering::Equal => Self::Somaxconn,
            std::cmp::Ordering::Greater => Self::Lowered,
        }
    }
}

/// A limit that would have held the largest burst, and at least twice the one there is. Before Linux 5.5 it
/// has 16 bits (`sk_max_ack_backlog`); where it has more, that is no bound.
#[must_use]
pub fn wanted(limit: u32, burst: u64, members: usize) -> u64 {
    const NARROW: u64 = u16::MAX as u64;
    const MOST: u64 = i32::MAX as u64;
    let (limit, members) = (u64::from(limit), members.max(1) as u64);
    let most = if limit < NARROW { NARROW } else { MOST.max(limit) };
    (limit + burst / members).max(2 * limit).max(ENOUGH).next_power_of_two().min(most)
}

/// As a whole number, not less.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a count or its rate: positive, and rounding is meant"
)]
pub(super) fn whole(n: f64) -> u64 {
    n.ceil() as u64
}

/// What raises a limit: a command, which is empty where none does, and what there is to do besides.
pub struct Raise {
    /// Raises somaxconn.
    pub command: String,
    /// The program's part.
    pub note: String,
}

impl Raise {
    /// Of a listener with this limit to `wanted`; `somaxconn`: of its namespace, where that is known.
    #[must_use]
    pub fn new(
        now: &Snapshot,
        listener: &Listener,
        limit: u32,
        somaxconn: Option<i64>,
        wanted: u64,
    ) -> Self {
        let setting = setting(listener.comm.as_deref());
        let raised = || raise_somaxconn(now, listener, wanted);
        let Some(somaxconn) = somaxconn else {
            let note =
                format!("raise net.core.somaxconn and {setting}, to at least {wanted}, {RESTART}");
            return Self { command: String::new(), note };
        };
        match Origin::of(limit, somaxconn) {
            Origin::Somaxconn => Self { command: raised(), note: RESTART.to_owned() },
            Origin::Argument | Origin::Lowered => {
                let is_cut = u64::try_from(somaxconn).is_ok_and(|somaxconn| somaxconn < wanted);
                Self {
                    command: if is_cut { raised() } else { String::new() },
                    note: format!("raise {setting}, to {wanted}, {RESTART}"),
                }
            }
        }
    }

    /// As a line for a shell.
    #[must_use]
    pub fn mend(&self) -> String {
        noted(&self.command, &self.note)
    }
}

/// What sets the backlog of a program, by the name of its task.
#[must_use]
pub fn setting(comm: Option<&str>) -> &'static str {
    let comm = comm.unwrap_or_default();
    let find =
        |name: &str| SETTINGS.iter().find(|(it, _)| *it == name).map(|(_, setting)| *setting);
    // `nginx: worker`, as a process may call itself
    let title = comm.split_once(':').map_or(comm, |(name, _)| name);
    // `php-fpm8.2`, as Debian calls the binary
    let bare = title.trim_end_matches(|c: char| c.is_ascii_digit() || c == '.');
    find(title).or_else(|| find(bare)).unwrap_or("the backlog argument of listen(2) in the program")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(comm: &str, expected: &str) {
        assert!(setting(Some(comm)).starts_with(expected), "{comm}: {}", setting(Some(comm)));
    }

    #[test]
    fn no_limit_is_ever_lowered() {
        assert_eq!(1024, wanted(1, 0, 1));
        assert_eq!(1024, wanted(128, 600, 1));
        assert_eq!(2048, wanted(1024, 600, 4));
        assert_eq!(8192, wanted(128, 5_000, 1));
        assert_eq!(65_535, wanted(60_000, 0, 1));
        for limit in [0, 1, 65_534, 65_535, 65_536, 100_000, 1 << 30, i32::MAX as u32, u32::MAX] {
            assert!(u64::from(limit) <= wanted(limit, 1, 1), "{limit}");
        }
    }

    #[test]
    fn a_program_is_known_by_its_whole_name() {
        check("nginx", "`backlog=` of `listen`");
        check("nginx: worker", "`backlog=` of `listen`");
        check("php-fpm8.2", "`listen.backlog`");
        check("apache2", "`ListenBacklog`");
        check("redis-server", "`tcp-backlog`");
        check("systemd", "`Backlog=`");
        for other in [
            "node_exporter",
            "systemd-resolve",
            "systemd-journal",
            "redis-sentinel",
            "nginx-ui",
            "python3",
            "",
        ] {
            check(other, "the backlog argument of listen(2)");
        }
        check("gunicorn: maste", "`--backlog`");
    }
}
