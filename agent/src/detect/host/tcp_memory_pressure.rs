//! TCP's buffers hold so much memory that the kernel saves (`tcp_enter_memory_pressure`,
//! `tcp_check_oom`, net/ipv4/tcp.c).

use super::At;
use crate::{
    detect::{
        phase::{Severity, Timing},
        rule::{About, Evidence, Range, Rule, Sight, Threshold, minutes, seconds, wrong},
    },
    input::Known,
};

pub(super) const RULE: Rule<super::Host> = Rule {
    about: About {
        name: "TcpMemoryPressure",
        summary: "TCP has hardly memory left",
        why: "The kernel shrinks windows and throws away what came out of order; at the limit it ends \
              connections.",
        timing: Timing { raise_for: minutes(2), clear_for: minutes(2) },
        min_age: seconds(0),
        outlives: seconds(0),
        thresholds: &[Threshold {
            name: "critical_ratio",
            default: 0.95,
            range: Range::SHARE,
            help: "Critical from this share of the upper limit on",
        }],
        inhibited_by: &[],
    },
    judge,
};

fn judge(look: &At<'_, '_>) -> Known<Sight> {
    let [critical] = look.thresholds();
    let (bytes, limits) = (look.it.tcp_memory_bytes?, look.it.tcp_memory_limits?);
    if bytes <= limits.pressure_bytes {
        // the kernel goes on saving down to the lower limit
        return Ok(if bytes <= limits.low_bytes { Sight::Fine } else { Sight::Between });
    }
    let aborts = look.memory.aborts.growth_within(minutes(5)).by[0];
    let ratio = bytes as f64 / limits.high_bytes.max(1) as f64;
    let is_critical = critical < ratio || 0 < aborts;
    let mut seen = format!(
        "{bytes} bytes in TCP's buffers; the kernel saves from {} on and gives none beyond {}",
        limits.pressure_bytes, limits.high_bytes
    );
    if 0 < aborts {
        seen.push_str(&format!("; {aborts} connections ended for want of it in 5 min"));
    }
    wrong(
        if is_critical { Severity::Critical } else { Severity::Warning },
        Evidence {
            seen,
            cause: None,
            mend: "ss -tmn; sysctl net.ipv4.tcp_mem".to_owned(),
            values: vec![
                ("bytes", bytes as f64),
                ("pressure_bytes", limits.pressure_bytes as f64),
                ("high_bytes", limits.high_bytes as f64),
                ("aborts", aborts as f64),
            ],
        },
    )
}
