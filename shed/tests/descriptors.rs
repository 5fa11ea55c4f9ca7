//! Listeners of one process, and its RLIMIT_NOFILE. Each process whose limit it is, is this test
//! binary.

use std::{env, process::Command};

use backlogd_shed::{
    Bound, BuildError, Handle, LimitError, Limits, MAX_LIMIT, SetError, ShedListener,
};

const INSIDE: &str = "SHED_TEST_DESCRIPTORS";

/// Runs the test `name` in a process that may open `nofile` descriptors.
#[track_caller]
fn inside(name: &str, nofile: usize) {
    let ended = Command::new("sh")
        .args(["-c", &format!(r#"ulimit -n {nofile}; exec "$0" "$@""#)])
        .arg(env::current_exe().expect("a path"))
        .args(["--exact", name, "--ignored", "--nocapture"])
        .env(INSIDE, name)
        .output()
        .expect("it runs");
    let said = String::from_utf8_lossy(&ended.stdout) + String::from_utf8_lossy(&ended.stderr);
    assert!(ended.status.success() && said.contains("1 passed"), "{said}");
}

/// Whether this process was started for the test `name`.
fn is_inside(name: &str) -> bool {
    env::var(INSIDE).is_ok_and(|it| it == name)
}

fn limits(soft: usize, hard: impl Into<Option<usize>>) -> Limits {
    Limits { hard: hard.into(), ..Limits::soft(soft) }
}

fn build(limits: Limits) -> Result<ShedListener, BuildError> {
    ShedListener::bind("127.0.0.1:0").limits(limits).build()
}

fn in_force(handle: &Handle) -> (usize, usize, Bound) {
    let (soft, hard) = handle.bounds();
    (soft, hard, handle.bound())
}

#[test]
fn listeners_have_no_more_than_their_process_has() {
    inside("sharing", 1_024);
}

#[tokio::test]
#[ignore = "no test: the process that shares"]
async fn sharing() {
    if !is_inside("sharing") {
        return;
    }
    let first = build(limits(500, 700)).expect("there is room");
    let refused = build(limits(500, 700)).expect_err("there is none");
    assert_eq!(
        refused.to_string(),
        "hard limit is 700, expected at most 196: RLIMIT_NOFILE is 1024, of which 128 are reserved \
         and 700 claimed by other listeners of this process; it would have to be 1599"
    );
    let expected = LimitError::Descriptors {
        hard: 700,
        fds_per_connection: 1,
        most: 196,
        reserve: 128,
        others: 700,
        nofile: 1_024,
        descriptors: 1_599,
    };
    assert!(matches!(refused, BuildError::Limits(err) if err == expected));
    // for other reasons: what it claims is given back
    let taken = first.local_addr().to_string();
    let refused = ShedListener::bind(taken).limits(limits(150, None)).build();
    assert!(matches!(refused, Err(BuildError::InUse { .. })));
    let refused = ShedListener::bind("127.0.0.1:0").limits(limits(150, None)).max_request_bytes(0);
    assert!(matches!(refused.build(), Err(BuildError::MaxRequestBytes)));

    // 192 at least, 200 where there are as many
    let second = build(limits(160, None)).expect("there is room");
    let (one, two) = (first.handle(), second.handle());
    assert_eq!(in_force(&two), (160, 196, Bound::Descriptors));
    assert_eq!(in_force(&one), (500, 700, Bound::Given));
    let refused = one.set_limits(limits(500, 701)).expect_err("there is no room");
    assert!(
        matches!(refused, SetError::Limits(LimitError::Descriptors { most: 700, others: 196, .. })),
        "{refused:?}"
    );
    assert_eq!((one.limits(), one.bounds()), (limits(500, 700), (500, 700)));
    one.set_limits(limits(500, 600)).expect("it is less");
    assert_eq!(in_force(&two), (160, 200, Bound::Soft));
    // who is closed has nothing open, though it is known of
    drop(first);
    two.set_limits(limits(700, None)).expect("all is left");
    assert_eq!(in_force(&two), (700, 875, Bound::Soft));
    drop((second, two));
    let all = build(limits(700, 896)).expect("all is left");
    assert_eq!(in_force(&all.handle()), (700, 896, Bound::Given));
    let refused = build(limits(MAX_LIMIT, None)).expect_err("too many");
    assert!(matches!(refused, BuildError::Limits(LimitError::TooHigh { .. })), "{refused:?}");
}
