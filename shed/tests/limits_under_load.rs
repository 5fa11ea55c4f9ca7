//! Limits that are lowered and raised while clients come and go.

mod load;

use std::{sync::atomic::Ordering, time::Duration};

use backlogd_shed::{Limits, OnShed, ShedListener};
use load::{Load, check_identities, serve, until};

/// With room for those who linger, so that the hard limit stops nobody.
fn limits(soft: usize) -> Limits {
    Limits { hard: Some(soft + 1_000), ..Limits::soft(soft) }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_limit_that_is_lowered_and_raised_under_load_holds_and_is_used() {
    let listener = ShedListener::bind("127.0.0.1:0")
        .limits(limits(20))
        .on_shed(OnShed::bytes(load::SHED))
        .build()
        .expect("a listener");
    let (address, handle) = (listener.local_addr(), listener.handle());
    tokio::spawn(serve(listener));
    let hold = Duration::from_millis(20);
    // more than the highest limit
    let load = Load::start_holding(address, 80, Duration::from_millis(5), hold);
    load.until_served(100).await;
    for round in 0..2 {
        for soft in [40, 5, 30, 1, 10] {
            handle.set_limits(limits(soft)).expect("they hold");
            // who was admitted stays until it has ended
            let at_most = soft as u64;
            until(&handle, |stats| stats.open <= at_most).await;
            let shed = load.counts.all()[1];
            // those that were counted before have told so by then
            load.until_served(at_most).await;
            load.counts.most_inside.store(0, Ordering::SeqCst);
            load.until_served(at_most * 4).await;
            assert!(handle.stats().open <= at_most, "{:?}", handle.stats());
            let most = load.counts.most_inside.load(Ordering::SeqCst);
            let range = (at_most * 8 / 10).max(1)..=at_most;
            assert!(range.contains(&most), "round {round}: {most} of {soft} at once");
            assert!(shed < load.counts.all()[1], "round {round}: {soft} is reached");
        }
    }
    let [served, shed, refused, reset, hung] = load.stop().await;
    assert_eq!((refused, reset, hung), (0, 0, 0), "served {served}, shed {shed}");
    check_identities(&until(&handle, |stats| stats.open == 0).await);
}
