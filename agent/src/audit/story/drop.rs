//! What was dropped, and what clients see of it.

use super::lately;
use crate::{
    detect::some,
    input::Known,
    model::snapshot::{DropsBy, Listener, Snapshot},
};

/// What a client sees of a SYN that met a full accept queue.
const SYN_REFUSED: &str = "refused since the accept queue was full: the client sends the SYN again after a second, \
    and again, and sees a slow connect or a timeout.";
/// The same of the ACK that ends the handshake.
const ACK_REFUSED: &str = "refused since the accept queue was full: the client believes that it is connected, and \
    gets no answer; it comes through when the handshake is repeated and there is room.";
const SYN_QUEUE_FULL: &str = "refused since the SYN queue was full and no cookies are sent: the client sends the SYN \
    again after a second, and again.";
const OTHER: &str =
    "for another reason: no memory, no route back, or a security module or program that refused.";

pub(super) fn drops(listener: &Listener, now: &Snapshot) -> Vec<String> {
    let counters = &listener.counters;
    let n = match counters.drops {
        Ok(0) => return vec!["Nothing has been dropped since the agent watches.".to_owned()],
        Ok(n) => n,
        Err(why) => return vec![format!("Whether anything is dropped is not known: {why}.")],
    };
    let drops = some(n, "listen drop", "listen drops");
    let rate = match listener.rates.drops {
        Ok(rate) if 0.0 < rate => format!(", {rate:.1}/s in the {}", lately(now)),
        Ok(_) => format!(", none in the {}", lately(now)),
        Err(_) => String::new(),
    };
    let mut lines = vec![format!(
        "{drops} since the agent watches{rate}. A drop is not a client: each retries several times."
    )];
    let by = &counters.drops_by;
    lines.extend(told(by));
    if let Ok(rest @ 1..) = by.unspecified {
        let overflows = overflows_among(rest, listener, now).unwrap_or(0);
        lines.push(unspecified(rest, n, overflows));
    }
    if let (Ok(1..), Ok(cookies @ 1..)) = (by.accept_queue_full_ack, counters.syncookies) {
        let cookies = some(cookies, "SYN was", "SYNs were");
        lines.push(format!(
            "{cookies} answered with a cookie. After a cookie the handshake is not repeated: such a refused ACK \
             is invisible to the client until it sends something."
        ));
    }
    lines
}

/// Those whose reason a hook tells.
fn told(by: &DropsBy) -> impl Iterator<Item = String> {
    let all: [(Known<u64>, [&str; 2], &str); 4] = [
        (by.accept_queue_full_syn, ["SYN", "SYNs"], SYN_REFUSED),
        (by.accept_queue_full_ack, ["last ACK", "last ACKs"], ACK_REFUSED),
        (by.syn_queue_full, ["SYN", "SYNs"], SYN_QUEUE_FULL),
        (by.other, ["drop", "drops"], OTHER),
    ];
    all.into_iter().filter_map(|(count, [one, many], what)| match count {
        Ok(0) | Err(_) => None,
        Ok(count) => Some(format!("{} {what}", some(count, one, many))),
    })
}

/// What is said of `rest` of `n` drops, whose reason no hook tells; so many of them were overflows, at least.
fn unspecified(rest: u64, n: u64, overflows: u64) -> String {
    let counts = "as the kernel's counters of the network namespace have it";
    let (whose, one) = if rest == n { ("All of them", "It") } else { ("The others", "The other") };
    if overflows == rest {
        let were = if rest == 1 {
            format!("{one} was an overflow")
        } else {
            format!("{whose} were overflows")
        };
        return format!("{were} of the accept queue, {counts}.");
    }
    let whose = if rest == n { "Their".to_owned() } else { format!("Of {rest} the") };
    match overflows {
        0 => format!("{whose} reason is not told here; most often the accept queue was full."),
        least => {
            let were = some(least, "was an overflow", "were overflows");
            format!(
                "{whose} reason is not told here; at least {were} of the accept queue, {counts}."
            )
        }
    }
}

/// Of `rest` drops of a listener, how many were overflows for sure: what its namespace counted beyond its
/// overflows may all be among them. The kernel counts each overflow as a drop, too (`tcp_conn_request`,
/// net/ipv4/tcp_input.c; `tcp_v4_syn_recv_sock`, net/ipv4/tcp_ipv4.c).
fn overflows_among(rest: u64, listener: &Listener, now: &Snapshot) -> Option<u64> {
    let namespace = now.namespaces.iter().find(|it| it.netns == listener.key.netns)?;
    let counters = namespace.netstat.as_ref().ok()?;
    let (drops, overflows) = (*counters.get("ListenDrops")?, *counters.get("ListenOverflows")?);
    let others = drops.saturating_sub(overflows);
    Some(rest.saturating_sub(others).min(overflows))
}
