//! What was dropped, and what clients see of it.

use super::{lately, some};
use crate::{
    input::Known,
    model::snapshot::{Listener, Snapshot},
};

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
    let told: [(Known<u64>, [&str; 2], &str); 4] = [
        (
            by.accept_queue_full_syn,
            ["SYN", "SYNs"],
            "refused since the accept queue was full: the client sends the SYN again after a second, and again, and \
             sees a slow connect or a timeout.",
        ),
        (
            by.accept_queue_full_ack,
            ["last ACK", "last ACKs"],
            "refused since the accept queue was full: the client believes that it is connected, \
             and gets no answer; it comes through when the handshake is repeated and there is room.",
        ),
        (
            by.syn_queue_full,
            ["SYN", "SYNs"],
            "refused since the SYN queue was full and no cookies are sent: the client sends the SYN \
             again after a second, and again.",
        ),
        (
            by.other,
            ["drop", "drops"],
            "for another reason: no memory, no route back, or a security module or program that refused.",
        ),
    ];
    lines.extend(told.into_iter().filter_map(|(count, [one, many], what)| match count {
        Ok(0) | Err(_) => None,
        Ok(count) => Some(format!("{} {what}", some(count, one, many))),
    }));
    match by.unspecified {
        Ok(0) | Err(_) => {}
        Ok(rest) => {
            let whose = if rest == n { "Their".to_owned() } else { format!("Of {rest} the") };
            lines.push(format!(
                "{whose} reason is not told here; most often the accept queue was full."
            ));
        }
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
