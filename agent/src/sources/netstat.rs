//! What the kernel counted for one network namespace: overflows, listen drops, cookies, opens.
//!
//! In: `/proc/net/netstat` and `snmp` (`netstat_seq_show`, `snmp_seq_show`, net/ipv4/proc.c), and
//! `snmp6` (`snmp6_seq_show`, net/ipv6/proc.c).
//! Out: the fields of `TCP_EXT` and `TCP` that this kernel has, and `RcvbufErrors` of UDP. Cost:
//! 52 µs for `netstat` and `snmp`, 12 µs for `snmp` alone, nearly all in the kernel, which sums over
//! CPUs and prints; more where they are opened and closed ([`read`]), and 30 µs for `snmp6`
//! ([`udp6_errors`]; Linux 6.18 on two virtual cores).
//! Not here: differences (model).

use std::{borrow::Cow, collections::BTreeMap, fs::File, io, os::unix::fs::FileExt, path::Path};

/// Table `TcpExt` of `/proc/net/netstat`, sorted.
const TCP_EXT: [&str; 17] = [
    "EmbryonicRsts",
    "ListenDrops",
    "ListenOverflows",
    "SyncookiesFailed",
    "SyncookiesRecv",
    "SyncookiesSent",
    "TCPAbortOnMemory",
    "TCPDeferAcceptDrop",
    "TCPFastOpenListenOverflow",
    "TCPFastOpenPassive",
    "TCPFastOpenPassiveFail",
    "TCPMemoryPressures",
    "TCPMigrateReqFailure",
    "TCPMigrateReqSuccess",
    "TCPReqQFullDoCookies",
    "TCPReqQFullDrop",
    "TCPTimeWaitOverflow",
];
/// Table `Tcp` of `/proc/net/snmp`, sorted.
const TCP: [&str; 6] =
    ["ActiveOpens", "AttemptFails", "EstabResets", "InErrs", "OutRsts", "PassiveOpens"];

/// `CurrEstab` of the same table is no counter.
const ESTABLISHED: [&str; 1] = ["CurrEstab"];
/// Table `Udp`; its fields have the names of other tables' fields.
const UDP: [&str; 1] = ["RcvbufErrors"];
/// `Udp: RcvbufErrors` as it is published.
const UDP_RCVBUF_ERRORS: &str = "UdpRcvbufErrors";
/// The same of IPv6, as the kernel names it in `snmp6`.
const UDP6_RCVBUF_ERRORS: &str = "Udp6RcvbufErrors";

/// The files of the namespace in which the thread is.
pub(super) const NET: &str = "/proc/thread-self/net";
const NETSTAT: &str = "net/netstat";
const SNMP: &str = "net/snmp";
const SNMP6: &str = "net/snmp6";

/// The files of the network namespace in which they were opened, wherever the thread goes
/// (`single_open_net`, fs/proc/proc_net.c).
#[derive(Debug)]
pub struct Netstat {
    netstat: File,
    snmp: File,
    buffer: Vec<u8>,
}

/// Counters by the kernel's name of the field.
pub type Fields = BTreeMap<&'static str, u64>;

/// Why there are no counters.
#[derive(Debug, thiserror::Error)]
pub enum NetstatError {
    /// The file cannot be opened or read.
    #[error("cannot read {file}")]
    Read {
        /// Below `/proc/thread-self`.
        file: &'static str,
        /// Why.
        source: io::Error,
    },
    /// A line of names has another number of words than the line of values below it.
    #[error("{file} line {line}: names and values do not pair off")]
    Unpaired {
        /// Below `/proc/thread-self`.
        file: &'static str,
        /// Of the names, from 1.
        line: usize,
    },
    /// A value is no number.
    #[error("{file} line {line}: {name} is {got:?}, expected a whole number")]
    NotANumber {
        /// Below `/proc/thread-self`.
        file: &'static str,
        /// Of the values, from 1.
        line: usize,
        /// The field.
        name: &'static str,
        /// Its value.
        got: String,
    },
}

impl Netstat {
    /// For the calling thread's network namespace. Needs no privilege.
    ///
    /// # Errors
    /// When `/proc` is not mounted, or hides `net`.
    pub fn open() -> Result<Self, NetstatError> {
        let open = |file| {
            File::open(format!("/proc/thread-self/{file}"))
                .map_err(|source| NetstatError::Read { file, source })
        };
        Ok(Self { netstat: open(NETSTAT)?, snmp: open(SNMP)?, buffer: vec![0; 16 * 1024] })
    }

    /// Adds the `TcpExt` fields that are published.
    ///
    /// # Errors
    /// When `netstat` cannot be read, or is malformed.
    pub fn netstat(&mut self, fields: &mut Fields) -> Result<(), NetstatError> {
        let text = whole(&self.netstat, NETSTAT, &mut self.buffer)?;
        parse(NETSTAT, &text, "TcpExt", &TCP_EXT, |name, n| _ = fields.insert(name, n))
    }

    /// Adds the `Tcp` and `Udp` fields that are published, `PassiveOpens` among them: what the eBPF
    /// programs' count is checked against. Returns `CurrEstab`, see [`Counts::established`].
    ///
    /// # Errors
    /// When `snmp` cannot be read, or is malformed.
    pub fn snmp(&mut self, fields: &mut Fields) -> Result<Option<u64>, NetstatError> {
        let text = whole(&self.snmp, SNMP, &mut self.buffer)?;
        parse_snmp(&text, fields)
    }
}

/// What the files of one namespace say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// The fields that are published.
    pub fields: Fields,
    /// `CurrEstab`: connections in ESTABLISHED now. Kernels with the mend of 2024, 6.18 among them,
    /// count those in CLOSE_WAIT, too (`tcp_set_state`, net/ipv4/tcp.c).
    pub established: Option<u64>,
}

/// Reads `netstat` and `snmp` in `dir`: `/proc/thread-self/net` or `/proc/PID/net`. Keeps nothing open:
/// an open file there keeps its namespace alive.
///
/// # Errors
/// When a file cannot be read, or is malformed.
pub fn read(dir: &Path) -> Result<Counts, NetstatError> {
    let mut buffer = vec![0; 16 * 1024];
    let mut counts = Counts::default();
    let fields = &mut counts.fields;
    let netstat = open(dir, NETSTAT)?;
    let text = whole(&netstat, NETSTAT, &mut buffer)?;
    parse(NETSTAT, &text, "TcpExt", &TCP_EXT, |name, n| _ = fields.insert(name, n))?;
    let snmp = open(dir, SNMP)?;
    counts.established = parse_snmp(&whole(&snmp, SNMP, &mut buffer)?, fields)?;
    Ok(counts)
}

/// Reads `Udp6RcvbufErrors` in `dir`, as [`read`] does; nothing on a kernel without IPv6.
///
/// # Errors
/// When `snmp6` is there and cannot be read, or is malformed.
pub fn udp6_errors(dir: &Path) -> Result<Fields, NetstatError> {
    let mut fields = Fields::new();
    match open(dir, SNMP6) {
        Ok(snmp6) => parse_snmp6(&whole(&snmp6, SNMP6, &mut vec![0; 16 * 1024])?, &mut fields)?,
        Err(NetstatError::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    Ok(fields)
}

fn open(dir: &Path, file: &'static str) -> Result<File, NetstatError> {
    let name = Path::new(file).file_name().unwrap_or_default();
    File::open(dir.join(name)).map_err(|source| NetstatError::Read { file, source })
}

/// Adds what is published of `snmp`, and returns `CurrEstab`.
fn parse_snmp(text: &str, fields: &mut Fields) -> Result<Option<u64>, NetstatError> {
    let mut established = None;
    parse(SNMP, text, "Tcp", &TCP, |name, n| _ = fields.insert(name, n))?;
    parse(SNMP, text, "Tcp", &ESTABLISHED, |_, n| established = Some(n))?;
    parse(SNMP, text, "Udp", &UDP, |_, n| _ = fields.insert(UDP_RCVBUF_ERRORS, n))?;
    Ok(established)
}

/// Adds what is published of `snmp6`: on each line a name and a value.
fn parse_snmp6(text: &str, fields: &mut Fields) -> Result<(), NetstatError> {
    for (text, line) in text.lines().zip(1..) {
        let mut words = text.split_whitespace();
        if words.next() == Some(UDP6_RCVBUF_ERRORS) {
            let value = words.next().unwrap_or_default();
            if let Some(n) = number(SNMP6, line, UDP6_RCVBUF_ERRORS, value)? {
                fields.insert(UDP6_RCVBUF_ERRORS, n);
            }
        }
    }
    Ok(())
}

fn whole<'a>(
    from: &File,
    file: &'static str,
    buffer: &'a mut Vec<u8>,
) -> Result<Cow<'a, str>, NetstatError> {
    text(from, buffer).map_err(|source| NetstatError::Read { file, source })
}

/// The text of a file below `/proc`; `buffer` is not empty. Each read from its start has the kernel
/// write it anew (`seq_read_iter`, fs/seq_file.c).
pub(super) fn text<'a>(from: &File, buffer: &'a mut Vec<u8>) -> io::Result<Cow<'a, str>> {
    let mut end = 0;
    loop {
        if end == buffer.len() {
            buffer.resize(2 * end, 0);
        }
        match from.read_at(&mut buffer[end..], end as u64) {
            Ok(0) => return Ok(String::from_utf8_lossy(&buffer[..end])),
            Ok(n) => end += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// Pairs of lines, names above values; the first word of both is the table's name and a colon.
/// Gives `found` the values of `fields`, which is sorted, but not those below 0.
fn parse(
    file: &'static str,
    text: &str,
    table: &str,
    fields: &[&'static str],
    mut found: impl FnMut(&'static str, u64),
) -> Result<(), NetstatError> {
    let mut lines = text.lines().zip(1..);
    while let Some((names, line)) = lines.next() {
        let values = lines.next().map_or("", |(values, _)| values);
        if names.split(' ').next().and_then(|word| word.strip_suffix(':')) != Some(table) {
            continue;
        }
        let (mut names, mut values) = (names.split(' '), values.split(' '));
        loop {
            match (names.next(), values.next()) {
                (None, None) => break,
                (Some(name), Some(value)) => {
                    if let Ok(at) = fields.binary_search(&name)
                        && let Some(n) = number(file, line + 1, fields[at], value)?
                    {
                        found(fields[at], n);
                    }
                }
                _ => return Err(NetstatError::Unpaired { file, line }),
            }
        }
    }
    Ok(())
}

/// `None` below 0: some fields are printed signed.
fn number(
    file: &'static str,
    line: usize,
    name: &'static str,
    value: &str,
) -> Result<Option<u64>, NetstatError> {
    match value.parse::<u64>() {
        Ok(n) => Ok(Some(n)),
        Err(_) if value.parse::<i64>().is_ok() => Ok(None),
        Err(_) => Err(NetstatError::NotANumber { file, line, name, got: value.into() }),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn fields(
        file: &'static str,
        text: &str,
        table: &str,
        fields: &[&'static str],
    ) -> Result<BTreeMap<&'static str, u64>, NetstatError> {
        let mut found = BTreeMap::new();
        parse(file, text, table, fields, |name, n| _ = found.insert(name, n))?;
        Ok(found)
    }

    #[track_caller]
    fn check(text: &str, expected: Result<&[(&'static str, u64)], &str>) {
        let got = fields(NETSTAT, text, "T", &["A", "B"]).map_err(|error| error.to_string());
        let expected = expected.map(|pairs| pairs.iter().copied().collect());
        assert_eq!(got, expected.map_err(Into::into), "{text:?}");
    }

    #[test]
    fn parses_or_names_the_line() {
        check("T: A B\nT: 3 4\n", Ok(&[("A", 3), ("B", 4)]));
        check("T: A B C\nT: 3 -1 x\n", Ok(&[("A", 3)]));
        check("U: A\nU: 1 2\nT: B\nT: 18446744073709551615\n", Ok(&[("B", u64::MAX)]));
        check("", Ok(&[]));
        check("T: A B\nT: 3\n", Err("net/netstat line 1: names and values do not pair off"));
        check("T: A", Err("net/netstat line 1: names and values do not pair off"));
        check(
            "U:\nU:\nT: A\nT: x\n",
            Err("net/netstat line 4: A is \"x\", expected a whole number"),
        );
    }

    #[test]
    fn reads_the_files_of_a_6_18_kernel() {
        let netstat = include_str!("../../tests/fixtures/proc/net/netstat");
        let tcp_ext = fields(NETSTAT, netstat, "TcpExt", &TCP_EXT).unwrap();
        assert_eq!(tcp_ext.keys().copied().collect::<Vec<_>>(), TCP_EXT);
        assert_eq!((tcp_ext["ListenOverflows"], tcp_ext["ListenDrops"]), (14, 14));
        let snmp = include_str!("../../tests/fixtures/proc/net/snmp");
        let tcp = fields(SNMP, snmp, "Tcp", &TCP).unwrap();
        assert_eq!(tcp.keys().copied().collect::<Vec<_>>(), TCP);
        assert_eq!((tcp["ActiveOpens"], tcp["PassiveOpens"]), (20, 6));
    }

    #[test]
    fn the_tables_are_sorted() {
        assert!(TCP_EXT.is_sorted() && TCP.is_sorted());
    }

    #[test]
    fn snmp_has_a_gauge_and_fields_of_udp_beside_those_of_tcp() {
        let mut found = Fields::new();
        let snmp = include_str!("../../tests/fixtures/proc/net/snmp");
        assert_eq!(parse_snmp(snmp, &mut found).unwrap(), Some(12));
        assert_eq!((found["UdpRcvbufErrors"], found["PassiveOpens"]), (0, 6));
        assert!(!found.contains_key("CurrEstab"));
    }

    #[test]
    fn snmp6_has_a_name_and_a_value_on_each_line() {
        #[track_caller]
        fn check(text: &str, expected: Result<&[(&'static str, u64)], &str>) {
            let mut found = Fields::new();
            let got = parse_snmp6(text, &mut found).map(|()| found);
            let expected = expected.map(|pairs| pairs.iter().copied().collect());
            assert_eq!(got.map_err(|error| error.to_string()), expected.map_err(Into::into));
        }
        check("Ip6InReceives  \t1\nUdp6RcvbufErrors  \t7\n", Ok(&[("Udp6RcvbufErrors", 7)]));
        check("UdpLite6RcvbufErrors 7\n", Ok(&[]));
        check("", Ok(&[]));
        check(
            "\nUdp6RcvbufErrors",
            Err("net/snmp6 line 2: Udp6RcvbufErrors is \"\", expected a whole number"),
        );
    }

    #[test]
    fn one_read_finds_what_open_files_find() {
        let counts = read(Path::new(NET)).unwrap();
        let (mut netstat, mut fields) = (Netstat::open().unwrap(), Fields::new());
        netstat.netstat(&mut fields).unwrap();
        assert!(netstat.snmp(&mut fields).unwrap().is_some() && counts.established.is_some());
        assert!(counts.fields.keys().eq(fields.keys()), "{counts:?}");
        let errors = udp6_errors(Path::new(NET)).unwrap();
        assert!(errors.keys().all(|name| *name == UDP6_RCVBUF_ERRORS), "{errors:?}");
        assert_eq!(Fields::new(), udp6_errors(Path::new("/nonexistent")).unwrap());
        let error = read(Path::new("/nonexistent")).unwrap_err();
        assert_eq!(error.to_string(), "cannot read net/netstat");
    }

    #[test]
    fn an_open_file_shows_what_has_happened_since() {
        let mut netstat = Netstat::open().unwrap();
        let (mut before, mut after) = (Fields::new(), Fields::new());
        netstat.snmp(&mut before).unwrap();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let _client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let _accepted = listener.accept().unwrap();
        netstat.snmp(&mut after).unwrap();
        assert!(before["PassiveOpens"] < after["PassiveOpens"], "{before:?} {after:?}");
        netstat.netstat(&mut after).unwrap();
        assert!(after.contains_key("ListenDrops"));
    }

    #[test]
    fn a_buffer_that_is_too_small_grows() {
        let mut netstat = Netstat::open().unwrap();
        let (mut expected, mut got) = (Fields::new(), Fields::new());
        netstat.netstat(&mut expected).unwrap();
        netstat.buffer = vec![0; 7];
        netstat.netstat(&mut got).unwrap();
        assert!(expected.keys().eq(got.keys()));
    }

    proptest! {
        #[test]
        fn random_text_never_panics(text in "(T: |A |B |C|-?[0-9]{0,21}|\\n|\\PC){0,40}") {
            if let Ok(found) = fields(NETSTAT, &text, "T", &["A", "B"]) {
                prop_assert!(found.len() <= 2);
            }
            _ = parse_snmp(&text.replace('T', "Udp").replace('A', "RcvbufErrors"), &mut Fields::new());
            _ = parse_snmp6(&text.replace('T', UDP6_RCVBUF_ERRORS), &mut Fields::new());
        }

        #[test]
        fn values_come_out_as_they_went_in(a in any::<u64>(), b in any::<u64>(), other in any::<i64>()) {
            let text = format!("T: C A B\nT: {other} {a} {b}\n");
            prop_assert_eq!(
                fields(NETSTAT, &text, "T", &["A", "B"]).unwrap(),
                BTreeMap::from([("A", a), ("B", b)])
            );
        }
    }
}
