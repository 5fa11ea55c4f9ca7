//! TCP sockets and TCP's memory, as totals.
//!
//! In: `/proc/net/sockstat` and `sockstat6` of one network namespace (`sockstat_seq_show`,
//! net/ipv4/proc.c; `sockstat6_seq_show`, net/ipv6/proc.c), and `tcp_mem`. Out: [`Sockstat`],
//! [`TcpMemoryLimits`]. `inuse` (`sock_prot_inuse_get`) and `tw` (`net->ipv4.tcp_death_row`) are the
//! namespace's; `orphan`, `alloc` and `mem` are one number for the whole host, whoever asks. Cost:
//! 18 µs for both files.

use std::{
    fs::{self, File},
    io,
    path::Path,
};

use super::netstat::text;
use crate::input::{Absent, Known, Sockstat, TcpMemoryLimits};

const SOCKSTAT: &str = "sockstat";
const SOCKSTAT6: &str = "sockstat6";
const TCP_MEM: &str = "/proc/sys/net/ipv4/tcp_mem";

/// Why there are no totals.
#[derive(Debug, thiserror::Error)]
pub enum SockstatError {
    /// The file cannot be opened or read.
    #[error("cannot read {file}")]
    Read {
        /// Its name.
        file: &'static str,
        /// Why.
        source: io::Error,
    },
    /// A number is missing.
    #[error("{file}: no {name} of {protocol}")]
    Missing {
        /// Its name.
        file: &'static str,
        /// `TCP` or `TCP6`.
        protocol: &'static str,
        /// `inuse`, `tw`, …
        name: &'static str,
    },
    /// A value is no number.
    #[error("{file}: {name} of {protocol} is {got:?}, expected a whole number")]
    NotANumber {
        /// Its name.
        file: &'static str,
        /// `TCP` or `TCP6`.
        protocol: &'static str,
        /// `inuse`, `tw`, …
        name: &'static str,
        /// Its value.
        got: String,
    },
}

/// Reads both files in `dir`: `/proc/thread-self/net` or `/proc/PID/net`. Keeps nothing open.
///
/// # Errors
/// When `sockstat` cannot be read, or a file is malformed. A kernel without IPv6 has no `sockstat6`.
pub fn read(dir: &Path) -> Result<Sockstat, SockstatError> {
    let read = |file| {
        let mut buffer = vec![0; 512];
        let text =
            File::open(dir.join(file)).and_then(|from| Ok(text(&from, &mut buffer)?.into_owned()));
        text.map_err(|source| SockstatError::Read { file, source })
    };
    let sockstat = read(SOCKSTAT)?;
    match read(SOCKSTAT6) {
        Ok(sockstat6) => parse(&sockstat, &sockstat6),
        Err(SockstatError::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
            parse(&sockstat, "")
        }
        Err(error) => Err(error),
    }
}

/// The texts of both files; that of the second is empty without IPv6.
///
/// # Errors
/// When a number is missing, or none.
pub fn parse(sockstat: &str, sockstat6: &str) -> Result<Sockstat, SockstatError> {
    let tcp = |name| number(SOCKSTAT, sockstat, "TCP", name);
    let tcp6_inuse = match sockstat6 {
        "" => Err(Absent::NotOnThisKernel),
        text => Ok(number(SOCKSTAT6, text, "TCP6", "inuse")?),
    };
    Ok(Sockstat {
        tcp_inuse: tcp("inuse")?,
        tcp6_inuse,
        time_wait: tcp("tw")?,
        orphans: tcp("orphan")?,
        tcp_memory_pages: tcp("mem")?,
    })
}

/// `PROTOCOL: NAME VALUE NAME VALUE …`
fn number(
    file: &'static str,
    text: &str,
    protocol: &'static str,
    name: &'static str,
) -> Result<u64, SockstatError> {
    let missing = || SockstatError::Missing { file, protocol, name };
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(protocol)?.strip_prefix(':'))
        .ok_or_else(missing)?;
    let mut words = line.split_whitespace();
    while let (Some(found), Some(value)) = (words.next(), words.next()) {
        if found == name {
            let wrong =
                |_| SockstatError::NotANumber { file, protocol, name, got: value.to_owned() };
            return value.parse().map_err(wrong);
        }
    }
    Err(missing())
}

/// How much memory TCP may use, of the whole host. The file shows in the host's own network
/// namespace alone (`ipv4_table`, net/ipv4/sysctl_net_ipv4.c).
///
/// # Errors
/// [`Absent::NotOnThisKernel`] in another namespace.
pub fn limits() -> Known<TcpMemoryLimits> {
    let text = fs::read_to_string(TCP_MEM).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => Absent::NotOnThisKernel,
        io::ErrorKind::PermissionDenied => Absent::NotPermitted,
        _ => Absent::Unreadable,
    })?;
    parse_limits(&text, page_bytes()).ok_or(Absent::Unreadable)
}

/// What a page holds: [`Sockstat::tcp_memory_pages`] counts in these.
#[must_use]
pub fn page_bytes() -> u64 {
    procfs::page_size()
}

/// Three numbers of pages.
fn parse_limits(text: &str, page_bytes: u64) -> Option<TcpMemoryLimits> {
    let pages: Result<Vec<u64>, _> = text.split_whitespace().map(str::parse).collect();
    let [low, pressure, high] = pages.ok()?.try_into().ok()?;
    Some(TcpMemoryLimits {
        low_bytes: page_bytes.saturating_mul(low),
        pressure_bytes: page_bytes.saturating_mul(pressure),
        high_bytes: page_bytes.saturating_mul(high),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{super::netstat::NET, *};

    const FOUR: &str =
        "sockets: used 16\nTCP: inuse 2 orphan 3 tw 4 alloc 5 mem 6\nUDP: inuse 1 mem 0\n";

    #[track_caller]
    fn check(sockstat: &str, sockstat6: &str, expected: Result<Sockstat, &str>) {
        let got = parse(sockstat, sockstat6).map_err(|error| error.to_string());
        assert_eq!(got, expected.map_err(Into::into), "{sockstat:?} {sockstat6:?}");
    }

    #[test]
    fn finds_numbers_by_name_or_says_which_is_missing() {
        let found = Sockstat {
            tcp_inuse: 2,
            tcp6_inuse: Ok(7),
            time_wait: 4,
            orphans: 3,
            tcp_memory_pages: 6,
        };
        check(FOUR, "TCP6: inuse 7\nUDP6: inuse 8\n", Ok(found));
        let without = Sockstat { tcp6_inuse: Err(Absent::NotOnThisKernel), ..found };
        check(FOUR, "", Ok(without));
        check("TCP: new 1 mem 6 tw 4 orphan 3 inuse 2", "", Ok(without));
        check("", "", Err("sockstat: no inuse of TCP"));
        check("TCP: inuse 2 tw", "", Err("sockstat: no tw of TCP"));
        check(FOUR, "UDP6: inuse 1\n", Err("sockstat6: no inuse of TCP6"));
        check(
            "TCP: inuse -1",
            "",
            Err("sockstat: inuse of TCP is \"-1\", expected a whole number"),
        );
    }

    #[test]
    fn limits_are_bytes_and_three() {
        let limits = TcpMemoryLimits { low_bytes: 4096, pressure_bytes: 8192, high_bytes: 12288 };
        assert_eq!(parse_limits("1\t2\t3\n", 4096), Some(limits));
        for text in ["", "1 2", "1 2 3 4", "1 2 x"] {
            assert_eq!(parse_limits(text, 4096), None, "{text:?}");
        }
    }

    #[test]
    fn reads_this_kernels() {
        let _listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let sockstat = read(Path::new(NET)).unwrap();
        assert!(0 < sockstat.tcp_inuse, "{sockstat:?}");
        let error = read(Path::new("/nonexistent")).unwrap_err();
        assert_eq!(error.to_string(), "cannot read sockstat");
        match limits() {
            Ok(limits) => assert!(limits.low_bytes < limits.high_bytes, "{limits:?}"),
            Err(absent) => assert_eq!(absent, Absent::NotOnThisKernel),
        }
        assert!(page_bytes().is_power_of_two());
    }

    proptest! {
        #[test]
        fn random_text_never_panics(text in "(TCP: |TCP6: |inuse |tw |mem |-?[0-9]{0,21}|\\n|\\PC){0,40}") {
            _ = parse(&text, &text);
            _ = parse_limits(&text, u64::MAX);
        }
    }
}
