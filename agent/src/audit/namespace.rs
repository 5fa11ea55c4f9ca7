//! Sysctls of a network namespace that decide what becomes of handshakes and of TIME_WAIT.

use std::net::IpAddr;

use super::{Finding, Host, of_namespace};
use crate::{
    detect::{overflows, phase::Severity},
    model::snapshot::{Listener, Namespace},
};

/// FIN_WAIT sockets from which `tcp_fin_timeout` matters.
const MANY_FIN_WAIT: u64 = 1_000;
/// The kernel's default of `tcp_fin_timeout`.
const FIN_TIMEOUT_SECONDS: i64 = 60;

pub(super) fn look(host: &Host<'_>, findings: &mut Vec<Finding>) {
    for namespace in &host.snapshot.namespaces {
        let at = At { host, namespace };
        findings.extend(at.cookies());
        findings.extend(at.abort_on_overflow());
        findings.extend(at.syn_backlog());
        findings.extend(at.tw_buckets());
        findings.extend(at.fin_timeout());
    }
}

/// One namespace.
struct At<'a> {
    host: &'a Host<'a>,
    namespace: &'a Namespace,
}

impl<'a> At<'a> {
    fn sysctl(&self, name: &str) -> Option<i64> {
        self.namespace.sysctls.get(name).copied()
    }

    fn listeners(&self) -> impl Iterator<Item = &'a Listener> {
        self.host.listeners(self.namespace.netns)
    }

    fn finding(
        &self,
        name: &'static str,
        severity: Severity,
        seen: String,
        why: String,
        set: &str,
    ) -> Finding {
        let netns = self.namespace.netns;
        let (subject, mend) = (of_namespace(netns), self.host.set(netns, set));
        Finding { name, severity, subject, seen, why, mend, restart: false }
    }

    /// The listeners that others than this machine can reach, the busiest first, in words.
    fn reachable(&self) -> Option<String> {
        let outside: Vec<&Listener> =
            self.listeners().filter(|listener| !is_loopback(listener.key.addr)).collect();
        let rate = |listener: &&&Listener| listener.rates.established.unwrap_or(-1.0);
        let busiest = outside.iter().max_by(|a, b| rate(a).total_cmp(&rate(b)))?;
        let name = self.host.listener(busiest).name;
        Some(match outside.len() {
            1 => name,
            n => format!("{n} listeners, {name} among them"),
        })
    }

    fn cookies(&self) -> Option<Finding> {
        let reachable = self.reachable()?;
        match self.sysctl("tcp_syncookies")? {
            0 => Some(self.finding(
                "SynCookiesOff",
                Severity::Warning,
                format!("tcp_syncookies = 0; not bound to loopback: {reachable}"),
                "A SYN queue that is full refuses everybody: some hundred forged SYNs are enough to shut \
                 out clients. With 1, cookies are sent when it is full, and only then."
                    .to_owned(),
                "net.ipv4.tcp_syncookies=1",
            )),
            2 => {
                let without = self.sysctl("tcp_timestamps") == Some(0);
                let cost = if without {
                    "Without timestamps (tcp_timestamps = 0), such connections have no window scaling \
                     and no SACK."
                } else {
                    "A last ACK that is lost or dropped is not asked for again."
                };
                Some(self.finding(
                    "SynCookiesAlways",
                    if without { Severity::Warning } else { Severity::Info },
                    format!("tcp_syncookies = 2; not bound to loopback: {reachable}"),
                    format!("Every SYN is answered with a cookie, not only under pressure. {cost}"),
                    "net.ipv4.tcp_syncookies=1",
                ))
            }
            _ => None,
        }
    }

    fn abort_on_overflow(&self) -> Option<Finding> {
        if self.sysctl("tcp_abort_on_overflow")? != 1 {
            return None;
        }
        let overflowed = self.listeners().filter(|it| 0 < overflows(it).unwrap_or(0));
        let worst = overflowed.max_by_key(|it| overflows(it).unwrap_or(0));
        let (severity, seen) = match worst {
            Some(worst) => {
                let (name, n) = (self.host.listener(worst).name, overflows(worst).unwrap_or(0));
                (Severity::Warning, format!("; {name}: {n} overflows since the agent watches"))
            }
            None => (Severity::Info, "; no overflow so far".to_owned()),
        };
        Some(self.finding(
            "AbortOnOverflow",
            severity,
            format!("tcp_abort_on_overflow = 1{seen}"),
            "Clients whose last ACK meets a full accept queue get a reset, where they would have come \
             through by a retry. SYNs are dropped as before."
                .to_owned(),
            "net.ipv4.tcp_abort_on_overflow=0",
        ))
    }

    /// `tcp_max_syn_backlog` is looked at only where no cookies are sent (`tcp_conn_request`,
    /// net/ipv4/tcp_input.c).
    fn syn_backlog(&self) -> Option<Finding> {
        let most = self.sysctl("tcp_max_syn_backlog")?;
        if self.sysctl("tcp_syncookies")? != 0 {
            return None;
        }
        let usable = u64::try_from(most - most / 4).ok()?;
        let limit =
            |it: &Listener| it.members.iter().map(|m| u64::from(m.limit)).max().unwrap_or(0);
        let larger = self.listeners().filter(|it| usable < limit(it)).max_by_key(|it| limit(it))?;
        let by = larger.counters.drops_by;
        let n = by.syn_queue_full.unwrap_or(0) + by.other.unwrap_or(0);
        let name = self.host.listener(larger).name;
        Some(self.finding(
            "SynBacklogBelowLimit",
            if 0 < n { Severity::Warning } else { Severity::Info },
            format!(
                "tcp_max_syn_backlog = {most} without cookies, of which {usable} are for new peers; limit \
                 {} of {name}, {n} SYNs of it dropped",
                limit(larger)
            ),
            "While no cookies are sent, SYNs of unknown peers are dropped when three quarters of \
             tcp_max_syn_backlog are taken, also where the listener would hold more."
                .to_owned(),
            "net.ipv4.tcp_syncookies=1",
        ))
    }

    fn tw_buckets(&self) -> Option<Finding> {
        let most = u64::try_from(self.sysctl("tcp_max_tw_buckets")?).ok()?;
        let now = self.namespace.sockstat.ok()?.time_wait;
        let share = now as f64 / most.max(1) as f64;
        let severity = match share {
            share if 0.9 <= share => Severity::Warning,
            share if 0.5 <= share => Severity::Info,
            _ => return None,
        };
        Some(self.finding(
            "TimeWaitLimit",
            severity,
            format!("{now} of {most} TIME_WAIT sockets (tcp_max_tw_buckets)"),
            "Beyond the limit a closed connection is forgotten at once: a late segment of it may reach the \
             next connection with the same addresses and ports, or reset it."
                .to_owned(),
            &format!("net.ipv4.tcp_max_tw_buckets={}", most.saturating_mul(2)),
        ))
    }

    fn fin_timeout(&self) -> Option<Finding> {
        let seconds = self.sysctl("tcp_fin_timeout")?;
        let table = &self.namespace.table.as_ref().ok()?.table;
        let waiting = table.states.get("fin_wait_2").copied().unwrap_or(0);
        if seconds <= FIN_TIMEOUT_SECONDS || waiting < MANY_FIN_WAIT {
            return None;
        }
        Some(self.finding(
            "LongFinTimeout",
            Severity::Info,
            format!("tcp_fin_timeout = {seconds} s; {waiting} sockets in FIN_WAIT_2"),
            "A connection that was closed here waits so long for its peer to close, too, and holds its \
             local port. This is not the time in TIME_WAIT, which is always 60 s."
                .to_owned(),
            "net.ipv4.tcp_fin_timeout=60",
        ))
    }
}

/// Whether nobody but this machine can connect there.
fn is_loopback(addr: IpAddr) -> bool {
    addr.to_canonical().is_loopback()
}
