//! axum behind the listener: answers a request with its body. Whoever is too much gets a 503.
//! Ctrl-C: takes nobody more, answers what was asked, and ends.

use std::error::Error;

use axum::{Router, body::Bytes};
use backlogd_shed::{AcceptError, OnShed, ShedListener};
use tokio::signal;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let on_shed = OnShed::http_503();
    let listener = ShedListener::bind("127.0.0.1:8080").soft(1_000).on_shed(on_shed).build()?;
    serve(listener, async { drop(signal::ctrl_c().await) }).await
}

/// Serves until `stop` ends, and then those who have asked.
pub(crate) async fn serve(
    listener: ShedListener,
    stop: impl Future<Output = ()> + Send + 'static,
) -> Result<(), Box<dyn Error>> {
    let app = Router::new().fallback(|body: Bytes| async { body });
    let (handle, ending) = (listener.handle(), listener.handle());
    let end = async move {
        tokio::select! {
            () = stop => {}
            // axum would wait for ever
            _ = ending.ended() => {}
        }
    };
    axum::serve(listener, app).with_graceful_shutdown(end).await?;
    match handle.ended().await {
        AcceptError::Closed => Ok(()),
        err => Err(err.into()),
    }
}
