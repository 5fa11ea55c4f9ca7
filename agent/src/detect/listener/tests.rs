//! Detections about one listener, by what is told of made-up hosts.

use super::*;

#[test]
fn rules_that_follow_the_configuration_are_in_their_places() {
    let name = |place: usize| Listeners::RULES[place].about.name;
    let names = [LEAK, CLOSE_WAIT, SLOW_ACCEPT].map(name);
    assert_eq!(["ConnectionLeak", "CloseWaitBuildup", "SlowAccept"], names);
    let threshold = |rule: usize, at: usize| Listeners::RULES[rule].about.thresholds[at].name;
    assert_eq!("window_seconds", threshold(LEAK, leak::WINDOW));
    assert_eq!("window_seconds", threshold(CLOSE_WAIT, close_wait::WINDOW));
    assert_eq!("seconds", threshold(SLOW_ACCEPT, slow_accept::SECONDS));
}
