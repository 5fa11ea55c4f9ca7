//! accept(2) and connect(2) that failed, by who called and the error.

use std::{fmt, sync::Arc};

use super::{Family, Scrape, Sink, Value};
use crate::{
    errno::Errno,
    input::{CallErrors, ErrorCounts, Known},
    metric::{Descriptor, Kind},
    model::snapshot::Snapshot,
};

pub(super) const FAMILIES: &[Family] = &[
    Family {
        descriptor: Descriptor {
            name: "backlogd_accept_errors_total",
            kind: Kind::Counter,
            labels: &["comm", "errno"],
            help: "Calls of accept that failed, by name of the calling task; EAGAIN is none of them; of TCP sockets, under lockdown=confidentiality of all",
            source: "return value of accept and accept4 (__sys_accept4, net/socket.c), result of io_accept (io_uring/net.c)",
        },
        folds: None,
        emit: |scrape, sink| each(scrape, sink, |errors| &errors.accept),
    },
    Family {
        descriptor: Descriptor {
            name: "backlogd_accept_would_block_total",
            kind: Kind::Counter,
            labels: &["comm"],
            help: "Calls of accept that found an empty queue (EAGAIN), by name of the calling task",
            source: "return value of accept and accept4 (__sys_accept4, net/socket.c)",
        },
        folds: None,
        emit: |scrape, sink| {
            let counts = failed(&scrape.snapshot, |errors| &errors.accept);
            counts.into_iter().flatten().try_for_each(|((comm, errno), &n)| match *errno {
                Errno::AGAIN => sink(&[("comm", comm)], Value::Unsigned(n)),
                _ => Ok(()),
            })
        },
    },
    Family {
        descriptor: Descriptor {
            name: "backlogd_connect_errors_total",
            kind: Kind::Counter,
            labels: &["comm", "errno"],
            help: "Calls of connect on TCP sockets that failed, by name of the calling task; EADDRNOTAVAIL: no local port is left. What a non-blocking connect learns later is not among them, nor by kprobe what a blocking one waits for",
            source: "return value of inet_stream_connect, net/ipv4/af_inet.c; by kprobe of tcp_v4_connect and tcp_v6_connect; by tracepoint of connect",
        },
        folds: None,
        emit: |scrape, sink| each(scrape, sink, |errors| &errors.connect),
    },
];

/// The counts of one call, or why there are none.
pub(in crate::publish) fn failed(
    snapshot: &Snapshot,
    call: fn(&CallErrors) -> &Known<Arc<ErrorCounts>>,
) -> Known<&ErrorCounts> {
    let errors = snapshot.errors.as_ref().map_err(|&why| why)?;
    call(errors).as_deref().map_err(|&why| why)
}

/// One series per caller and error, without `EAGAIN`.
fn each(
    scrape: &Scrape,
    sink: Sink<'_>,
    call: fn(&CallErrors) -> &Known<Arc<ErrorCounts>>,
) -> fmt::Result {
    for ((comm, errno), &n) in failed(&scrape.snapshot, call).into_iter().flatten() {
        if *errno != Errno::AGAIN {
            sink(&[("comm", comm), ("errno", &errno.to_string())], Value::Unsigned(n))?;
        }
    }
    Ok(())
}
