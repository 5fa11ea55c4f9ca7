//! Accept-queue limits of listeners: capped by somaxconn, small by the program's own argument, or 1.
//!
//! The limit is min(backlog argument, somaxconn) at the time of listen(2) (`__sys_listen`, net/socket.c), and
//! stays until the program calls that again.

use super::{Finding, Host};
use crate::{
    detect::{
        MIN_ACCEPTS, SLOW_ACCEPT,
        backlog::{self, Origin, Raise},
        command::SOMAXCONN,
        overflows,
        phase::Severity,
    },
    id::NetnsId,
    model::snapshot::Listener,
};

/// Below, a program's own backlog argument is small.
const SMALL: u32 = 128;
/// From so many handshakes a second on, a limit matters.
const BUSY_PER_SECOND: f64 = 10.0;
/// A queue that has been so full is near its limit.
const NEAR: f64 = 0.8;

pub(super) fn look(host: &Host<'_>, findings: &mut Vec<Finding>) {
    for listener in &host.snapshot.listeners {
        let Some(limit) = listener.members.iter().map(|member| member.limit).min() else {
            continue;
        };
        let somaxconn = host
            .namespace(listener.key.netns)
            .and_then(|namespace| namespace.sysctls.get("somaxconn").copied());
        let origin = somaxconn.map(|somaxconn| Origin::of(limit, somaxconn));
        findings.extend(match (limit, origin) {
            (0 | 1, _) => Some(tiny(host, listener, limit)),
            (_, Some(Origin::Somaxconn)) => capped(host, listener, limit),
            (_, Some(Origin::Argument)) => {
                small(host, listener, limit, "the program asked for no more")
            }
            (_, Some(Origin::Lowered)) => {
                small(host, listener, limit, "somaxconn has been lowered since")
            }
            (_, None) => small(host, listener, limit, "somaxconn is not known"),
        });
    }
}

/// What shows that the limit matters, in words, and how much it does; `None`: it does not.
fn pressure(listener: &Listener) -> Option<(Severity, String)> {
    let n = overflows(listener).unwrap_or(0);
    let rate = listener.rates.established.unwrap_or(0.0);
    let peak = listener.length_max.unwrap_or(0).max(listener.length);
    let is_near = NEAR * listener.limit as f64 <= peak as f64;
    if n == 0 && rate <= BUSY_PER_SECOND && !is_near {
        return None;
    }
    let overflows = told(n);
    let seen =
        format!("up to {peak} waited, {overflows} since the agent watches, {rate:.0} handshakes/s");
    Some(if 0 < n && is_short_of_room(listener) {
        (Severity::Warning, seen)
    } else {
        (Severity::Info, seen)
    })
}

/// Whether the queue is too short, and the program not too slow, as far as is known.
fn is_short_of_room(listener: &Listener) -> bool {
    let wait = longest_wait(listener);
    listener.stalled != Ok(true) && wait.is_none_or(|wait| wait < SLOW_ACCEPT.as_seconds())
}

/// Seconds that 99 % waited no longer than for accept; `None`: not known, or of too few to say.
fn longest_wait(listener: &Listener) -> Option<f64> {
    let waits = listener.accept_wait.as_ref().ok()?;
    waits.quantile(0.99).filter(|_| MIN_ACCEPTS <= waits.count())
}

/// How many overflows, in words.
fn told(n: u64) -> String {
    if n == 1 { "1 overflow".to_owned() } else { format!("{n} overflows") }
}

fn why(listener: &Listener) -> String {
    let what = "What comes while the queue is full is dropped, and the client retries after a second, and again.";
    match longest_wait(listener) {
        _ if listener.stalled == Ok(true) => {
            "Nobody accepts at present: a longer queue only lets more clients wait.".to_owned()
        }
        Some(wait) if SLOW_ACCEPT.as_seconds() <= wait => format!(
            "{what} But 1 % wait longer than {wait:.1} s for accept: a longer queue turns drops into waiting."
        ),
        Some(wait) => format!(
            "{what} 99 % are accepted within {wait:.3} s, so the program keeps up and bursts need the room."
        ),
        None => what.to_owned(),
    }
}

fn capped(host: &Host<'_>, listener: &Listener, limit: u32) -> Option<Finding> {
    // a limit from the kernel's default on is nobody's fault
    if SOMAXCONN <= u64::from(limit) {
        return None;
    }
    let (severity, seen) = pressure(listener)?;
    let netns = listener.key.netns;
    Some(Finding {
        name: "LimitCappedBySomaxconn",
        severity,
        subject: host.listener(listener),
        seen: format!(
            "limit {limit} is net.core.somaxconn{}; {seen}",
            elsewhere(host, netns, i64::from(limit))
        ),
        why: why(listener),
        mend: raise(host, listener, limit),
        restart: true,
    })
}

/// That the host itself has more, where it has: somaxconn belongs to a network namespace.
fn elsewhere(host: &Host<'_>, netns: NetnsId, here: i64) -> String {
    let first = host.first().filter(|first| first.netns != netns);
    match first.and_then(|first| first.sysctls.get("somaxconn")) {
        Some(&there) if here < there => {
            format!(" of its network namespace (the host itself has {there})")
        }
        Some(_) | None => String::new(),
    }
}

fn small(host: &Host<'_>, listener: &Listener, limit: u32, origin: &str) -> Option<Finding> {
    if SMALL <= limit {
        return None;
    }
    let (severity, seen) = pressure(listener)?;
    Some(Finding {
        name: "SmallBacklog",
        severity,
        subject: host.listener(listener),
        seen: format!("limit {limit}: {origin}; {seen}"),
        why: why(listener),
        mend: raise(host, listener, limit),
        restart: true,
    })
}

/// What raises the limit, to what the alerts about the listener say where there are any.
fn raise(host: &Host<'_>, listener: &Listener, limit: u32) -> String {
    let somaxconn = host.namespace(listener.key.netns).and_then(|it| it.sysctls.get("somaxconn"));
    let told = host.verdicts.limit_wanted(listener.key);
    let wanted = told.unwrap_or_else(|| backlog::wanted(limit, 0, listener.members.len()));
    Raise::new(host.snapshot, listener, limit, somaxconn.copied(), wanted).mend()
}

fn tiny(host: &Host<'_>, listener: &Listener, limit: u32) -> Finding {
    let n = overflows(listener).unwrap_or(0);
    let overflows = told(n);
    let has_room = u64::from(limit) + 1;
    Finding {
        name: "TinyBacklog",
        severity: if 0 < n { Severity::Warning } else { Severity::Info },
        subject: host.listener(listener),
        seen: format!("limit {limit}; {overflows} since the agent watches"),
        why: format!(
            "No more than {has_room} can wait for accept: of clients that come at once, the others are \
             dropped, and retry after a second, and again."
        ),
        mend: raise(host, listener, limit),
        restart: true,
    }
}
