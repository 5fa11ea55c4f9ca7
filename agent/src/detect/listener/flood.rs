//! Many SYNs that nobody means to complete: they are answered with cookies, or where none are sent they
//! fill the SYN queue. A crowd of clients completes what it begins, or overflows the accept queue.

use super::{At, COOKIES, ESTABLISHED, OVERFLOWS, SYN_QUEUE_DROPS, SYNS};
use crate::{
    detect::{
        command::set_sysctl,
        phase::{Severity, Timing},
        rule::{About, Evidence, Range, Rule, Sight, Threshold, minutes, seconds, wrong},
    },
    input::Known,
};

/// Accept-queue overflows above this share of the SYNs are a crowd of clients.
const CROWD: f64 = 0.1;
/// It goes on until the rate is below this share of what raises it.
const CLEAR: f64 = 0.5;

pub(super) const RULE: Rule<super::Listeners> = Rule {
    about: About {
        name: "SynFlood",
        summary: "Many SYNs come and few handshakes complete",
        why: "With cookies clients are still served, without them hardly any is; either way somebody \
              spends this host's time.",
        timing: Timing { raise_for: seconds(30), clear_for: minutes(2) },
        min_age: seconds(0),
        outlives: seconds(0),
        thresholds: &[
            Threshold {
                name: "per_second",
                default: 10.0,
                range: Range::Of(0.1, f64::INFINITY),
                help: "Cookies, or drops for want of room in the SYN queue, in a second",
            },
            Threshold {
                name: "completed_share",
                default: 0.5,
                range: Range::SHARE,
                help: "Share of the SYNs whose handshakes complete",
            },
        ],
        inhibited_by: &[],
    },
    judge,
};

fn judge(look: &At<'_, '_>) -> Known<Sight> {
    let [per_second, completed_share] = look.thresholds();
    let counters = &look.it.counters;
    counters.syns.and(counters.established)?;
    let has_cookies = super::sysctl(look, "tcp_syncookies")? != 0;
    let (by, count) = if has_cookies {
        (COOKIES, counters.syncookies?)
    } else {
        (SYN_QUEUE_DROPS, super::syn_queue_drops(look.it)?)
    };
    if count == 0 {
        return Ok(Sight::Fine);
    }
    let window = look.within(seconds(30));
    let (rate, syns) = (window.per_second(by), window.by[SYNS] as f64);
    if rate <= CLEAR * per_second {
        return Ok(Sight::Fine);
    }
    let completed = window.by[ESTABLISHED] as f64 / syns.max(1.0);
    let is_crowd = completed_share <= completed || CROWD * syns <= window.by[OVERFLOWS] as f64;
    if rate <= per_second || is_crowd {
        return Ok(Sight::Between);
    }
    let (syns, established) = (window.per_second(SYNS), window.per_second(ESTABLISHED));
    wrong(Severity::Warning, evidence(look, has_cookies, [syns, rate, established]))
}

/// What is told of so many SYNs, cookies or drops, and handshakes each second.
fn evidence(look: &At<'_, '_>, has_cookies: bool, each_second: [f64; 3]) -> Evidence {
    let [syns, rate, established] = each_second;
    let (done, cause, value, mend) = if has_cookies {
        (
            "answered with a cookie",
            "tcp_syncookies is on: clients are still served",
            "cookies_per_second",
            super::ss(look, "-tan state syn-recv"),
        )
    } else {
        (
            "dropped for want of room",
            "tcp_syncookies = 0: clients are refused with the rest",
            "drops_per_second",
            set_sysctl(look.now, look.it.key.netns, "net.ipv4.tcp_syncookies=1"),
        )
    };
    let seen = format!(
        "{syns:.0} SYNs/s, {rate:.0}/s of them {done}, and {established:.0} handshakes/s complete"
    );
    let values =
        vec![("syns_per_second", syns), (value, rate), ("established_per_second", established)];
    Evidence { seen, cause: Some(cause.to_owned()), mend, values }
}
