//! Connections wait, and nobody accepts. Of a `SO_REUSEPORT` group each member has a queue of its own,
//! and one that is stuck takes its share of the clients.

use super::{
    At,
    cause::{self, Cause},
};
use crate::{
    detect::{
        command::raise_nofile,
        phase::{Severity, Timing},
        rule::{About, Evidence, Range, Rule, Sight, Threshold, seconds, wrong},
    },
    id::Pid,
    input::Known,
    model::snapshot::{Listener, Member, Snapshot},
    time::Nanos,
};

/// Members that are named.
const NAMED: usize = 3;

pub(super) const RULE: Rule<super::Listeners> = Rule {
    about: About {
        name: "ListenerStalled",
        summary: "Connections wait and nobody accepts them",
        why: "The kernel completes handshakes for the program: clients believe that they are connected, \
              and get no answer.",
        timing: Timing { raise_for: seconds(0), clear_for: seconds(5) },
        min_age: seconds(0),
        outlives: seconds(0),
        thresholds: &[
            Threshold {
                name: "critical_seconds",
                default: 60.0,
                range: Range::SECONDS,
                help: "Critical when nobody has accepted for so long, or at once where no descriptor is \
                       left for accept",
            },
            Threshold {
                name: "activation_seconds",
                default: 90.0,
                range: Range::SECONDS,
                help: "How long systemd may take to start the service of a socket that it alone holds",
            },
        ],
        inhibited_by: &["AcceptErrors"],
    },
    judge,
};

fn judge(look: &At<'_, '_>) -> Known<Sight> {
    let [critical, activation] = look.thresholds();
    if !look.it.stalled? {
        return Ok(Sight::Fine);
    }
    let waited = look.it.members.iter().filter_map(waiting).max().unwrap_or(Nanos(0)).as_seconds();
    if *look.it.owners == [Pid(1)] && waited < activation {
        return Ok(Sight::Between);
    }
    let found = cause(look.it, look.now).unwrap_or_else(|| {
        let mend = format!("backlogd explain {}", look.it.key.port);
        Cause { says: String::new(), mend, is_meant: false, is_hopeless: false, is_halted: false }
    });
    let Cause { says, mend, is_meant, is_hopeless, .. } = found;
    let severity = match (is_meant, is_hopeless || critical <= waited) {
        (true, _) => Severity::Info,
        (false, true) => Severity::Critical,
        (false, false) => Severity::Warning,
    };
    let stuck = look.it.members.iter().filter(|member| waiting(member).is_some());
    wrong(
        severity,
        Evidence {
            seen: seen(look, waited),
            cause: Some(says).filter(|says| !says.is_empty()),
            mend,
            values: vec![
                ("length", look.it.length as f64),
                ("waiting_seconds", waited),
                ("stalled_members", stuck.count() as f64),
                ("members", look.it.members.len() as f64),
            ],
        },
    )
}

/// What keeps those from accepting that should. `None`: nobody has looked at them.
pub(super) fn cause(listener: &Listener, now: &Snapshot) -> Option<Cause> {
    let suspects = suspects(listener);
    let found = cause::of(&now.threads, &suspects);
    match found {
        // who does nothing at all does not even fail
        Some(Cause { is_halted: true, .. }) => found,
        Some(_) | None => without_descriptors(now, &suspects).or(found),
    }
}

/// That accept cannot succeed: the descriptor is reserved before the queue is looked at (`do_accept`,
/// net/socket.c).
fn without_descriptors(now: &Snapshot, suspects: &[Pid]) -> Option<Cause> {
    suspects.iter().find_map(|&pid| {
        let process = &now.processes.get(&pid)?.now;
        let (open, max) = (process.open_fds.ok()?, process.max_fds.ok()?);
        (max <= open).then(|| Cause {
            says: format!("pid {pid} has no descriptor left for accept: {open} of {max} are open"),
            mend: format!("ls -l /proc/{pid}/fd; {}", raise_nofile(pid, max)),
            is_meant: false,
            is_halted: false,
            is_hopeless: true,
        })
    })
}

/// For how long a member has gone unserved, if it is stalled.
fn waiting(member: &Member) -> Option<Nanos> {
    (member.stalled == Ok(true)).then(|| member.waiting.unwrap_or(Nanos(0)))
}

fn seen(look: &At<'_, '_>, waited: f64) -> String {
    let members = &look.it.members;
    let stuck: Vec<(usize, &Member)> =
        (1..).zip(members).filter(|(_, member)| waiting(member).is_some()).collect();
    let sum = |of: fn(&Member) -> u32| stuck.iter().map(|(_, it)| u64::from(of(it))).sum::<u64>();
    let (length, limit) = (sum(|member| member.length), sum(|member| member.limit));
    let says = format!("{length} of {limit} places taken, nobody has accepted for {waited:.0} s");
    if let [only] = &**members {
        return format!("{}{says}", holder(look.it, only).map_or_else(String::new, |it| it + ": "));
    }
    let name = |&(number, member): &(usize, &Member)| {
        let holder = holder(look.it, member).map_or_else(String::new, |it| it + ", ");
        format!("{number} ({holder}inode {})", member.inode)
    };
    let names: Vec<String> = stuck.iter().take(NAMED).map(name).collect();
    let more = stuck.len().saturating_sub(NAMED);
    let more = if more == 0 { String::new() } else { format!(" and {more} more") };
    let others = members.len() - stuck.len();
    let is_served = look.it.since_accept.is_ok_and(|since| since.as_seconds() < waited);
    let others = match (others, is_served) {
        (0, _) => String::new(),
        (n, true) => format!("; the other {n} accept"),
        (n, false) => format!("; nothing waits too long at the other {n}"),
    };
    let word = if stuck.len() == 1 { "member" } else { "members" };
    format!("{word} {}{more} of {}: {says}{others}", names.join(", "), members.len())
}

/// Who holds a member, where that is one process and no other member's holder.
fn holder(listener: &Listener, member: &Member) -> Option<String> {
    let pid = member.pid?;
    let members = listener.members.iter().filter(|other| other.pid == member.pid).count();
    let is_alone = members == 1 && (1 < listener.members.len() || listener.owners.len() == 1);
    is_alone.then(|| format!("pid {pid}"))
}

/// Processes that should accept: those that hold the stuck members, without systemd where it handed
/// its socket on.
fn suspects(listener: &Listener) -> Vec<Pid> {
    let stuck = || listener.members.iter().filter(|member| waiting(member).is_some());
    let mut pids: Vec<Pid> = if stuck().all(|member| holder(listener, member).is_some()) {
        stuck().filter_map(|member| member.pid).collect()
    } else {
        listener.owners.to_vec()
    };
    if 1 < pids.len() {
        pids.retain(|pid| *pid != Pid(1));
    }
    pids
}
