//! SYNs that nobody means to complete.

use std::{
    net::{Ipv4Addr, SocketAddr, SocketAddrV4},
    time::{Duration, Instant},
};

use backlogd::detect::phase::Severity;

use super::watch::{CADENCE, Watch, check, value};
use crate::{
    actors::{Act, Actor},
    clients::Clients,
    namespace::{in_own_netns, run, set_sysctl},
    segment::{raw, syn},
};

/// Nobody answers from there (RFC 2544).
const NOBODYS: &str = "198.18.0.0/15";

/// SYNs of each second.
const RATE: u32 = 400;

/// SYNs of one second, each of another client that does not exist.
fn flood(second: u32, to: SocketAddr) {
    let SocketAddr::V4(to) = to else { panic!("{to}") };
    let socket = raw();
    for n in 0..RATE {
        let from = Ipv4Addr::from(u32::from(Ipv4Addr::new(198, 18, 0, 0)) + second * RATE + n);
        syn(SocketAddrV4::new(from, 1_024), to).send(&socket);
    }
}

#[track_caller]
fn check_flood(incident: &str, cookies: &str, allowed: &[&'static str]) {
    in_own_netns(|| {
        set_sysctl("ipv4/tcp_syncookies", cookies);
        run("ip", &["route", "add", NOBODYS, "dev", "lo"]);
        let mut server = Actor::start(Act::Serves, "flooded", "127.0.0.1:0", 128);
        // loopback's own addresses are answered by nobody else
        let mut watch = Watch::start(incident, allowed);
        if !["syn", "syn_cookie"].into_iter().all(|event| watch.agent.serves(event)) {
            return assert!(watch.is_unknown("SynFlood"), "{:?}", watch.verdicts.unknown);
        }
        drop(Clients::connect(20, server.addr));
        server.accepts(20);
        let (start, mut second) = (Instant::now(), 0);
        let alert = loop {
            flood(second, server.addr);
            second += 1;
            watch.look();
            if let Some(alert) = watch.find("SynFlood") {
                break alert;
            }
            assert!(start.elapsed() < Duration::from_secs(15), "{:?}", watch.verdicts);
        };
        let (seen, cause, mend) = if cookies == "1" {
            let mend = format!("ss -tan state syn-recv sport = :{}", server.addr.port());
            ("answered with a cookie", "clients are still served", mend)
        } else {
            let mend = "sysctl -w net.ipv4.tcp_syncookies=1".to_owned();
            ("dropped for want of room", "clients are refused with the rest", mend)
        };
        let subject = format!("flooded {}", server.addr);
        check(&alert, (Severity::Warning, &subject), seen, Some(cause), &mend);
        // of the last half minute, which began before the flood
        let sent = f64::from(RATE * second) / (start.elapsed() + 5 * CADENCE).as_secs_f64();
        let told = value(&alert, "syns_per_second");
        assert!((0.5 * sent..1.5 * sent).contains(&told), "{told} of {sent}");
        if cookies == "1" {
            drop(Clients::connect(5, server.addr));
            server.accepts(25);
        }
        watch.look();
    });
}

#[test]
#[ignore = "kernel: needs root"]
fn a_flood_of_syns_is_told_while_cookies_serve_the_clients() {
    check_flood("flood_with_cookies", "1", &["SynFlood"]);
}

#[test]
#[ignore = "kernel: needs root"]
fn a_flood_of_syns_is_told_where_no_cookies_are_sent() {
    // what it does to the queue is told at once, and no more when the flood is
    check_flood("flood_without_cookies", "0", &["SynFlood", "SynQueueOverflow"]);
}
