//! Says to each peer what it says; above 1,000 of them, sheds. Ctrl-C: takes nobody more, and ends
//! when the last has left.

use std::error::Error;

use backlogd_shed::{AcceptError, ShedListener, ShedStream};
use tokio::{
    io::{self, AsyncWriteExt as _},
    signal,
    task::JoinSet,
};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let listener = ShedListener::bind("127.0.0.1:7007").soft(1_000).build()?;
    serve(listener, async { drop(signal::ctrl_c().await) }).await
}

/// Serves until `stop` ends, and then those who are there.
pub(crate) async fn serve(
    mut listener: ShedListener,
    stop: impl Future<Output = ()>,
) -> Result<(), Box<dyn Error>> {
    let mut tasks = JoinSet::new();
    tokio::pin!(stop);
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok(conn) => drop(tasks.spawn(echo(conn))),
                Err(AcceptError::Closed) => break,
                Err(err) => return Err(err.into()),
            },
            Some(_) = tasks.join_next() => {}
            () = &mut stop => break,
        }
    }
    drop(listener); // who connects is refused
    tasks.join_all().await;
    Ok(())
}

async fn echo(conn: ShedStream) -> io::Result<()> {
    let (mut reader, mut writer) = io::split(conn);
    io::copy(&mut reader, &mut writer).await?;
    writer.shutdown().await
}
