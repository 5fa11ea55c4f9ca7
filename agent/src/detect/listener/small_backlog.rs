//! Bursts overflow the accept queue again and again though accept is fast: the limit is too small. It
//! is the lower of the program's backlog argument and `net.core.somaxconn` of its namespace, latched at
//! listen(2) (`__sys_listen_socket`, net/socket.c).

use super::{At, OVERFLOWS};
use crate::{
    detect::{
        command::set_sysctl,
        history::History,
        phase::{Severity, Timing},
        rule::{About, COUNTERS, Evidence, Range, Rule, Sight, Threshold, minutes, seconds, wrong},
    },
    input::{Absent, Known},
};

pub(super) const RULE: Rule<super::Listeners> = Rule {
    about: About {
        name: "ListenBacklogTooSmall",
        summary: "Bursts overflow the accept queue although accept is fast",
        why: "Each burst costs some clients a second or more, and nothing is wrong but a number.",
        timing: Timing { raise_for: seconds(0), clear_for: minutes(10) },
        min_age: seconds(0),
        outlives: seconds(0),
        thresholds: &[
            Threshold {
                name: "drops",
                default: 10.0,
                range: Range::COUNT,
                help: "Overflows in two hours",
            },
            Threshold {
                name: "spans",
                default: 3.0,
                range: Range::Of(1.0, 24.0),
                help: "Spans of five minutes, of these two hours, in which it overflowed",
            },
        ],
        inhibited_by: &["ListenerStalled", "AcceptErrors", "SlowAccept"],
    },
    judge,
};

/// How programs call their backlog argument, by the beginning of their names.
const SETTINGS: [(&str, &str); 12] = [
    ("nginx", "`backlog=` of `listen`, 511 by default"),
    ("node", "`backlog` of `server.listen()`, 511 by default"),
    ("apache2", "`ListenBacklog`, 511 by default"),
    ("httpd", "`ListenBacklog`, 511 by default"),
    ("haproxy", "`backlog`, by default the frontend's `maxconn`"),
    ("redis", "`tcp-backlog`, 511 by default"),
    ("php-fpm", "`listen.backlog`, 511 by default"),
    ("gunicorn", "`--backlog`, 2048 by default"),
    ("uwsgi", "`--listen`, 100 by default"),
    ("mysqld", "`back_log`"),
    ("memcached", "`-b`, 1024 by default"),
    ("systemd", "`Backlog=` of the socket unit"),
];

/// How large a burst was.
#[derive(Default)]
pub(super) struct Bursts {
    /// The most overflows from one look to the next.
    largest: u64,
}

impl Bursts {
    /// Takes in how far the counters moved.
    pub(super) fn see(&mut self, history: &History<COUNTERS>) {
        let Ok(step) = history.step() else { return };
        if 0 < step.by[OVERFLOWS] {
            // clients try again after a second: more are the same ones
            let overflows = step.by[OVERFLOWS] as f64 / step.over.as_seconds().max(1.0);
            self.largest = self.largest.max(whole(overflows));
        }
    }
}

/// Why the limit is what it is.
pub(super) struct Reason {
    /// In words.
    pub(super) cause: String,
    /// What raises it.
    pub(super) mend: String,
}

/// Why the limit is what it is, and what raises it to what the bursts need.
pub(super) fn reason(look: &At<'_, '_>) -> Reason {
    let limit = look.it.members.first().map_or(0, |member| u64::from(member.limit));
    let wanted = wanted(limit, look.memory.bursts.largest, look.it.members.len() as u64);
    let restart = "restart the program: the limit is latched at listen(2)";
    let somaxconn = super::sysctl(look, "somaxconn").ok().and_then(|it| u64::try_from(it).ok());
    match somaxconn {
        Some(somaxconn) if somaxconn <= limit => Reason {
            cause: format!("the limit of {limit} is capped by net.core.somaxconn = {somaxconn}"),
            mend: format!("{}; then {restart}", raise_somaxconn(look, wanted)),
        },
        Some(somaxconn) => {
            let comm = look.it.comm.as_deref().unwrap_or_default();
            let setting = SETTINGS.iter().find(|(name, _)| comm.starts_with(name));
            let setting = setting.map_or("its argument of listen(2)", |(_, setting)| setting);
            let also = if somaxconn < wanted {
                format!("{}; ", raise_somaxconn(look, wanted))
            } else {
                String::new()
            };
            Reason {
                cause: format!(
                    "the limit of {limit} is the program's own: net.core.somaxconn = {somaxconn} \
                     allows more"
                ),
                mend: format!("{also}raise {setting}, to {wanted}; then {restart}"),
            }
        }
        None => Reason {
            cause: format!("the limit is {limit}"),
            mend: format!(
                "raise net.core.somaxconn and {comm}'s backlog to {wanted}; then {restart}",
                comm = look.it.comm.as_deref().unwrap_or("the program")
            ),
        },
    }
}

/// A limit that would have held the largest burst, and at least twice the one there is.
fn wanted(limit: u64, burst: u64, members: u64) -> u64 {
    (limit + burst / members.max(1)).max(2 * limit).max(16).next_power_of_two().min(65_535)
}

/// The sysctl belongs to the network namespace.
fn raise_somaxconn(look: &At<'_, '_>, wanted: u64) -> String {
    if look.it.workload.pod.is_some() {
        return format!("set net.core.somaxconn to {wanted} in the pod's securityContext.sysctls");
    }
    set_sysctl(look.now, look.it.key.netns, &format!("net.core.somaxconn={wanted}"))
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a rate of a counter: positive, and rounding is meant"
)]
fn whole(n: f64) -> u64 {
    n.ceil() as u64
}

fn judge(look: &At<'_, '_>) -> Known<Sight> {
    let [drops, least_spans] = look.thresholds();
    look.it.accept_wait.as_ref().map_err(|absent| *absent)?;
    if super::overflows(look.it)? == 0 {
        return Ok(Sight::Fine);
    }
    let n = look.within(minutes(115)).by[OVERFLOWS];
    if n == 0 || look.it.members.is_empty() {
        return Ok(Sight::Fine);
    }
    let (spans, of) = look.history.spans(OVERFLOWS);
    if (n as f64) < drops || (spans as f64) < least_spans {
        return Ok(Sight::Between);
    }
    if !look.memory.waits.is_fast().ok_or(Absent::TooEarly)? {
        return Ok(Sight::Fine);
    }
    let Reason { cause, mend } = reason(look);
    wrong(
        Severity::Warning,
        Evidence {
            seen: format!(
                "{n} overflows in {spans} of the last {of} spans of five minutes; accept is fast"
            ),
            cause: Some(cause),
            mend,
            values: vec![
                ("overflows", n as f64),
                ("spans", spans as f64),
                ("limit", look.it.limit as f64),
            ],
        },
    )
}
