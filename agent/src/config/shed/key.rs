//! The keys of `[[shed]]`, a flat table: what they take, what they are unsaid, and what they are
//! for. The loader's messages and the example file are made from it.

use crate::shed::Backend;

/// A key.
#[derive(Debug)]
pub(in crate::config) struct Key {
    pub(in crate::config) name: &'static str,
    /// Type, unit and range.
    pub(in crate::config) takes: &'static str,
    /// What it is when nobody says it; empty: it must be said.
    pub(in crate::config) unsaid: &'static str,
    pub(in crate::config) help: &'static str,
    /// A value for the example file.
    pub(in crate::config) example: &'static str,
}

const SOFT: &str = "connections, 1 to 1747625";
const LIMIT: &str = "connections, 1 to 2097151";
const RATE: &str = "connections per second, 1 to 1000000";
const BURST: &str = "connections, 1 to 1000000";
const DEADLINE: &str = "a number of seconds, 0.1 to 604800, or 0 for never";
const RANGES: &str = "an array of IP ranges, such as [\"10.0.0.0/8\", \"2001:db8::/32\"]";
const ANSWER: &str = "\"rst\", \"fin\", \"http-503\", \"http-429\", or { bytes = \"TEXT\" } of 1 to 4096 \
                      bytes";
const ADDRESS: &str = "IP:PORT, such as [::]:8080";

/// All, in the order of the example file.
pub(in crate::config) const KEYS: [Key; 45] = [
    Key {
        name: "name",
        takes: "text of 1 to 128 bytes without control characters",
        unsaid: "what listen says",
        help: "The label `listener` of its metrics",
        example: "\"web\"",
    },
    Key {
        name: "listen",
        takes: ADDRESS,
        unsaid: "",
        help: "Where it listens",
        example: "\"[::]:8080\"",
    },
    Key {
        name: "backend",
        takes: Backend::EXPECTED,
        unsaid: "",
        help: "Where its connections go; a name is looked up for each of them",
        example: "\"127.0.0.1:9000\"",
    },
    Key {
        name: "soft",
        takes: SOFT,
        unsaid: "",
        help: "Above so many open connections, more are accepted and get on_shed at once",
        example: "10000",
    },
    Key {
        name: "hard",
        takes: LIMIT,
        unsaid: "25 % above soft, at least 16, or as many as there are descriptors for",
        help: "At so many nothing is accepted, the last resort, until 8 or 2 % of them have ended, \
               whichever is more, or soft are left. At least 20 % above soft; each takes two \
               descriptors of RLIMIT_NOFILE less fd_reserve, which all listeners share",
        example: "12500",
    },
    Key {
        name: "fd_reserve",
        takes: "descriptors, 0 to 1000000",
        unsaid: "an eighth of RLIMIT_NOFILE, 16 to 256",
        help: "What connections leave to the rest of the process",
        example: "256",
    },
    Key {
        name: "backlog",
        takes: "connections, 1 to 65535",
        unsaid: "net.core.somaxconn",
        help: "The limit of the accept queue",
        example: "4096",
    },
    Key {
        name: "accept_sockets",
        takes: "a number of sockets, 1 to 1024, or \"cores\"",
        unsaid: "1",
        help: "Sockets on its address (SO_REUSEPORT), each with a queue and an accept loop; one \
               is enough below some 30000 connections a second",
        example: "1",
    },
    Key {
        name: "accept_thread",
        takes: "true or false",
        unsaid: "false",
        help: "Whether a thread of its own accepts; accept_sockets is 1 then",
        example: "false",
    },
    Key {
        name: "give_up_after_seconds",
        takes: DEADLINE,
        unsaid: "0",
        help: "When there were no descriptors or no memory for a single connection for so long, \
               the listener ends with the error",
        example: "0",
    },
    Key {
        name: "queue_max_wait_seconds",
        takes: "a number of seconds, 0.01 to 3600",
        unsaid: "1",
        help: "After a pause, at hard or for want of descriptors, who waited longer in the accept \
               queue is shed, for the reason stale",
        example: "1",
    },
    Key {
        name: "on_shed",
        takes: ANSWER,
        unsaid: "\"rst\"",
        help: "What shed connections get: a reset, an end, HTTP with Retry-After, or a text",
        example: "\"http-503\"",
    },
    Key {
        name: "on_shed_for",
        takes: "a table of reasons and answers",
        unsaid: "on_shed for all",
        help: "The same by reason: soft, hard, per_ip, per_ip_full, rate, stale, codel, draining, \
               handoff (of accept_thread), proxy_header, backend_down",
        example: "{ draining = \"fin\", per_ip = \"http-429\" }",
    },
    Key {
        name: "linger_max",
        takes: LIMIT,
        unsaid: "half of what is between soft and hard",
        help: "Shed connections that wait at once for their answer to arrive; more are reset",
        example: "1000",
    },
    Key {
        name: "linger_seconds",
        takes: "a number of seconds, 0.001 to 60",
        unsaid: "0.25",
        help: "How long one of them waits at most",
        example: "0.25",
    },
    Key {
        name: "linger_bytes",
        takes: "bytes, 0 to 1073741824",
        unsaid: "65536",
        help: "How much of what its client still sends is thrown away meanwhile",
        example: "65536",
    },
    Key {
        name: "exempt",
        takes: RANGES,
        unsaid: "none",
        help: "Who is shed at hard alone, and for queue_max_wait_seconds",
        example: "[\"10.1.0.0/16\"]",
    },
    Key {
        name: "rate",
        takes: RATE,
        unsaid: "no limit",
        help: "How fast connections are admitted",
        example: "5000",
    },
    Key {
        name: "burst",
        takes: BURST,
        unsaid: "rate",
        help: "How many of them at once; takes rate",
        example: "10000",
    },
    Key {
        name: "per_ip",
        takes: LIMIT,
        unsaid: "no limit",
        help: "Open connections of one address",
        example: "100",
    },
    Key {
        name: "per_ip_rate",
        takes: RATE,
        unsaid: "no limit",
        help: "How fast one address may open them; takes per_ip",
        example: "50",
    },
    Key {
        name: "per_ip_burst",
        takes: BURST,
        unsaid: "per_ip_rate",
        help: "How many of them at once; takes per_ip_rate",
        example: "100",
    },
    Key {
        name: "per_ip_capacity",
        takes: "addresses, 64 to 1048576",
        unsaid: "65536",
        help: "Addresses that are kept in mind at once, at 34 bytes each; takes per_ip",
        example: "65536",
    },
    Key {
        name: "per_ip_when_full",
        takes: "\"admit\" or \"shed\"",
        unsaid: "\"admit\"",
        help: "What becomes of an address for which there is no place among them; takes per_ip",
        example: "\"admit\"",
    },
    Key {
        name: "ipv6_prefix",
        takes: "bits, 48 to 128",
        unsaid: "64",
        help: "The network that counts as one address in IPv6; takes per_ip",
        example: "64",
    },
    Key {
        name: "proxy_protocol_from",
        takes: RANGES,
        unsaid: "none",
        help: "Whose connections begin with a header of the PROXY protocol, version 1 or 2",
        example: "[\"10.0.0.0/24\"]",
    },
    Key {
        name: "proxy_protocol_seconds",
        takes: "a number of seconds, 0.001 to 60",
        unsaid: "3",
        help: "By when the header has to be there; takes proxy_protocol_from",
        example: "3",
    },
    Key {
        name: "proxy_protocol_max",
        takes: "connections, 1 to 65536",
        unsaid: "1024",
        help: "Headers that are awaited at once; takes proxy_protocol_from",
        example: "1024",
    },
    Key {
        name: "adaptive",
        takes: "\"off\" or \"codel\"",
        unsaid: "\"off\"",
        help: "With codel, more are shed while even the shortest wait in the accept queue is \
               above adaptive_target_seconds for adaptive_interval_seconds",
        example: "\"codel\"",
    },
    Key {
        name: "adaptive_target_seconds",
        takes: "a number of seconds, 0.001 to 1",
        unsaid: "0.02",
        help: "A wait that is fine; takes adaptive",
        example: "0.02",
    },
    Key {
        name: "adaptive_interval_seconds",
        takes: "a number of seconds, 0.01 to 10",
        unsaid: "0.1",
        help: "At least adaptive_target_seconds; takes adaptive",
        example: "0.1",
    },
    Key {
        name: "first_byte_seconds",
        takes: DEADLINE,
        unsaid: "30",
        help: "Until a client's first byte. 0 where only the backend speaks",
        example: "30",
    },
    Key {
        name: "idle_seconds",
        takes: DEADLINE,
        unsaid: "300",
        help: "Without a byte in either direction",
        example: "300",
    },
    Key {
        name: "write_stall_seconds",
        takes: DEADLINE,
        unsaid: "30",
        help: "Without an acknowledgement from a client that has some to give",
        example: "30",
    },
    Key {
        name: "half_close_seconds",
        takes: DEADLINE,
        unsaid: "60",
        help: "From the end of one direction to that of the other, whatever is sent meanwhile",
        example: "60",
    },
    Key {
        name: "lifetime_seconds",
        takes: DEADLINE,
        unsaid: "0",
        help: "From accept to the end",
        example: "86400",
    },
    Key {
        name: "min_rate",
        takes: "bytes per second, 1 to 1000000000, or 0 for any",
        unsaid: "0",
        help: "What a connection has to move, both directions together, over each 10 s, idle ones \
               too",
        example: "0",
    },
    Key {
        name: "connect_timeout_seconds",
        takes: "a number of seconds, 0.01 to 60",
        unsaid: "1",
        help: "How long the backend may take to accept a connection, which else is shed for \
               backend_down",
        example: "1",
    },
    Key {
        name: "health_listen",
        takes: ADDRESS,
        unsaid: "none",
        help: "Where /healthz and /readyz of this listener are answered, whatever the limits say",
        example: "\"127.0.0.1:8081\"",
    },
    Key {
        name: "health_fail_at",
        takes: "\"never\", \"soft\" or \"hard\"",
        unsaid: "\"hard\"",
        help: "The limit at which /readyz fails; takes health_listen, as all of these",
        example: "\"hard\"",
    },
    Key {
        name: "health_fail_after_seconds",
        takes: "a number of seconds, 0 to 3600",
        unsaid: "2",
        help: "How long the limit was reached by then",
        example: "2",
    },
    Key {
        name: "health_recover_after_seconds",
        takes: "a number of seconds, 0 to 3600",
        unsaid: "5",
        help: "How long it is below 90 % of soft until /readyz is well again",
        example: "5",
    },
    Key {
        name: "health_probe_seconds",
        takes: "a number of seconds, 0.1 to 4, or 0 for never",
        unsaid: "1",
        help: "How often it connects to itself, to see whether it accepts",
        example: "1",
    },
    Key {
        name: "drain_delay_seconds",
        takes: "a number of seconds, 0 to 3600",
        unsaid: "0",
        help: "At SIGTERM, how long it accepts as before, while /readyz says that it is not ready",
        example: "5",
    },
    Key {
        name: "drain_seconds",
        takes: "a number of seconds, 0 to 3600",
        unsaid: "20",
        help: "How long open connections may go on after that. The service manager has to wait \
               longer (TimeoutStopSec, terminationGracePeriodSeconds)",
        example: "20",
    },
];
