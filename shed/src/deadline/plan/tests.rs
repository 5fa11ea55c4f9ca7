use super::*;

const OFF: Deadlines = Deadlines {
    first_byte: None,
    handshake: None,
    header: None,
    idle: None,
    write_stall: None,
    min_rate: None,
    lifetime: None,
};

fn ticks_of(n: u64) -> Option<Duration> {
    Some(Duration::from_millis(n * 100))
}

fn seen(at: Tick) -> Seen {
    Seen { at, bytes_in: 0, bytes_out: 0, progress: 0, phase: Phase::Header, since: 0 }
}

/// Looks at a connection, which is what `at_tick` says, whenever a look is due. The ticks of the
/// looks, and of its end.
fn watch(
    deadlines: Deadlines,
    until: Tick,
    mut at_tick: impl FnMut(Tick) -> (Seen, u64),
) -> (Vec<Tick>, Option<(Tick, Deadline)>) {
    let (plan, mut look, mut at, mut looks) =
        (Plan::new(&deadlines), Look::new(0, 0), 0, Vec::new());
    while at <= until {
        let (seen, unacked) = at_tick(at);
        looks.push(at);
        match look.judge(&plan, &seen, || unacked) {
            Ok(next) => {
                assert!(at < next, "{next} is no later than {at}");
                at = next;
            }
            Err(deadline) => return (looks, Some((at, deadline))),
        }
    }
    (looks, None)
}

#[track_caller]
fn check(
    deadlines: Deadlines,
    expected: Option<(Tick, Deadline)>,
    at_tick: impl FnMut(Tick) -> (Seen, u64),
) {
    assert_eq!(watch(deadlines, 1_000, at_tick).1, expected, "{deadlines:?}");
}

#[test]
fn a_silent_peer_is_ended_by_what_it_owes_first() {
    let silent = |at| (seen(at), 0);
    check(OFF, None, silent);
    check(Deadlines { first_byte: ticks_of(5), ..OFF }, Some((6, Deadline::FirstByte)), silent);
    check(Deadlines { header: ticks_of(5), ..OFF }, Some((6, Deadline::Header)), silent);
    check(Deadlines { idle: ticks_of(300), ..OFF }, Some((301, Deadline::Idle)), silent);
    check(Deadlines { lifetime: ticks_of(7), ..OFF }, Some((8, Deadline::Lifetime)), silent);
    // a handshake is not what is gone on
    check(Deadlines { handshake: ticks_of(5), ..OFF }, None, silent);
    let all = Deadlines { idle: ticks_of(3), header: ticks_of(4), first_byte: ticks_of(5), ..OFF };
    check(all, Some((4, Deadline::Idle)), silent);
}

#[test]
fn a_byte_now_and_then_is_no_header_but_no_idleness() {
    let drips = |at: Tick| {
        let byte = Seen { bytes_in: 1 + at / 20, progress: at / 20 * 20, ..seen(at) };
        (byte, 0)
    };
    let header = Deadlines { header: ticks_of(100), idle: ticks_of(30), ..OFF };
    check(header, Some((101, Deadline::Header)), drips);
    check(Deadlines { idle: ticks_of(30), first_byte: ticks_of(5), ..OFF }, None, drips);
    check(Deadlines { idle: ticks_of(10), ..OFF }, Some((11, Deadline::Idle)), drips);
    let rate = Some(MinRate { bytes_per_second: 1, over: Duration::from_secs(10) });
    check(Deadlines { min_rate: rate, ..OFF }, Some((101, Deadline::MinRate)), drips);
}

#[test]
fn a_deadline_that_begins_between_two_looks_ends_in_time() {
    let deadlines = Deadlines { header: ticks_of(7), idle: ticks_of(500), ..OFF };
    for begins in 1..40 {
        check(deadlines, Some((begins + 8, Deadline::Header)), |at| {
            let (phase, since) =
                if at < begins { (Phase::Between, 0) } else { (Phase::Header, begins) };
            (Seen { phase, since, bytes_in: 1, ..seen(at) }, 0)
        });
    }
}

#[test]
fn the_rate_counts_while_there_is_a_request() {
    let rate = Some(MinRate { bytes_per_second: 100, over: Duration::from_secs(1) });
    let deadlines = Deadlines { min_rate: rate, ..OFF };
    check(deadlines, None, |at| (Seen { phase: Phase::Between, ..seen(at) }, 0));
    check(deadlines, None, |at| (Seen { bytes_in: at * 5, bytes_out: at * 5, ..seen(at) }, 0));
    check(deadlines, Some((11, Deadline::MinRate)), |at| {
        (Seen { bytes_in: at * 9, ..seen(at) }, 0)
    });
    // much at first is no merit
    check(deadlines, Some((22, Deadline::MinRate)), |at| {
        (Seen { bytes_in: 1_000_000.min(at * 1_000_000), ..seen(at) }, 0)
    });
}

#[test]
fn a_write_stalls_when_nothing_is_acknowledged() {
    let deadlines = Deadlines { write_stall: ticks_of(20), ..OFF };
    let wrote = |at, bytes_out| Seen { bytes_out, ..seen(at) };
    check(deadlines, None, |at| (wrote(at, 0), 0));
    check(deadlines, None, |at| (wrote(at, 1_000), 0));
    check(deadlines, Some((21, Deadline::WriteStall)), |at| (wrote(at, 1_000), 1_000));
    // one byte in each of its times is enough
    check(deadlines, None, |at| (wrote(at, 1_000), 1_000 - at / 15));
    // as many are written as are acknowledged
    check(deadlines, None, |at| (wrote(at, 1_000 + at), 1_000));
    // what is written and not acknowledged is no progress
    let buffered = |at| (wrote(at, 1_000 + at), 1_000 + at);
    check(deadlines, Some((21, Deadline::WriteStall)), buffered);
}

#[test]
fn a_stall_is_found_a_quarter_of_its_time_late_at_most() {
    let deadlines = Deadlines { write_stall: ticks_of(40), ..OFF };
    for begins in 0..100 {
        let (_, end) = watch(deadlines, 1_000, |at| {
            let (bytes_out, unacked) = if at < begins { (400, 0) } else { (500, 100) };
            (Seen { bytes_out, ..seen(at) }, unacked)
        });
        let (at, deadline) = end.expect("an end");
        assert_eq!(deadline, Deadline::WriteStall);
        assert!((begins + 40..=begins + 40 + 11).contains(&at), "began at {begins}, ended at {at}");
    }
}

#[test]
fn what_drains_is_not_idle() {
    let deadlines = Deadlines { idle: ticks_of(10), ..OFF };
    let drains = |at: Tick| {
        let unacked = 1_000_u64.saturating_sub(at * 10);
        (Seen { bytes_out: 1_000, ..seen(at) }, unacked)
    };
    let (at, deadline) = watch(deadlines, 1_000, drains).1.expect("an end");
    assert_eq!(deadline, Deadline::Idle);
    assert!((100..=111).contains(&at), "{at}");
}

#[test]
fn who_owes_nothing_is_looked_at_rarely() {
    let deadlines = Deadlines { idle: ticks_of(100_000), ..OFF };
    let (looks, _) = watch(deadlines, 10_000, |at| (seen(at), 0));
    assert_eq!(looks.len(), 101);
}
