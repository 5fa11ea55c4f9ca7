//! What our programs spend, at the default setting.

use std::{
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream},
};

use anyhow::Result;
use backlogd::sources::{Options, Sources};

use super::{
    life::{Life, Plan},
    meter::{Batch, Meter},
};
use crate::{
    load::Loop,
    report::{Goal, Report, median},
};

/// The programs on `inet_sock_set_state`.
const STATE: [&str; 2] = ["state", "state_2"];

/// All rows; gives what a connection costs.
pub(crate) fn rows(report: &mut Report, plan: Plan) -> Result<Life> {
    let server = Loop::new()?;
    let sources = Sources::open(&Options::default())?;
    let meter = Meter::of(std::process::id())?;
    let followed = Life::measure(&meter, &server, plan)?;
    let client = refused(&meter, followed.empty, plan)?;
    let data = data(&meter, &server, plan)?;
    drop((sources, meter));
    let unfollowed = life_with(&Options { slots: 1, ..Options::default() }, plan)?;
    let calls = life_with(&Options { accept_tracepoints: true, ..Options::default() }, plan)?;

    whole(report, &followed, plan);
    parts(report, &followed);
    // the client goes to SYN_SENT and to ESTABLISHED, past two programs
    let how = "the client's four runs subtracted";
    let accepting = followed.open() - 4.0 * client;
    report.row("to accept, server's end", Goal::AtMost(500.0), accepting, "ns", how);
    let how = "what is subtracted from each run: the statistics themselves";
    report.row("the empty program", Goal::None, followed.empty, "ns", how);
    let how = "a run of `state` for connect(2) to a closed port";
    report.row("no listener's concern: a client", Goal::AtMost(20.0), client, "ns", how);
    let how = "runs of all programs for a byte on an established connection, in and read";
    report.row("no listener's concern: data", Goal::AtMost(0.01), data, "runs", how);
    report.row(
        "a listener without slot, both ends",
        Goal::None,
        unfollowed.nanos(),
        "ns",
        unfollowed.describe(),
    );
    let what = "with --accept-tracepoints, both ends";
    report.row(what, Goal::None, calls.nanos(), "ns", calls.describe());
    Ok(followed)
}

/// Of a listener that has no slot if there is one alone.
fn life_with(options: &Options, plan: Plan) -> Result<Life> {
    let _takes_a_slot = Loop::new()?;
    let _sources = Sources::open(options)?;
    Life::measure(&Meter::of(std::process::id())?, &Loop::new()?, plan)
}

fn whole(report: &mut Report, life: &Life, plan: Plan) {
    let Plan { batches, connections } = plan;
    let how = format!(
        "{:.0} ns with the statistics' own time in {:.1} runs; both ends; median of {batches} \
         batches of {connections}",
        life.gross(),
        life.runs(),
    );
    let what = "all programs, an accepted and closed connection";
    report.row(what, Goal::AtMost(1000.0), life.nanos(), "ns", how);
    let how = "both ends";
    report.row("of that, to accept", Goal::None, life.open(), "ns", how);
    report.row("of that, at close", Goal::None, life.close(), "ns", how);
}

/// A row for each program.
fn parts(report: &mut Report, life: &Life) {
    for part in &life.parts {
        let (open, close) = (part.open, part.close);
        let how = format!(
            "{:.1} ns a run; {:.0} ns in {:.2} runs to accept, {:.0} ns in {:.2} runs at close",
            part.nanos() / part.runs(),
            open.nanos,
            open.runs,
            close.nanos,
            close.runs,
        );
        let what = format!("program `{}`, a connection", part.name);
        report.row(what, Goal::None, part.nanos(), "ns", how);
    }
}

/// Net nanoseconds of one run for a client that is refused.
fn refused(meter: &Meter, empty: f64, plan: Plan) -> Result<f64> {
    let closed_port = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    let each = batches(meter, plan, || {
        drop(TcpStream::connect(closed_port));
        Ok(())
    })?;
    let net = |batch: &Batch| {
        let spent = STATE.map(|name| batch.programs.get(name).copied().unwrap_or_default());
        let runs: f64 = spent.iter().map(|spent| spent.runs).sum();
        spent.iter().map(|spent| spent.nanos).sum::<f64>() / runs - empty
    };
    Ok(median(&each.iter().map(net).collect::<Vec<_>>()))
}

/// Runs of any program for a byte that arrives on a connection.
fn data(meter: &Meter, server: &Loop, plan: Plan) -> Result<f64> {
    let (mut client, mut accepted) = server.connect()?;
    client.set_nodelay(true)?;
    let each = batches(meter, plan, || {
        client.write_all(b"x")?;
        Ok(accepted.read_exact(&mut [0])?)
    })?;
    let runs = |batch: &Batch| batch.programs.values().map(|spent| spent.runs).sum::<f64>();
    let n = f64::from(plan.connections);
    Ok(median(&each.iter().map(|batch| runs(batch) / n).collect::<Vec<_>>()))
}

fn batches(meter: &Meter, plan: Plan, mut work: impl FnMut() -> Result<()>) -> Result<Vec<Batch>> {
    let mut batch = || meter.over(|| (0..plan.connections).try_for_each(|_| work()));
    (0..plan.batches).map(|_| Ok(batch()?.0)).collect()
}
