//! The sysctls that explain a limit.
//!
//! In: files below `/proc/sys/net`, which show the calling thread's network namespace
//! (`net_ctl_header_lookup`, net/sysctl_net.c). Out: values by short name. Cost: 50 µs.
//! Not here: when to read them; they change rarely.

use std::{collections::BTreeMap, fs, ops::RangeInclusive, sync::Arc};

/// Files below `/proc/sys/net`, and the names of the numbers in them.
const FILES: [(&str, &[&str]); 11] = [
    ("core/somaxconn", &["somaxconn"]),
    ("ipv4/ip_local_port_range", &["ip_local_port_range_low", "ip_local_port_range_high"]),
    ("ipv4/tcp_abort_on_overflow", &["tcp_abort_on_overflow"]),
    ("ipv4/tcp_fastopen", &["tcp_fastopen"]),
    ("ipv4/tcp_fin_timeout", &["tcp_fin_timeout"]),
    ("ipv4/tcp_max_syn_backlog", &["tcp_max_syn_backlog"]),
    ("ipv4/tcp_max_tw_buckets", &["tcp_max_tw_buckets"]),
    ("ipv4/tcp_migrate_req", &["tcp_migrate_req"]),
    ("ipv4/tcp_syncookies", &["tcp_syncookies"]),
    ("ipv4/tcp_timestamps", &["tcp_timestamps"]),
    ("ipv4/tcp_tw_reuse", &["tcp_tw_reuse"]),
];

/// Their values. One that this kernel does not have, or that cannot be read, is left out.
#[must_use]
pub fn read() -> BTreeMap<&'static str, i64> {
    let mut values = BTreeMap::new();
    for (file, names) in FILES {
        if let Ok(text) = fs::read_to_string(format!("/proc/sys/net/{file}")) {
            values.extend(parse(&text, names));
        }
    }
    values
}

/// Local ports that connect(2) does not choose: `ip_local_reserved_ports`; none where that cannot be
/// read.
#[must_use]
pub fn reserved_ports() -> Arc<[RangeInclusive<u16>]> {
    let text = fs::read_to_string("/proc/sys/net/ipv4/ip_local_reserved_ports");
    text.ok().and_then(|text| parse_ports(&text)).unwrap_or_default()
}

/// A list such as `8080,9148-9150` (`proc_do_large_bitmap`, kernel/sysctl.c), in order and without
/// overlaps.
fn parse_ports(text: &str) -> Option<Arc<[RangeInclusive<u16>]>> {
    let spans = text.trim().split(',').filter(|span| !span.is_empty());
    spans
        .map(|span| {
            let (first, last) = span.split_once('-').unwrap_or((span, span));
            Some(first.parse().ok()?..=last.parse().ok()?)
        })
        .collect()
}

/// As many numbers as `names`, or nothing.
fn parse<'a>(text: &str, names: &[&'a str]) -> Vec<(&'a str, i64)> {
    let numbers: Result<Vec<i64>, _> = text.split_whitespace().map(str::parse).collect();
    match numbers {
        Ok(numbers) if numbers.len() == names.len() => names.iter().copied().zip(numbers).collect(),
        Ok(_) | Err(_) => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn takes_as_many_numbers_as_there_are_names() {
        #[track_caller]
        fn check(text: &str, names: &[&str], expected: &[(&str, i64)]) {
            assert_eq!(parse(text, names), expected, "{text:?}");
        }
        check("4096\n", &["a"], &[("a", 4096)]);
        check("-1\n", &["a"], &[("a", -1)]);
        check("32768\t60999\n", &["low", "high"], &[("low", 32768), ("high", 60999)]);
        check("32768\n", &["low", "high"], &[]);
        check("1 2\n", &["a"], &[]);
        check("x\n", &["a"], &[]);
        check("", &["a"], &[]);
    }

    #[test]
    fn reserved_ports_are_a_list_of_ports_and_spans() {
        #[track_caller]
        fn check(text: &str, expected: Option<&[RangeInclusive<u16>]>) {
            assert_eq!(parse_ports(text).as_deref(), expected, "{text:?}");
        }
        check("\n", Some(&[]));
        check("1000,1500-1509\n", Some(&[1000..=1000, 1500..=1509]));
        check("1000-x\n", None);
        check("70000\n", None);
    }

    #[test]
    fn reads_this_kernels() {
        let values = read();
        assert!(0 < values["somaxconn"] && 0 < values["tcp_max_syn_backlog"], "{values:?}");
        assert!(values["ip_local_port_range_low"] < values["ip_local_port_range_high"]);
    }

    proptest! {
        #[test]
        fn random_text_never_panics(text in "\\PC*") {
            prop_assert!(parse(&text, &["a", "b"]).len() <= 2);
        }
    }
}
