//! Descriptors that are inherited, from systemd say: taken, or refused with what they are. This
//! test binary is the program that inherits, too.

use std::{
    env,
    io::Write as _,
    net::{TcpListener, TcpStream, UdpSocket},
    os::{fd::OwnedFd, unix::net::UnixListener},
    process::{Command, Stdio},
};

use backlogd_shed::{Generation, ShedListener};

/// The address that it wants.
const ADDRESS: &str = "SHED_TEST_ADDRESS";

fn result(address: String) -> Result<String, String> {
    let mut generation = Generation::take().map_err(|err| err.to_string())?;
    generation.name_by_address(&[("web", address.parse().expect("an address"))]);
    if let Some(fd) = generation.take_fd("metrics") {
        let listener = TcpListener::from(fd);
        return Ok(format!("apart {}", listener.local_addr().expect("an address")));
    }
    let listener = ShedListener::bind(address).name("web").backlog(9).build_in(&mut generation);
    let listener = listener.map_err(|err| err.to_string())?;
    generation.ready().map_err(|err| err.to_string())?;
    let (_, limit) = listener.accept_queue().expect("TCP_INFO");
    Ok(format!("{} with {limit}", listener.local_addr()))
}

#[tokio::test]
#[ignore = "no test: the program that the others start"]
async fn inheritor() {
    let Ok(address) = env::var(ADDRESS) else { return };
    let told = result(address).unwrap_or_else(|err| err);
    writeln!(std::io::stdout(), "\n@{told}").expect("somebody reads");
}

/// Starts it with `fd` as descriptor 3, and gives what it says.
#[track_caller]
fn check(fd: Option<OwnedFd>, name: &str, address: &str, expected: &str) {
    let script = if fd.is_some() { r#"exec "$0" "$@" 3<&0"# } else { r#"exec "$0" "$@" 3<&-"# };
    let output = Command::new("sh")
        .args(["-c", script])
        .arg(env::current_exe().expect("a path"))
        .args(["--exact", "inheritor", "--ignored", "--nocapture"])
        .env("LISTEN_FDS", "1")
        .env("LISTEN_FDNAMES", name)
        .env(ADDRESS, address)
        .stdin(fd.map_or_else(Stdio::null, Stdio::from))
        .output()
        .expect("it runs");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let told = text.lines().find_map(|line| line.split_once('@')).map(|(_, told)| told);
    assert_eq!(told, Some(expected), "{text}");
}

#[test]
fn a_listener_is_taken_by_its_name_and_anything_else_is_refused() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a socket");
    let address = listener.local_addr().expect("an address").to_string();
    let copy = || Some(listener.try_clone().expect("a copy").into());
    let taken = format!("{address} with 9");
    check(copy(), "web", &address, &taken);
    check(copy(), "web", "127.0.0.1:0", &taken);
    // systemd's own name for it
    check(copy(), "web.socket", &address, &taken);
    check(copy(), "metrics", "127.0.0.1:0", &format!("apart {address}"));
    let wrong = format!("the inherited socket \"web\" listens on {address}, expected 127.0.0.1:1");
    check(copy(), "web", "127.0.0.1:1", &wrong);
    let open = TcpListener::bind("0.0.0.0:0").expect("a socket");
    let port = open.local_addr().expect("an address").port();
    for port_wanted in [0, port] {
        let wrong = format!(
            "the inherited socket \"web\" listens on 0.0.0.0:{port}, expected \
             127.0.0.1:{port_wanted}"
        );
        let copy = open.try_clone().expect("a copy");
        check(Some(copy.into()), "web", &format!("127.0.0.1:{port_wanted}"), &wrong);
    }
    let unused = format!(
        "inherited and not used: descriptor 3, \"mail\", which listens on {address}; expected each \
         to have the name or the address of a listener"
    );
    check(copy(), "mail", "127.0.0.1:0", &unused);
    let connected = TcpStream::connect(&address).expect("queued");
    let got = |what: &str| format!("got {what}, expected a listening TCP socket");
    check(Some(connected.into()), "web", &address, &got("a TCP socket that does not listen"));
    let udp = UdpSocket::bind("127.0.0.1:0").expect("a socket");
    check(Some(udp.into()), "web", &address, &got("a socket of another kind than TCP"));
    let null = std::fs::File::open("/dev/null").expect("Linux has it");
    check(Some(null.into()), "web", &address, &got("a descriptor that is no socket"));
    let dir = env::temp_dir().join(format!("shed-{}.sock", std::process::id()));
    let unix = UnixListener::bind(&dir).expect("a socket");
    let other = got("a socket of another family than IPv4 and IPv6");
    check(Some(unix.into()), "web", &address, &other);
    std::fs::remove_file(dir).expect("it is there");
    let closed = "inherited descriptor 3: expected it open, and not closed on exec";
    check(None, "web", &address, closed);
}
