//! A handover and a drain that meet.

mod load;

use std::{process::Command, time::Duration};

use backlogd_shed::{Drain, Generation, Handovers, Queued, ShedListener};
use load::serve;
use tokio::time;

/// A child that says that it accepts after half a second, by the pipe after the listener and the
/// page.
fn child() -> Command {
    let mut child = Command::new("sh");
    child.args(["-c", "sleep 0.5; printf R >&5; exec sleep 10"]);
    child
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_that_overtakes_a_handover_has_it_fail() {
    let mut generation = Generation::take().expect("the first");
    let builder = ShedListener::bind("127.0.0.1:0").name("web");
    let listener = builder.build_in(&mut generation).expect("a listener");
    let handle = listener.handle();
    let serving = tokio::spawn(serve(listener));
    let handover = tokio::spawn(async move {
        let mut attempts = Vec::new();
        // the second one finds nothing to hand over, and starts nobody
        for _ in 0..2 {
            let result = generation.hand_over(child()).await;
            attempts.push(result.map(drop).map_err(|err| err.to_string()));
        }
        (attempts, generation.handovers())
    });
    time::sleep(Duration::from_millis(100)).await;
    let drain =
        Drain { delay: Duration::ZERO, deadline: Duration::from_secs(5), queued: Queued::Serve };
    assert_eq!(handle.drain(drain).await.reset, 0);
    serving.await.expect("it ends");
    let (attempts, counted) = handover.await.expect("no panic");
    assert_eq!(attempts, [(); 2].map(|()| Err("there is no open listener to hand over".into())));
    assert_eq!(counted, Handovers::default(), "no child failed");
}
