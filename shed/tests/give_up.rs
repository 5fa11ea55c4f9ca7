//! A listener that has no descriptors for long ends with the error, if it is to. The process that
//! starves is this test binary, with a small RLIMIT_NOFILE.

use std::{
    env,
    error::Error as _,
    fs::File,
    io::{self, BufRead as _, BufReader, Write as _},
    net::TcpStream,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use backlogd_shed::{Reason, ShedListener};
use tokio::time;

const STARVES: &str = "SHED_TEST_STARVES";
const AFTER: Duration = Duration::from_millis(300);

fn say(line: &str) {
    writeln!(io::stdout(), "\n@{line}").expect("somebody reads");
}

#[tokio::test]
#[ignore = "no test: the process that starves"]
async fn starving() {
    if env::var(STARVES).is_err() {
        return;
    }
    let mut listener =
        ShedListener::bind("127.0.0.1:0").soft(5).give_up_after(AFTER).build().expect("a listener");
    let handle = listener.handle();
    say(&listener.local_addr().to_string());
    let files: Vec<_> =
        std::iter::repeat_with(|| File::open("/dev/null")).map_while(Result::ok).collect();
    let begun = Instant::now();
    let result = time::timeout(Duration::from_secs(5), listener.accept()).await;
    let err = result.expect("it gives up").expect_err("there is no descriptor");
    drop(files);
    assert!(AFTER <= begun.elapsed(), "{:?}", begun.elapsed());
    assert!(!handle.is_ready());
    let stats = handle.stats();
    assert!(0 < stats.shed_for(Reason::Emfile), "{stats:?}");
    assert_eq!(stats.accepted, stats.shed_for(Reason::Emfile));
    say(&format!("{err}: {}", err.source().expect("a cause")));
}

#[test]
fn gives_up_with_the_error_when_descriptors_are_out_for_too_long() {
    let mut process = Command::new("sh")
        .args(["-c", r#"ulimit -n 40; exec "$0" "$@""#])
        .arg(env::current_exe().expect("a path"))
        .args(["--exact", "starving", "--ignored", "--nocapture"])
        .env(STARVES, "1")
        .stdout(Stdio::piped())
        .spawn()
        .expect("it runs");
    let stdout = process.stdout.take().expect("a pipe");
    let mut said = BufReader::new(stdout)
        .lines()
        .map_while(Result::ok)
        .filter_map(|line| line.split_once('@').map(|(_, said)| said.to_owned()));
    let address = said.next().expect("an address");
    let clients = thread::spawn(move || {
        let end = Instant::now() + Duration::from_secs(5);
        // until it is closed: a reset may be quicker than connect(2)
        let is_refused = || {
            let connected = TcpStream::connect(&address);
            connected.is_err_and(|err| err.kind() == io::ErrorKind::ConnectionRefused)
        };
        while Instant::now() < end && !is_refused() {
            thread::sleep(Duration::from_millis(10));
        }
    });
    let expected = "accept failed, and would fail again: Too many open files (os error 24)";
    assert_eq!(said.next().as_deref(), Some(expected));
    clients.join().expect("clients");
    assert!(process.wait().expect("it ends").success());
}
