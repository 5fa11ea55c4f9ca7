//! hyper behind the listener: answers a request with its body. Whoever is too much gets a 503.
//! Ctrl-C: takes nobody more, answers what was asked, and ends.

use std::{convert::Infallible, error::Error};

use backlogd_shed::{AcceptError, OnShed, ShedListener};
use hyper::{Request, Response, body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::{rt::TokioIo, server::graceful::GracefulShutdown};
use tokio::signal;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let on_shed = OnShed::http_503();
    let listener = ShedListener::bind("127.0.0.1:8080").soft(1_000).on_shed(on_shed).build()?;
    serve(listener, async { drop(signal::ctrl_c().await) }).await
}

/// Serves until `stop` ends, and then those who have asked.
pub(crate) async fn serve(
    mut listener: ShedListener,
    stop: impl Future<Output = ()>,
) -> Result<(), Box<dyn Error>> {
    let graceful = GracefulShutdown::new();
    tokio::pin!(stop);
    loop {
        let conn = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok(conn) => conn,
                Err(AcceptError::Closed) => break,
                Err(err) => return Err(err.into()),
            },
            () = &mut stop => break,
        };
        let serving = http1::Builder::new().serve_connection(TokioIo::new(conn), service_fn(echo));
        tokio::spawn(graceful.watch(serving));
    }
    drop(listener); // who connects is refused
    graceful.shutdown().await;
    Ok(())
}

async fn echo(request: Request<Incoming>) -> Result<Response<Incoming>, Infallible> {
    Ok(Response::new(request.into_body()))
}
